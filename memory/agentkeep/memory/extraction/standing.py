"""How a session's, and an actor's, extraction stands: begun when the session has ended, done, or forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from agentkeep.core.errors import ConditionFailed, StoreUnavailable
from agentkeep.memory.extraction.extraction import Extraction
from agentkeep.memory.extraction.jobs import Jobs
from agentkeep.memory.extraction.marks import DUE, HELD, asked_key, held_key
from agentkeep.memory.memories import Memory
from agentkeep.memory.partition import ActorPartition
from agentkeep.storage.interface import ABSENT, Check, Delete, KeyValueStore, Put, partition
from agentkeep.storage.leases import Lease

__all__ = ["ExtractionStanding"]

_AT_ONCE: Final = 100
#: How often, and how many seconds apart, it is looked whether what is being written is.
_LOOKS: Final = 40
_APART: Final = 0.25


class ExtractionStanding:
    """`SessionExtraction`, and `Erasable`."""

    def __init__(self, store: KeyValueStore, extraction: Extraction, jobs: Jobs) -> None:
        self._store = store
        self._extraction = extraction
        self._jobs = jobs

    async def begin(self, memory: Memory, actor: ActorPartition, session_id: str) -> None:
        key = held_key(actor, session_id)
        while (held := await self._store.get(HELD, key)) is not None:
            ends = self._extraction.ends(memory)
            try:
                await self._store.transact([Delete(HELD, key, held), Put(DUE, key, held, expires_ms=ends)])
            except ConditionFailed:
                continue  # another event has come
            return

    async def done(self, memory: Memory, actor: ActorPartition, session_id: str) -> Sequence[Check] | None:
        key = held_key(actor, session_id)
        checks = [
            Check(HELD, key, ABSENT),
            Check(DUE, key, ABSENT),
            Check(DUE, asked_key(actor, session_id), ABSENT),
        ]
        for check in checks:
            if await self._store.get(check.partition, check.sort) is not None:
                await self.begin(memory, actor, session_id)  # the memory may have waited for sessions' ends until now
                return None
        return None if await self._jobs.any_of(actor, session_id) else checks

    def alone(self, actor: ActorPartition) -> AbstractAsyncContextManager[Lease | None]:
        """While it lasts nothing is extracted for the actor; None: something is."""
        return self._extraction.alone(actor)

    async def erase_actor(self, memory_id: str, actor_id: str) -> Mapping[str, int]:
        actor = ActorPartition.of_platform(memory_id, actor_id)
        await self._no_plans(actor)
        waiting = await self._store.delete_partition(actor.pending)
        ingested = await self._store.delete_partition(actor.ingested)
        jobs = await self._jobs.erase(actor)
        for where in (DUE, HELD):
            await self._unmark(where, partition(memory_id, actor_id))
        removed = {"waiting for extraction": waiting, "ingested": ingested, "extraction jobs": jobs}
        return {kind: count for kind, count in removed.items() if count}

    async def _no_plans(self, actor: ActorPartition) -> None:
        """Nothing that was extracted is being written when this returns; and nothing will be, for no plan is stored
        while the actor is being erased, or the memory is."""
        for _ in range(_LOOKS):
            if not await self._store.query(actor.plans, limit=1):
                return
            async with self._extraction.alone(actor) as alone:
                if alone:
                    await self._store.delete_partition(actor.plans)
                    return
            await asyncio.sleep(_APART)
        raise StoreUnavailable("what was extracted of this actor is still being written")

    async def _unmark(self, where: str, beneath: str) -> None:
        # "0" follows "/".
        while items := await self._store.query(where, after=f"{beneath}/", before=f"{beneath}0", limit=_AT_ONCE):
            await self._store.transact([Delete(where, item.sort) for item in items])
