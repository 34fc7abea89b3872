# ruff: noqa: S108 -- places that every session has are what this is about.
"""Power over the machine: capabilities, users, namespaces, mounts, the kernel's surface."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import subprocess
import time
from functools import partial
from typing import Any

from .attack import Blocked, Target, any_of, attack
from .kernel import SYSTEM_CALLS, X86, allowed_call, call, in_child, libc, lines


@attack()
def capabilities(target: Target) -> Any:
    """Hold any capability, or be able to gain one."""
    (expected,) = target.aim([("1", "2")], [("", "")])
    status = dict(line.split(":\t", 1) for line in lines("/proc/self/status") if ":\t" in line)
    held = {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)}
    if held or (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) != expected:
        return held, f"NoNewPrivs {status['NoNewPrivs']}, Seccomp {status['Seccomp']}"
    raise Blocked("none")


@attack()
def other_users(target: Target) -> Any:
    """Become root, or anybody else; own files as them."""
    uid = os.getuid()
    attempts = [lambda: in_child(lambda: os.setgroups([0])), lambda: os.chown("/tmp", 0, 0)]
    if uid:
        attempts.append(lambda: in_child(lambda: os.setuid(0)))
    attempts += [lambda: in_child(lambda: os.setuid(uid + 1)), lambda: in_child(lambda: os.setgid(os.getgid() + 1))]
    return any_of(target.aim(attempts, [lambda: in_child(lambda: os.setuid(uid))]))


@attack()
def setuid_programs(target: Target) -> Any:
    """Run su, and the like, with their powers."""
    for arguments in target.aim([["/usr/bin/su", "-c", "id -u", "root"], ["/bin/su", "-c", "id -u", "root"],
                                 ["/usr/bin/sudo", "-n", "id", "-u"]], [["/bin/sh", "-c", "echo 0"]]):  # fmt: skip
        try:
            ran = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if ran.stdout.strip() == "0":
            return arguments
    raise Blocked("no power gained")


@attack()
def new_namespaces(target: Target) -> Any:
    """A user namespace of one's own gives all capabilities inside, and with them much kernel surface."""
    user = 0x10000000

    def cloned() -> str:
        child = libc.syscall(ctypes.c_long(SYSTEM_CALLS["clone"][not X86]), ctypes.c_ulong(user | signal.SIGCHLD),
                             0, 0, 0, 0)  # fmt: skip
        if child == 0:
            os._exit(0)
        if child < 0:
            raise OSError(ctypes.get_errno(), "clone")
        os.waitpid(child, 0)
        return "cloned"

    attempts = [
        lambda: in_child(lambda: call("unshare", user)),
        lambda: in_child(lambda: call("unshare", 0x00020000)),
        cloned,
        lambda: call("clone3", ctypes.create_string_buffer(88), 88),
        lambda: in_child(lambda: call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)),
    ]
    return any_of(target.aim(attempts, [allowed_call]))


@attack()
def mounting(target: Target) -> Any:
    """Mount, remount, unmount, by old calls and new; change the root."""
    attempts = [
        lambda: in_child(lambda: call("mount", b"t", b"/tmp", b"tmpfs", 0, 0)),
        lambda: call("mount", 0, b"/", 0, 32, 0),
        lambda: call("umount2", b"/proc", 2),
        lambda: call("open_tree", -100, b"/", 1),
        lambda: call("fsopen", b"tmpfs", 0),
        lambda: call("move_mount", -100, b"/tmp", -100, b"/home", 0),
        lambda: call("pivot_root", b"/tmp", b"/tmp"),
        lambda: in_child(lambda: os.chroot("/tmp")),
    ]
    return any_of(target.aim(attempts, [allowed_call]))


@attack()
def kernel_surface(target: Target) -> Any:
    """Calls with a history of holes, or that act on the machine."""
    buffer = ctypes.create_string_buffer(256)
    attempts = [
        lambda: call("keyctl", 0, -3, 0),
        lambda: call("add_key", b"user", b"k", b"v", 1, -3),
        lambda: call("io_uring_setup", 4, buffer),
        lambda: call("userfaultfd", 1),
        lambda: call("bpf", 0, buffer, 72),
        lambda: call("perf_event_open", buffer, 0, -1, -1, 0),
        lambda: call("syslog", 3, buffer, 100),
        lambda: call("open_by_handle_at", -100, buffer, 0),
        lambda: call("finit_module", 0, b"", 0),
        lambda: call("kexec_load", 0, 0, 0, 0),
        lambda: call("swapon", b"/tmp/x", 0),
        lambda: call("personality", 0x0400000),
    ]
    return any_of(target.aim(attempts, [allowed_call]))


@attack()
def calls_of_the_future(target: Target) -> Any:
    """A call that no list knows must not exist."""

    def made(number: int) -> str:
        result = libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0)
        if result < 0 and ctypes.get_errno() == errno.ENOSYS:
            raise OSError(errno.ENOSYS, "no such call")
        return f"call {number} answered"

    own = SYSTEM_CALLS["getpid"][not X86]
    return any_of([partial(made, number) for number in target.aim([900, 1000, 4000], [own])])


@attack()
def naming_the_machine(target: Target) -> Any:
    """Change the host's name, clock, or make device nodes."""

    def piped() -> str:
        read, write = os.pipe()
        os.close(read)
        os.close(write)
        return "made a pipe"

    attempts = [
        lambda: socket.sethostname("x"),
        lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
        lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0)),
    ]
    return any_of(target.aim(attempts, [piped]))


@attack()
def higher_limits(target: Target) -> Any:
    """Raise one's own limits, priority, or immunity to the killer of memory hogs."""

    def immune() -> str:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
        return "immune"

    def raised(kind: int, by: int = 1) -> str:
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY:
            raise Blocked("not limited")
        in_child(lambda: resource.setrlimit(kind, (hard + by, hard + by)))
        return "raised"

    attempts = [
        immune,
        lambda: raised(resource.RLIMIT_NPROC),
        lambda: raised(resource.RLIMIT_NOFILE),
        lambda: raised(resource.RLIMIT_FSIZE),
        lambda: in_child(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
        lambda: in_child(lambda: os.nice(-5)),
    ]
    return any_of(target.aim(attempts, [lambda: raised(resource.RLIMIT_NOFILE, 0)]))
