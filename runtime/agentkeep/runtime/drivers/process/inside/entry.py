"""A command in a session that lives: from a fork of the server, through the session's namespaces, to its shell.

Messages (SEQPACKET, one pair a command):
    `forked` ▶ platform       the kernel tells the platform our host pid with it
    platform ▶ JSON           limits; we are in the session's control group now
    `inside` ▶ platform, by a child in the session, which will wait for the shell and reap its orphans
    `sealed` ▶ platform, by that one's child, which will be the shell; the platform now checks it from outside
    platform ▶ `work` + a file in memory (JSON): environment, folder, line
    nothing more ▶ platform   it is the shell now
At any point: `failed <step>: <reason>` ▶ platform.

All that needs a privilege is done, and every privilege given up, before there is a process that the session can see:
one that enters a namespace of processes is not in it, only its children are.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any, NoReturn

from . import kernel, session

#: The session's namespaces, in the order in which their descriptors come and are entered. The second user namespace is
#: the agent's own, which owns none of the others: with it all power over them is gone.
NAMESPACES = (
    kernel.NEWUSER,
    kernel.NEWCGROUP,
    kernel.NEWIPC,
    kernel.NEWUTS,
    kernel.NEWNET,
    kernel.NEWPID,
    kernel.NEWNS,
    kernel.NEWUSER,
)
SHELLS = ("/bin/bash", "/bin/sh")


def enter(descriptors: list[int], filters: list[bytes]) -> NoReturn:
    """`descriptors`: our end of the channel, standard output and error, and the namespaces."""
    channel_descriptor, output, error, *namespaces = descriptors
    entry = _Entry(channel_descriptor)
    try:
        entry.run(output, error, namespaces, filters)
    except BaseException as problem:  # there is nothing above us that could handle it
        try:
            entry.channel.send(f"failed {entry.step}: {problem}".encode()[:4000])
        finally:
            os._exit(70)
    os._exit(0)


class _Entry:
    """`step`: what is being done, for the report should it fail."""

    def __init__(self, descriptor: int) -> None:
        self.step = "control group"
        self.channel = socket.socket(fileno=descriptor)
        self.channel.settimeout(session.PATIENCE)

    def run(self, output: int, error: int, namespaces: list[int], filters: list[bytes]) -> None:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        self.channel.send(b"forked")
        answer, _ = kernel.receive(self.channel)
        if not answer:
            os._exit(70)  # given up
        plan = json.loads(answer)
        self.step = "namespaces"
        user, *others, agents_user = zip(namespaces, NAMESPACES, strict=True)
        kernel.setns(*user)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        for descriptor, kind in others:
            kernel.setns(descriptor, kind)
        kernel.setns(*agents_user)
        self.step = "descriptors"
        self.channel = session.only_descriptors(self.channel, output, error)
        self.step = "limits"
        session.set_limits(plan)
        self.step = "capabilities"
        kernel.drop_capabilities()
        self.step = "seccomp"
        kernel.load_filters(filters)
        self.step = "fork"
        if os.fork():
            return
        # From here on: a process of the session.
        os.setsid()
        # Daemons that the line leaves behind stay our descendants while it runs, so that it can be ended with them;
        # and the agent, which is PID 1, reaps nobody.
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        self.channel.send(b"inside")
        self.step = "second fork"
        shell = os.fork()
        if shell:
            _wait_for(shell)
        os.setsid()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        self.step = "work"
        self.channel.send(b"sealed")
        message, received = kernel.receive(self.channel)
        if message != b"work":
            os._exit(70)  # refused or given up
        self.step = "shell"
        _become_shell(json.loads(kernel.read_all(received[0])))


def _wait_for(shell: int) -> NoReturn:
    """Ends as the shell does, once all that died before it has been reaped."""
    os.closerange(0, 64)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    status = 0
    try:
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED)
            if ended is not None and ended.si_pid == shell:
                exited = ended.si_code == os.CLD_EXITED
                status = ended.si_status if exited else 128 + ended.si_status
                while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
                    pass
                break
    except ChildProcessError:
        pass  # nobody is left
    os._exit(status)


def _become_shell(work: dict[str, Any]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and programs would inherit that
        signal.signal(number, signal.SIG_DFL)
    os.chdir(work["folder"])
    shell = next((path for path in SHELLS if os.access(path, os.X_OK)), None)
    if shell is None:
        raise FileNotFoundError(f"there is none of {', '.join(SHELLS)}")
    os.execve(shell, [os.path.basename(shell), "-c", work["line"]], work["environment"])  # noqa: S606 -- the very purpose
