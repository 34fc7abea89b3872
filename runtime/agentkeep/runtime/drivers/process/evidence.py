"""What the kernel says of a sealed session, read from outside, before it is given any secret."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "NAMESPACES",
    "NotSealed",
    "Sealed",
    "catches",
    "inhabits",
    "inspect_command",
    "inspect_fork_server",
    "inspect_session",
    "pid_of_fork_server",
]

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
SIOCGSKNS = 0x894C  # linux/sockios.h: the network namespace a socket belongs to
_NO_CAPABILITY = "0" * 16
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_DEVICES = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
# Where a session may write, and what must be mounted there for nobody else to see it.
_PRIVATE = {
    "/tmp": "tmpfs", "/home": "tmpfs", "/run": "tmpfs", "/dev/shm": "tmpfs", "/var/tmp": "tmpfs",  # noqa: S108
    "/proc": "proc", "/dev/pts": "devpts",
}  # fmt: skip

type_of_namespace = tuple[str, int, int]  # kind, device, inode


class NotSealed(Exception):
    """The sandbox is not what it should be; says in what."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """`namespaces` and `devices` (of writable file systems) identify what must belong to this session alone.
    `inner_pid`: its pid as its fork server sees it."""

    inner_pid: int
    namespaces: frozenset[type_of_namespace]
    devices: frozenset[str]


def inspect_session(
    pid: int, uid: int, sockets: Iterable[socket.socket], descriptors: set[int], storage: Iterable[str] = ()
) -> Sealed:
    """`storage`: where, besides the usual places, it has a writable folder of its own. Blocking. Raises NotSealed at
    the first surprise, OSError if the process is gone."""
    process = Path(f"/proc/{pid}")
    pids, namespaces = _sealed(process, uid, descriptors)
    if pids[-1] != 1:
        raise NotSealed(f"process ids {pids}: expected PID 1 of a nested namespace")
    network = namespaces["net"]
    for one in sockets:
        descriptor = fcntl.ioctl(one.fileno(), SIOCGSKNS)
        try:
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if (found.st_dev, found.st_ino) != network:
            raise NotSealed("a socket it handed over is not of its network namespace")
    return Sealed(
        inner_pid=pids[-2],
        namespaces=_named(namespaces),
        devices=_writable_devices(process, _PRIVATE | dict.fromkeys(storage, "tmpfs")),
    )


def inspect_command(pid: int, uid: int, session: Sealed, descriptors: set[int]) -> None:
    """A process that has entered a living session: as tightly sealed as the session itself, and in no namespace but
    the session's. Blocking; raises NotSealed, OSError."""
    _, namespaces = _sealed(Path(f"/proc/{pid}"), uid, descriptors)
    if _named(namespaces) != session.namespaces:
        raise NotSealed(f"in other namespaces than the session: {_named(namespaces) ^ session.namespaces}")


def pid_of_fork_server(pid: int) -> int:
    """The pid of a session's process, as the fork server sees it. Blocking; raises NotSealed, OSError."""
    pids = _status(Path(f"/proc/{pid}"))["NSpid"].split()
    if len(pids) < 3:
        raise NotSealed(f"process ids {pids}: expected those of a nested namespace")
    return int(pids[-2])


def _sealed(process: Path, uid: int, descriptors: set[int]) -> tuple[list[int], Mapping[str, tuple[int, int]]]:
    """Its pids, the host's first, and its namespaces."""
    status = _status(process)
    _no_privileges(status, _CAPABILITY_SETS)
    _expect(status["Seccomp"], "2", "seccomp mode")
    _expect(status.get("Seccomp_filters", "2"), "2", "seccomp filters")
    _expect(status["Threads"], "1", "threads")
    _expect(status["Uid"].split(), [str(uid)] * 4, "user ids")
    pids = [int(text) for text in status["NSpid"].split()]
    if len(pids) < 3:
        raise NotSealed(f"process ids {pids}: expected those of a nested namespace")
    mapping = (process / "uid_map").read_text().split()
    if len(mapping) != 3 or mapping[2] != "1":
        raise NotSealed(f"more than one user id is mapped: {mapping}")
    namespaces = {kind: _identity(process / "ns" / kind) for kind in NAMESPACES}
    for kind, identity in namespaces.items():
        if identity == _identity(Path("/proc/self/ns", kind)):
            raise NotSealed(f"the {kind} namespace is the platform's")
    opened = {int(name) for name in os.listdir(process / "fd")}
    if opened != descriptors:
        raise NotSealed(f"open descriptors {sorted(opened)}, expected {sorted(descriptors)}")
    for line in (process / "maps").read_text().splitlines():
        permissions = line.split(maxsplit=2)[1]
        if "w" in permissions and permissions.endswith("s"):
            raise NotSealed(f"memory shared for writing: {line}")
    return pids, namespaces


def _named(namespaces: Mapping[str, tuple[int, int]]) -> frozenset[type_of_namespace]:
    return frozenset((kind, *identity) for kind, identity in namespaces.items())


def inspect_fork_server(pid: int, uid: int) -> None:
    """A fork server holds no power either. Blocking; raises NotSealed."""
    process = Path(f"/proc/{pid}")
    status = _status(process)
    _no_privileges(status, ("CapPrm", "CapEff", "CapAmb"))
    _expect(status["Uid"].split(), [str(uid)] * 4, "user ids")
    for kind in ("mnt", "pid", "net", "ipc", "uts"):
        if _identity(process / "ns" / kind) == _identity(Path("/proc/self/ns", kind)):
            raise NotSealed(f"the fork server's {kind} namespace is the platform's")
    writable = _writable_mounts(process) - _DEVICES - {"/proc", "/dev/pts"}
    if writable:
        raise NotSealed(f"the fork server can write to {sorted(writable)}, which sessions would share")


def inhabits(pid: int, session: Sealed) -> bool:
    """Whether the session's process is still in its namespaces. One that ends leaves them, and the kernel gives their
    numbers away, before anybody is told of its end. (Those of users and process ids it keeps to the last.) Blocking."""
    try:
        return all(
            _identity(Path(f"/proc/{pid}/ns/{kind}")) == (device, inode)
            for kind, device, inode in session.namespaces
            if kind not in ("user", "pid")
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


def catches(pid: int, signal: int) -> bool:
    """Whether the process handles the signal. PID 1 of a namespace never sees one that it does not."""
    try:
        caught = int(_status(Path(f"/proc/{pid}"))["SigCgt"], 16)
    except (OSError, KeyError):
        return False
    return bool(caught >> (signal - 1) & 1)


def _status(process: Path) -> Mapping[str, str]:
    lines = (process / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _no_privileges(status: Mapping[str, str], sets: Iterable[str]) -> None:
    for name in sets:
        _expect(status[name], _NO_CAPABILITY, name)
    _expect(status["NoNewPrivs"], "1", "no_new_privs")


def _expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise NotSealed(f"{what}: {found}, expected {wanted}")


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _writable_devices(process: Path, private: Mapping[str, str]) -> frozenset[str]:
    devices = set()
    for point, kind, device in _mounts(process):
        wanted = private.get(point)
        if point in _DEVICES or (point.startswith("/proc/") and kind in ("devtmpfs", "tmpfs")):
            continue  # device nodes: nothing is kept in them
        if kind != wanted:
            raise NotSealed(f"writable file system at {point} ({kind})")
        devices.add(device)
    return frozenset(devices)


def _writable_mounts(process: Path) -> set[str]:
    return {point for point, _, _ in _mounts(process)}


def _mounts(process: Path) -> list[tuple[str, str, str]]:
    """(mount point, type, device) of what is mounted writable, the topmost at each point only."""
    seen: dict[str, tuple[bool, str, str]] = {}
    for line in (process / "mountinfo").read_text().splitlines():
        mount, _, system = line.partition(" - ")
        _, _, device, _, point, options, *_ = mount.split(" ")
        kind, _, of_superblock = system.split(" ", 2)
        writable = "rw" in options.split(",") and "rw" in of_superblock.split(",")
        seen[point] = (writable, kind, device)
    return [(point, kind, device) for point, (writable, kind, device) in seen.items() if writable]
