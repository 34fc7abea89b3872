"""A session's environment: one container, from its start, or from being found again, to its removal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from agentkeep.core.clock import Clock
from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.drivers.docker.commands import DockerExecution
from agentkeep.runtime.drivers.docker.engine import Engine, EngineError, EngineUnavailable
from agentkeep.runtime.drivers.docker.listener import SessionListener
from agentkeep.runtime.drivers.docker.output import Output
from agentkeep.runtime.drivers.driver import Exit

__all__ = ["DockerConnection", "DockerEnvironment", "Place"]

logger = logging.getLogger(__name__)

_RETRY = 1.0  # seconds between attempts while the engine is away
_LAST_WORDS = 5.0  # seconds for output that is still on its way when the container has ended


@dataclass(frozen=True, slots=True)
class Place:
    """Where the agent is: its container's address, and the port it listens on."""

    address: str
    port: int


class DockerConnection:
    """See `drivers.driver.Connection`. Nothing is kept for one."""

    __slots__ = ("socket",)

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    def release(self) -> None:
        pass


class DockerEnvironment:
    """See `drivers.driver.Environment`. `id` is the container's name."""

    def __init__(
        self,
        id: str,
        place: Place,
        *,
        engine: Engine,
        listener: SessionListener,
        clock: Clock,
    ) -> None:
        self.id = id
        self.place = place
        self._engine = engine
        self._listener = listener
        self._clock = clock
        self._output = Output(lambda _: None)
        self._following: asyncio.Task[None] | None = None
        self._reason = ""  # why we ended it, if we did
        self._gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    # Birth

    async def attach(self, endpoint: Callable[[], asyncio.Protocol], log: Callable[[bytes], None]) -> None:
        """Gives it its session endpoint and has its output go to `log`, from now on. Raises EngineError or
        EngineUnavailable."""
        self._output.sink = log
        self._listener.add(self.place.address, endpoint)
        attached = asyncio.get_running_loop().create_future()
        self._following = asyncio.create_task(self._follow(attached), name=f"output of {self.id}")
        await attached

    async def resume(self, endpoint: Callable[[], asyncio.Protocol], log: Callable[[bytes], None]) -> None:
        """See `drivers.driver.AdoptedEnvironment`."""
        if self._gone.done():
            return
        try:
            await self.attach(endpoint, log)
        except (EngineError, EngineUnavailable) as error:  # it is ending, which `wait` will tell
            logger.warning("the output of %s is lost: %s", self.id, error)

    async def _follow(self, attached: asyncio.Future[None]) -> None:
        async with AsyncExitStack() as stack:
            try:
                reader = await stack.enter_async_context(self._engine.output(self.id))
            except Exception as error:
                attached.set_exception(error)
                return
            attached.set_result(None)
            try:
                await self._output.follow(reader)
            except Exception as error:  # of a stream: it ends, and the session goes on without its log
                if not self._gone.done():
                    logger.warning("the output of %s is lost from here on: %r", self.id, error)

    # Life

    async def connect(self, timeout: float, port: int | None = None) -> DockerConnection:
        port = port or self.place.port
        try:
            async with asyncio.timeout(timeout):
                return await self._connect(port)
        except TimeoutError:
            raise TimeoutError(f"the agent did not listen on port {port} within {timeout:g} s") from None

    async def _connect(self, port: int) -> DockerConnection:
        loop = asyncio.get_running_loop()
        pause = 0.004
        while not self._gone.done():
            attempt = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            connecting = asyncio.ensure_future(loop.sock_connect(attempt, (self.place.address, port)))
            try:
                # The container of an attempt under way may end, and then nobody answers.
                await asyncio.wait(_any(connecting, self._gone), return_when=asyncio.FIRST_COMPLETED)
                if connecting.done() and connecting.exception() is None:
                    attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connected, attempt = attempt, None  # type: ignore[assignment]
                    return DockerConnection(connected)
            finally:
                if attempt is not None:
                    connecting.cancel()
                    await asyncio.wait([connecting])
                    attempt.close()
            await asyncio.wait([self._gone], timeout=pause)
            pause = min(pause * 1.2, 0.05)
        raise self.failure(f"the agent's environment is gone: {self._gone.result().reason}")

    def failure(self, message: str) -> EnvironmentStartFailed:
        """With the end of what it wrote."""
        return EnvironmentStartFailed(message, self._output.tail.decode(errors="replace"))

    async def execute(self, line: str) -> DockerExecution:
        if self._gone.done():
            raise self.failure(f"the agent's environment is gone: {self._gone.result().reason}")
        execution = DockerExecution(self._engine, self.id, self._gone)
        await execution.begin(line)
        return execution

    async def stop(self, grace: float) -> Exit:
        if grace > 0 and not self._gone.done():
            self._reason = self._reason or "stopped"
            await self._signal("SIGTERM")
            await self._ended_within(grace)
        while not self._gone.done():
            self._reason = self._reason or "stopped"
            await self._signal("SIGKILL")
            await self._ended_within(_RETRY)
        return self._gone.result()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._gone)

    async def _signal(self, name: str) -> None:
        try:
            await self._engine.kill(self.id, name)
        except (EngineError, EngineUnavailable) as error:
            logger.warning("%s could not be sent to %s: %s", name, self.id, error)

    async def _ended_within(self, seconds: float) -> None:
        timer = asyncio.ensure_future(self._clock.sleep(seconds))
        await asyncio.wait(_any(self._gone, timer), return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()

    # End

    async def finish(self) -> None:
        """Waits for the container's end, then leaves nothing of it. Called once, by the driver, in a task that nobody
        cancels while the container is to be kept track of."""
        result = await self._exit()
        if self._following is not None:
            await asyncio.wait([self._following], timeout=_LAST_WORDS)
        await self.remove()
        self._gone.set_result(result)

    async def remove(self) -> None:
        """Removes the container, however long that takes."""
        self._listener.remove(self.place.address)
        while True:
            try:
                await self._engine.remove(self.id)
                break
            except (EngineError, EngineUnavailable) as error:
                logger.warning("%s cannot be removed yet: %s", self.id, error)
                await self._clock.sleep(_RETRY)
        await self.abandon()

    async def abandon(self) -> None:
        """Lets go of it, and leaves it running."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    async def _exit(self) -> Exit:
        while True:
            try:
                status = await self._engine.wait(self.id)
                ended = None if status is None else await self._engine.container(self.id)
                break
            except (EngineError, EngineUnavailable) as error:
                logger.warning("the engine lost sight of %s: %s", self.id, error)
                await self._clock.sleep(_RETRY)
        if status is None or ended is None:
            return Exit(None, self._reason or "its container was removed")
        # The engine, like a shell, tells a signal by a status above 128.
        code = 128 - status if 128 < status < 128 + signal.NSIG else status
        if code == -signal.SIGKILL and ended["State"].get("OOMKilled"):
            return Exit(code, f"out of memory: its limit is {ended['HostConfig']['Memory'] >> 20} MiB")
        if self._reason:
            return Exit(code, self._reason)
        if code < 0:
            return Exit(code, f"killed by {signal.Signals(-code).name}")
        return Exit(code, f"the agent's process ended with status {code}")


def _any(*futures: asyncio.Future[Any]) -> list[asyncio.Future[Any]]:
    return list(futures)
