"""Requests handed on as they came, to whichever service or replica serves them: method, target, headers (the Host that
was signed), body; streamed, either side's end the other's.

Session listeners are where the sessions are: in the runtime service. What another plane serves goes to that service's
internal listener. A listener token goes with it (`SESSION_HEADER`), so that the service there knows what the socket
said here; who signed the request it finds out by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import PlaneUnavailable, ServiceError, ValidationException
from agentkeep.service.answers import send_response
from agentkeep.service.asgi import App, Message, Receive, Scope, Send
from agentkeep.service.credentials import SESSION_HEADER, ServiceCredentials
from agentkeep.service.ownership import plane_of
from agentkeep.service.request_id import new_request_id
from agentkeep.wire import Router
from agentkeep.wire.errors import error_response

__all__ = ["Handed", "Relay", "SessionRelay", "Unreachable", "refuse"]

logger = logging.getLogger(__name__)

#: Of one connection, not of the message (RFC 9110, 7.6.1); and what this listener has answered itself.
_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
#: Nor these of the other's answer: this listener says them itself.
_NOT_ANSWERED: Final = _HOP | {b"date"}
_CONNECT_SECONDS: Final = 2.0
_KEPT_SECONDS: Final = 30.0
#: Bytes of an answer that wait here while the agent does not read.
_BUFFER: Final = 1 << 16


class Unreachable(PlaneUnavailable):
    """No connection: nothing was sent, nor taken from the request's body."""


class Relay:
    """Hands requests on. `start`, `close`."""

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession

    async def start(self) -> None:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(None, sock_connect=_CONNECT_SECONDS),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_BUFFER,
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            max_line_size=1 << 16,
            max_field_size=1 << 16,
        )

    async def close(self) -> None:
        await self._http.close()

    async def hand_on(self, base: str, to: str, own: Mapping[str, str], scope: Scope, handed: Handed) -> None:
        """To `to` at the URL `base`; `own` headers replace the request's. Raises PlaneUnavailable (Unreachable: it may
        be handed on once more), ValidationException, as long as nothing was answered."""
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        url = URL(base + target.decode("latin-1"), encoded=True)
        headers = _headers(own, scope)
        body = None if handed.received else handed.body()
        watch = asyncio.create_task(handed.left())
        answer = asyncio.create_task(self._answer(scope["method"], url, headers, body, handed, to))
        try:
            await asyncio.wait((watch, answer), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        finally:
            for task in (watch, answer):
                task.cancel()
            await asyncio.wait((watch, answer))

    async def _answer(
        self,
        method: str,
        url: URL,
        headers: CIMultiDict[str],
        body: AsyncIterator[bytes] | None,
        handed: Handed,
        to: str,
    ) -> None:
        try:
            async with self._http.request(method, url, headers=headers, data=body, allow_redirects=False) as response:
                fields = [pair for pair in response.raw_headers if pair[0].lower() not in _NOT_ANSWERED]
                if not handed.received:
                    fields.append((b"connection", b"close"))
                await handed.begin(response.status, fields)
                async for piece in response.content.iter_any():
                    await handed.piece(piece)
            await handed.end()
        except (aiohttp.ClientError, OSError) as error:
            logger.warning("a request handed on to %s ended: %s", to, type(error).__name__)
            if not handed.begun:
                no_connection = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
                kind = Unreachable if no_connection and not handed.touched else PlaneUnavailable
                raise kind(f"{to[0].upper()}{to[1:]} cannot be reached now. Try again later") from None
            # Else the caller's connection is cut, which is all there is left to say.


class SessionRelay:
    """An ASGI application around the runtime service's own: sessions' requests for other planes. `urls`: internal
    listeners by service. `start`, `close`."""

    def __init__(
        self,
        own: str,
        application: App,
        router: Router,
        credentials: ServiceCredentials,
        urls: Mapping[str, str],
        owner: Callable[[bytes], str | None] = plane_of,
    ) -> None:
        self._own = own
        self._application = application
        self._router = router
        self._credentials = credentials
        self._urls = {name: url.rstrip("/") for name, url in urls.items()}
        self._owner = owner
        self._relay = Relay()
        self.start = self._relay.start
        self.close = self._relay.close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session: SessionRef | None = scope.get("agentkeep.session")
        plane = self._owner(scope["raw_path"]) if session is not None else None
        if session is None or plane is None or plane == self._own:
            await self._application(scope, receive, send)
            return
        handed = Handed(scope, receive, send)
        token = {SESSION_HEADER.decode(): self._credentials.token(plane, session)}
        try:
            await self._relay.hand_on(self._urls[plane], f"the {plane} service", token, scope, handed)
        except ServiceError as error:
            await refuse(self._router, error, scope, handed)


async def refuse(router: Router, error: ServiceError, scope: Scope, handed: Handed) -> None:
    """Answers a request that could not be handed on."""
    match = router.find(scope["method"], scope["raw_path"])
    response = match.operation.serialize_error(error) if match is not None else error_response(error)
    await send_response(response, new_request_id(), handed.receive, handed.send, close=not handed.received)


def _headers(own: Mapping[str, str], scope: Scope) -> CIMultiDict[str]:
    dropped = _HOP | _tokens(scope, b"connection") | {SESSION_HEADER}
    headers: CIMultiDict[str] = CIMultiDict()
    try:
        for name, value in scope["headers"]:
            if name not in dropped:
                headers.add(name.decode("ascii"), value.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValidationException("The request's headers are not UTF-8", "CannotParse") from None
    headers.update(own)
    return headers


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _tokens(scope: Scope, name: bytes) -> frozenset[bytes]:
    """The fields that `Connection` says are this connection's only."""
    found = [value for key, value in scope["headers"] if key == name]
    return frozenset(token.strip().lower() for value in found for token in value.split(b","))


class Handed:
    """One request on its way: the caller's side of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.begun = False
        self.touched = False  # some of its body was taken
        self.received = not _has_body(scope)  # all of the request is here
        self._body_over = asyncio.Event()
        self._gone = False
        self._taken: Message | None = None  # by looking whether the caller has gone
        if self.received:
            self._body_over.set()

    async def body(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            self.touched = True
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self._gone = True
                self._body_over.set()
                raise ConnectionResetError("the agent left")
            if data := message.get("body"):
                yield data
            more = message.get("more_body", False)
        self.received = True
        self._body_over.set()

    async def left(self) -> None:
        """Returns when the agent has gone. Only one may wait for its messages: the body comes first."""
        await self._body_over.wait()
        while not self._gone:
            message = await self.receive()
            self._gone = message["type"] == "http.disconnect"
            self._taken = self._taken or message

    async def receive_anew(self) -> Message:
        """The request's messages from the first, for whoever serves it after nothing of its body was taken."""
        taken, self._taken = self._taken, None
        return taken or await self.receive()

    async def begin(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self.send({"type": "http.response.start", "status": status, "headers": fields})

    async def piece(self, data: bytes) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self.send({"type": "http.response.body", "body": b""})
