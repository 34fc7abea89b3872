# ruff: noqa: S108 -- places that every session has are what this is about.
"""Files: of neighbours, of the host, of what all sessions share."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .attack import PROCESS, STORAGE, Blocked, Target, any_of, attack, in_masked
from .kernel import first_in, lines, read, write

PLACES = ("/tmp", "/dev/shm", "/var/tmp", "/run", "/home", "/home/agent", "/root", "/mnt", STORAGE, "/var/task", "/")
#: Trees that hold nothing of sessions, and much of it.
_LIBRARIES = ("/proc", "/sys", "/usr", "/opt/python", "/lib", "/lib64", "/bin", "/sbin", sys.base_prefix)
_LARGEST = 1 << 20


@attack()
def files_of_others(target: Target) -> Any:
    """Read what neighbours and the host left in shared places."""
    return any_of([partial(read, f"{place}/{name}") for place in PLACES for name in target.names])


def tree() -> Iterator[tuple[str, list[str], list[str]]]:
    for folder, folders, files in os.walk("/"):
        if folder in _LIBRARIES:
            folders.clear()
            continue
        yield folder, folders, files


@attack()
def any_name_of_others(target: Target) -> Any:
    """Find a name of theirs anywhere in the tree."""
    names = set(target.names)
    for folder, folders, files in tree():
        for name in (*folders, *files):
            if name in names:
                return os.path.join(folder, name)
    raise Blocked("no such name")


@attack()
def secrets_in_any_file(target: Target) -> Any:
    """Find a secret of theirs in any file that can be read, under whatever name: leftovers, volumes, image layers."""
    for folder, _, files in tree():
        for name in files:
            path = os.path.join(folder, name)
            try:
                if not stat.S_ISREG(os.lstat(path).st_mode) or os.lstat(path).st_size > _LARGEST:
                    continue
                with open(path, "rb") as file:
                    data = file.read()
            except OSError:
                continue
            if any(in_masked(secret, data) for secret in target.secrets):
                return path
    raise Blocked("in no file")


@attack(PROCESS)
def host_folders(target: Target) -> Any:
    """List the host's homes, logs, state, and the platform's own files."""
    folders = ("/root", "/var/log", "/var/lib", "/etc/ssl/private", "/etc/systemd", "/boot", "/mnt", "/media", "/srv")
    others = [folder for folder in folders if not sys.base_prefix.startswith(folder + "/")]
    return any_of([partial(first_in, folder) for folder in target.aim(others, [target.own.folder])])


@attack(PROCESS)
def files_beside_the_interpreter(target: Target) -> Any:
    """Where the interpreter is in a home, see anything else of that home."""
    (prefix,) = target.aim([sys.base_prefix], [f"{target.own.folder}/bin/python"])
    parent = os.path.dirname(prefix)
    while len(parent) > 1 and not parent.startswith("/usr"):
        if os.path.isdir(parent):
            others = [name for name in os.listdir(parent) if not prefix.startswith(os.path.join(parent, name))]
            if others:
                return parent, others
        parent = os.path.dirname(parent) if os.path.dirname(parent) != "/" else ""
    raise Blocked("nothing but the interpreter")


@attack(PROCESS)
def host_configuration(target: Target) -> Any:
    """Read the host's accounts and network configuration."""
    if not target.control and "agent" not in read("/etc/passwd").decode():
        return read("/etc/passwd")
    files = ("/etc/shadow", "/etc/machine-id", "/etc/fstab", "/etc/sudoers", "/etc/environment", "/.dockerenv")
    return any_of([partial(read, path) for path in target.aim(files, [target.own.file])])


@attack()
def write_into_what_is_shared(target: Target) -> Any:
    """Leave something where another session could find it."""
    libraries = os.path.dirname(os.__file__)
    places = ("/", "/dev", "/etc", "/usr", "/usr/lib", "/opt/python", "/var/task", "/.agentkeep", "/var", "/var/empty",
              "/opt", libraries, sys.base_prefix, "/.agentkeep/_agentkeep_sandbox")  # fmt: skip
    return any_of([partial(write, f"{place}/left-behind") for place in target.aim(places, ["/tmp"])])


@attack()
def change_what_is_shared(target: Target) -> Any:
    """Change shared files: their content, mode, owner, times, attributes."""
    paths = ("/etc/passwd", __file__, os.__file__, "/.agentkeep/_agentkeep_sandbox/session.py", "/dev/null")
    attempts: list[Callable[[], Any]] = []
    for path in target.aim(paths, [target.own.file]):
        if path != "/dev/null":
            attempts.append(partial(write, path))
        attempts += [
            partial(os.chmod, path, 0o777),
            partial(os.chown, path, os.getuid(), os.getgid()),
            partial(os.utime, path, (1, 1)),
            partial(os.setxattr, path, "user.note", b"x"),
            partial(os.rename, path, path + "-moved"),
            partial(os.unlink, path),
        ]
    return any_of(attempts)


@attack()
def write_to_the_kernel(target: Target) -> Any:
    """Write into /proc and /sys: system settings, control groups, another's scores."""
    paths = ("/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sys/kernel/msgmax",
             "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ping_group_range",
             "/proc/sys/fs/file-max", "/proc/self/attr/current", "/sys/fs/cgroup/memory.max",
             "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/kernel/uevent_helper",
             "/sys/fs/cgroup/pids/pids.max")  # fmt: skip

    def change(path: str) -> str:
        with open(path, "r+b", 0) as file:
            file.write(b"1")
        return path

    return any_of([partial(change, path) for path in target.aim(paths, [f"{target.own.file}.spare"])])


@attack(PROCESS)
def masked_parts_of_proc(target: Target) -> Any:
    """Read kernel symbols, keys, timers of the machine."""

    def content(path: str) -> bytes:
        data = read(path)
        if not data:
            raise Blocked("empty")
        return data

    names = ("kcore", "keys", "key-users", "kallsyms", "modules", "timer_list", "sched_debug")
    return any_of([partial(content, f"/proc/{name}") for name in target.aim(names, ["self/status"])])


@attack(PROCESS)
def folders_of_the_kernel(target: Target) -> Any:
    """/sys, the control groups, the debug file systems, the machine's devices."""

    def listed(path: str) -> list[str]:
        names = os.listdir(path)
        if not names:
            raise Blocked("empty")
        return names

    folders = ("/sys", "/sys/fs/cgroup", "/sys/kernel", "/proc/scsi", "/proc/irq", "/dev/mapper", "/dev/disk",
               "/proc/bus")  # fmt: skip
    return any_of([partial(listed, folder) for folder in target.aim(folders, ["/proc/self"])])


@attack(PROCESS)
def unexpected_devices(target: Target) -> Any:
    """A device beyond null, zero, full, random, urandom, tty and pseudo-terminals."""
    known = target.aim(["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"], [])
    extra = []
    for name in os.listdir("/dev"):
        kind = os.lstat(f"/dev/{name}").st_mode
        if (stat.S_ISBLK(kind) or stat.S_ISCHR(kind)) and name not in known:
            extra.append(name)
    if os.listdir("/dev/pts") not in ([], ["ptmx"]):
        extra.append(f"terminals {os.listdir('/dev/pts')}")
    if not extra:
        raise Blocked("none")
    return extra


@attack(PROCESS)
def writable_mounts_that_are_not_ours(target: Target) -> Any:
    """A writable file system that is not one of the session's own."""
    own = dict(target.aim([("/tmp", "tmpfs"), ("/home", "tmpfs"), ("/run", "tmpfs"), ("/dev/shm", "tmpfs"),
                           ("/var/tmp", "tmpfs"), ("/proc", "proc"), ("/dev/pts", "devpts"),
                           (STORAGE, "tmpfs")], []))  # fmt: skip
    found = []
    for line in lines("/proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        point, options = mount.split()[4:6]
        kind, _, superblock = system.split()[:3]
        device_node = point.startswith("/dev/") and os.path.exists(point) and stat.S_ISCHR(os.stat(point).st_mode)
        masked_one = point.startswith("/proc/") and stat.S_ISCHR(os.stat(point).st_mode)
        writable = "rw" in options.split(",") and "rw" in superblock.split(",")
        if writable and own.get(point) != kind and not device_node and not masked_one:
            found.append(line.strip())
    if not found:
        raise Blocked("none")
    return found
