"""The HTTP/1.1 protocol of the front: uvicorn's, made strict, with time limits, and with room for direct routes.

What uvicorn 0.54 with httptools leaves open and this closes (each has a test in tests/service): heads without limit,
no or several Hosts, other transfer codings than chunked, bodies lost behind an offer of h2c, absolute-form targets,
heads and bodies that trickle, answers cut off by a reset after an early refusal.

It leans on uvicorn's internals (RequestResponseCycle's attributes, `flow`, `pipeline`, `_start_asgi_task`): uvicorn is
pinned, and the tests say when that breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import httptools
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from agentkeep.core.call import SessionRef
from agentkeep.service.direct import DirectRoute, Exchange, Head
from agentkeep.service.fields import RepeatedField, joined
from agentkeep.service.limits import FrontLimits
from agentkeep.service.request_id import new_request_id

__all__ = ["FrontProtocol", "Shared"]

_NEVER = float("inf")
_NO_CONNECT = "CONNECT is not served here"


class _Refused(Exception):
    """Raised inside parser callbacks; httptools turns it into its own error, the protocol knows the reason."""


class Shared(Protocol):
    """What all connections share: their front (`Front`), as they see it."""

    config: Config
    state: ServerState
    limits: FrontLimits
    refused_connections: int
    now: float
    date: bytes

    @property
    def routes(self) -> Sequence[DirectRoute]: ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    def admit(self, session: SessionRef | None) -> bool: ...
    def ended(self, session: SessionRef | None) -> None: ...


class FrontProtocol(HttpToolsProtocol):
    def __init__(self, front: Shared, session: SessionRef | None) -> None:
        super().__init__(front.config, front.state, {}, front.loop)
        self.front = front
        self.session = session
        self.exchange: Exchange | None = None
        self.memo: object = None
        self.deadline = _NEVER  # of what the client has to do next; looked at by the front's sweep
        self.blocked_since = 0.0
        self.in_head = False
        self.in_body = False
        self.deaf = False  # what comes is no longer parsed: the connection ends with the answer under way
        self.declining = False  # an upgrade was offered that is not taken up
        self.upgrading = False
        self.segment = 0  # size of the piece being parsed
        self.head_bytes = 0  # of the head being read, without the piece in which it began
        self.framing_bytes = 0  # since the body's last byte: chunk sizes, extensions, trailers
        self.discarded = 0
        self.refusal = (400, "ValidationException", "This is not a valid HTTP request")

    # Transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.deadline = self.front.now + self.front.limits.idle_seconds
        if not self.front.admit(self.session):
            self.front.refused_connections += 1
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if self.deaf:
            self.discarded += len(data)
            if self.discarded > self.front.limits.linger_bytes:
                self.transport.abort()
            return
        if exchange is not None and exchange.tunnelled:
            exchange.on_tunnel_data(data)
            return
        self.segment = len(data)
        if self.in_head:
            self.head_bytes += self.segment
        self.framing_bytes += self.segment
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self.upgrading and self.exchange is not None:
                self.deadline = _NEVER
                self.exchange.on_upgrade(rest)
            elif self.declining:
                self.read_again(rest)
        except httptools.HttpParserError:
            if not self.deaf:
                self.refuse(*self.refusal)
        if self.in_head and self.head_bytes > self.front.limits.head_bytes:
            self.refuse(400, "ValidationException", f"The head is larger than {self.front.limits.head_bytes} bytes")
        elif self.in_body and not self.deaf and self.framing_bytes > self.front.limits.head_bytes:
            self.refuse(400, "ValidationException", "The body's framing is larger than its data")

    def read_again(self, rest: bytes) -> None:
        """httptools drops the body of a request that offers to upgrade, as Java's client does (h2c): the request is
        read again without the offer."""
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name not in (b"upgrade", b"connection", b"http2-settings"):
                head += (name, b": ", value, b"\r\n")
        head.append(b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        self.declining = False
        self.data_received(b"".join([*head, rest]))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.blocked_since = self.front.now
        if self.exchange is not None:
            self.exchange.on_client_blocked(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.blocked_since = 0.0
        if self.exchange is not None:
            self.exchange.on_client_blocked(False)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        self.deadline, self.blocked_since = _NEVER, 0.0
        super().connection_lost(exc)
        self.front.ended(self.session)
        if exchange is not None and not exchange.response_complete:
            exchange.response_complete = True
            exchange.on_client_lost()

    # Parser.

    def on_message_begin(self) -> None:
        if self.deaf or self.exchange is not None:
            self.deaf = True  # pipelined behind a direct request: not served; the client sees the connection end
            return
        self.in_head, self.head_bytes = True, 0
        self.url, self.headers = b"", []
        self.deadline = self.front.now + self.front.limits.head_seconds

    def on_url(self, url: bytes) -> None:
        if not self.deaf:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head and not self.deaf:  # else a trailer: nobody reads those
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.deaf:
            return
        self.in_head = False
        self.in_body = True
        self.framing_bytes = 0
        parser = self.parser
        url, version, method, upgrade = (
            self.url,
            parser.get_http_version(),
            parser.get_method(),
            parser.should_upgrade(),
        )
        fields = self.checked_fields(method, version, upgrade and method == b"GET")
        websocket = upgrade and method == b"GET" and fields.get(b"upgrade", b"").lower() == b"websocket"
        tunnel = websocket or method == b"CONNECT"
        path, _, query = url.partition(b"?")
        for route in self.front.routes:
            if route.matches(method, path, websocket):
                break
        else:
            if method == b"CONNECT":
                raise self.refused(_NO_CONNECT)
            self.declining = upgrade
            if not upgrade:
                self.take_by_asgi(fields)
            return
        if upgrade and not tunnel:
            self.declining = True
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # Pipelined behind a request that ASGI is still answering.
            self.cycle.keep_alive, self.deaf = False, True
            return
        length: int | None = None
        if b"transfer-encoding" not in fields:
            length = int(fields.get(b"content-length", b"0"))
        if tunnel and length != 0:
            raise self.refused("A WebSocket upgrade has no body")
        self.upgrading = tunnel
        self.deadline = self.front.now + self.front.limits.body_grace
        keep_alive = version == "1.1" and parser.should_keep_alive()
        head = Head(method, path, query, fields, length, version, keep_alive, websocket, self.session)
        exchange = self.exchange = self.cycle = route.open(head, self)  # type: ignore[assignment]
        exchange.on_open()
        if b"expect" in fields and not (exchange.response_complete or exchange.refused):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self.framing_bytes = 0
        if self.deaf or self.declining:
            return
        self.deadline += len(body) / self.front.limits.body_rate
        if self.exchange is not None:
            self.exchange.on_body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.deaf or self.declining or self.upgrading:
            return
        self.in_body = False
        exchange = self.exchange
        if exchange is not None:
            self.deadline = _NEVER
            exchange.received = True
            exchange.on_request_end()
            return
        # Answered before its body came: what waits now is the client's next request.
        answered = self.cycle.response_complete
        self.deadline = self.front.now + self.front.limits.idle_seconds if answered else _NEVER
        super().on_message_complete()

    # Requests.

    def checked_fields(self, method: bytes, version: str, handshake: bool) -> dict[bytes, bytes]:
        """The head's fields by name; refuses heads that two readers could understand differently. `handshake`: it may
        be a WebSocket's. If it is none, it is read again without the offer, and checked again."""
        headers, limits = self.headers, self.front.limits
        if len(headers) > limits.head_fields:
            raise self.refused(f"The head has more than {limits.head_fields} fields")
        if self.head_bytes + self.segment > limits.head_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > limits.head_bytes:
                raise self.refused(f"The head is larger than {limits.head_bytes} bytes")
        fields = dict(headers)
        if len(fields) != len(headers):
            try:
                fields = joined(headers, handshake)
            except RepeatedField as error:
                raise self.refused(f"The field {error} is given more than once") from None
        if method == b"CONNECT":
            self.check_connect(fields)
            return fields
        if not fields.get(b"host"):
            raise self.refused("A request names one Host")
        if not self.url.startswith(b"/") or b"#" in self.url:
            raise self.refused("The request target is a path (origin form)")
        coding = fields.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            raise self.refused("The only transfer coding is chunked")
        expected = fields.get(b"expect")
        if expected is not None and expected.lower() != b"100-continue":
            raise self.refused("The only expectation is 100-continue", 417)
        return fields

    def check_connect(self, fields: dict[bytes, bytes]) -> None:
        """A CONNECT is a session's alone, and all that follows its head is the other end's. Python's own client before
        3.12 sends no Host with it, which would say nothing that the target does not."""
        if self.session is None:
            raise self.refused(_NO_CONNECT)
        if any(name in fields for name in (b"content-length", b"transfer-encoding", b"expect")):
            raise self.refused("CONNECT has no body")
        target = self.url.lower()
        if any(mark in target for mark in b"/?#@"):
            raise self.refused("The target of CONNECT is host:port")
        host = fields.get(b"host", b"").lower()
        if host and host not in (target, target.rpartition(b":")[0]):
            raise self.refused("The Host of a CONNECT is its target")

    def take_by_asgi(self, fields: dict[bytes, bytes]) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()  # makes the scope, only now that ASGI wants one
        self.url, self.headers = url, headers
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["headers"] = headers
        scope["agentkeep.session"] = self.session
        self.expect_100_continue = b"expect" in fields
        self.deadline = self.front.now + self.front.limits.body_grace
        super().on_headers_complete()
        self.cycle.transport = _ClosesGently(self)  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.deaf or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self.in_body:
            self.deadline = self.front.now + self.front.limits.idle_seconds

    # What exchanges use.

    @property
    def date(self) -> bytes:
        return self.front.date

    def pause_body(self) -> None:
        self.flow.pause_reading()

    def resume_body(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def exchange_complete(self, exchange: Exchange) -> None:
        if self.exchange is not exchange:
            return
        if exchange.keep_alive and exchange.received and not self.deaf:
            self.exchange = None
            self.on_response_complete()
        else:
            self.close_gently()

    # Endings.

    def refused(self, message: str, status: int = 400) -> _Refused:
        self.refusal = (status, "ValidationException", message)
        return _Refused(message)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answers a request that cannot be served as HTTP, and ends the connection."""
        exchange, self.exchange = self.exchange, None
        cycle = None if exchange is not None else self.cycle
        self.in_head = False
        if exchange is not None and not exchange.response_complete:
            exchange.response_complete = True
            exchange.on_client_lost()
            if exchange.started:
                self.transport.abort()
                return
        elif cycle is not None and not cycle.response_complete:
            if not cycle.more_body:  # nonsense behind a good request: that one is still answered
                cycle.keep_alive, self.deaf = False, True
                return
            started = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if started:
                self.transport.abort()
                return
        body = orjson.dumps({"message": message})
        self.transport.write(
            b"%bcontent-type: application/json\r\nx-amzn-errortype: %b\r\nx-amzn-requestid: %b\r\n%b"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (STATUS_LINE[status], code.encode(), new_request_id().encode(), self.date, len(body), body)
        )
        self.in_body = True  # whatever comes is not for anybody
        self.close_gently()

    def close_gently(self) -> None:
        """Closing with input unread resets the connection, and the client never sees the answer: so we stop sending,
        and read on for a little while."""
        self.deaf = True
        if not self.in_body or self.transport.is_closing():
            self.transport.close()
            return
        self.deadline = self.front.now + self.front.limits.linger_seconds
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def expire(self) -> None:
        """The deadline has passed. Called by the front's sweep."""
        self.deadline = _NEVER
        if self.deaf:
            self.transport.abort()
        elif self.in_body and self.flow.read_paused:  # it is we who are slow
            self.deadline = self.front.now + self.front.limits.body_grace
        elif self.in_head or self.in_body:
            self.refuse(408, "RequestTimeoutException", "The request did not arrive in time")
        else:
            self.transport.close()


class _ClosesGently:
    """The transport as uvicorn's cycle sees it: closing it after an early answer goes through `close_gently`."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: FrontProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.close_gently()
