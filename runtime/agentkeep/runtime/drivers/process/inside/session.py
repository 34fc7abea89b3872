"""The birth of a session's process: from a fork of the server to a sealed process that may be told its secrets.

Messages (SEQPACKET, one pair a session):
    `unshared` ▶ platform     the kernel tells the platform our host pid with it
    platform ▶ JSON           limits, and whether to map our own uid
    `sockets` + listener and unconnected sockets of the new network namespace ▶ platform
    `sealed` ▶ platform       which now checks us from outside
    platform ▶ `work` + a file in memory (JSON): environment, what to run
At any point: `failed <step>: <reason>` ▶ platform.
"""

from __future__ import annotations

import array
import json
import os
import resource
import socket
import sys
from typing import Any

from . import kernel

SESSION = 3  # where the session socket stands from the second fork on
ENDPOINT = ("169.254.170.2", 80)
AGENT_ID = 1000
PATIENCE = 60.0  # seconds; the platform has deadlines of its own, this ends us should it hang
# Writable, one tmpfs for all of them. /tmp comes last: it covers the root of that tmpfs.
PRIVATE_FOLDERS = (
    ("/home", 0o755),
    ("/run", 0o755),
    ("/dev/shm", 0o1777),  # noqa: S108
    ("/var/tmp", 0o1777),  # noqa: S108
    ("/tmp", 0o1777),  # noqa: S108
)
MASKED_FILES = ("kcore", "keys", "key-users", "kallsyms", "modules", "timer_list", "sysrq-trigger", "sched_debug")
MASKED_FOLDERS = ("acpi", "bus", "fs", "irq", "scsi", "driver")


def begin(session_descriptor: int, log: int, own_user: int, filters: list[bytes]) -> dict[str, Any]:
    """Returns in the sealed process, with its work. Any failure ends the process after reporting it."""
    birth = _Birth(session_descriptor)
    try:
        return birth.run(log, own_user, filters)
    except BaseException as error:  # there is nothing above us that could handle it
        try:
            birth.channel.send(f"failed {birth.step}: {error}".encode()[:4000])
        finally:
            os._exit(70)


class _Birth:
    """`step`: what is being done, for the report should it fail."""

    def __init__(self, descriptor: int) -> None:
        self.step = "namespaces"
        self.channel = socket.socket(fileno=descriptor)
        self.channel.settimeout(PATIENCE)

    def run(self, log: int, own_user: int, filters: list[bytes]) -> dict[str, Any]:
        kernel.unshare(kernel.NEWUSER | kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS)
        self.channel.send(b"unshared")
        self.step = "user mapping"
        answer, _ = kernel.receive(self.channel)
        if not answer:
            os._exit(70)  # given up
        plan = json.loads(answer)
        if plan["map_self"]:
            kernel.map_own_id(0, own_user)
        else:
            os.setgroups([])  # the platform, being root, mapped us to a host uid of our own
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        if os.fork():
            os._exit(0)
        # From here on: PID 1 of the session.
        os.setsid()
        self.step = "cgroup namespace"
        kernel.unshare(kernel.NEWCGROUP)  # the platform put our parent into the session's group before it answered
        self.channel = only_descriptors(self.channel, log, log)
        self.step = "mounts"
        _private_mounts(plan["disk"], plan["storage"])
        self.step = "proc"
        _private_proc()
        self.step = "devpts"
        options = "newinstance,ptmxmode=0666,mode=620"
        kernel.mount("devpts", "/dev/pts", "devpts", kernel.NOSUID | kernel.NOEXEC, options)
        self.step = "loopback"
        socket.sethostname("session")
        kernel.loopback_up(ENDPOINT[0])
        self.step = "sockets"
        _hand_over_sockets(self.channel, plan["sockets"])
        self.step = "second user namespace"
        kernel.unshare(kernel.NEWUSER)  # one that owns none of the namespaces above
        kernel.map_own_id(AGENT_ID, 0)
        self.step = "limits"
        set_limits(plan)
        self.step = "capabilities"
        kernel.drop_capabilities()
        self.step = "reseeding"
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # its legacy global state; random, ssl, uuid, secrets do it themselves
        self.step = "seccomp"
        kernel.load_filters(filters)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        self.step = "work"
        self.channel.send(b"sealed")
        message, descriptors = kernel.receive(self.channel)
        if message != b"work":
            os._exit(70)  # refused or given up
        work: dict[str, Any] = json.loads(kernel.read_all(descriptors[0]))
        self.channel.close()
        return work


def only_descriptors(channel: socket.socket, output: int, error: int) -> socket.socket:
    """Leaves open: nothing to read on 0, the two given on 1 and 2, the channel on 3. (All given stand above 3, where
    the fork server keeps its control socket.)"""
    os.dup2(output, 1)
    os.dup2(error, 2)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(channel.detach(), SESSION, inheritable=False)
    os.closerange(SESSION + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    result = socket.socket(fileno=SESSION)
    result.settimeout(PATIENCE)
    return result


def _private_mounts(disk: int, storage: list[str]) -> None:
    """Writable places of our own, and session storage; all on one tmpfs so that `disk` is one limit."""
    kernel.mount(None, "/", None, kernel.REC | kernel.PRIVATE)
    inodes = max(1024, disk >> 14)
    options = f"size={disk},nr_inodes={inodes},mode=0755,uid=0,gid=0"
    kernel.mount("session", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, options)  # noqa: S108
    for place, mode in (*((place, 0o755) for place in storage), *PRIVATE_FOLDERS):
        folder = f"/tmp/{place.strip('/').replace('/', '-')}"  # noqa: S108
        os.mkdir(folder)
        os.chmod(folder, mode)
        if place == "/home":
            os.mkdir(f"{folder}/agent", 0o700)
        kernel.mount(folder, place, None, kernel.BIND)


def _private_proc() -> None:
    """A /proc of our PID namespace, without what says more of the machine than of us."""
    flags = kernel.NOSUID | kernel.NODEV | kernel.NOEXEC
    kernel.mount("proc", "/proc", "proc", flags)
    kernel.mount("/proc/sys", "/proc/sys", None, kernel.BIND)
    kernel.mount(None, "/proc/sys", None, kernel.REMOUNT | kernel.BIND | kernel.RDONLY | flags)
    for name in MASKED_FILES:
        if os.path.exists(f"/proc/{name}"):
            kernel.mount("/dev/null", f"/proc/{name}", None, kernel.BIND)
    for name in MASKED_FOLDERS:
        if os.path.isdir(f"/proc/{name}"):
            kernel.mount("/var/empty", f"/proc/{name}", None, kernel.BIND)


def _hand_over_sockets(channel: socket.socket, count: int) -> None:
    """Sockets belong for ever to the network namespace they were made in: through these the platform, outside,
    reaches the agent (unconnected ones) and is reached by it (the listener)."""
    made = [socket.create_server(ENDPOINT, backlog=64), *(socket.socket() for _ in range(count))]
    try:
        rights = array.array("i", [item.fileno() for item in made])
        channel.sendmsg([b"sockets"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    finally:
        for item in made:
            item.close()


def set_limits(plan: dict[str, Any]) -> None:
    for kind, value in (
        (resource.RLIMIT_NPROC, plan["processes"]),  # counted per user namespace, so per session
        (resource.RLIMIT_NOFILE, plan["open_files"]),
        (resource.RLIMIT_FSIZE, plan["disk"]),
        (resource.RLIMIT_DATA, plan["data"] or resource.RLIM_INFINITY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (value, value))
