# ruff: noqa: S104 -- places that every session has are what this is about.
"""The network: of neighbours, of the host, and beyond."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from functools import partial
from typing import Any

from .attack import CONTAINER, PROCESS, Target, any_of, attack
from .kernel import call


def answer_of(family: int, address: Any) -> bytes:
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect(address)
        return client.recv(100)


def connected(address: tuple[str, int], kind: int = socket.SOCK_STREAM) -> str:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.settimeout(0.4)
        probe.connect(address)
        if kind == socket.SOCK_DGRAM:
            probe.send(b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01")
            probe.recv(100)
    return f"reached {address}"


def place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


@attack()
def abstract_sockets_of_others(target: Target) -> Any:
    """Connect to Unix sockets that have no file."""
    return any_of([partial(answer_of, socket.AF_UNIX, f"\0{name}") for name in target.names])


@attack()
def loopback_ports_of_others(target: Target) -> Any:
    """Connect to what neighbours and the host serve on loopback."""
    return any_of([partial(answer_of, socket.AF_INET, ("127.0.0.1", port)) for port in target.ports])


@attack()
def sockets_of_the_engine(target: Target) -> Any:
    """The container engine's socket: root on the host."""
    sockets = ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
               "/run/agentkeep-docker/docker.sock", *target.files)  # fmt: skip

    def reached(path: str) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(path)
        return path

    return any_of([partial(reached, path) for path in target.aim(sockets, target.files)])


@attack(PROCESS)
def a_way_out(target: Target) -> Any:
    """Any route beyond loopback: IPv4, IPv6, link-local metadata services."""

    def route(family: int, address: Any) -> str:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
        return str(address)

    beyond = [
        (socket.AF_INET, ("192.0.2.1", 9)),
        (socket.AF_INET, ("169.254.169.254", 80)),
        (socket.AF_INET, ("169.254.170.3", 80)),
        (socket.AF_INET6, ("2001:db8::1", 9)),
        (socket.AF_INET6, ("fe80::1", 9, 0, 1)),
    ]
    return any_of([partial(route, *one) for one in target.aim(beyond, [(socket.AF_INET, ("127.0.0.1", 9))])])


@attack()
def the_metadata_address(target: Target) -> Any:
    """Cloud credentials of the machine."""
    hosts = ["169.254.169.254:80", "169.254.170.23:80", "169.254.171.254:80"]
    return any_of([partial(connected, place(one)) for one in target.aim(hosts, target.places)])


@attack()
def ports_of_the_host(target: Target) -> Any:
    """What the host, the platform and its stores serve, at every known address, but for the session endpoint."""
    known = (22, 443, 2375, 4780, 5432, 6379, 8080, 8081, 9200)
    places = [*target.places, *(f"169.254.170.2:{port}" for port in known)]
    places = [one for one in places if not at_home(place(one)[0])]
    attempts = [partial(connected, place(one)) for one in target.aim(places, target.places)]
    if not at_home("169.254.170.2"):
        attempts.append(partial(connected, ("169.254.170.2", 53), socket.SOCK_DGRAM))
    return any_of(attempts)


def at_home(address: str) -> bool:
    """Whether it is this session's own address: what listens there is in its own namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


@attack(PROCESS)
def other_interfaces(target: Target) -> Any:
    """An interface besides loopback, or the power to change loopback."""
    innocent = target.aim(["lo"], [])
    extra = [name for _, name in socket.if_nameindex() if name not in innocent]
    if extra:
        return extra
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0))
    return "took lo down"


def listening(address: tuple[str, int]) -> str:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(address)
        server.listen()
    return f"listened on {address}"


@attack(PROCESS)
def the_session_endpoint_itself(target: Target) -> Any:
    """Take over the address at which the platform vends credentials; bind a privileged port."""
    addresses = [("169.254.170.2", 80), ("0.0.0.0", 80), ("127.0.0.1", 81)]
    return any_of([partial(listening, one) for one in target.aim(addresses, [("127.0.0.1", 0)])])


@attack(CONTAINER)
def the_platforms_address(target: Target) -> Any:
    """Answer for the platform to other sessions: hold its address."""
    addresses = [("169.254.170.2", 80), ("169.254.170.2", 8080)]
    return any_of([partial(listening, one) for one in target.aim(addresses, [("127.0.0.1", 0)])])


@attack()
def socket_families(target: Target) -> Any:
    """vsock (not tied to the network namespace), packet, netlink-alike, crypto, Bluetooth, raw IP."""
    kinds = [(40, 1, 0), (17, 3, 0), (38, 5, 0), (31, 3, 0), (29, 3, 1), (44, 2, 0), (21, 5, 0), (2, 3, 1), (10, 3, 58),
             (2, 3, 255)]  # fmt: skip

    def made(kind: tuple[int, int, int]) -> str:
        with socket.socket(*kind):
            return str(kind)

    return any_of([partial(made, kind) for kind in target.aim(kinds, [(2, 1, 0)])])


@attack()
def family_numbers_beyond_32_bits(target: Target) -> Any:
    """A family number whose upper half the kernel drops, to slip past a filter that compares all of it."""
    (family,) = target.aim([(1 << 32) | 40], [socket.AF_INET])
    descriptor = call("socket", ctypes.c_ulong(family), 1, 0)
    os.close(descriptor)
    return descriptor


@attack(PROCESS)
def typing_into_terminals(target: Target) -> Any:
    """TIOCSTI puts characters into a terminal's input; also with an upper half the kernel drops."""
    master, slave = os.openpty()

    def pushed(request: int) -> str:
        call("ioctl", slave, ctypes.c_ulong(request), ctypes.create_string_buffer(b"x", 64))
        return hex(request)

    try:
        requests = target.aim([0x5412, (1 << 32) | 0x5412], [0x5413])  # own: TIOCGWINSZ
        return any_of([partial(pushed, one) for one in requests])
    finally:
        os.close(master)
        os.close(slave)
