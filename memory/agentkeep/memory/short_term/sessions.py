"""Which actors have which sessions in a memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from agentkeep.core.pages import place, token
from agentkeep.memory.memories import LiveMemories
from agentkeep.memory.partition import ActorPartition, actors_partition
from agentkeep.storage.interface import Ensure, Item, KeyValueStore, Write

__all__ = ["MemorySession", "Sessions"]

_DAY_MS: Final = 24 * 3600 * 1000
#: A listing of sessions that have events looks at so many at most before it returns what it has with a token.
_LONGEST_SCAN: Final = 2000


@dataclass(frozen=True, slots=True)
class MemorySession:
    id: str
    created_ms: int


class Sessions:
    def __init__(self, store: KeyValueStore, live: LiveMemories) -> None:
        self._store = store
        self._live = live

    def listed(self, actor: ActorPartition, session_id: str, now_ms: int, ends_ms: int) -> tuple[Write, ...]:
        """To be part of the write of an event that lives until `ends_ms`. Sessions and actors stay listed a day or two
        longer, whether or not events are deleted; by whole days, so that most events leave the lists as they are."""
        until = (ends_ms // _DAY_MS + 2) * _DAY_MS
        return (
            Ensure(actor.sessions, session_id, str(now_ms).encode(), until),
            Ensure(actors_partition(actor.memory_id), actor.actor_id, b"", until),
        )

    async def page(
        self, actor: ActorPartition, size: int, next_token: str | None, *, with_events: bool = False
    ) -> tuple[list[MemorySession], str | None]:
        """By id. `with_events`: only those that have an event now."""
        after = place(next_token)
        found: list[MemorySession] = []
        scanned = 0
        while True:
            items = await self._store.query(actor.sessions, after=after, limit=size + 1)
            if not items and next_token is None and not found:
                await self._live.require(actor.memory_id)
            keep = await asyncio.gather(*(self._has_events(actor, item) for item in items)) if with_events else None
            for index, item in enumerate(items):
                if keep is None or keep[index]:
                    if len(found) == size:
                        return found, token(found[-1].id)
                    found.append(MemorySession(item.sort, int(item.value)))
                after = item.sort
            if len(items) <= size:
                return found, None
            scanned += len(items)
            if scanned >= _LONGEST_SCAN:
                return found, token(items[-1].sort)

    async def actors_page(self, memory_id: str, size: int, next_token: str | None) -> tuple[list[str], str | None]:
        """All of a memory's actors, by id."""
        items = await self._store.query(actors_partition(memory_id), after=place(next_token), limit=size + 1)
        if not items and next_token is None:
            await self._live.require(memory_id)
        names = [item.sort for item in items]
        return names[:size], token(names[size - 1]) if len(names) > size else None

    async def knows(self, actor: ActorPartition) -> bool:
        """Whether the actor has sessions in the memory."""
        known = await self._store.get(actors_partition(actor.memory_id), actor.actor_id) is not None
        if not known:
            await self._live.require(actor.memory_id)
        return known

    async def _has_events(self, actor: ActorPartition, session: Item) -> bool:
        return bool(await self._store.query(actor.events(session.sort), limit=1, max_bytes=1))
