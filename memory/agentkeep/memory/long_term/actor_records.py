"""The platform's own work on one actor's records of one memory: extraction, consolidation, compaction.

Whoever does such work names memory and actor once, and from then on holds an object that reaches nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from agentkeep.memory.long_term.record import STRATEGY_KEY, Record
from agentkeep.memory.long_term.retrieval import Retrieval, Scored
from agentkeep.memory.long_term.writing import RecordWriter
from agentkeep.memory.partition import RecordScope
from agentkeep.storage.search import Condition, Operator, SearchStore, Selection

__all__ = ["ActorRecords", "RecordsByActor"]


class RecordsByActor:
    def __init__(self, search: SearchStore, retrieval: Retrieval, writer: RecordWriter) -> None:
        self._search = search
        self._retrieval = retrieval
        self._writer = writer
        self._changing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def of(self, memory_id: str, actor_id: str) -> ActorRecords:
        lock = self._changing.get((memory_id, actor_id))
        if lock is None:
            lock = self._changing[memory_id, actor_id] = asyncio.Lock()
        scope = RecordScope.of_platform(memory_id, actor_id)
        return ActorRecords(scope, self._search, self._retrieval, self._writer, lock)


class ActorRecords:
    """Everything raises StoreUnavailable. A write is durable, and seen by every later search, when it returns."""

    def __init__(
        self, scope: RecordScope, search: SearchStore, retrieval: Retrieval, writer: RecordWriter, lock: asyncio.Lock
    ) -> None:
        """`scope`: one actor's."""
        if scope.actor is None:
            raise ValueError("a scope of one actor is needed")
        self.memory_id = scope.memory_id
        self.actor_id = scope.actor
        self._home = scope.home(scope.actor)
        self._search = search
        self._retrieval = retrieval
        self._writer = writer
        self._lock = lock

    async def similar(
        self, text: str, namespace: str, limit: int, *, strategy_id: str | None = None
    ) -> Sequence[Scored]:
        """The records of that very namespace that are most like the text, best first; of one strategy, where it is
        named. Scores are those of RetrieveMemoryRecords."""
        return await self._retrieval.best(self._home, text, _selection(namespace, strategy_id), limit)

    async def get(self, ids: Sequence[str]) -> list[Record | None]:
        documents = await self._search.get(self._home, ids) if ids else []
        return [Record.of(document) if document is not None else None for document in documents]

    async def page(
        self,
        namespace: str | None = None,
        *,
        strategy_id: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> tuple[list[Record], str | None]:
        """All of the actor's, or those of one namespace, newest first; and where the next page goes on. Complete while
        others write."""
        page = await self._search.newest(self._home, _selection(namespace, strategy_id), limit=limit, after=after)
        return [Record.of(document) for document in page.documents], page.after

    async def put(self, records: Sequence[Record], *, replacing: Sequence[Record] = ()) -> list[str]:
        """Writes new `records`, each under its id, and new versions of those that are still there (`replacing`): what
        its user deleted meanwhile does not come back. The ids written. The same again changes nothing.

        Vectors are made here, where records have none."""
        self._check(records)
        self._check(replacing)
        embedded = await self._embedded([*records, *replacing])
        async with self._lock:
            await self._writer.add(self._home, embedded[: len(records)])
            replaced = await self._writer.replace(self._home, embedded[len(records) :])
        return [*(record.id for record in records), *replaced]

    async def delete(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that were there."""
        async with self._lock:
            return await self._writer.remove(self._home, ids)

    def _check(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.owner != self.actor_id:
                raise ValueError(f"record {record.id} is not this actor's")

    async def _embedded(self, records: Sequence[Record]) -> list[Record]:
        bare = [record.text for record in records if record.vector is None]
        vectors = iter(await self._retrieval.vectors(bare))
        return [record if record.vector is not None else replace(record, vector=next(vectors)) for record in records]


def _selection(namespace: str | None, strategy_id: str | None) -> Selection:
    conditions = [Condition(STRATEGY_KEY, Operator.EQUALS_TO, strategy_id)] if strategy_id is not None else []
    return Selection(namespace=namespace, conditions=conditions)
