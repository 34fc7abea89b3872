"""Removal of a whole memory: all events of all its actors, all records, then the memory itself.

Each step may be repeated, and the memory goes last; so whoever finds it still being deleted, after a crash or beside
another replica, can simply begin again.
"""

from __future__ import annotations

from agentkeep.memory.memories import Memories
from agentkeep.memory.partition import ActorPartition, RecordScope, actors_partition
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search import SearchStore

__all__ = ["Erasure"]

_AT_ONCE = 100


class Erasure:
    def __init__(self, store: KeyValueStore, search: SearchStore, memories: Memories) -> None:
        self._store = store
        self._search = search
        self._memories = memories

    async def erase(self, memory_id: str) -> None:
        """To be called once the memory takes nothing any more (`Memories.start_deletion`)."""
        after: str | None = None
        while actors := await self._store.query(actors_partition(memory_id), after=after, limit=_AT_ONCE):
            for item in actors:
                await self._erase_actor(ActorPartition.of_platform(memory_id, item.sort))
            after = actors[-1].sort
        await self._store.delete_partition(actors_partition(memory_id))
        await self._search.delete_partition(RecordScope.of_platform(memory_id).readable)
        await self._memories.finish_deletion(memory_id)

    async def _erase_actor(self, actor: ActorPartition) -> None:
        after: str | None = None
        while sessions := await self._store.query(actor.sessions, after=after, limit=_AT_ONCE):
            for item in sessions:
                await self._store.delete_partition(actor.events(item.sort))
                await self._store.delete_partition(actor.branches(item.sort))
            after = sessions[-1].sort
        await self._store.delete_partition(actor.sessions)
