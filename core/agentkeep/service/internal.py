"""The internal listener: what the other services are served, and nobody else.

a listener token  ▶ a session's request, handed on by the runtime service: served as on that session's listener
a call token      ▶ ports; and mounts for trusted senders
neither           ▶ health, or refused
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from agentkeep.core.errors import ServiceUnavailableException, UnauthorizedException
from agentkeep.service.answers import health_response, send_response
from agentkeep.service.asgi import App, Receive, Scope, Send, header
from agentkeep.service.credentials import SESSION_HEADER, TokenKind, TrustedServices
from agentkeep.service.limits import FrontLimits
from agentkeep.service.ports.server import PREFIX, PortsApp
from agentkeep.service.request_id import new_request_id
from agentkeep.wire import Response
from agentkeep.wire.errors import error_response

__all__ = ["INTERNAL_LIMITS", "InternalApplication"]

logger = logging.getLogger(__name__)

#: A head that was allowed at the session's listener, and the token put in front of it. Sessions' connections are
#: counted where they come in.
INTERNAL_LIMITS: Final = FrontLimits(connections=20_000, head_bytes=36 * 1024, head_fields=104)

_LIVE: Final = b"/healthz"
_READY: Final = b"/readyz"


class InternalApplication:
    """`trusted_mounts`: ASGI applications by path prefix, for senders with a call token or one of `bearers` (secrets of
    senders that are no services of the platform, by the prefix they may use).

    Before `serve` there is only health. While it drains, sessions' new requests are refused; ports and health stay.
    """

    def __init__(self, trusted: TrustedServices, missing: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._trusted = trusted
        self._missing = missing
        self._application: App | None = None
        self._ports: PortsApp | None = None
        self._trusted_mounts: Mapping[bytes, App] = {}
        self._bearers: Mapping[bytes, bytes] = {}
        self._draining = False
        self._under_way = 0
        self._idle = asyncio.Event()

    def serve(
        self,
        application: App,
        ports: PortsApp,
        trusted_mounts: Mapping[bytes, App] | None = None,
        bearers: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self._application = application
        self._ports = ports
        self._trusted_mounts = trusted_mounts or {}
        self._bearers = bearers or {}

    async def drain(self, seconds: float) -> None:
        """Returns when no session's request is under way, or after `seconds`."""
        self._draining = True
        if self._under_way:
            self._idle.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
            except TimeoutError:
                logger.warning("%d requests of sessions are still under way after %g s", self._under_way, seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: bytes = scope["raw_path"]
        if scope["method"] == "GET" and path in (_LIVE, _READY):
            missing = await self._missing() if path == _READY else ()
            await _answer(health_response(missing), receive, send)
            return
        statement = header(scope, SESSION_HEADER)
        if self._application is None or (statement and self._draining):
            refusal = ServiceUnavailableException("This service is starting or stopping. Try again")
            await _answer(error_response(refusal), receive, send, close=True)
            return
        try:
            if statement:
                await self._of_session(statement, scope, receive, send)
            else:
                await self._trusted_app(path, scope)(scope, receive, send)
        except UnauthorizedException as error:
            logger.warning("the internal listener refused %s: %s", path[:100].decode("latin-1"), error.message)
            await _answer(error_response(error), receive, send, close=True)

    async def _of_session(self, statement: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._application is not None
        proof = self._trusted.verify(statement.decode("latin-1"), TokenKind.LISTENER)
        scope["agentkeep.session"] = proof.session
        scope["headers"] = [field for field in scope["headers"] if field[0] != SESSION_HEADER]
        self._under_way += 1
        try:
            await self._application(scope, receive, send)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def _trusted_app(self, path: bytes, scope: Scope) -> App:
        """Raises UnauthorizedException."""
        kind, _, token = header(scope, b"authorization").partition(b" ")
        if kind.lower() != b"bearer":
            raise UnauthorizedException("Only the platform's own services are served here", "Bearer")
        for prefix, app in self._trusted_mounts.items():
            if path.startswith(prefix):
                expected = self._bearers.get(prefix)
                if expected is None or not hmac.compare_digest(expected, token):
                    self._service(token, scope)
                return app
        self._service(token, scope)
        assert self._ports is not None
        if path == PREFIX or path.startswith(PREFIX + b"/"):
            return self._ports
        raise UnauthorizedException("Operations are served to sessions and, at the public listener, to clients")

    def _service(self, token: bytes, scope: Scope) -> None:
        scope["agentkeep.service"] = self._trusted.verify(token.decode("latin-1"), TokenKind.CALL).service


async def _answer(response: Response, receive: Receive, send: Send, *, close: bool = False) -> None:
    await send_response(response, new_request_id(), receive, send, close=close)
