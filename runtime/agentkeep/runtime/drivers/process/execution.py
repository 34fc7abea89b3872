"""A command in a living session: a process that enters its namespaces, and what it writes. (See `drivers.driver`.)

Nothing of the session is asked for it. The fork server, which is outside, makes the process; the kernel says what it
is, before it is told what to run; and how it ended is the fork server's word. What the session's other processes could
do to it, once they can see it, they could do to any process of theirs.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import struct
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from agentkeep.core.errors import CommandNotStarted, EnvironmentStartFailed
from agentkeep.runtime.drivers.driver import PIECE, Written
from agentkeep.runtime.drivers.process.channel import Channel, Message, memory_file
from agentkeep.runtime.drivers.process.evidence import NotSealed, Sealed, inspect_command, pid_of_fork_server
from agentkeep.runtime.drivers.process.fork_server import ForkServer
from agentkeep.runtime.drivers.process.namespaces import session_namespaces
from agentkeep.runtime.drivers.process.process_tree import end_tree
from agentkeep.runtime.drivers.process.tasks import in_thread, when_readable

__all__ = ["Inhabited", "ProcessExecution"]

logger = logging.getLogger(__name__)

ENTRY_TIMEOUT = 30.0  # seconds; milliseconds where nothing is wrong
STATUS_TIMEOUT = 2.0  # seconds, for the fork server to tell how a process ended that has
REAPING_TIMEOUT = 1.0  # seconds
_DESCRIPTORS = {0, 1, 2, 3}


@dataclass(frozen=True, slots=True)
class Inhabited:
    """The session that a command enters. `uid`: its host uid, `separate` if it is not the platform's own. `plan`: its
    limits, as `inside/session.py` takes them. `confine` puts a process into its control group (blocking). `gone`
    completes when its PID 1 has ended."""

    pid: int
    sealed: Sealed
    uid: int
    separate: bool
    plan: Mapping[str, Any]
    variables: Mapping[str, str]
    folder: str
    confine: Callable[[int], None]
    gone: asyncio.Future[Any]


class ProcessExecution:
    """See `drivers.driver.Execution`."""

    def __init__(self, server: ForkServer, session: Inhabited) -> None:
        self.pid = 0  # on the host, of the process from which all of the command's descend
        self._shell = 0  # its child
        self._server = server
        self._session = session
        self._pidfd = -1
        self._inner_pid = 0
        self._output = _Pipe()
        self._error = _Pipe()
        self._turns = [self._error, self._output]
        self._dead: asyncio.Future[None] | None = None
        self._ended: asyncio.Task[int | None] | None = None
        self._draining = False
        self._killing: asyncio.Task[None] | None = None

    # Birth

    async def begin(self, line: str) -> None:
        """Raises CommandNotStarted, EnvironmentStartFailed; then nothing is left of it."""
        channel = Channel()
        try:
            async with asyncio.timeout(ENTRY_TIMEOUT):
                await self._enter(channel, line)
        except TimeoutError:
            raise CommandNotStarted(f"the session was not entered within {ENTRY_TIMEOUT:g} s") from None
        except (NotSealed, OSError) as error:
            if self._session.gone.done():
                raise EnvironmentStartFailed("the session is ending") from None
            raise CommandNotStarted(f"the session could not be entered: {error}") from error
        finally:
            channel.close()
            if self._ended is None:
                await self._give_up()

    async def _enter(self, channel: Channel, line: str) -> None:
        session = self._session
        try:
            if session.separate:  # or /dev/stdout could not be opened by its own user
                for pipe in (self._output, self._error):
                    os.fchown(pipe.writer, session.uid, session.uid)
            with session_namespaces(session.pid, session.sealed) as namespaces:
                outputs = self._output.writer, self._error.writer
                await self._server.enter(channel.theirs.fileno(), *outputs, namespaces)
        finally:
            channel.theirs.close()
            self._output.close_writer()
            self._error.close_writer()
        forked = await self._receive(channel, b"forked")
        await in_thread(session.confine, forked.pid)
        await channel.send(orjson.dumps(session.plan))
        entered = await self._receive(channel, b"inside")
        self.pid = entered.pid
        self._pidfd = os.pidfd_open(entered.pid)
        self._dead = when_readable(self._pidfd)
        self._inner_pid = await in_thread(pid_of_fork_server, self.pid)
        self._server.exit_of(self._inner_pid)
        self._shell = (await self._receive(channel, b"sealed")).pid
        await in_thread(inspect_command, self._shell, session.uid, session.sealed, _DESCRIPTORS)
        work = {"environment": dict(session.variables), "folder": session.folder, "line": line}
        with memory_file(work) as file:
            await channel.send(b"work", [file])
        await self._receive(channel, b"")
        self._ended = asyncio.create_task(self._end(self._dead), name=f"command of process {self.pid}")

    async def _receive(self, channel: Channel, wanted: bytes) -> Message:
        message = await channel.receive()
        message.close()  # nobody in there has a descriptor for us
        if message.data == wanted:
            return message
        text = message.data[:500].decode(errors="replace")
        if text.startswith("failed "):
            raise CommandNotStarted(f"the session has no room for it, or no shell: {text}")
        if self._session.gone.done():
            raise EnvironmentStartFailed("the session is ending")
        raise CommandNotStarted("the process that was to run it ended before it did")

    async def _give_up(self) -> None:
        if self._dead is not None:
            _kill(self._pidfd)
            await self._dead
            self._server.forget(self._inner_pid)
            os.close(self._pidfd)
            self._pidfd = -1
        self._output.close()
        self._error.close()

    def on_end(self, then: Callable[[], object]) -> None:
        """Once it has begun."""
        assert self._ended is not None
        self._ended.add_done_callback(lambda _: then())

    async def ended(self) -> None:
        """When nothing of it is left, or it has not begun."""
        if self._ended is not None:
            await asyncio.wait([self._ended])

    # Life

    async def read(self) -> Written | None:
        assert self._ended is not None
        await asyncio.sleep(0)  # where there is always something to read, nothing below waits
        while True:
            if self._ended.done() and not self._draining:
                # What was written before the shell's end is in the pipes now. What is added from here on is others'.
                self._draining = True
                self._output.stop_after_these()
                self._error.stop_after_these()
            for pipe in self._turns:
                if data := pipe.read():
                    self._turns.reverse()  # so that neither has to wait for the other's end
                    return Written(data, error=pipe is self._error)
            if self._draining:
                return None
            await self._something_new(self._ended)

    async def _something_new(self, ended: asyncio.Task[int | None]) -> None:
        watched = [pipe.readable() for pipe in (self._output, self._error)]
        first: list[asyncio.Future[Any]] = [ended, *(future for future in watched if future is not None)]
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._output.look_away()
            self._error.look_away()

    async def wait(self) -> int | None:
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        assert self._ended is not None
        if self._killing is None and not self._ended.done():
            self._killing = asyncio.create_task(self._kill_all(), name=f"end of the command of process {self.pid}")
        await self.wait()

    async def _kill_all(self) -> None:
        assert self._dead is not None
        await in_thread(end_tree, self.pid, self._shell)
        await asyncio.wait([self._dead], timeout=REAPING_TIMEOUT)
        _kill(self._pidfd)

    async def close(self) -> None:
        await self.kill()
        await self.wait()
        self._output.close()
        self._error.close()

    async def _end(self, dead: asyncio.Future[None]) -> int | None:
        """Its status, once it has ended. In a task that nobody cancels."""
        await dead
        status = self._server.exit_of(self._inner_pid)
        first: list[asyncio.Future[Any]] = [status, self._server.ended]
        await asyncio.wait(first, timeout=STATUS_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        self._server.forget(self._inner_pid)
        if self._killing is not None:  # its descriptor is in use until then
            await asyncio.wait([self._killing])
        os.close(self._pidfd)
        self._pidfd = -1
        code = status.result() if status.done() else -signal.SIGKILL
        return code if code >= 0 else 128 - code


class _Pipe:
    """One of a command's streams, from the platform's side."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._left: int | None = None  # so much more is wanted; None: all that comes
        self._readable: asyncio.Future[None] | None = None

    def read(self) -> bytes:
        """What is there, b"" where nothing is."""
        if self._reader < 0:
            return b""
        size = PIECE if self._left is None else min(PIECE, self._left)
        try:
            data = os.read(self._reader, size) if size else b""
        except BlockingIOError:
            return b""
        if not data:  # its last writer has closed it, or no more is wanted
            self._close_reader()
        elif self._left is not None:
            self._left -= len(data)
        return data

    def stop_after_these(self) -> None:
        if self._reader >= 0:
            self._left = struct.unpack("i", fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4)))[0]

    def readable(self) -> asyncio.Future[None] | None:
        """Completes when there is something; `look_away` must follow. None: nothing will be."""
        if self._reader < 0:
            return None
        self._readable = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._reader, _set, self._readable)
        return self._readable

    def look_away(self) -> None:
        if self._readable is not None:
            asyncio.get_running_loop().remove_reader(self._reader)
            self._readable = None

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.close_writer()
        self._close_reader()

    def _close_reader(self) -> None:
        self.look_away()
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
