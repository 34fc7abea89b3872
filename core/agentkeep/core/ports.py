"""What planes ask of one another. A plane never imports a plane: it is given one of these.

Embedded mode passes the other plane's object; the distributed mode passes a client of its service. Both run the same
contract suite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import uuid4

from agentkeep.core.call import Caller, SessionRef, User

__all__ = [
    "AccessKey",
    "Alert",
    "Alerts",
    "Audit",
    "AuditRecord",
    "Authorizers",
    "Budget",
    "EndedSession",
    "Keys",
    "MemorySessions",
    "Models",
    "OutboundCredentials",
    "OutboundUse",
    "Question",
    "Reservation",
    "SessionCredentials",
    "SessionUsers",
    "Usage",
    "UsageRecord",
    "WorkloadTokens",
]


@dataclass(frozen=True, slots=True)
class AccessKey:
    """What SigV4 verification needs. `secret` never leaves the process and never enters a log (`repr` hides it).
    `session_token`: the X-Amz-Security-Token that must accompany the key; None for operator keys."""

    id: str
    secret: str
    caller: Caller
    session_token: str | None = None
    expires: datetime | None = None

    def __repr__(self) -> str:
        return f"AccessKey({self.id!r}, {self.caller.principal!r})"


@dataclass(frozen=True, slots=True)
class SessionCredentials:
    """The container-credentials document of a session (ECS's shape on the wire). `role_arn`: the role that AWS gave
    these keys to, for the session's user; None: the platform issued them, and AWS knows nothing of them."""

    access_key_id: str
    secret_access_key: str
    session_token: str
    expiration: datetime
    role_arn: str | None = None

    def __repr__(self) -> str:
        return f"SessionCredentials({self.access_key_id!r})"


class Keys(Protocol):
    """Access keys (identity plane)."""

    def cached(self, access_key_id: str) -> AccessKey | None:
        """The key if it is known here and alive, without waiting; the hot path's look-up."""
        ...

    async def find(self, access_key_id: str) -> AccessKey | None:
        """The key if it exists and is alive: not expired, not revoked, its session not ended."""
        ...

    async def begin_session(
        self, session: SessionRef, user: User | None, user_token: str | None = None
    ) -> SessionCredentials | None:
        """Before a session's agent runs: the keys without which there may be no such session. None: it may begin
        without, and keys are issued when they are asked for. Raises as `issue_for_session` does."""
        ...

    async def issue_for_session(
        self, session: SessionRef, user: User | None, user_token: str | None = None
    ) -> SessionCredentials:
        """New keys bound to agent, user and session. Earlier keys of the session stay valid until they expire.

        `user_token`: the OIDC token by which the caller has proved `user`, if that is how. Where the deployment says
        that sessions get the user's keys from AWS STS, it is exchanged there, and nothing takes those keys' place.
        Raises ConflictException (the session ends meanwhile), and where STS is asked UnauthorizedException (the token
        has expired), AccessDeniedException (no rule allows it, or AWS does not) or ServiceUnavailableException (STS
        does not answer; retry).
        """
        ...

    async def end_session(self, session: SessionRef) -> None:
        """All keys of the session are dead when this returns."""
        ...


class SessionUsers(Protocol):
    """Whose a session is (runtime plane)."""

    async def user_of(self, session: SessionRef) -> User | None:
        """The user a living session acts for; None where it has none. Raises AccessDeniedException where no such
        session lives."""
        ...


class Authorizers(Protocol):
    """Inbound JWT verification (identity plane). `authorizer` is the model's `customJWTAuthorizer` structure."""

    async def check(self, authorizer: Mapping[str, Any]) -> None:
        """Refuses, when a resource is created or updated, an authorizer that could not be honoured.

        Raises ValidationException: nothing to check is configured, an operator does not fit its claim's type, the
        discovery URL is neither https nor loopback, a member is not supported here.
        """
        ...

    def cached(self, authorizer: Mapping[str, Any], token: str) -> User | None:
        """The user, if this token passed this authorizer here before and nothing has changed since; the hot path's
        look-up, microseconds. None says nothing about the token."""
        ...

    async def verify(self, authorizer: Mapping[str, Any], token: str) -> User:
        """The token's user.

        Raises UnauthorizedException (bad, expired, unknown issuer), AccessDeniedException (claims not allowed), or
        ServiceUnavailableException (the identity provider cannot be reached and its keys are not known; retry).
        """
        ...


class WorkloadTokens(Protocol):
    """Workload identities of runtimes and gateways (identity plane)."""

    async def create_for_service(self, name: str) -> str:
        """A service-linked workload identity; returns its ARN. Idempotent."""
        ...

    async def delete_for_service(self, name: str) -> None: ...

    async def issue(self, name: str, user: User | None, user_token: str | None = None) -> str | None:
        """The workload access token handed to a session's agent; None where there is no user: it says which agent acts
        for whom."""
        ...


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One model call's use. Token counts as Bedrock's Converse reports them: `input_tokens` excludes cached ones.

    `model_id` is the provider's name of the model that answered. `estimated`: the provider gave no counts (its answer
    was cut short, say), so they were reckoned from the text's length.
    """

    session: SessionRef | None
    user_id: str | None
    model_id: str
    provider: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    latency_ms: float
    at: datetime
    request_id: str
    estimated: bool = False


class Usage(Protocol):
    """Where use is counted (observability plane)."""

    async def record(self, record: UsageRecord) -> None: ...

    async def of_session(self, session: SessionRef) -> list[UsageRecord]: ...


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens set aside for one model call. `tokens`: how many, of input and output together."""

    id: str
    session: SessionRef
    tokens: int


class Budget(Protocol):
    """The tokens a session may use (observability plane). What was reserved and never settled (the caller died) stays
    spent: a budget errs on the safe side. A session that begins again under its id goes on with what it had left."""

    async def open(self, session: SessionRef, tokens: int | None) -> None:
        """From now on the session's budget is `tokens`, None: it has none. Sessions that were never opened have the
        deployment's default."""
        ...

    async def reserve(self, session: SessionRef, input_tokens: int, output_tokens: int) -> Reservation | None:
        """Sets aside what a call may use at most; None where the session has no budget.

        Raises ServiceQuotaExceededException, which boto3 does not retry: less than that is left. Its message says the
        budget, what is used, what was asked, and what would fit.
        """
        ...

    async def settle(self, reservation: Reservation, tokens: int) -> None:
        """The call used `tokens`; the rest is given back. Settling twice changes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A model call of the platform's own. `purpose`: one word for traces (`extraction`). `schema`: the JSON Schema the
    answer must follow, None where it is plain text. `session`, `user_id`: for whom it is, and whose use it counts as.
    """

    model_id: str
    system: str = field(repr=False)
    prompt: str = field(repr=False)
    purpose: str
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    user_id: str | None = None
    session: SessionRef | None = None


class Models(Protocol):
    """Model answers for the platform's own work (gateway plane): by the same routes, limits and accounts as agents'."""

    async def answer(self, question: Question) -> str:
        """The answer's text, whole. With a schema the provider is asked to keep to it, where it can; whoever asks must
        check that it did.

        Raises what a model call raises: ThrottlingException, ModelErrorException, ModelTimeoutException,
        ModelNotReadyException, ResourceNotFoundException, AccessDeniedException, ValidationException,
        ServiceUnavailableException, ServiceQuotaExceededException (the session's token budget). ModelErrorException
        too where the model refused, or its answer did not fit into `max_tokens`.
        """
        ...


@dataclass(frozen=True, slots=True)
class OutboundUse:
    """For what a stored secret is shown to somebody else: in a call of `principal`'s, for a user where it has one, to
    `resource` (`target tickets of gateway tools-0123456789`)."""

    principal: str
    session: SessionRef | None
    user_id: str | None
    issuer: str | None
    resource: str


class OutboundCredentials(Protocol):
    """What a gateway shows to its targets (identity plane)."""

    async def api_key(self, provider_arn: str, use: OutboundUse) -> str:
        """The key of an API-key credential provider; `use` is on record when it is given. Raises
        ResourceNotFoundException, and StoreUnavailable where it cannot be put on record."""
        ...


@dataclass(frozen=True, slots=True)
class Alert:
    """Something an operator should look at. `kind` is short and stable (`cross-user-access`), `summary` one sentence
    without secrets; `principal` who caused it."""

    kind: str
    summary: str
    principal: str
    session: SessionRef | None
    user_id: str | None
    at: datetime
    details: Mapping[str, str]


class Alerts(Protocol):
    """Where alerts are kept for operators (observability plane)."""

    async def raise_alert(self, alert: Alert) -> None:
        """Durable when it returns. Raises StoreUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Something that was done, or refused, and that operators must be able to look up later. `kind` is short and stable
    (`acted-for-user`), `summary` one sentence; `principal` did it; `user_id` is the user it was about.

    Neither it nor `details` holds a secret, or anything of what users said. `count`: how many times, where like ones
    are told together; `at` is then the first of them. `id` makes a record told twice one.
    """

    kind: str
    summary: str
    principal: str
    session: SessionRef | None
    user_id: str | None
    at: datetime
    details: Mapping[str, str]
    count: int = 1
    id: str = field(default_factory=lambda: uuid4().hex)


class Audit(Protocol):
    """Where audit records are kept (observability plane). Nothing is changed or removed before its time is over."""

    async def record(self, record: AuditRecord) -> None:
        """Durable when it returns. Raises StoreUnavailable: whoever must be on record may then not go on."""
        ...


@dataclass(frozen=True, slots=True)
class EndedSession:
    """A session of `user` (without claims) that has ended, at `at`. `fence` grows with every life that a session has
    had under its id."""

    session: SessionRef
    user: User
    fence: int
    at: datetime


class MemorySessions(Protocol):
    """What is to be done with a session's memory when it ends (memory plane)."""

    async def session_ended(self, ended: EndedSession) -> None:
        """What there is to do will be done, whatever happens, when this returns. Told twice changes nothing; neither
        does the end of a session that lives again. Raises StoreUnavailable, or RetryableConflictException while the
        user's data is being erased."""
        ...
