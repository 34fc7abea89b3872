"""What is stored of agent runtimes: the runtime, its immutable versions, its endpoints, its sessions.

CREATING ─▶ READY | CREATE_FAILED        READY, *_FAILED ─▶ UPDATING ─▶ READY | UPDATE_FAILED
                                         READY, *_FAILED ─▶ DELETING ─▶ gone | DELETE_FAILED
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from agentkeep.core.call import SessionRef, User

__all__ = [
    "DEFAULT_ENDPOINT",
    "SESSION_MOVES",
    "AgentRuntime",
    "Artifact",
    "EndReason",
    "Endpoint",
    "Sealed",
    "SessionRecord",
    "SessionState",
    "Status",
    "Version",
]


class Status(StrEnum):
    CREATING = "CREATING"
    CREATE_FAILED = "CREATE_FAILED"
    UPDATING = "UPDATING"
    UPDATE_FAILED = "UPDATE_FAILED"
    READY = "READY"
    DELETING = "DELETING"
    DELETE_FAILED = "DELETE_FAILED"

    @property
    def in_transition(self) -> bool:
        return self in _OUTCOMES

    @property
    def failed(self) -> Status:
        """Where a transition ends that did not succeed."""
        return _OUTCOMES[self]


_OUTCOMES: Mapping[Status, Status] = {
    Status.CREATING: Status.CREATE_FAILED,
    Status.UPDATING: Status.UPDATE_FAILED,
    Status.DELETING: Status.DELETE_FAILED,
}


@dataclass(frozen=True)
class AgentRuntime:
    """`version` is the newest; `next_version` the number the next update gets (numbers are never used again)."""

    id: str
    name: str
    status: Status
    version: int
    next_version: int
    created_at: datetime
    updated_at: datetime
    workload_identity_arn: str | None = None
    failure_reason: str | None = None


@dataclass(frozen=True)
class Artifact:
    """The code a version was made from, pinned: a later upload under the same key changes no version."""

    bucket: str
    key: str
    version_id: str
    digest: str


@dataclass(frozen=True)
class Sealed:
    """`key`: the wrapped data key that `data` is sealed under; both base64."""

    key: str
    data: str


@dataclass(frozen=True)
class Version:
    """`settings` holds the request's members as the service model names them, never changed after creation; but
    environment variables are in `variables` (`SealedVariables`). Those of earlier releases are in `settings` until the
    platform has sealed them."""

    runtime_id: str
    number: int
    status: Status
    settings: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    artifact: Artifact | None = None
    failure_reason: str | None = None
    variables: Sealed | None = None


#: The endpoint every runtime has, which follows its newest version: the qualifier where none is given.
DEFAULT_ENDPOINT = "DEFAULT"


@dataclass(frozen=True)
class Endpoint:
    """A name for a version. `live` serves new sessions; `target` is what it becomes."""

    runtime_id: str
    name: str
    id: str
    status: Status
    live: int | None
    target: int
    created_at: datetime
    updated_at: datetime
    description: str | None = None
    failure_reason: str | None = None


class SessionState(StrEnum):
    """Where a session's environment is in its life."""

    PROVISIONING = "PROVISIONING"
    READY = "READY"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"


#: Every move there is. STOPPED ends an environment, not the session's name: the next call begins again.
SESSION_MOVES: Mapping[SessionState, frozenset[SessionState]] = {
    SessionState.PROVISIONING: frozenset({SessionState.READY, SessionState.STOPPING}),
    SessionState.READY: frozenset({SessionState.STOPPING}),
    SessionState.STOPPING: frozenset({SessionState.STOPPED}),
    SessionState.STOPPED: frozenset({SessionState.PROVISIONING}),
}


class EndReason(StrEnum):
    """Why a session ended."""

    STOPPED = "stopped by StopRuntimeSession"
    IDLE = "idle timeout"
    LIFETIME = "maximum lifetime"
    UNHEALTHY = "did not answer health checks"
    CRASHED = "the agent's process ended"
    START_FAILED = "the agent did not start"
    RUNTIME_DELETED = "the agent runtime was deleted"
    PLATFORM_STOPPED = "the platform was stopped"
    PLATFORM_RESTARTED = "the platform was restarted"
    REPLICA_LOST = "the replica that ran it was lost"
    LEASE_LOST = "another replica took the session"


@dataclass(frozen=True)
class SessionRecord:
    """A session's lease. `owner` is the replica that runs it; `fence` grows with every environment, so that what an
    earlier owner still writes is refused. `user_id` is who opened it, kept after the end; `user_claims` are those of
    the token it was opened with. `seat` is the one it has among its user's, while it lives (`user_sessions`)."""

    runtime_id: str
    session_id: str
    state: SessionState
    owner: str
    fence: int
    user_id: str | None
    user_issuer: str | None
    version: int
    endpoint: str
    created_at: datetime
    updated_at: datetime
    environment_id: str | None = None
    end_reason: EndReason | None = None
    user_claims: dict[str, str] = field(default_factory=dict)
    seat: int | None = None

    @property
    def ref(self) -> SessionRef:
        return SessionRef(self.runtime_id, self.session_id)

    @property
    def user(self) -> User | None:
        return None if self.user_id is None else User(self.user_id, self.user_issuer, self.user_claims)
