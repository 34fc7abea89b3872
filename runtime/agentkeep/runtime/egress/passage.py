"""One connection of a session to a host outside: CONNECT is decided and answered, the client's TLS greeting is looked
at, then bytes are moved both ways. Nothing of them is kept or told."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

import orjson

from agentkeep.core.errors import AgentkeepError
from agentkeep.runtime.egress.client_hello import UNRECOGNIZED_NAME, BadHello, read_client_hello
from agentkeep.runtime.egress.egress import EgressRefused, Place
from agentkeep.service.direct import ClientConnection, Exchange, Head

if TYPE_CHECKING:
    from agentkeep.runtime.egress.route import EgressRoute

__all__ = ["Passage"]

logger = logging.getLogger(__name__)

_NEVER = float("inf")
_OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Passage(Exchange):
    """States: opening (nothing is answered), greeted for (200 is answered, the ClientHello awaited), open, leaving (the
    client is gone, what it sent goes out)."""

    def __init__(self, route: EgressRoute, head: Head, connection: ClientConnection) -> None:
        super().__init__(head, connection)
        assert head.session is not None, "the front lets nobody else"
        self._ref = head.session
        self._route = route
        self._egress = route.egress
        self._place: Place | None = None
        self._outside: _Outside | None = None
        self._task: asyncio.Task[None] | None = None
        self._held = bytearray()  # of the client, not yet passed on
        self._pieces = 0
        self._greeted = False
        self.deadline = _NEVER
        self.idle_since = _NEVER

    def on_open(self) -> None:
        self.keep_alive = False
        self.tunnelled = True
        self.received = True
        self._route.passages.add(self)
        self._task = asyncio.create_task(self._open(), name="egress")

    async def _open(self) -> None:
        egress = self._egress
        try:
            place = self._place = egress.take(self._ref, self)
            await egress.admit(place, self.head.path)
            await egress.connect(place, lambda: _Outside(self))
        except EgressRefused as refused:
            self._refuse(refused)
        except AgentkeepError as error:
            logger.warning("a session's way out failed: %s", error)
            self._refuse(EgressRefused(503, "ServiceUnavailable", "The way out is not available now", kept=False))
        except Exception:
            logger.exception("CONNECT %s failed", self.request_id)
            self._refuse(EgressRefused(500, "InternalServerException", "The way out failed", kept=False))
        else:
            if self.response_complete:
                return
            self.started = True
            self.deadline = self._route.now + egress.limits.hello
            self.connection.transport.write(_OPEN)
            self.connection.resume_body()
            self._greet()  # what goes on may pause it again

    # The client's end.

    def on_upgrade(self, rest: bytes) -> None:
        if rest:
            self.on_tunnel_data(rest)

    def on_tunnel_data(self, data: bytes) -> None:
        outside = self._outside
        if self.response_complete:
            return
        if self._greeted and outside is not None:
            self.idle_since = self._route.now
            outside.transport.write(data)
            return
        self._held += data
        if self.started:
            self._greet()
        else:
            self.connection.pause_body()

    def _greet(self) -> None:
        """Looks at the ClientHello, and lets it pass when it is all there and asks for whom CONNECT did."""
        place, outside = self._place, self._outside
        if place is None or outside is None or place.wanted is None:
            return
        wanted = place.wanted
        try:
            complete, name = read_client_hello(self._held)
            self._pieces += 1
            if not complete and self._pieces > self._egress.limits.hello_pieces:
                raise BadHello("the ClientHello comes in too many pieces")
            if not complete:
                return
            if name is None and wanted.address is None:
                raise BadHello(f"the ClientHello names no server, and {wanted.host} was asked for")
            if name is not None and name != wanted.host:
                raise BadHello("the ClientHello is for another server than CONNECT")
        except BadHello as error:
            self._end(EgressRefused(403, "ServerNameRefused", str(error)))
            return
        self._greeted = True
        self.idle_since = self._route.now
        self.deadline = self._route.now + self._egress.limits.life
        outside.transport.write(bytes(self._held))
        self._held.clear()

    def on_client_blocked(self, blocked: bool) -> None:
        if self._outside is not None:
            self._outside.pause(blocked)

    def on_client_lost(self) -> None:
        if self._outside is None:
            if self._task is not None:
                self._task.cancel()
            self._over()
            return
        self.deadline = self._route.now + self._egress.limits.leave
        self._outside.transport.close()

    # The other end.

    def reached(self, outside: _Outside) -> None:
        if self.response_complete:
            outside.transport.abort()
            return
        before, self._outside = self._outside, outside
        if before is not None:  # given up at the very moment
            before.transport.abort()

    def from_outside(self, data: bytes) -> None:
        if self.response_complete:
            return
        if not self._greeted:  # no TLS server speaks first
            self._end(EgressRefused(502, "NoTls", "The host is no TLS server"))
            return
        self.idle_since = self._route.now
        self.connection.transport.write(data)

    def outside_blocked(self, blocked: bool) -> None:
        if self.response_complete:
            return
        if blocked:
            self.connection.pause_body()
        else:
            self.connection.resume_body()

    def outside_lost(self, outside: _Outside) -> None:
        if self._outside is not outside:
            return
        self._outside = None
        if not self.response_complete:
            self.response_complete = True
            self.connection.transport.close()  # when what came has been sent
        self._over()

    # Endings.

    def cut(self) -> None:
        """At once: its session ends, or its time is over."""
        if self._task is not None:
            self._task.cancel()
        super().cut()
        if self._outside is not None:
            self._outside.transport.abort()
        self._over()

    def _refuse(self, refused: EgressRefused) -> None:
        """Instead of a connection. The reason stands in the status line, too: clients show that, and no body."""
        self._told(refused)
        self._over()
        if self.response_complete:
            return
        self.tunnelled = False
        body = orjson.dumps({"message": refused.message})
        head = (
            f"HTTP/1.1 {refused.status} {refused.message}\r\nx-amzn-errortype: {refused.code}\r\n"
            f"x-amzn-requestid: {self.request_id}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.started = self.response_complete = True
        self.connection.transport.write(head.encode() + body)
        self.connection.exchange_complete(self)

    def _end(self, refused: EgressRefused) -> None:
        """After 200 was answered: only TLS can say that it is over."""
        self._told(refused)
        self.response_complete = True
        if self._outside is not None:
            self._outside.transport.abort()
        self._over()
        if self._held[:1] == b"\x16":
            self.connection.transport.write(UNRECOGNIZED_NAME)
        self.connection.exchange_complete(self)

    def _told(self, refused: EgressRefused) -> None:
        place = self._place
        logger.debug("session %s is refused a way out: %s", self._ref.session_id, refused.code)
        if place is not None:
            self._egress.tell(place, refused)

    def _over(self) -> None:
        self.deadline = self.idle_since = _NEVER
        self._route.passages.discard(self)
        place, self._place = self._place, None
        if place is not None:
            self._egress.leave(place, self)


class _Outside(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, passage: Passage) -> None:
        self._passage = passage

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._passage.reached(self)

    def pause(self, paused: bool) -> None:
        if not self.transport.is_closing():
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._passage.from_outside(data)

    def pause_writing(self) -> None:
        self._passage.outside_blocked(True)

    def resume_writing(self) -> None:
        self._passage.outside_blocked(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._passage.outside_lost(self)
