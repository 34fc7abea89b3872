"""Removal of what is kept of one actor in a memory, and of a whole memory.

Each step may be repeated. A memory goes last; so whoever finds it still being deleted, after a crash or beside another
replica, can simply begin again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentkeep.memory.keys import MemoryKeys
from agentkeep.memory.lifecycle.erasable import Erasable
from agentkeep.memory.long_term.writing import RecordWriter
from agentkeep.memory.memories import Memories
from agentkeep.memory.partition import ActorPartition, RecordScope, actors_partition
from agentkeep.storage.interface import Delete, KeyValueStore
from agentkeep.storage.search import SearchStore

__all__ = ["Erasure", "EventsErasure", "RecordsErasure"]

_AT_ONCE = 100


class EventsErasure:
    """`Erasable`: sessions with their events and branches, and the actor's name among the memory's actors."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    async def erase_actor(self, memory_id: str, actor_id: str) -> Mapping[str, int]:
        actor = ActorPartition.of_platform(memory_id, actor_id)
        events = branches = sessions = 0
        # A session leaves the list last, for by the list its events are found.
        while listed := await self._store.query(actor.sessions, limit=_AT_ONCE):
            for item in listed:
                events += await self._store.delete_partition(actor.events(item.sort))
                branches += await self._store.delete_partition(actor.branches(item.sort))
            await self._store.transact([Delete(actor.sessions, item.sort) for item in listed])
            sessions += len(listed)
        await self._store.transact([Delete(actors_partition(memory_id), actor_id)])
        return {"events": events, "branches": branches, "sessions": sessions}


class RecordsErasure:
    """`Erasable`: the actor's long-term records, with all by which they are found."""

    def __init__(self, writer: RecordWriter) -> None:
        self._writer = writer

    async def erase_actor(self, memory_id: str, actor_id: str) -> Mapping[str, int]:
        return {"records": await self._writer.erase(RecordScope.of_platform(memory_id, actor_id).home(actor_id))}


class Erasure:
    """Of whole memories. `erasables`: whatever keeps something of a memory's actors beside their records."""

    def __init__(
        self,
        store: KeyValueStore,
        search: SearchStore,
        memories: Memories,
        keys: MemoryKeys,
        erasables: Sequence[Erasable],
    ) -> None:
        self._store = store
        self._search = search
        self._memories = memories
        self._keys = keys
        self._erasables = erasables

    async def erase(self, memory_id: str) -> None:
        """To be called once the memory takes nothing any more (`Memories.start_deletion`). Its key goes first: then
        nothing of it can be read, wherever there are copies."""
        await self._keys.erase(memory_id)
        while actors := await self._store.query(actors_partition(memory_id), limit=_AT_ONCE):
            for item in actors:
                await self._erase_actor(memory_id, item.sort)
            await self._store.transact([Delete(actors_partition(memory_id), item.sort) for item in actors])
        await self._search.delete_partition(RecordScope.of_platform(memory_id).readable)
        await self._memories.finish_deletion(memory_id)

    async def _erase_actor(self, memory_id: str, actor_id: str) -> None:
        for one in self._erasables:
            await one.erase_actor(memory_id, actor_id)
