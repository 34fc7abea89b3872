"""The messages that wait, as material; and what is ingested without an event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from agentkeep.core.call import SessionRef
from agentkeep.memory.extraction.jobs import Job
from agentkeep.memory.extraction.marks import Kind, Waiting
from agentkeep.memory.extraction.material import Material, Message, messages_of
from agentkeep.memory.keys import MemoryKeys
from agentkeep.memory.partition import ActorPartition
from agentkeep.memory.short_term.event import Event
from agentkeep.memory.short_term.events import Events
from agentkeep.storage.interface import Delete, KeyValueStore, Put, Write
from agentkeep.storage.records import decode, encode

__all__ = ["Ingested", "Loading"]

#: How many events are read at once, and after how many characters no more are.
_AT_ONCE: Final = 4
_ENOUGH: Final = 60_000
_EARLIER: Final = 5


@dataclass(frozen=True, slots=True)
class Ingested:
    """`payload`: the service model's list."""

    at: datetime
    payload: Sequence[Mapping[str, Any]]
    metadata: Mapping[str, str]
    variables: Mapping[str, str]


class Loading:
    def __init__(self, store: KeyValueStore, keys: MemoryKeys, events: Events) -> None:
        self._store = store
        self._keys = keys
        self._events = events

    async def waiting(
        self, actor: ActorPartition, session_id: str, waiting: Sequence[Waiting]
    ) -> tuple[list[Material], list[Waiting]]:
        """The material of events and of what was ingested, in the order of the conversation, and which those are: the
        first of `waiting`, as many as are done together. What has been deleted or has expired is left out."""
        found: list[Material] = []
        size = 0
        for start in range(0, len(waiting), _AT_ONCE):
            some = waiting[start : start + _AT_ONCE]
            read = await self._read(actor, session_id, some)
            found += read
            size += sum(len(message.text) for one in read for message in one.messages)
            if size >= _ENOUGH:
                return sorted(found, key=_order), list(waiting[: start + _AT_ONCE])
        return sorted(found, key=_order), list(waiting)

    async def of_job(self, actor: ActorPartition, job: Job) -> list[Material]:
        """Of what has neither been deleted nor has expired since."""
        indexes: dict[str, set[int]] = {}
        for event_id, index in job.messages:
            indexes.setdefault(event_id, set()).add(index)
        found = [
            _of_event(event, job.session) for event in await self._events.some(actor, job.session_id, list(indexes))
        ]
        sorts = [f"{job.id} {event_id}" for event_id in indexes]
        values = await self._store.get_many(actor.ingested, sorts)
        for event_id, value in zip(indexes, values, strict=True):
            if value is not None:
                found.append(await self._ingested(actor, job.session_id, event_id, value, job.session))
        return sorted(filter(None, (_only(one, indexes[one.id]) for one in found)), key=_order)

    async def earlier(self, actor: ActorPartition, session_id: str, material: Sequence[Material]) -> list[Message]:
        """What was said before it in the session."""
        before = await self._events.before(actor, session_id, material[0].id, _EARLIER)
        return [message for event in before for message in _of_event(event, None).messages]

    # Of what is ingested.

    async def keep(self, actor: ActorPartition, item_id: str, ingested: Ingested, ends_ms: int) -> Write:
        key = await self._keys.of(actor.memory_id)
        sealed = key.seal(encode(ingested), _label(actor, item_id))
        return Put(actor.ingested, item_id, sealed, expires_ms=ends_ms)

    async def kept_for(self, actor: ActorPartition, ids: Sequence[str], jobs: Sequence[Job]) -> Sequence[Write]:
        """What was ingested under these ids goes; copies of it stay for those jobs that have it in their messages."""
        values = dict(zip(ids, await self._store.get_many(actor.ingested, ids), strict=True))
        copies: list[Write] = [
            Put(actor.ingested, f"{job.id} {event_id}", value, expires_ms=job.ends_ms)
            for job in jobs
            for event_id in job.event_ids
            if (value := values.get(event_id)) is not None
        ]
        return [*copies, *(Delete(actor.ingested, item_id) for item_id in ids)]

    @staticmethod
    def forgotten(actor: ActorPartition, job: Job) -> Sequence[Write]:
        """The job's copies go."""
        return [Delete(actor.ingested, f"{job.id} {event_id}") for event_id in job.event_ids]

    async def _read(self, actor: ActorPartition, session_id: str, some: Sequence[Waiting]) -> list[Material]:
        sessions = {one.id: one.session for one in some}
        events = [one.id for one in some if one.kind is Kind.EVENT]
        found = [_of_event(event, sessions[event.id]) for event in await self._events.some(actor, session_id, events)]
        ingested = [one.id for one in some if one.kind is Kind.INGESTED]
        values = await self._store.get_many(actor.ingested, ingested)
        for item_id, value in zip(ingested, values, strict=True):
            if value is not None:
                found.append(await self._ingested(actor, session_id, item_id, value, sessions[item_id]))
        return [one for one in found if one.messages]

    async def _ingested(
        self, actor: ActorPartition, session_id: str, item_id: str, value: bytes, session: SessionRef | None
    ) -> Material:
        key = await self._keys.of(actor.memory_id)
        one = decode(Ingested, key.open(value, _label(actor, item_id)))
        messages = messages_of(session_id, item_id, one.at, one.payload)
        return Material(item_id, session_id, messages, one.metadata, one.variables, session)


def _of_event(event: Event, session: SessionRef | None) -> Material:
    configured = (event.extraction or {}).get("extractionConfig") or {}
    messages = messages_of(event.session_id, event.id, event.timestamp, event.payload)
    variables = configured.get("namespaceVariables", {})
    return Material(event.id, event.session_id, messages, event.metadata, variables, session)


def _only(material: Material, indexes: set[int]) -> Material | None:
    messages = [message for message in material.messages if message.index in indexes]
    if not messages:
        return None
    return Material(material.id, material.session_id, messages, material.metadata, material.variables, material.session)


def _order(material: Material) -> str:
    return material.id


def _label(actor: ActorPartition, item_id: str) -> str:
    return f"ingested {actor.memory_id} {actor.actor_id} {item_id}"
