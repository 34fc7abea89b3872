"""System calls by number, files of /proc: what several attacks use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from .attack import STORAGE, Target

libc = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"

SYSTEM_CALLS = {  # name: (x86-64, arm64)
    "add_key": (248, 217), "bpf": (321, 280), "clone": (56, 220), "clone3": (435, 435), "finit_module": (313, 273),
    "fsopen": (430, 430), "getpid": (39, 172), "io_uring_setup": (425, 425), "ioctl": (16, 29), "kcmp": (312, 272),
    "kexec_load": (246, 104), "keyctl": (250, 219), "mount": (165, 40), "move_mount": (429, 429),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241), "personality": (135, 92),
    "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "process_vm_readv": (310, 270), "ptrace": (101, 117),
    "setns": (308, 268), "socket": (41, 198), "swapon": (167, 224), "syslog": (103, 116), "umount2": (166, 39),
    "unshare": (272, 97), "userfaultfd": (323, 282),
}  # fmt: skip


def call(name: str, *arguments: Any) -> int:
    """A system call by its name, past any wrapper. x86-64 and arm64."""
    number = SYSTEM_CALLS[name][0 if X86 else 1]
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return int(result)


def allowed_call() -> Any:
    """The control of calls that no session may make: one that every program makes, in the same way."""
    return call("getpid")


def in_child(function: Callable[[], Any]) -> str:
    """For attempts that would change this process."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
        except BaseException:
            os._exit(255)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(abs(code), os.strerror(abs(code)))
    return "done"


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(200)


def lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


def first_in(folder: str) -> str:
    """A name in the folder, but session storage's. Raises LookupError where there is none."""
    names = [f"{folder}/{name}" for name in os.listdir(folder) if f"{folder}/{name}" != STORAGE]
    if not names:
        raise LookupError(f"{folder} is empty")
    return names[0]


def write(path: str) -> str:
    existed = os.path.lexists(path)
    with open(path, "r+b" if existed else "wb") as file:
        if not existed:
            file.write(b"x")
    return f"opened {path} for writing"


def visible_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def foreign(target: Target) -> list[int]:
    """Pids that are somebody else's. One of that number may be ours by chance."""
    return target.pids if target.control else [pid for pid in target.pids if not ours(pid, target)]


def ours(pid: int, target: Target) -> bool:
    """Whether this process or the session's agent, one below them, or one above them (the session's own init)."""
    known = [own for own in (os.getpid(), target.own.agent) if own]
    return any(own in lineage(pid) or pid in lineage(own) for own in known)


def lineage(pid: int) -> list[int]:
    """A process, or the one a thread belongs to, and those above it, as far as they can be seen."""
    found: list[int] = []
    try:
        pid = int(next(line for line in lines(f"/proc/{pid}/status") if line.startswith("Tgid:")).split()[1])
        while pid not in (0, *found):
            found.append(pid)
            pid = int(lines(f"/proc/{pid}/stat")[0].rpartition(")")[2].split()[1])
    except OSError:
        pass
    return found
