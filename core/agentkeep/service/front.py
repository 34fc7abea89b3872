"""The front: what every listener of the platform shares, and the server that binds a port to it.

One front serves the public listener and the session listeners; which session a connection belongs to is known from the
socket that accepted it (`Front.protocol(session)`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from email.utils import formatdate
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from agentkeep.core.call import SessionRef
from agentkeep.service.direct import DirectRoute
from agentkeep.service.limits import FrontLimits
from agentkeep.service.protocol import FrontProtocol

__all__ = ["Front", "Server"]

logger = logging.getLogger(__name__)

_DEFAULT_LIMITS = FrontLimits()


class Front:
    """Turns connections into requests, for the ASGI `application` or for one of the direct `routes`.

    `start` and `close` frame its life; a listener may be made with `protocol` in between.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        routes: Sequence[DirectRoute] = (),
        limits: FrontLimits = _DEFAULT_LIMITS,
    ) -> None:
        # uvicorn's configuration carries the application to its protocol; its server is not used.
        self.config = Config(
            application,
            interface="asgi3",
            http=FrontProtocol,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            access_log=False,
            log_config=None,
            log_level="warning",
        )
        self.config.load()
        self.routes = tuple(routes)
        self.limits = limits
        self.state = ServerState()
        self.refused_connections = 0
        self._of_session: Counter[SessionRef] = Counter()
        self._in_sessions = 0
        self.connection_ended = asyncio.Event()
        self.now = 0.0  # the loop's time, a quarter of a second coarse
        self.date = b""
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def protocol(self, session: SessionRef | None = None) -> Callable[[], asyncio.Protocol]:
        """The factory a listener is made with. `session` None: the public listener."""
        return lambda: FrontProtocol(self, session)

    async def start(self) -> None:
        if self._sweeper is None:
            self._loop = asyncio.get_running_loop()
            self._tick()
            self._sweeper = asyncio.create_task(self._sweep(), name="front sweep")

    async def close(self) -> None:
        """Ends every connection that is left, and what still runs for it."""
        await self._end(self.connections())
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
            self._sweeper = None

    def admit(self, session: SessionRef | None) -> bool:
        """Counts a connection that was accepted; False: it is one too many. Sessions take nothing from the public
        listener, nor one of them all from the others."""
        if session is None:
            return len(self.state.connections) - self._in_sessions <= self.limits.connections
        self._in_sessions += 1
        self._of_session[session] += 1
        of_session = self._of_session[session]
        return of_session <= self.limits.session_connections and self._in_sessions <= self.limits.connections

    def ended(self, session: SessionRef | None) -> None:
        """A connection that was counted is over."""
        self.connection_ended.set()
        if session is not None:
            self._in_sessions -= 1
            self._of_session[session] -= 1
            if not self._of_session[session]:
                del self._of_session[session]

    def connections(self) -> list[FrontProtocol]:
        return [connection for connection in self.state.connections if isinstance(connection, FrontProtocol)]

    async def drain(self, seconds: float) -> None:
        """Ends the public connections: idle ones now, those with an answer under way after it, and after `seconds`
        whatever is left. Session connections stay: what is being answered may need them."""
        public = [connection for connection in self.connections() if connection.session is None]
        for connection in public:
            connection.shutdown()
        try:
            async with asyncio.timeout(seconds):
                await self._gone(public)
        except TimeoutError:
            logger.warning("answers still under way after %g seconds are cut off", seconds)
            await self._end(public)

    async def _gone(self, connections: Iterable[FrontProtocol]) -> None:
        while any(connection in self.state.connections for connection in connections):
            self.connection_ended.clear()
            await self.connection_ended.wait()

    async def _end(self, connections: Iterable[FrontProtocol]) -> None:
        left = [connection for connection in connections if connection in self.state.connections]
        for connection in left:
            connection.transport.abort()
        await self._gone(left)
        # A disconnected request's task sees http.disconnect, or writes into nothing; it gets a moment to end itself.
        tasks = set(self.state.tasks)
        if tasks and not any(isinstance(connection, FrontProtocol) for connection in self.state.connections):
            _, late = await asyncio.wait(tasks, timeout=1)
            for task in late:
                task.cancel()
            if late:
                logger.warning("cancelled %d requests at the end of the server", len(late))
                await asyncio.wait(late, timeout=1)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.limits.sweep_seconds)
            try:
                self._tick()
            except Exception:
                logger.exception("a time limit could not be kept")

    def _tick(self) -> None:
        now = self.now = self._loop.time()
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        self.state.default_headers = [(b"date", self.date[6:-2])]
        stalled = now - self.limits.stall_seconds
        for connection in self.connections():
            if connection.deadline < now:
                connection.expire()
            elif 0.0 < connection.blocked_since < stalled:
                connection.transport.abort()
        for route in self.routes:
            route.sweep(now)


class Server:
    """A front on a host and port."""

    def __init__(self, front: Front, host: str = "127.0.0.1", port: int = 0) -> None:
        self.front = front
        self.host = host
        self.port = port  # 0: any free one, known after `start`
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. Raises OSError with the address in its text where it cannot."""
        await self.front.start()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self.front.protocol(), self.host, self.port, backlog=2048)
        self.port = self._listener.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def sockets(self) -> Sequence[socket.socket]:
        return tuple(self._listener.sockets) if self._listener is not None else ()

    async def stop(self, drain: float = 10.0) -> None:
        """Stops listening, then lets answers under way end for `drain` seconds. A running invocation does not hold it
        longer. The front stays: close it when the sessions are gone too."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self.front.drain(drain)
