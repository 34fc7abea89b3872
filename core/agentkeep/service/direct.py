"""Requests that bypass ASGI: a plane may take a request straight from the parser's callbacks, without a task.

The front asks each `DirectRoute` whether a request is its own. If so the route makes an `Exchange`, which from then on
receives the body, answers, and is told when the client falls behind or leaves. All callbacks run in the event loop and
must not block. An exchange frames its answer anew; nothing of another server's framing passes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from agentkeep.core.call import SessionRef
from agentkeep.service.request_id import new_request_id

__all__ = ["ClientConnection", "DirectRoute", "Exchange", "Head"]


class Head:
    """A request's head, as sent. `path` and `query` are raw (percent-encoded), of a CONNECT `path` is its target;
    `headers` have lower-case names, repeated fields joined by a comma; `length` is None for a chunked body. `session`:
    the listener's, if it is one."""

    __slots__ = ("headers", "keep_alive", "length", "method", "path", "query", "session", "version", "websocket")

    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: Mapping[bytes, bytes],
        length: int | None,
        version: str,
        keep_alive: bool,
        websocket: bool,
        session: SessionRef | None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.length = length
        self.version = version
        self.keep_alive = keep_alive
        self.websocket = websocket
        self.session = session


class ClientConnection(Protocol):
    """What an exchange uses of the connection that carries it."""

    transport: asyncio.Transport
    memo: object  # whatever an exchange leaves for the next one on the connection

    @property
    def date(self) -> bytes:
        """The `date` header line, CRLF included."""
        ...

    def pause_body(self) -> None:
        """Stop reading the request's body: whoever takes it is full."""
        ...

    def resume_body(self) -> None: ...

    def exchange_complete(self, exchange: Exchange) -> None: ...


class DirectRoute(Protocol):
    def matches(self, method: bytes, path: bytes, websocket: bool) -> bool:
        """Whether this request is the route's. `path` is raw; CONNECT comes from sessions only, with its target for a
        path. Called for every request: must be cheap."""
        ...

    def open(self, head: Head, connection: ClientConnection) -> Exchange:
        """Takes the request, at the end of its head. `on_open` follows at once."""
        ...

    def sweep(self, now: float) -> None:
        """Called every quarter of a second with the loop's time: for time limits, instead of a timer for each."""
        ...


class _Framing(Enum):
    NONE = 0  # the status allows no body
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3  # HTTP/1.0


class _Unheard:
    """uvicorn wakes the task of a cycle through its event; an exchange has no task."""

    def set(self) -> None:
        pass


class Exchange:
    """One request and its answer, on a client's connection. Subclasses override the `on_` methods.

    It looks like uvicorn's RequestResponseCycle to the protocol that carries it (response_complete, keep_alive,
    message_event, disconnected).
    """

    message_event = _Unheard()
    disconnected = False
    response_complete = False
    started = False  # some of the answer left
    received = False  # all of the request came
    refused = False  # whatever the body: nobody is asked to send it
    tunnelled = False  # bytes are no longer HTTP: they go to on_tunnel_data

    def __init__(self, head: Head, connection: ClientConnection) -> None:
        self.head = head
        self.connection = connection
        self.keep_alive = head.keep_alive
        self.request_id = new_request_id()
        self._framing = _Framing.NONE
        self._out: list[bytes] = []

    # What happens to it.

    def on_open(self) -> None:
        """It has its connection, and may answer."""

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""

    def on_request_end(self) -> None:
        """The body is complete."""

    def on_client_blocked(self, blocked: bool) -> None:
        """The client does not keep up with the answer (True), or does again."""

    def on_client_lost(self) -> None:
        """The client left, or broke the protocol. Called at most once, and never after the answer was complete."""

    def on_upgrade(self, rest: bytes) -> None:
        """The head of a WebSocket upgrade, or of a CONNECT, ended; `rest` came behind it."""

    def on_tunnel_data(self, data: bytes) -> None: ...

    # What it does. `start`, `send` and `end` collect; `flush` writes what was collected at once.

    def start(self, status: int, fields: Iterable[bytes], length: int | None) -> None:
        """The answer's head. `fields`: complete header lines, CRLF included, without framing."""
        self.started = True
        out = self._out
        out += (STATUS_LINE[status], self.connection.date, b"x-amzn-requestid: ", self.request_id.encode(), b"\r\n")
        out += fields
        if status in (204, 304) or status < 200:
            self._framing = _Framing.NONE
        elif length is not None:
            self._framing = _Framing.LENGTH
            out.append(b"content-length: %d\r\n" % length)
        elif self.head.version == "1.0":
            self._framing = _Framing.UNTIL_CLOSE
            self.keep_alive = False
        else:
            self._framing = _Framing.CHUNKED
            out.append(b"transfer-encoding: chunked\r\n")
        out.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def send(self, data: bytes) -> None:
        if self._framing is _Framing.CHUNKED:
            if data:
                self._out.append(b"%x\r\n%b\r\n" % (len(data), data))
        elif self._framing is not _Framing.NONE:
            self._out.append(data)

    def flush(self) -> None:
        out = self._out
        if out:
            self._out = []
            self.connection.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def end(self) -> None:
        """The answer is complete: writes the rest and gives the connection back."""
        if self._framing is _Framing.CHUNKED:
            self._out.append(b"0\r\n\r\n")
        self.flush()
        self.response_complete = True
        self.connection.exchange_complete(self)

    def answer(self, status: int, fields: Iterable[bytes], body: bytes) -> None:
        """A whole answer. Given before the request ended, it ends the connection: the rest of the body is not for
        anybody."""
        if not self.received:
            self.keep_alive = False
        self.start(status, fields, len(body))
        self.send(body)
        self.end()

    def cut(self) -> None:
        """Ends an answer that began and cannot be completed: only a broken connection tells the truth."""
        self._out.clear()
        self.response_complete = True
        self.connection.transport.abort()
