# ruff: noqa: S108 -- places that every session has are what this is about.
"""Processes and memory: of neighbours, of the fork server, of the platform."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from .attack import PROCESS, Blocked, Target, any_of, attack, unmasked
from .kernel import allowed_call, call, foreign, libc, lines, ours, read, visible_pids


@attack()
def processes_of_others(target: Target) -> Any:
    """See any process that is not this session's own."""
    pids = visible_pids()
    strangers = (
        pids if target.control else [pid for pid in pids if not ours(pid, target) and os.path.exists(f"/proc/{pid}")]
    )
    if not strangers:
        raise Blocked("only our own")
    return strangers


@attack()
def process_arguments_of_others(target: Target) -> Any:
    """Find a neighbour's or the host's name in the arguments of any process."""
    for pid in visible_pids():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read().decode(errors="replace")
        except OSError:
            continue
        if any(name in line for name in target.names):
            return line
    raise Blocked("not found")


@attack()
def proc_entries_of_others(target: Target) -> Any:
    """Environment, files, memory of a neighbour, the fork server, the platform."""
    entries = ("environ", "cmdline", "maps", "mem", "root/tmp", "fd/0", "stat")
    return any_of([partial(read, f"/proc/{pid}/{entry}") for pid in foreign(target) for entry in entries])


@attack(PROCESS)
def environment_of_process_one(target: Target) -> Any:
    """What the launcher of this session had in its environment."""
    with open("/proc/1/environ", "rb") as file:
        names = {item.partition(b"=")[0].decode() for item in file.read().split(b"\0") if item}
    allowed = {"PATH", "HOME", "LANG", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "MALLOC_ARENA_MAX",
               "PWD"}  # fmt: skip
    surplus = names - set(target.aim([*allowed, *os.environ], []))
    if not surplus:
        raise Blocked("nothing")
    return surplus


@attack()
def signals_to_others(target: Target) -> Any:
    """Signal, or even find, a process outside."""

    def signalled(pid: int) -> str:
        os.kill(pid, 0)
        return f"process {pid}"

    return any_of([partial(signalled, pid) for pid in foreign(target)])


@attack()
def pidfds_of_others(target: Target) -> Any:
    """Hold a process outside."""

    def held(pid: int) -> str:
        os.close(os.pidfd_open(pid))
        return f"process {pid}"

    return any_of([partial(held, pid) for pid in foreign(target)])


@attack()
def limits_of_others(target: Target) -> Any:
    """Read or change the limits of a process outside."""
    return any_of([partial(resource.prlimit, pid, resource.RLIMIT_NOFILE) for pid in foreign(target)])


@attack()
def tracing(target: Target) -> Any:
    """Trace oneself or another: ptrace is kernel surface nobody needs."""

    def traced(pid: int) -> str:
        call("ptrace", 16, pid, 0, 0)
        return f"process {pid}"

    attempts: list[Callable[[], Any]] = [partial(traced, pid) for pid in (*foreign(target), 1)]
    return any_of(target.aim(attempts, [allowed_call]))


@attack()
def reading_process_memory(target: Target) -> Any:
    """process_vm_readv, pidfd_getfd, kcmp."""
    pids = (*foreign(target), os.getpid())
    attempts: list[Callable[[], Any]] = [partial(call, "process_vm_readv", pid, 0, 0, 0, 0, 0) for pid in pids]
    attempts += [lambda: call("pidfd_getfd", os.pidfd_open(os.getpid()), 0, 0)]
    attempts += [lambda: call("kcmp", os.getpid(), 1, 0, 0, 0)]
    return any_of(target.aim(attempts, [allowed_call]))


@attack(PROCESS)
def inherited_descriptors(target: Target) -> Any:
    """A descriptor that leads out: anything that was open before the agent began."""
    innocent = tuple(target.aim(["/tmp", "/opt/python", "/proc", "/dev", "/usr"], ["/proc"]))
    leads = []
    with open(target.own.file if target.control else "/dev/null", "rb"):
        for name in os.listdir("/proc/self/fd"):
            try:
                where = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if int(name) > 2 and where.startswith("/") and not where.startswith(innocent):
                leads.append(where)
    if not leads:
        raise Blocked("none")
    return leads


@attack()
def secrets_in_own_memory(target: Target) -> Any:
    """A neighbour's secret, or one of the platform's, left in memory that was forked."""
    found = scan_memory([*target.secrets, target.own.secret])
    if target.own.secret not in found:
        raise RuntimeError("the search does not work: it misses the session's own secret")
    if not target.control:
        found.remove(target.own.secret)
    if not found:
        raise Blocked("not found")
    return [unmasked(text) for text in found]  # the damage is done


def scan_memory(wanted_masked: list[str]) -> list[str]:
    """Which of the secrets, all beginning alike, are anywhere in this process's memory. Memory is masked as they are
    before it is searched: what the search itself leaves behind is masked once or twice, never plain."""
    wanted = {bytes.fromhex(text): text for text in wanted_masked}
    first, last = min(wanted), max(wanted)
    length = next((at for at, (one, other) in enumerate(zip(first, last)) if one != other), len(first))  # noqa: B905
    beginning = first[:length]
    if len(beginning) < 8:
        raise RuntimeError("the secrets to search for do not begin alike")
    mask = bytes((value + 1) % 256 for value in range(256))
    found = set()
    with open("/proc/self/mem", "rb", 0) as memory, open("/proc/self/maps") as maps:
        for line in maps.read().splitlines():
            span, permissions, *_, name = line.split()
            if not permissions.startswith("r") or "[v" in name or (name.startswith("/") and "w" not in permissions):
                continue  # unreadable, or a file's own content
            start, end = (int(text, 16) for text in span.split("-"))
            try:
                memory.seek(start)
                data = memory.read(end - start).translate(mask)
            except (OSError, OverflowError, ValueError):
                continue
            position = data.find(beginning)
            while position >= 0:
                found |= {text for secret, text in wanted.items() if data.startswith(secret, position)}
                position = data.find(beginning, position + 1)
    return sorted(found)


@attack()
def memory_shared_for_writing(target: Target) -> Any:
    """A mapping that other processes might share."""
    innocent = target.aim(["/tmp", "/dev/zero", "anon_inode"], [])
    with mmap.mmap(-1, 4096):  # shared, with this process's children alone
        mappings = [line for line in lines("/proc/self/maps") if line.split()[1] == "rw-s"]
    shared = [line.strip() for line in mappings if not any(part in line for part in innocent)]
    if not shared:
        raise Blocked("none")
    return shared


@attack()
def system_v_shared_memory(target: Target) -> Any:
    """Attach shared memory by the key a neighbour or the host used."""

    def attach(key: int) -> str:
        if libc.shmget(key, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "shmget")
        return f"key {key:#x}"

    return any_of([partial(attach, key) for key in target.keys])


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
