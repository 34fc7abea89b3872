"""Events: short-term memory, what happened in an actor's sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from agentkeep.core.call import Idempotency, SessionRef
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ConditionFailed, ResourceNotFoundException, RetryableConflictException
from agentkeep.core.pages import place, token
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.extraction.marks import marked
from agentkeep.memory.extraction.material import is_extractable
from agentkeep.memory.keys import MemoryKeys
from agentkeep.memory.memories import LiveMemories
from agentkeep.memory.partition import ActorPartition
from agentkeep.memory.short_term.branches import Branches
from agentkeep.memory.short_term.event import Event, EventIds, Place, decode, encode, timestamp_of
from agentkeep.memory.short_term.sessions import Sessions
from agentkeep.storage.interface import PRESENT, Delete, KeyValueStore, Once, Put, Write

__all__ = ["Events"]

_DAY_MS: Final = 24 * 3600 * 1000
_ATTEMPTS: Final = 3
#: A page ends when its events reach this many bytes, whatever maxResults says: none is a gigabyte.
_PAGE_BYTES: Final = 16 * 1024 * 1024
_EARLIER_BYTES: Final = 256 * 1024
#: A filtered listing reads so many events at a time, and at most so many before it returns what it has with a token.
_SCAN: Final = 250
_LONGEST_SCAN: Final = 10_000


class Events:
    def __init__(
        self,
        store: KeyValueStore,
        live: LiveMemories,
        barrier: Barrier,
        sessions: Sessions,
        branches: Branches,
        keys: MemoryKeys,
        clock: Clock,
    ) -> None:
        self._store = store
        self._live = live
        self._barrier = barrier
        self._sessions = sessions
        self._branches = branches
        self._keys = keys
        self._clock = clock
        self._ids = EventIds(clock)

    async def append(
        self,
        actor: ActorPartition,
        session_id: str,
        timestamp: datetime,
        payload: Sequence[Mapping[str, Any]],
        branch: Mapping[str, Any] | None,
        metadata: Mapping[str, str],
        extraction: Mapping[str, Any] | None,
        idempotency: Idempotency | None,
        caller: SessionRef | None = None,
    ) -> Event:
        """Stores the event, lists its session and actor, and marks it for extraction where the memory wants that: one
        write, durable on return. With a client token spent before, returns the event stored then, made from the
        request, which is equal. `caller`: the session that writes, whose use of models the extraction is."""
        stored_at = await self.place(actor, session_id)
        event_id = self._ids.next(timestamp)
        value = encode(stored_at, event_id, payload, branch, metadata, extraction)
        root = branch.get("rootEventId") if branch else None
        parent = "" if root is None else await self._branches.parent_of(actor, stored_at, root)
        to_extract = not (extraction or {}).get("extractionMode") and is_extractable(payload)
        for _ in range(_ATTEMPTS):
            live = await self._live.of(actor.memory_id)
            now = epoch_ms(self._clock.now())
            ends = now + live.days * _DAY_MS
            writes: list[Write] = [
                live.check,
                self._barrier.check(actor.memory_id, actor.actor_id),
                Put(actor.events(session_id), event_id, value, expires_ms=ends),
                *self._sessions.listed(actor, session_id, now, ends),
            ]
            if branch is not None and root is not None:
                writes.append(self._branches.record(actor, stored_at, branch["name"], root, parent, ends))
            if live.marking is not None and to_extract:
                writes += marked(actor, session_id, event_id, live.marking, caller, ends)
            once = Once.of(idempotency, f"{event_id} {session_id}".encode(), now)
            try:
                replayed = await self._store.transact(writes, once=once)
            except ConditionFailed:
                await self._live.refresh(actor.memory_id)
                await self._barrier.refresh(actor.memory_id, actor.actor_id)
                continue
            if replayed is not None:
                event_id, session_id = replayed.reference.decode().split(" ")
            return Event(event_id, timestamp_of(event_id), session_id, payload, branch, metadata, extraction)
        raise RetryableConflictException(f"Memory {actor.memory_id} is being changed: try again")

    async def place(self, actor: ActorPartition, session_id: str) -> Place:
        """Where the session's events are, with the key. Raises ResourceNotFoundException where there is no memory."""
        return Place(await self._keys.of(actor.memory_id), actor.events(session_id), session_id)

    async def get(self, actor: ActorPartition, session_id: str, event_id: str) -> Event:
        value = await self._store.get(actor.events(session_id), event_id)
        if value is None:
            raise _not_found(event_id)
        return decode(await self.place(actor, session_id), event_id, value, payload=True)

    async def some(self, actor: ActorPartition, session_id: str, event_ids: Sequence[str]) -> list[Event]:
        """Those that are there, in that order."""
        values = await self._store.get_many(actor.events(session_id), event_ids)
        stored_at = await self.place(actor, session_id)
        return [
            decode(stored_at, event_id, value, payload=True)
            for event_id, value in zip(event_ids, values, strict=True)
            if value is not None
        ]

    async def before(self, actor: ActorPartition, session_id: str, event_id: str, most: int) -> list[Event]:
        """The last ones before that event, in their order; fewer where they are large."""
        items = await self._store.query(
            actor.events(session_id), before=event_id, limit=most, reverse=True, max_bytes=_EARLIER_BYTES
        )
        stored_at = await self.place(actor, session_id)
        return [decode(stored_at, item.sort, item.value, payload=True) for item in reversed(items)]

    async def delete(self, actor: ActorPartition, session_id: str, event_id: str) -> None:
        try:
            await self._store.transact([Delete(actor.events(session_id), event_id, expect=PRESENT)])
        except ConditionFailed:
            raise _not_found(event_id) from None

    async def page(
        self,
        actor: ActorPartition,
        session_id: str,
        size: int,
        next_token: str | None,
        *,
        payload: bool,
        matches: Callable[[Event], bool] | None,
    ) -> tuple[list[Event], str | None]:
        """Newest first. A session that never was is an empty one. `matches` is shown events without their payload.

        Complete and stable while others write: a page begins behind the last event of the page before, wherever that
        is by then.
        """
        where, before = actor.events(session_id), place(next_token)
        stored_at: Place | None = None
        limit = size + 1 if matches is None else _SCAN  # one more tells whether there is another page
        found: list[Event] = []
        found_bytes = scanned = 0
        while True:
            items = await self._store.query(where, before=before, limit=limit, reverse=True, max_bytes=_PAGE_BYTES)
            if items and stored_at is None:
                stored_at = await self.place(actor, session_id)
            for item in items:
                assert stored_at is not None
                before = item.sort
                if matches is not None and not matches(decode(stored_at, item.sort, item.value, payload=False)):
                    continue
                if len(found) == size:
                    return found, token(found[-1].id)
                found.append(decode(stored_at, item.sort, item.value, payload=payload))
                found_bytes += len(item.value)
            scanned += len(items)
            if len(items) < limit and sum(len(item.value) for item in items) < _PAGE_BYTES:
                if scanned == 0 and next_token is None:
                    await self._live.require(actor.memory_id)
                return found, None
            if matches is None or found_bytes >= _PAGE_BYTES or scanned >= _LONGEST_SCAN:
                return found, token(items[-1].sort)


def _not_found(event_id: str) -> ResourceNotFoundException:
    return ResourceNotFoundException(f"Event not found: {event_id}")
