"""The ASGI application of the planes: one chain from a request to its answer.

    route ▶ authenticate (receives the body) ▶ parse ▶ idempotency ▶ invoke ▶ serialise

`Application._serve` is that chain; errors are answered around it. Health and mounts leave before it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from agentkeep.backend.backend import Backend
from agentkeep.core.call import Call, Caller, CallerKind, SessionRef
from agentkeep.core.errors import (
    AccessDeniedException,
    InternalServerException,
    ServiceError,
    ServiceUnavailableException,
    StoreUnavailable,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.core.parity import COMPATIBILITY_PAGE
from agentkeep.core.permissions import authorized
from agentkeep.core.ports import AccessKey
from agentkeep.service.answers import health_response, send_response
from agentkeep.service.asgi import ClientLeft, Message, Receive, Scope, Send
from agentkeep.service.authentication import Authenticator, Claim
from agentkeep.service.body import Body, read_body
from agentkeep.service.body_memory import BodyMemory, Share
from agentkeep.service.idempotency import idempotency
from agentkeep.service.mounts import Access, AnswerCut, Mount
from agentkeep.service.request_id import new_request_id
from agentkeep.service.spool import Spools
from agentkeep.wire import Match, Response, Router, error_response

__all__ = ["Application", "Bearers", "MissingAuthenticationTokenException", "UnknownOperationException"]

logger = logging.getLogger(__name__)

#: Of one operation's request, bytes. The largest modelled are Converse's, with images.
MAX_BODY = 25_000_000
#: Of all mounts' request bodies that wait on disk to be proved.
MAX_SPOOLED = 2 << 30
#: Of request bodies in memory at one time: all together, and those of one session.
MAX_HELD = 1 << 30
MAX_HELD_OF_SESSION = 64 << 20
_HEALTH = frozenset((b"/healthz", b"/ping"))
_READY = b"/readyz"


class UnknownOperationException(ServiceError):
    """No operation has this path and method."""

    status = 404


class MissingAuthenticationTokenException(ServiceError):
    """What AWS says to unsigned requests for nothing it knows."""

    status = 403


class Bearers(Protocol):
    """Who calls with a bearer token. Some operations on a resource take a user's token where its authorizer asks for
    one (StopRuntimeSession); only the plane that owns the resource can say."""

    async def caller(self, operation: str, labels: Mapping[str, str], query: bytes, token: str) -> Caller:
        """Raises UnauthorizedException, AccessDeniedException, ResourceNotFoundException."""
        ...

    async def challenge(self, labels: Mapping[str, str], query: bytes) -> str | None:
        """How to get a token (`WWW-Authenticate`) for what takes tokens."""
        ...


class _Request:
    """What the chain knows of a request; `match` once it is routed, `body_read` once all of it is here."""

    def __init__(self, scope: Scope, receive: Receive, memory: BodyMemory) -> None:
        self.id = new_request_id()
        self.scope = scope
        self.receive = receive
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.session: SessionRef | None = scope.get("agentkeep.session")
        self.raw_headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            before = self.raw_headers.get(name)
            self.raw_headers[name] = value if before is None else before + b"," + value
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.raw_headers.items()}
        self.match: Match | None = None
        self.body_read = False
        self.share: Share = memory.share(self.session)

    async def receive_counted(self) -> Message:
        """For whoever keeps what comes in memory. Raises ThrottlingException."""
        message = await self.receive()
        self.share.take(len(message.get("body", b"")))
        return message

    @property
    def bearer(self) -> str | None:
        authorization = self.headers.get("authorization", "")
        return authorization[7:].strip() if authorization[:7].lower() == "bearer " else None

    @property
    def signed(self) -> bool:
        """Whether it says who is calling; true or not."""
        return "authorization" in self.headers or b"X-Amz-" in self.query

    @property
    def name(self) -> str:
        return self.match.operation.name if self.match is not None else "no operation"


class Application:
    """`mounts` are looked at before the operations, the longest prefix first; each is on one kind of listener only.
    `missing` names the parts without which the platform cannot serve now (/readyz). `fingerprint_key`: what the
    fingerprints of requests with a client token are made with; the same for all replicas, and after a restart."""

    def __init__(
        self,
        router: Router,
        backend: Backend,
        authenticator: Authenticator,
        mounts: Iterable[Mount] = (),
        bearers: Bearers | None = None,
        missing: Callable[[], Awaitable[Sequence[str]]] | None = None,
        fingerprint_key: bytes = b"",
    ) -> None:
        self._router = router
        self._backend = backend
        self._authenticator = authenticator
        self._mounts = sorted(mounts, key=lambda mount: (mount.place is None, -len(mount.prefix)))
        self._bearers = bearers
        self._missing = missing
        self._fingerprint_key = fingerprint_key
        self._spools = Spools(MAX_SPOOLED)
        self._memory = BodyMemory(MAX_HELD, MAX_HELD_OF_SESSION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = _Request(scope, receive, self._memory)
        try:
            await self._answer(request, send)
        finally:
            request.share.close()

    async def _answer(self, request: _Request, send: Send) -> None:
        try:
            mount = self._mount(request)
            if mount is not None:
                await self._serve_mount(mount, request, send)
                return
            response = await self._serve(request)
        except ServiceError as error:
            response = self._error(request, error)
        except ClientLeft:
            return
        except AnswerCut:
            logger.exception("request %s (%s) failed in its answer", request.id, request.path.decode("latin-1"))
            return
        except StoreUnavailable as error:
            # It will be back: clients are to try again, and those with a token may do so without harm.
            logger.error("request %s (%s) met a store that is not available: %s", request.id, request.name, error)
            response = self._error(
                request,
                ServiceUnavailableException(
                    f"A store that this needs is not available now: try again. The log tells more of {request.id}"
                ),
            )
        except Exception:
            # A defect, or what a dependency did to us: the log gets all, the caller only where to look.
            logger.exception("request %s (%s) failed", request.id, request.name)
            response = self._error(
                request, InternalServerException(f"The service failed. Its log tells more of request {request.id}")
            )
        await send_response(response, request.id, request.receive, send, close=self._ends_connection(request))

    async def _serve(self, request: _Request) -> Response:
        if request.method == "GET" and (request.path in _HEALTH or request.path == _READY):
            return await self._health(request.path)
        request.match = self._router.find(request.method, request.path)
        caller, body = await self._authenticate(request)
        if request.match is None:
            raise UnknownOperationException(
                f"No operation has this method and path. What is implemented: {COMPATIBILITY_PAGE}"
            )
        operation, labels = request.match
        document = operation.parse(labels, request.query, request.headers, body.whole())
        token = idempotency(operation, document, caller, self._fingerprint_key)
        call = Call(operation.service, operation.name, caller, request.id, token, request.headers)
        return operation.serialize(await self._backend.invoke(call, document))

    async def _authenticate(self, request: _Request) -> tuple[Caller, Body]:
        """The caller, and the body: a signature covers it, so it is proved only when all of it is there."""
        bearer = request.bearer
        if bearer is not None and request.match is not None and request.session is None and self._bearers is not None:
            operation, labels = request.match
            caller = await self._bearers.caller(operation.name, labels, request.query, bearer)
            return caller, await self._body(request)
        try:
            key, claim = await self._identify(request)
        except UnauthorizedException:
            await self._challenge(request)
            raise
        body = await self._body(request)
        self._authenticator.prove(claim, key, body.sha256)
        return key.caller, body

    async def _challenge(self, request: _Request) -> None:
        """Who shows neither signature nor token is told where to get a token, if tokens are taken."""
        if request.match is None or request.session is not None or self._bearers is None or request.signed:
            return
        challenge = await self._bearers.challenge(request.match.labels, request.query)
        if challenge is not None:
            raise UnauthorizedException("Missing authentication token", challenge) from None

    async def _identify(self, request: _Request) -> tuple[AccessKey, Claim]:
        return await self._authenticator.identify(
            request.method.encode(), request.path, request.query, request.raw_headers, request.session
        )

    async def _body(self, request: _Request, limit: int = MAX_BODY, spools: Spools | None = None) -> Body:
        receive = request.receive if spools is not None else request.receive_counted
        body = await read_body(receive, request.headers, limit, spools)
        request.body_read = True
        return body

    # What is no operation.

    async def _health(self, path: bytes) -> Response:
        missing = await self._missing() if path == _READY and self._missing is not None else ()
        return health_response(missing)

    def _mount(self, request: _Request) -> Mount | None:
        """The mount at this path, if it is on this listener. Public ones are not for sessions: an agent has no business
        with, say, the development issuer, which signs tokens for any user."""
        host = request.raw_headers.get(b"host", b"")
        inside = request.session is not None
        found = [mount for mount in self._mounts if mount.covers(request.path, host)]
        return next((mount for mount in found if inside == (mount.access is Access.SESSION)), None)

    async def _serve_mount(self, mount: Mount, request: _Request, send: Send) -> None:
        if mount.access is not Access.OPERATOR:
            if int(request.headers.get("content-length", "0")) > mount.max_body:
                raise ValidationException(f"The request's body is larger than {mount.max_body} bytes", "CannotParse")
            await mount.serve(request.scope, request.receive_counted, send, request.id)
            return
        key, claim = await self._identify(request)
        if key.caller.kind not in (CallerKind.OPERATOR, CallerKind.ROLE):
            raise AccessDeniedException(f"{key.caller.principal} is not an operator")
        body = await self._body(request, mount.max_body, self._spools)
        try:
            self._authenticator.prove(claim, key, body.sha256)
            with self._authenticator.recording(key.caller):
                request.scope["agentkeep.caller"] = authorized(key.caller, mount.action(request.method), ("*",))
                await mount.serve(request.scope, body.replay(request.receive), send, request.id)
        finally:
            body.close()

    # Errors.

    @staticmethod
    def _error(request: _Request, error: ServiceError) -> Response:
        if request.match is not None:
            return request.match.operation.serialize_error(error)
        if isinstance(error, UnauthorizedException):
            # No operation says how it calls this: as AWS does, then, where a signature is missing or wrong.
            error = (AccessDeniedException if request.signed else MissingAuthenticationTokenException)(error.message)
        return error_response(error)

    @staticmethod
    def _ends_connection(request: _Request) -> bool:
        """Answered before a large body was read: rather than take it in, the connection ends."""
        if request.body_read:
            return False
        return "transfer-encoding" in request.headers or int(request.headers.get("content-length", "0")) > 65536
