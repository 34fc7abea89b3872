"""Who calls a gateway, and that it is really he.

authorizer of the gateway   what is accepted
AWS_IAM                     a SigV4 signature of the body too: operators, and roles whose policies allow InvokeGateway,
                            on the public listener; an agent with its session's keys on its session's listener
CUSTOM_JWT                  a bearer token that passes the authorizer. On a session's listener it must be the token of
                            the session's own user: the call is then the session's, whatever the token says

Who is not known learns nothing: not even whether there is such a gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from opentelemetry.trace import SpanContext

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import AccessDeniedException, ResourceNotFoundException, UnauthorizedException
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import AccessKey, Authorizers, SessionUsers
from agentkeep.core.telemetry import parent_in
from agentkeep.gateway.records import GatewayRecord, Resources
from agentkeep.service.authentication import Authenticator, Claim

__all__ = ["Inbound", "InboundAuthentication", "Proposed"]

_MISSING = "Missing Bearer token"
_INVALID = "Invalid Bearer token"


@dataclass(frozen=True, slots=True)
class Inbound:
    """A request to a gateway whose caller is proved. `token`: the bearer token it came with. `parent`: the span of the
    caller's it says it is part of."""

    gateway: GatewayRecord
    caller: Caller
    request_id: str
    parent: SpanContext | None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Proposed:
    """A request before anything is proved. `session`: the listener's. `headers`: lower-case names."""

    gateway_id: str
    method: bytes
    path: bytes
    query: bytes
    headers: Mapping[bytes, bytes] = field(repr=False)
    session: SessionRef | None
    request_id: str

    @property
    def parent(self) -> SpanContext | None:
        sent = self.headers.get(b"traceparent")
        return None if sent is None else parent_in({"traceparent": sent.decode("latin-1")})

    @property
    def bearer(self) -> str | None:
        scheme, _, token = self.headers.get(b"authorization", b"").partition(b" ")
        return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


class InboundAuthentication:
    def __init__(
        self,
        resources: Resources,
        authenticator: Authenticator,
        authorizers: Authorizers,
        session_users: SessionUsers,
        deployment: Deployment,
    ) -> None:
        self._resources = resources
        self._authenticator = authenticator
        self._authorizers = authorizers
        self._session_users = session_users
        self._deployment = deployment

    async def identify(self, request: Proposed) -> tuple[AccessKey, Claim] | None:
        """Before the body is read: whose signature it claims to bear; None where it bears a token. Raises
        UnauthorizedException for a request that has neither, or whose signature cannot be right."""
        if request.bearer is not None:
            return None
        if b"authorization" not in request.headers and b"X-Amz-" not in request.query:
            raise UnauthorizedException(_MISSING)
        return await self._authenticator.identify(
            request.method, request.path, request.query, request.headers, request.session
        )

    async def prove(self, request: Proposed, claimed: tuple[AccessKey, Claim] | None, body_sha256: str) -> Inbound:
        """Raises UnauthorizedException, AccessDeniedException, and ResourceNotFoundException, the last only to whoever
        has proved who he is."""
        if claimed is not None:
            key, claim = claimed
            self._authenticator.prove(claim, key, body_sha256)
            arn = self._deployment.arn(f"gateway/{request.gateway_id}")
            caller = self._authenticator.authorized(key.caller, "bedrock-agentcore:InvokeGateway", [arn])
            gateway = await self._resources.gateway(request.gateway_id)
            if gateway is None:
                raise ResourceNotFoundException(f"There is no gateway {request.gateway_id}")
            if gateway.authorizer_type != "AWS_IAM":
                raise UnauthorizedException(_MISSING)
            return Inbound(gateway, caller, request.request_id, request.parent)
        gateway = await self._resources.gateway(request.gateway_id)
        token = request.bearer
        if gateway is None or gateway.authorizer_type != "CUSTOM_JWT" or gateway.authorizer is None or not token:
            raise UnauthorizedException(_INVALID if token else _MISSING)
        try:
            user = await self._authorizers.verify(gateway.authorizer, token)
        except UnauthorizedException:
            raise UnauthorizedException(_INVALID) from None
        caller = await self._caller(user, request.session)
        return Inbound(gateway, caller, request.request_id, request.parent, token)

    async def _caller(self, user: User, session: SessionRef | None) -> Caller:
        if session is None:
            name = "/".join(quote(part, safe="") for part in (user.issuer or "", user.id))
            principal = f"arn:aws:sts::{self._deployment.account}:federated-user/{name}"
            return Caller(CallerKind.USER, principal, user=user)
        owner = await self._session_users.user_of(session)
        # Where an operator vouched for the session's user, no issuer is known of him.
        if owner is None or owner.id != user.id or owner.issuer not in (None, user.issuer):
            raise AccessDeniedException("The token is not of the user this session acts for")
        principal = f"arn:aws:sts::{self._deployment.account}:assumed-role/{session.runtime_id}/{session.session_id}"
        return Caller(CallerKind.SESSION, principal, user=user, session=session)
