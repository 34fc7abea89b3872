# ruff: noqa: S108 -- places that every session has are what this is about.
"""What a session in a container must not be able to reach, besides what no session must."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from .attack import CONTAINER, STORAGE, Blocked, Target, any_of, attack
from .kernel import first_in, lines
from .network import connected, place


@attack(CONTAINER)
def beyond_its_network(target: Target) -> Any:
    """The internet, a neighbouring machine, the engine's own bridge."""
    hosts = ["192.0.2.1:443", "10.0.0.1:443", "172.17.0.1:443", "1.1.1.1:443"]
    return any_of([partial(connected, place(one)) for one in target.aim(hosts, target.places)])


@attack(CONTAINER)
def neighbours(target: Target) -> Any:
    """The agents of other sessions, by their addresses, on the ports they listen on."""
    ports = [8080, *target.ports[:1]]
    addresses = [address for address in target.addresses if address][:6]
    if not addresses:
        raise RuntimeError("no address of a neighbour is known")
    places = [(address, port) for address in addresses for port in ports]
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    return any_of([partial(connected, one, kind) for kind in kinds for one in places])


@attack(CONTAINER)
def names_of_the_world(target: Target) -> Any:
    """Resolve a name: a query carries data out as well as a connection does."""
    attempts: list[Callable[[], Any]] = [
        partial(socket.getaddrinfo, name, 443) for name in ("example.org", "example.com")
    ]
    attempts += [partial(connected, ("192.0.2.53", 53), socket.SOCK_DGRAM)]
    return any_of(target.aim(attempts, [partial(socket.getaddrinfo, "localhost", 443)]))


@attack(CONTAINER)
def a_neighbours_address(target: Target) -> Any:
    """Reach the session endpoint as a neighbour, by binding to his address (IP_FREEBIND, IP_TRANSPARENT)."""

    def forged(address: str, option: int) -> bytes:
        with socket.socket() as client:
            client.settimeout(2)
            client.setsockopt(socket.IPPROTO_IP, option, 1)
            client.bind((address, 0))
            client.connect(("169.254.170.2", 80))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = client.recv(1000)
            if not answer:
                raise Blocked("no answer")
            return answer

    addresses = [address for address in target.addresses if address][:1]
    if not addresses:
        raise RuntimeError("no address of a neighbour is known")
    return any_of([partial(forged, addresses[0], option) for option in (15, 19)])


@attack(CONTAINER)
def power_over_the_interface(target: Target) -> Any:
    """Change one's address, take the interface down, set a neighbour's hardware address (ARP)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        internet = struct.pack("H2s4s8x", socket.AF_INET, b"", socket.inet_aton("169.254.170.9"))
        hardware = struct.pack("H14s", 1, b"\x02\x00\x00\x00\x00\x01")
        attempts = [
            (0x8916, struct.pack("16s", b"eth0") + internet),  # SIOCSIFADDR
            (0x8914, struct.pack("16sH14x", b"eth0", 0)),  # SIOCSIFFLAGS
            (0x8955, internet + hardware + struct.pack("i16s16s", 6, b"", b"eth0")),  # SIOCSARP
        ]
        flags = (0x8913, struct.pack("16sH14x", b"lo", 0))  # SIOCGIFFLAGS: reading is allowed
        return any_of([partial(fcntl.ioctl, any_socket, *one) for one in target.aim(attempts, [flags])])


@attack(CONTAINER)
def ipv6(target: Target) -> Any:
    """An address the rules, which are IPv4's, do not cover."""
    (path,) = target.aim(["/proc/net/if_inet6"], ["/proc/net/dev"])
    found = [line for line in lines(path) if target.control or line.split()[-1] != "lo"]
    if not found:
        raise Blocked("none")
    return found


@attack(CONTAINER)
def the_hypervisor(target: Target) -> Any:
    """vsock is not tied to the network namespace."""

    def reached(family: int, address: Any) -> str:
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(1)
            client.connect(address)
        return str(address)

    machines: list[tuple[int, Any]] = [(40, (cid, 52)) for cid in (0, 1, 2)]
    attempts = target.aim(machines, [(socket.AF_INET, place(target.places[0]) if target.places else ("", 0))])
    return any_of([partial(reached, *one) for one in attempts])


@attack(CONTAINER)
def accounts_of_the_host(target: Target) -> Any:
    """Files that say something of the host, and not of the image."""

    def said(path: str) -> list[str]:
        found = [line for line in lines(path) if line.strip() and not line.startswith(("#", "uninitialized"))]
        if not found:
            raise Blocked("nothing is in it")
        return found

    files = ("/etc/shadow", "/etc/machine-id", "/etc/fstab", "/var/lib/dbus/machine-id")
    return any_of([partial(said, path) for path in target.aim(files, [target.own.file])])


@attack(CONTAINER)
def mounts_of_the_host(target: Target) -> Any:
    """A file system that can be written and is not the session's own memory: volumes, folders of the host, the root."""
    own = target.aim(["/tmp", "/var/tmp", "/run", "/dev/shm", "/dev", "/dev/pts", "/dev/mqueue", "/proc",
                      "/dev/console", STORAGE], [])  # fmt: skip
    found = []
    for line in lines("/proc/self/mountinfo"):
        point, options = line.split()[4:6]
        known = point in own or point.startswith("/proc/")
        # The engine's own three files (/etc/hosts, ...) are made for this container, and its user may not write them.
        if "rw" in options.split(",") and not known and os.access(point, os.W_OK):
            found.append(line.strip())
    if os.access("/", os.W_OK):
        found.append("the root is writable")
    if not found:
        raise Blocked("none")
    return found


@attack(CONTAINER)
def image_layers(target: Target) -> Any:
    """Reach the layers of this container, or of others, where the engine keeps them."""
    folders = {"/var/lib/docker", "/var/lib/containerd", "/var/lib/containers"}
    for line in lines("/proc/self/mountinfo"):
        folders.update(re.findall(r"(?:upperdir|workdir|lowerdir)=([^,: ]+)", line))
    return any_of([partial(first_in, path) for path in target.aim(sorted(folders), [target.own.folder])])


@attack(CONTAINER)
def devices(target: Target) -> Any:
    """A disk, the memory or another device of the host."""
    names = ("vda", "sda", "nvme0n1", "mem", "kmsg", "kvm", "fuse", "net/tun", "vsock")

    def opened(name: str) -> str:
        with open(f"/dev/{name}", "rb", 0):
            return name

    return any_of([partial(opened, name) for name in target.aim(names, ["null"])])


@attack(CONTAINER)
def root_on_the_host(target: Target) -> Any:
    """Be the user the host calls root."""
    inside, outside, _ = lines("/proc/self/uid_map")[0].split()
    roots = target.aim([0], [os.getuid() - int(inside) + int(outside)])
    if os.getuid() - int(inside) + int(outside) not in roots:
        raise Blocked("another user")
    return os.getuid()
