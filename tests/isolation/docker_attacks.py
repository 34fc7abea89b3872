"""What a session in a container must not be able to reach: one function for each attempt, as in `attacks.py`."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from typing import Any

from attacks import ATTACKS, Blocked, Target, answer_of, any_of, attack

# Attempts of attacks.py that a container answers otherwise, and what stands in their place below.
NOT_HERE = {
    "a_way_out": "has a route to its own network: `beyond_its_network`, `the_metadata_address`, `neighbours`",
    "other_interfaces": "has one, eth0: `power_over_the_interface`",
    "the_session_endpoint_itself": "may bind what is its own namespace's: `the_platforms_address`",
    "folders_of_the_kernel": "sees /sys, read-only and masked: `write_to_sys`",
    "host_configuration": "/.dockerenv is the engine's mark; accounts are the image's: `accounts_of_the_host`",
    "host_folders": "the image's own folders: `mounts_of_the_host`",
    "change_what_is_shared": "names files of the process driver's sandbox: `writable_mounts_that_are_not_ours`",
    "environment_of_process_one": "names variables of the process driver's launcher: `process_one`",
    "processes_of_others": "sees docker-init, its own PID 1: `process_one`",
    "writable_mounts_that_are_not_ours": "names other mounts: `mounts_of_the_host`",
    "files_beside_the_interpreter": "the image's own folders",
    "masked_parts_of_proc": "some exist and are empty or zero: `write_to_sys`",
    "unexpected_devices": "the engine's own /dev, without block devices: `devices`",
    "inherited_descriptors": "the agent's own log pipes",
    "limits_of_others": "a number may be our own PID 1's child",
    "typing_into_terminals": "its own terminal only, which nobody reads",
}


def connected(address: tuple[str, int], kind: int = socket.SOCK_STREAM) -> str:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.settimeout(0.4)
        probe.connect(address)
        if kind == socket.SOCK_DGRAM:
            probe.send(b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01")
            probe.recv(100)
    return f"reached {address}"


@attack
def beyond_its_network(target: Target) -> Any:
    """The internet, a neighbouring machine."""
    return any_of([lambda host=host: connected((host, 443)) for host in ("192.0.2.1", "10.0.0.1", "172.17.0.1")])


@attack
def the_metadata_address(target: Target) -> Any:
    """Cloud credentials of the machine."""
    return any_of([lambda host=host: connected((host, 80)) for host in ("169.254.169.254", "169.254.170.23")])


@attack
def neighbours(target: Target) -> Any:
    """The agents of other sessions, by their addresses, on any port they listen on."""
    addresses = [address for address in os.environ["NEIGHBOURS"].split(",") if address]
    assert addresses
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    return any_of(
        [lambda host=host, kind=kind: connected((host, 8080), kind) for host in addresses[:6] for kind in kinds]
    )


@attack
def ports_of_the_host(target: Target) -> Any:
    """What the host serves on all its addresses, or on the bridge's, but for the session endpoint."""
    host, ports = "169.254.170.2", [*map(int, os.environ["HOST_PORTS"].split(",")), 22, 443, 2375, 4780]
    others = [address for address in os.environ["HOST_ADDRESSES"].split(",") if address]
    return any_of(
        [lambda port=port: connected((host, port)) for port in ports]
        + [lambda port=port: connected((host, port), socket.SOCK_DGRAM) for port in (53, *ports[:1])]
        + [lambda one=one: connected((one, ports[0])) for one in others]
    )


@attack
def the_services(target: Target) -> Any:
    """Planes and stores where they are containers, too: on the network of sessions, and on their own."""
    places = [("169.254.170.2", port) for port in (22, 8080, 8081)]
    for place in filter(None, os.environ.get("SERVICES", "").split(",")):
        host, _, port = place.partition(":")
        places.append((host, int(port)))
    return any_of([lambda place=place: connected(place) for place in places])


@attack
def names_of_the_world(target: Target) -> Any:
    """Resolve a name: a query carries data out as well as a connection does."""

    def asked(server: str) -> str:
        return connected((server, 53), socket.SOCK_DGRAM)

    def resolved(name: str) -> Any:
        return socket.getaddrinfo(name, 443)

    return any_of([lambda: resolved("example.org"), lambda: resolved("example.com"), lambda: asked("192.0.2.53")])


@attack
def the_engine(target: Target) -> Any:
    """The Docker socket: root on the host."""
    sockets = ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", os.environ["SOCKET"])
    return any_of([lambda path=path: answer_of(socket.AF_UNIX, path) for path in sockets])


@attack
def raw_sockets(target: Target) -> Any:
    """Forge a neighbour's address, or read the bridge: packet and raw IP sockets."""
    kinds = [(socket.AF_PACKET, socket.SOCK_RAW, 3), (socket.AF_INET, socket.SOCK_RAW, 1), (2, 3, 255)]
    return any_of([lambda kind=kind: str(socket.socket(*kind)) for kind in kinds])


@attack
def a_neighbours_address(target: Target) -> Any:
    """Reach the session endpoint as a neighbour, by binding to his address (IP_FREEBIND, IP_TRANSPARENT)."""

    def forged(address: str, option: int) -> bytes:
        with socket.socket() as client:
            client.settimeout(2)
            client.setsockopt(socket.IPPROTO_IP, option, 1)
            client.bind((address, 0))
            client.connect(("169.254.170.2", 80))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return client.recv(1000)

    address = os.environ["NEIGHBOURS"].split(",")[0]
    return any_of([lambda option=option: forged(address, option) for option in (15, 19)])


@attack
def power_over_the_interface(target: Target) -> Any:
    """Change one's address, take the interface down, add a route."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        address = struct.pack("16sH2s4s8x", b"eth0", socket.AF_INET, b"", socket.inet_aton("169.254.170.9"))
        attempts = [(0x8916, address), (0x8914, struct.pack("16sH14x", b"eth0", 0))]
        return any_of([lambda one=one: fcntl.ioctl(any_socket, *one) for one in attempts])


@attack
def the_platforms_address(target: Target) -> Any:
    """Answer for the platform to other sessions: hold its address."""
    with socket.socket() as server:
        server.bind(("169.254.170.2", 80))
    return "bound"


@attack
def ipv6(target: Target) -> Any:
    """An address the rules, which are IPv4's, do not cover."""
    with open("/proc/net/if_inet6") as file:
        found = [line for line in file if not line.endswith("lo\n")]
    if not found:
        raise Blocked("none")
    return found


@attack
def the_hypervisor(target: Target) -> Any:
    """vsock is not tied to the network namespace."""
    return any_of([lambda cid=cid: answer_of(socket.AF_VSOCK, (cid, 52)) for cid in (0, 1, 2)])


@attack
def accounts_of_the_host(target: Target) -> Any:
    """Files that are the host's and not the image's."""
    return any_of([lambda path=path: open(path).read(1) for path in ("/etc/shadow", "/etc/machine-id", "/etc/fstab")])


@attack
def mounts_of_the_host(target: Target) -> Any:
    """A file system that can be written and is not the session's own memory."""
    own = {"/tmp", "/var/tmp", "/run", "/dev/shm", "/dev", "/dev/pts", "/dev/mqueue", "/proc", "/dev/console"}
    found = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            point, options = line.split()[4:6]
            if "rw" in options.split(",") and point not in own and not point.startswith("/proc/"):
                found.append(line.strip())
    try:
        with open("/left-behind", "w"):
            found.append("the root is writable")
    except OSError:
        pass
    left = []
    for line in found:
        try:
            # The engine's own three files: made for this container alone, and its user may not write them.
            with open(line.split()[4], "r+b"):
                left.append(line)
        except (OSError, IndexError):
            pass
    if not left:
        raise Blocked("none")
    return left


@attack
def write_to_sys(target: Target) -> Any:
    """Kernel settings and control groups."""
    paths = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max", "/sys/kernel/uevent_helper",
             "/sys/fs/cgroup/pids/pids.max", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger")  # fmt: skip
    return any_of([lambda path=path: open(path, "r+b", 0).fileno() for path in paths])


@attack
def process_one(target: Target) -> Any:
    """A process that is neither docker-init nor our own; what docker-init was given and we were not."""
    strangers = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline") as file:
                line = file.read()
        except OSError:
            continue
        if not any(word in line for word in ("docker-init", "python", "sh", "sleep")):
            strangers.append(line)
    if not strangers:
        raise Blocked("none")
    return strangers


@attack
def devices(target: Target) -> Any:
    """A disk of the host, or making one."""
    paths = [f"/dev/{name}" for name in ("vda", "sda", "nvme0n1", "mem", "kmsg", "kvm", "fuse", "net/tun", "vsock")]
    return any_of([lambda path=path: open(path, "rb").fileno() for path in paths])


@attack
def root_on_the_host(target: Target) -> Any:
    """Be a user the host, or a neighbour, has, too."""
    if os.getuid() >= 0x69000000 and os.getuid() == os.getgid() and os.getgroups() in ([], [os.getgid()]):
        raise Blocked("a user of its own")
    return os.getuid(), os.getgid(), os.getgroups()


@attack
def su(target: Target) -> Any:
    """Gain anything from a program that belongs to root and is setuid."""
    ran = subprocess.run(["/usr/bin/su", "-c", "id", "root"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if "uid=0" not in ran.stdout:
        raise Blocked(ran.stderr)
    return ran.stdout


for name in NOT_HERE:
    del ATTACKS[name]
