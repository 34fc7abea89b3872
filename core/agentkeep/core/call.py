"""Who calls what: the context every operation receives beside its request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

from agentkeep.core.grants import Grant

__all__ = [
    "INCOMPLETE_CLAIMS",
    "RESERVED_CLAIMS",
    "Call",
    "Caller",
    "CallerKind",
    "Idempotency",
    "SessionRef",
    "User",
    "allow",
    "allowed_callers",
]


#: Begins the names the platform keeps for itself among a user's claims: no token's claim is called so.
RESERVED_CLAIMS: Final = "agentkeep:"
INCOMPLETE_CLAIMS: Final = RESERVED_CLAIMS + "incomplete"


class CallerKind(StrEnum):
    OPERATOR = "operator"  # a platform-issued operator or application key
    SESSION = "session"  # an agent, by its session's vended key
    ROLE = (
        "role"  # a role of this deployment, by keys it gave for a token: may do what `authorized` says, as an operator
    )
    USER = "user"  # an end user, by a JWT that passed the runtime's or gateway's authorizer


@dataclass(frozen=True, slots=True)
class User:
    """The end user. `id` is the token's `sub` and AgentCore's actorId; `issuer` is None where an operator vouched.
    `claims`: the token's claims as text, for policies (lists joined by spaces); no part of who the user is. Where some
    had to be left out, INCOMPLETE_CLAIMS is among them."""

    id: str
    issuer: str | None = None
    claims: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SessionRef:
    """A runtime session: globally named by the pair."""

    runtime_id: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller. Everything here was proved; nothing is what an agent merely said.

    `principal` is ARN-shaped (`arn:aws:sts::<account>:assumed-role/<runtime id>/<session id>` for a session).
    `acts_for_users`: an operator's key was issued for acting for users without a proof of theirs.
    `grant`: what a role's key is allowed, and all it is.
    """

    kind: CallerKind
    principal: str
    access_key_id: str | None = None
    user: User | None = None
    session: SessionRef | None = None
    acts_for_users: bool = False
    grant: Grant | None = field(default=None, compare=False, repr=False)

    def acts_for(self, user_id: str | None) -> bool:
        """Whether an operator or a role may act for this user without a proof of the user's. None: for whichever."""
        return self.acts_for_users if self.grant is None else self.grant.acts_for(user_id)


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A request's client token. `key` is scoped to principal, service and operation; `fingerprint` is a keyed
    digest of the request without the token. Handed to `KeyValueStore.transact(..., once=...)`, the one place that
    honours it."""

    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one operation. `operation` is the model's name (`CreateEvent`), `service` botocore's
    (`bedrock-agentcore`). `headers` are the request's, lower-case names."""

    service: str
    operation: str
    caller: Caller
    request_id: str
    idempotency: Idempotency | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Operation = TypeVar("Operation", bound=Callable[..., Awaitable[Any]])


def allow(*kinds: CallerKind) -> Callable[[Operation], Operation]:
    """Marks an operation as open to these kinds of callers besides operators. Without it: operators only."""

    def mark(operation: Operation) -> Operation:
        operation.__allowed_callers__ = frozenset(kinds)  # type: ignore[attr-defined]
        return operation

    return mark


def allowed_callers(operation: object) -> frozenset[CallerKind]:
    """Operators, and the kinds `allow` named."""
    return frozenset({CallerKind.OPERATOR}) | getattr(operation, "__allowed_callers__", frozenset())
