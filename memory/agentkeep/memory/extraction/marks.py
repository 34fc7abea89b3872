"""What waits for extraction: one item for each event, ingested document or restarted job, and one for each session in
which something waits, by which workers find it. Written with the event itself, so that neither is there without the
other.

The second has another value each time something is added. Who has done all there was removes it only as he found it
before: so what is added meanwhile is found again.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import unquote

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.memory.extraction.kinds import kind_of
from agentkeep.memory.partition import ActorPartition
from agentkeep.memory.strategies import Strategy
from agentkeep.memory.tags import Extraction, behaviour
from agentkeep.storage.interface import Item, Put, Write, partition

__all__ = ["DUE", "HELD", "Due", "Kind", "Marking", "Waiting", "asked", "held_key", "marked", "marking"]

#: Sessions in which something is to be extracted; and those whose end is waited for.
DUE: Final = partition("memory", "due")
HELD: Final = partition("memory", "held")
_ASKED: Final = "asked"


class Marking(StrEnum):
    """When a memory's events are extracted."""

    DUE = "due"
    HELD = "held"


class Kind(StrEnum):
    EVENT = "event"
    INGESTED = "ingested"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class Waiting:
    """`sort`: of its item. `session`: whose use of models its extraction is."""

    sort: str
    kind: Kind
    id: str
    session: SessionRef | None

    @classmethod
    def of(cls, item: Item) -> Waiting:
        kind, *session = orjson.loads(item.value)
        return cls(item.sort, Kind(kind), item.sort.partition(" ")[2], SessionRef(*session) if session else None)


@dataclass(frozen=True, slots=True)
class Due:
    """`events`: whether all that waits in the session is due, or only what was asked for by itself."""

    key: str
    memory_id: str
    actor_id: str
    session_id: str
    events: bool

    @classmethod
    def of(cls, key: str) -> Due:
        memory_id, actor_id, session_id, *asked = map(unquote, key.split("/"))
        return cls(key, memory_id, actor_id, session_id, not asked)


def marking(strategies: Sequence[Strategy], tags: Mapping[str, str]) -> Marking | None:
    """None: nothing is extracted from the memory's events."""
    if all(kind_of(strategy) is None for strategy in strategies):
        return None
    held = behaviour(tags).extraction is Extraction.AT_SESSION_END
    return Marking.HELD if held else Marking.DUE


def held_key(actor: ActorPartition, session_id: str) -> str:
    """Also that of the session in DUE."""
    return partition(actor.memory_id, actor.actor_id, session_id)


def asked_key(actor: ActorPartition, session_id: str) -> str:
    return partition(actor.memory_id, actor.actor_id, session_id, _ASKED)


def marked(
    actor: ActorPartition, session_id: str, event_id: str, how: Marking, session: SessionRef | None, ends_ms: int
) -> Sequence[Write]:
    """To be part of an event's write. `session`: the caller's."""
    where = DUE if how is Marking.DUE else HELD
    return (
        _waiting(actor, session_id, event_id, Kind.EVENT, session, ends_ms),
        Put(where, held_key(actor, session_id), event_id.encode(), expires_ms=ends_ms),
    )


def asked(
    actor: ActorPartition, session_id: str, item_id: str, kind: Kind, session: SessionRef | None, ends_ms: int
) -> Sequence[Write]:
    """The same for what is to be extracted whether or not the session's events wait for its end."""
    return (
        _waiting(actor, session_id, item_id, kind, session, ends_ms),
        Put(DUE, asked_key(actor, session_id), secrets.token_bytes(8).hex().encode(), expires_ms=ends_ms),
    )


def in_session(session_id: str) -> tuple[str, str]:
    """Between which sort keys a session's items are: `after` and `before`; "!" follows the blank."""
    return f"{session_id} ", f"{session_id}!"


def _waiting(
    actor: ActorPartition, session_id: str, item_id: str, kind: Kind, session: SessionRef | None, ends_ms: int
) -> Write:
    value = [kind.value, *([session.runtime_id, session.session_id] if session is not None else [])]
    return Put(actor.pending, f"{session_id} {item_id}", orjson.dumps(value), expires_ms=ends_ms)
