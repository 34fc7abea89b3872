"""Whose data a call may touch: the one gate to every actor's partitions.

Every read and write of events, sessions and branches takes an `ActorPartition`, and of long-term records a
`RecordScope`; there is no way to one but `authorize` and `authorize_records`, which derive it from who the caller is,
never from what an agent says alone (and `of_platform`, for the erasure of a whole memory). A partition names one memory
and one actor, so code behind the gate cannot reach another user's data even by mistake.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from agentkeep.core.acting import require_acting
from agentkeep.core.call import Call, Caller, CallerKind
from agentkeep.core.errors import AccessDeniedException, CrossAgentAccess, CrossUserAccess
from agentkeep.storage.interface import partition
from agentkeep.storage.search import Beneath

__all__ = [
    "ActorPartition",
    "RecordScope",
    "actors_partition",
    "authorize",
    "authorize_records",
    "authorized_actor",
    "crossing",
    "foreign_agent",
    "jobs_partition",
]

logger = logging.getLogger(__name__)

_KEY: Final = object()


@dataclass(frozen=True, slots=True)
class ActorPartition:
    """One actor's part of one memory. Actor ids are compared and stored as they are: `a`, `A` and `a/` are three."""

    memory_id: str
    actor_id: str
    _key: object

    def __post_init__(self) -> None:
        if self._key is not _KEY:
            raise TypeError("an ActorPartition comes from authorize() only")

    @property
    def sessions(self) -> str:
        return partition("memory", "sessions", self.memory_id, self.actor_id)

    def events(self, session_id: str) -> str:
        return partition("memory", "events", self.memory_id, self.actor_id, session_id)

    def branches(self, session_id: str) -> str:
        return partition("memory", "branches", self.memory_id, self.actor_id, session_id)

    @property
    def pending(self) -> str:
        """What waits for extraction."""
        return partition("memory", "pending", self.memory_id, self.actor_id)

    @property
    def jobs(self) -> str:
        """Extractions that failed."""
        return partition("memory", "jobs", self.memory_id, self.actor_id)

    @property
    def plans(self) -> str:
        """What extractions have found and are writing, by session."""
        return partition("memory", "plans", self.memory_id, self.actor_id)

    @property
    def ingested(self) -> str:
        """What was given for extraction without an event."""
        return partition("memory", "ingested", self.memory_id, self.actor_id)

    @classmethod
    def of_platform(cls, memory_id: str, actor_id: str) -> ActorPartition:
        """For the platform's own housekeeping, never on behalf of a caller."""
        return cls(memory_id, actor_id, _KEY)


@dataclass(frozen=True, slots=True)
class RecordScope:
    """The long-term records of one memory that a call may touch. `actor`: those of this actor and no other, whatever
    namespaces say; None: those of all, for operators."""

    memory_id: str
    actor: str | None
    _key: object

    def __post_init__(self) -> None:
        if self._key is not _KEY:
            raise TypeError("a RecordScope comes from authorize_records() only")

    @property
    def readable(self) -> str | Beneath:
        if self.actor is not None:
            return self.home(self.actor)
        return Beneath(partition("memory", "records", self.memory_id))

    def home(self, owner: str | None) -> str:
        """Where the records of an owner are; None: those that are no actor's, which operators alone see."""
        if self.actor is not None and owner != self.actor:
            raise ValueError("not in this scope")
        if owner is None:
            return partition("memory", "records", self.memory_id, "nobodys")
        return partition("memory", "records", self.memory_id, "of", owner)

    @classmethod
    def of_platform(cls, memory_id: str, actor: str | None = None) -> RecordScope:
        """For the platform's own housekeeping, never on behalf of a caller."""
        return cls(memory_id, actor, _KEY)


def authorize(call: Call, memory_id: str, actor_id: str) -> ActorPartition:
    """The partition of `actor_id`, if the caller may act there: operators as anyone, sessions and users as the user
    they were proved to be. Raises AccessDeniedException."""
    allowed = authorized_actor(call)
    if allowed is not None and allowed != actor_id:
        raise crossing(call, memory_id, "actorId", "it may only name the user it acts for")
    return ActorPartition(memory_id, actor_id, _KEY)


def authorize_records(call: Call, memory_id: str) -> RecordScope:
    """All records for operators, for sessions and roles those of the user they were proved, or let, to act for. Raises
    AccessDeniedException."""
    return RecordScope(memory_id, authorized_actor(call), _KEY)


def crossing(call: Call, memory_id: str, member: str, allowed: str) -> CrossUserAccess:
    """The refusal of an attempt to act as another actor, which raises an alert, and its line in the log."""
    # Who tried, and where; nothing of what the request carried.
    logger.warning(
        "cross-user access refused: %s tried %s on memory %s as another actor",
        call.caller.principal,
        call.operation,
        memory_id,
    )
    return CrossUserAccess(
        f"{call.caller.principal} is not authorized to perform {call.operation} with this {member}: {allowed}",
        f"memory {memory_id}",
    )


def foreign_agent(call: Call, memory_id: str) -> CrossAgentAccess:
    """The refusal of an agent that a memory is not for, which raises an alert, and its line in the log."""
    logger.warning(
        "cross-agent access refused: %s tried %s on memory %s", call.caller.principal, call.operation, memory_id
    )
    return CrossAgentAccess(
        f"{call.caller.principal} is not authorized to perform {call.operation}: memory {memory_id} is for other "
        "agents (its tag agentkeep:agents names them)",
        f"memory {memory_id}",
    )


def authorized_actor(call: Call) -> str | None:
    """The one actor the caller may act as; None: any. Raises AccessDeniedException for an agent without a user, and for
    an operator whose key does not act for users. An operator with a user is a role's caller, admitted for this one."""
    caller: Caller = call.caller
    if caller.kind is CallerKind.OPERATOR:
        require_acting(caller, call.operation)
        return None if caller.user is None else caller.user.id
    if caller.user is None:
        raise AccessDeniedException(
            f"{caller.principal} is not authorized to perform {call.operation}: "
            "this session has no user; invoke with a user JWT or runtimeUserId"
        )
    return caller.user.id


def jobs_partition(memory_id: str) -> str:
    """The index of a memory's failed extractions: whose each is."""
    return partition("memory", "failed-jobs", memory_id)


def actors_partition(memory_id: str) -> str:
    """The index of a memory's actors: names only."""
    return partition("memory", "actors", memory_id)
