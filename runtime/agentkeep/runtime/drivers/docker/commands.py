"""A command in a session's container, by the engine's "exec": as the container's own user, under its limits and seals.

The engine can start one and tell how it ended, but not end it: that is done by another one, which knows the first by
the pid it told before anything else.
"""

from __future__ import annotations

import asyncio
import logging
import re
import struct
from collections import deque
from contextlib import AsyncExitStack
from typing import Any, Final

import aiohttp

from agentkeep.core.errors import CommandNotStarted
from agentkeep.runtime.drivers.docker.engine import Engine, EngineError, EngineUnavailable
from agentkeep.runtime.drivers.driver import PIECE, Written

__all__ = ["LINE_LIMIT", "DockerExecution", "ending", "running"]

logger = logging.getLogger(__name__)

LINE_LIMIT: Final = (128 << 10) - 1  # bytes: Linux's MAX_ARG_STRLEN, less the NUL
_RUN: Final = 'echo $$; [ -x /bin/bash ] && exec /bin/bash -c "$1"; exec /bin/sh -c "$1"'
#: Stops the processes of the shell's session and their descendants until there are no more, then kills them all. Only
#: what every shell has built in, since there may be no room for another process.
_END: Final = """
exec 2>/dev/null
session=$1 victims=" $1 " found=1 round=0
kill -STOP "$1"
while [ $found = 1 ] && [ $round -lt 32 ]; do
  found=0 round=$((round + 1))
  for file in /proc/[0-9]*/stat; do
    { read -r line < "$file"; } || continue
    pid=${file#/proc/} pid=${pid%/stat}
    case $victims in *" $pid "*) continue ;; esac
    set -f; set -- ${line##*) }; set +f
    case $victims in *" $2 "*) ;; *) [ "$4" = "$session" ] || continue ;; esac
    kill -STOP "$pid"; victims="$victims$pid " found=1
  done
done
kill -KILL $victims
"""
_FRAME: Final = struct.Struct(">BxxxL")
_STANDARD_ERROR: Final = 2
_PID: Final = re.compile(rb"[1-9][0-9]{0,9}")
_MOST_EARLY: Final = 1 << 20  # bytes
_SHOWN: Final = 500  # bytes of what a container says instead
_POLL: Final = 1.0  # seconds between looks whether a shell has ended whose output has not
_DRAIN: Final = 0.5  # seconds, for output that was on its way when it had
_END_TIMEOUT: Final = 15.0
_ATTEMPTS: Final = 5


def running(line: str) -> dict[str, Any]:
    """The body of the engine's "create an exec instance"."""
    return _instance(_RUN, line)


def ending(pid: str) -> dict[str, Any]:
    """The same, for the end of one whose shell has that pid."""
    return _instance(_END, pid)


def _instance(script: str, argument: str) -> dict[str, Any]:
    return {
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "Privileged": False,
        "Cmd": ["/bin/sh", "-c", script, "sh", argument],
    }


class DockerExecution:
    """See `drivers.driver.Execution`. `gone` completes when the container has ended."""

    def __init__(self, engine: Engine, container: str, gone: asyncio.Future[Any]) -> None:
        self._engine = engine
        self._container = container
        self._gone = gone
        self._id = ""
        self._pid = ""
        self._stack = AsyncExitStack()
        self._reader: aiohttp.StreamReader | None = None
        self._stream = 0
        self._left = 0  # of the frame that is being read
        self._early: deque[bytes] = deque()
        self._look = asyncio.Event()
        self._ended: asyncio.Task[int | None] | None = None
        self._killing: asyncio.Task[None] | None = None
        self._frame: asyncio.Task[Written | None] | None = None
        self._finished = False

    async def begin(self, line: str) -> None:
        """Raises CommandNotStarted; then nothing is left of it."""
        try:
            self._id = await self._engine.create_command(self._container, running(line))
            self._reader = await self._stack.enter_async_context(self._engine.run_command(self._id))
            await self._told_its_pid()
        except (EngineError, EngineUnavailable, aiohttp.ClientError) as error:
            await self._stack.aclose()
            raise CommandNotStarted(f"the engine did not start it: {error}") from error
        except BaseException:
            await self._stack.aclose()
            raise
        self._ended = asyncio.create_task(self._end(), name=f"command in {self._container}")

    async def _told_its_pid(self) -> None:
        """Its first line. What it then writes to standard error may come before that."""
        told = b""
        while not told.endswith(b"\n") and len(told) < _SHOWN and sum(map(len, self._early)) < _MOST_EARLY:
            piece = await self._next(1 if self._stream != _STANDARD_ERROR or not self._left else PIECE)
            if piece is None:
                break
            if piece.error:
                self._early.append(piece.data)
            else:
                told += piece.data
        if not told.endswith(b"\n") or not _PID.fullmatch(told[:-1]):
            said = (told + b"".join(self._early))[:_SHOWN].decode(errors="replace")
            raise CommandNotStarted(f"the container has no room for it, or no shell: {said!r}")
        self._pid = told[:-1].decode()

    # Life

    async def read(self) -> Written | None:
        assert self._ended is not None
        if self._early:
            return Written(self._early.popleft(), error=True)
        if self._finished:
            return None
        if self._frame is None:
            self._frame = asyncio.create_task(self._next(PIECE))
        if not self._frame.done():
            await asyncio.wait([self._frame, self._ended], return_when=asyncio.FIRST_COMPLETED)
        if not self._frame.done():  # its shell has ended; what it left behind may hold the stream open
            await asyncio.wait([self._frame], timeout=_DRAIN)
        if not self._frame.done():
            piece = None
        else:
            piece, self._frame = self._frame.result(), None
        if piece is None:
            await self._finish()
        return piece

    async def _finish(self) -> None:
        self._look.set()
        self._finished = True
        await self.wait()

    async def _next(self, most: int) -> Written | None:
        """None at the end of the stream, or where it is cut off."""
        assert self._reader is not None
        try:
            while self._left == 0:
                self._stream, self._left = _FRAME.unpack(await self._reader.readexactly(_FRAME.size))
            data = await self._reader.readexactly(min(self._left, most))
        except (asyncio.IncompleteReadError, aiohttp.ClientError, OSError):
            return None
        self._left -= len(data)
        return Written(data, error=self._stream == _STANDARD_ERROR)

    async def wait(self) -> int | None:
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def _end(self) -> int | None:
        while True:
            try:
                found = await self._engine.command(self._id)
            except (EngineError, EngineUnavailable) as error:
                logger.warning("the engine lost sight of a command in %s: %s", self._container, error)
            else:
                if found is None:
                    return None
                if not found["Running"]:
                    return int(found["ExitCode"]) if found["ExitCode"] is not None else None
            if self._gone.done():
                return None
            looking = asyncio.ensure_future(self._look.wait())
            await asyncio.wait([looking, self._gone], timeout=_POLL, return_when=asyncio.FIRST_COMPLETED)
            looking.cancel()
            if self._look.is_set():
                self._look.clear()
                await asyncio.sleep(0.01)  # the engine ends the stream a little before it says so

    # End

    async def kill(self) -> None:
        assert self._ended is not None
        if self._killing is None and not self._ended.done():
            self._killing = asyncio.create_task(self._kill(), name=f"end of a command in {self._container}")
        if self._killing is not None:
            await asyncio.shield(self._killing)

    async def _kill(self) -> None:
        assert self._ended is not None
        for _ in range(_ATTEMPTS):
            try:
                async with asyncio.timeout(_END_TIMEOUT):
                    await self._run_ending()
            except (EngineError, EngineUnavailable, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("a command in %s cannot be ended yet: %r", self._container, error)
            self._look.set()
            await asyncio.wait([self._ended], timeout=_POLL)
            if self._ended.done() or self._gone.done():
                return
        logger.error("a command in %s goes on, until its session ends", self._container)
        self._ended.cancel()

    async def _run_ending(self) -> None:
        id = await self._engine.create_command(self._container, ending(self._pid))
        async with self._engine.run_command(id) as reader:
            await reader.read()

    async def close(self) -> None:
        await self.kill()
        if self._frame is not None:
            self._frame.cancel()
            await asyncio.wait([self._frame])
            self._frame = None
        self._finished = True
        await self._stack.aclose()
