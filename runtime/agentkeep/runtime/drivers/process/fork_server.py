"""The platform's side of a fork server: starts it in its sandbox, asks it for children, hears of their ends."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import orjson

from agentkeep.core.errors import EnvironmentStartFailed, SandboxUnavailable
from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process import bubblewrap, seccomp
from agentkeep.runtime.drivers.process.channel import Channel, memory_file
from agentkeep.runtime.drivers.process.command import instruments_itself, reason_for_cold
from agentkeep.runtime.drivers.process.evidence import NotSealed, inspect_fork_server
from agentkeep.runtime.drivers.process.interpreter import Interpreter, find_interpreter
from agentkeep.runtime.drivers.process.log_pipe import LogPipe
from agentkeep.runtime.drivers.process.preload import modules_for
from agentkeep.runtime.drivers.process.tasks import in_thread, when_readable

__all__ = ["ForkServer"]

logger = logging.getLogger(__name__)

START_TIMEOUT = 120.0  # seconds; importing large libraries on a loaded machine


class ForkServer:
    """One for each agent version at a time (two while one takes over from the other). `sessions` counts the living
    ones, `served` all it was asked for."""

    def __init__(self, version: VersionSpec, *, uid: int | None, etc: Path) -> None:
        """`uid`: the host uid it takes, when the platform is root; None: the platform's own."""
        self.version = version
        self.uid = uid
        self.sessions = 0
        self.served = 0
        self.started_at = 0.0
        self.idle_since = 0.0
        self.cold_reason = reason_for_cold(version)
        self.instruments = False
        self.interpreter: Interpreter | None = None
        self._etc = etc
        self._channel = Channel()
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._listening: asyncio.Task[None] | None = None
        self._log: LogPipe | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0 and not self.ended.done()

    @property
    def own_id(self) -> int:
        """The uid a child sees itself have when born: what it must map."""
        return bubblewrap.USER_MODE_ID if self.uid is None else self.uid

    async def start(self) -> None:
        """Raises SandboxUnavailable or EnvironmentStartFailed; then nothing is left of it."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._start()
        except TimeoutError:
            await self.close()
            raise EnvironmentStartFailed(
                f"the fork server was not ready within {START_TIMEOUT:g} s", self._output()
            ) from None
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        version = self.version
        assert version.bundle is not None
        self.interpreter = await find_interpreter(version.python)
        filters = await in_thread(seccomp.filters)
        self.instruments = await in_thread(instruments_itself, version)
        preload = []
        if not self.cold_reason:
            preload = await in_thread(modules_for, version.dependencies, self.instruments)
        command = await in_thread(
            bubblewrap.command,
            interpreter=self.interpreter,
            bundle=version.bundle.resolve(),
            dependencies=version.dependencies.resolve() if version.dependencies else None,
            etc=self._etc,
            root=self.uid is not None,
            control=self._channel.theirs.fileno(),
            storage=version.storage,
        )
        name = f"{version.runtime_id}/{version.version}"
        log = self._log = LogPipe(lambda text: logger.info("fork server %s: %s", name, text.decode(errors="replace")))
        # In this thread, the event loop's: bubblewrap is told to die with the *thread* that started it.
        self._process = subprocess.Popen(  # noqa: ASYNC220 -- a vfork, a millisecond
            command,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=log.writer,
            stderr=log.writer,
            pass_fds=[self._channel.theirs.fileno()],
        )
        log.close_writer()
        self._channel.theirs.close()
        with memory_file(
            {
                "leave_root": self.uid,
                "user": self.own_id,
                "bundle": bubblewrap.BUNDLE,
                "dependencies": bubblewrap.DEPENDENCIES if version.dependencies else None,
                "preload": preload,
                "filters": [base64.b64encode(program).decode() for program in filters],
            }
        ) as setup:
            try:
                await self._channel.send(b"setup", [setup])
                message = await self._channel.receive()
            except OSError:
                message = None
        if message is None or not message.data.startswith(b"ready "):
            await asyncio.wait([log.ended], timeout=2)
            raise SandboxUnavailable(
                f"the sandbox did not start: {self._output().strip() or 'bubblewrap ended without a word'}; "
                "`agentkeep doctor` says what this machine lacks"
            )
        self._pidfd = os.pidfd_open(message.pid)
        try:
            await in_thread(inspect_fork_server, message.pid, os.geteuid() if self.uid is None else self.uid)
        except (NotSealed, OSError) as error:
            raise SandboxUnavailable(f"the fork server's sandbox is not tight: {error}") from error
        self._judge(orjson.loads(message.data.removeprefix(b"ready ")), name)
        self._listening = asyncio.create_task(self._listen(), name=f"fork server {name}")

    def _judge(self, report: dict[str, object], name: str) -> None:
        """Whether agents may run in its forks, or must each have an interpreter of their own."""
        if report["failed"]:
            logger.info("fork server %s: not preloaded: %s", name, report["failed"])
        if not self.cold_reason and report["threads"] != 1:
            self.cold_reason = "a preloaded library started a thread"
        if not self.cold_reason and report["shadowed"]:
            self.cold_reason = f"the bundle has modules named as preloaded ones: {report['shadowed']}"
        if self.cold_reason:
            level = logging.WARNING if self.version.fork_server else logging.INFO
            logger.log(level, "sessions of %s start cold, with an interpreter of their own: %s", name, self.cold_reason)

    async def fork(self, session: int, log: int) -> None:
        """Asks for a child that has these two descriptors. Raises OSError when the server has ended."""
        self.served += 1
        await self._channel.send(b"fork", [session, log])

    async def enter(self, channel: int, output: int, error: int, namespaces: Sequence[int]) -> None:
        """Asks for a child that enters a living session (see `inside/entry.py`). Raises OSError when the server has
        ended."""
        await self._channel.send(b"enter", [channel, output, error, *namespaces])

    def exit_of(self, inner_pid: int) -> asyncio.Future[int]:
        """Completes with the status of this child when it ends; with the signal's number, negative, if killed."""
        return self._exits.setdefault(inner_pid, asyncio.get_running_loop().create_future())

    def forget(self, inner_pid: int) -> None:
        self._exits.pop(inner_pid, None)

    async def _listen(self) -> None:
        while True:
            message = await self._channel.receive()
            if not message.data:
                break
            kind, pid, status = message.data.split()
            if kind == b"exit" and (waiting := self._exits.get(int(pid))) is not None and not waiting.done():
                waiting.set_result(int(status))
        await when_readable(self._pidfd)
        if not self.ended.done():
            self.ended.set_result(None)

    async def close(self) -> None:
        """Ends it, and with it every session it still has."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self._process is not None:
            watch = os.pidfd_open(self._process.pid) if self._process.poll() is None else -1
            if self._pidfd < 0:
                self._process.kill()
            if watch >= 0:
                await _until_ended(watch)
            self._process.wait()
            self._process = None
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._channel.close()
        if self._log is not None:
            self._log.close()
        if not self.ended.done():
            self.ended.set_result(None)

    def _output(self) -> str:
        return self._log.tail.decode(errors="replace") if self._log else ""


async def _until_ended(pidfd: int) -> None:
    try:
        await asyncio.shield(when_readable(pidfd))
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
