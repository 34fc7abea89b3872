"""Linux calls that Python 3.11 does not wrap, by ctypes. Each raises OSError naming the call."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

libc = ctypes.CDLL(None, use_errno=True)

# sched.h
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
# sys/mount.h
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
# sys/prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 28, 36, 38, 47
_MOST_DESCRIPTORS = 16  # of one message to us
# net/if.h, linux/sockios.h
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    _check(libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    _check(libc.setns(descriptor, kind), "setns")


def prctl(option: int, *arguments: int) -> None:
    padded = [*arguments, 0, 0, 0, 0][:4]
    _check(libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)), f"prctl({option})")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def loopback_up(address: str) -> None:
    """Brings `lo` up and gives it `address` besides 127.0.0.1."""

    def sockaddr(text: str) -> bytes:
        return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up_running = 0x1 | 0x40
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", up_running))
        fcntl.ioctl(any_socket, SIOCSIFADDR, struct.pack("16s16s", b"lo:1", sockaddr(address)))
        fcntl.ioctl(any_socket, SIOCSIFNETMASK, struct.pack("16s16s", b"lo:1", sockaddr("255.255.255.255")))


def map_own_id(inside: int, outside: int) -> None:
    """Maps the one user and group id this process has in its new user namespace."""
    prctl(PR_SET_DUMPABLE, 1)  # after a change of uid /proc/self belongs to the host's root
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {outside} 1"),
        ("gid_map", f"{inside} {outside} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def drop_capabilities() -> None:
    """Empties all five sets and locks the ways to fill them again."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # beyond the last one this kernel knows
    clear_all = 4
    prctl(PR_CAP_AMBIENT, clear_all)
    all_bits_locked = 0xEF  # no root, no setuid fix-up, no ambient
    prctl(PR_SET_SECUREBITS, all_bits_locked)
    version_3 = 0x20080522
    header = ctypes.create_string_buffer(struct.pack("Ii", version_3, 0))
    _check(libc.capset(header, ctypes.create_string_buffer(24)), "capset")


def load_filters(programs: list[bytes]) -> None:
    """Loads seccomp programs (arrays of struct sock_filter). The strictest answer of all counts."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    for program in programs:
        code = ctypes.create_string_buffer(program, len(program))
        header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
        filter_mode = 2
        prctl(PR_SET_SECCOMP, filter_mode, ctypes.addressof(header))


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it; b"" when the other end is closed."""
    size = struct.calcsize("i")
    data, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(_MOST_DESCRIPTORS * size), socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            count = len(payload) // size
            descriptors.extend(struct.unpack(f"{count}i", payload[: count * size]))
    return data, descriptors


def read_all(descriptor: int) -> bytes:
    """The whole of a file in memory, which is then closed."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
