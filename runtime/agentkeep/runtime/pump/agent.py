"""Connections to agents: HTTP/1.1 as a client, in the parser's callbacks; answers are parsed, never copied."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import Protocol, cast

import httptools

from agentkeep.core.errors import RuntimeClientError
from agentkeep.runtime.drivers.driver import Connection
from agentkeep.runtime.pump.limits import PumpLimits
from agentkeep.runtime.sessions.turn import Turn

__all__ = ["AgentConnection", "AgentPool", "Answered"]

logger = logging.getLogger(__name__)

Fields = list[tuple[bytes, bytes]]

#: Of an agent's answer that may come without a byte of body: its head, chunk sizes and extensions, trailers.
MOST_FRAMING = 256 * 1024


class Answered(Protocol):
    """Who receives an agent's answer. Exactly one of `on_answer_end` and `on_agent_lost` comes last."""

    def on_answer(self, status: int, fields: Fields) -> None:
        """The head. Names are lower-case; interim (1xx) heads are left out."""
        ...

    def on_answer_data(self, data: bytes) -> None: ...

    def on_answer_pause(self) -> None:
        """All that was read at once has been handed over: the moment to write it on."""
        ...

    def on_answer_end(self) -> None: ...

    def on_agent_blocked(self, blocked: bool) -> None:
        """The agent does not keep up with the request's body (True), or does again."""
        ...

    def on_agent_lost(self) -> None:
        """The connection ended before the answer was complete."""
        ...


class AgentConnection(asyncio.Protocol):
    """One connection to one environment. At most one request at a time, never pipelined."""

    transport: asyncio.Transport

    def __init__(self, connection: Connection, environment_id: str) -> None:
        self.environment_id = environment_id
        self.blocked = False
        self.idle_since = 0.0
        self._connection = connection
        self._socket: socket.socket = connection.socket
        self._receiver: Answered | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._fields: Fields = []
        self._framing_bytes = 0  # since the body's last byte
        self._interim = False
        self._framed = True  # the answer says where it ends; otherwise it ends with the connection
        self._answering = False
        self._sent = False  # the request is out as a whole
        self._broken = False  # we ended it: what came is no answer
        self._drained: asyncio.Future[None] | None = None

    # A request.

    def request(self, receiver: Answered, data: bytes, complete: bool) -> None:
        """Sends a request's first bytes; `complete`: there are no more."""
        self._receiver = receiver
        self._sent = complete
        self._answering = False
        self.transport.write(data)

    def write(self, data: bytes, complete: bool) -> None:
        self._sent = complete
        self.transport.write(data)

    def abort(self) -> None:
        """Gives up the request: the agent's server sees its client leave."""
        self._receiver = None
        self.transport.abort()

    async def drained(self) -> None:
        """Returns when the agent takes more, or is gone."""
        while self.blocked:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def pause(self, paused: bool) -> None:
        """Stop reading the answer, or go on."""
        if not self.transport.is_closing():
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def alive(self) -> bool:
        """Whether the agent has kept the connection open, asked of the kernel: a POST is not sent twice, so it must
        not be sent into a connection that is closed already."""
        if self.transport.is_closing():
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # closed, or bytes nobody asked for

    # Transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self.transport.abort()  # bytes nobody asked for
            return
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break()  # not HTTP, or a second answer
        if self._framing_bytes > MOST_FRAMING and self._receiver is not None:
            self._break()
        if self._receiver is not None:
            receiver.on_answer_pause()

    def _break(self) -> None:
        """connection_lost tells who waits."""
        self._broken = True
        self.transport.abort()

    def pause_writing(self) -> None:
        self.blocked = True
        if self._receiver is not None:
            self._receiver.on_agent_blocked(True)

    def resume_writing(self) -> None:
        self._unblock()
        if self._receiver is not None:
            self._receiver.on_agent_blocked(False)

    def _unblock(self) -> None:
        self.blocked = False
        waiting, self._drained = self._drained, None
        if waiting is not None:
            waiting.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.release()
        self._unblock()
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._answering and not self._framed and exc is None and not self._broken:
            receiver.on_answer_end()
        else:
            receiver.on_agent_lost()

    # Parser.

    def on_message_begin(self) -> None:
        if self._receiver is None:
            raise ValueError("a second answer")
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._answering:  # else a trailer: nobody reads those
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._interim = status < 200
        if self._interim:
            if status == 101:
                raise ValueError("an upgrade nobody asked for")
            return
        self._answering = True
        self._framing_bytes = 0
        self._framed = status in (204, 304) or any(
            name in (b"content-length", b"transfer-encoding") for name, _ in self._fields
        )
        if self._receiver is not None:
            self._receiver.on_answer(status, self._fields)

    def on_body(self, data: bytes) -> None:
        self._framing_bytes = 0
        if self._receiver is not None:
            self._receiver.on_answer_data(data)

    def on_message_complete(self) -> None:
        if self._interim:
            return
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.on_answer_end()

    @property
    def reusable(self) -> bool:
        """Asked when an answer has ended."""
        return self._sent and self._framed and self._parser.should_keep_alive() and not self.transport.is_closing()


class AgentPool:
    """Idle connections by environment, last in, first out. Who waits for a new one gets one that becomes idle before:
    an environment may take no more than are open already."""

    def __init__(self, limits: PumpLimits) -> None:
        self._limits = limits
        self._idle: dict[str, list[AgentConnection]] = {}
        self._waiting: dict[str, deque[asyncio.Future[AgentConnection]]] = {}
        self.now = 0.0

    def take(self, environment_id: str) -> AgentConnection | None:
        idle = self._idle.get(environment_id)
        while idle:
            connection = idle.pop()
            if self.now - connection.idle_since < self._limits.agent_idle and connection.alive():
                return connection
            connection.transport.close()
        return None

    async def connect(self, turn: Turn) -> AgentConnection:
        """A new connection, or one that has become idle meanwhile. Raises what `Turn.connect` raises, and
        RuntimeClientError."""
        opening = asyncio.create_task(turn.connect())
        idle: asyncio.Future[AgentConnection] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(turn.environment_id, deque()).append(idle)
        try:
            await asyncio.wait((opening, idle), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._wait_no_longer(turn.environment_id, idle)
        if idle.done():
            connection = idle.result()
            if opening.done():
                self.give_back(connection)
            elif connection.alive():
                opening.cancel()
                opening.add_done_callback(_let_go)
                return connection
            else:
                connection.transport.close()
        return await self._connected(turn, await opening)

    def _wait_no_longer(self, environment_id: str, place: asyncio.Future[AgentConnection]) -> None:
        if not place.done():
            waiting = self._waiting[environment_id]
            waiting.remove(place)
            if not waiting:
                del self._waiting[environment_id]

    async def _connected(self, turn: Turn, opened: Connection) -> AgentConnection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: AgentConnection(opened, turn.environment_id), sock=opened.socket
            )
        except OSError as error:
            opened.socket.close()
            opened.release()
            raise RuntimeClientError("The runtime's environment closed the connection") from error
        return connection

    def give_back(self, connection: AgentConnection) -> None:
        """Takes a connection whose answer has ended; keeps it if it can serve another request."""
        waiting = self._waiting.get(connection.environment_id)
        if waiting is not None and connection.reusable:
            waiting.popleft().set_result(connection)
            if not waiting:
                del self._waiting[connection.environment_id]
            return
        idle = self._idle.setdefault(connection.environment_id, [])
        if connection.reusable and len(idle) < self._limits.agent_idle_connections:
            connection.idle_since = self.now
            idle.append(connection)
        else:
            connection.transport.close()

    def sweep(self, now: float) -> None:
        self.now = now
        oldest = now - self._limits.agent_idle
        for environment_id in list(self._idle):
            kept = []
            for connection in self._idle[environment_id]:
                if connection.idle_since > oldest and not connection.transport.is_closing():
                    kept.append(connection)
                else:
                    connection.transport.close()
            if kept:
                self._idle[environment_id] = kept
            else:
                del self._idle[environment_id]

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.transport.abort()
        self._idle.clear()


def _let_go(opening: asyncio.Task[Connection]) -> None:
    """Of a connection that nobody needs any more."""
    if not opening.cancelled() and opening.exception() is None:
        opened = opening.result()
        opened.socket.close()
        opened.release()
