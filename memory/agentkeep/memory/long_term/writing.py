"""The one way by which records get into the search store and out of it.

Each is kept with what stands around it (see surroundings). So a new record changes up to two on either side of it, and
what is deleted, or says something else now, leaves nothing of its words with its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final
from weakref import WeakValueDictionary

import numpy as np

from agentkeep.memory.long_term.record import NOWHERE, Record
from agentkeep.memory.long_term.surroundings import joined, linked, linked_ids, positioned, without
from agentkeep.storage.search import SearchStore, Selection

__all__ = ["RecordWriter"]

#: New records find their place among so many of the newest of their namespace.
_NEWEST: Final = 64


class RecordWriter:
    """`home`: the partition of one actor's records, see RecordScope. One at a time writes there, in this process.

    Raises StoreUnavailable. A write is durable, and seen by every later search, when it returns."""

    def __init__(self, search: SearchStore) -> None:
        self._search = search
        self._writing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def add(self, home: str, records: Sequence[Record]) -> None:
        """New ones, or the same again after a failure."""
        if not records:
            return
        async with self._lock(home):
            new = {record.id: positioned(record, index) for index, record in enumerate(records)}
            there: dict[str, Record] = {}
            for namespace in dict.fromkeys(record.namespace for record in new.values()):
                if namespace is not None:
                    page = await self._search.newest(home, Selection(namespace=namespace), limit=_NEWEST)
                    there |= {document.id: Record.of(document) for document in page.documents}
            found = linked((there | new).values())
            touched = [one for id, one in found.items() if id in new or linked_ids(one) != linked_ids(there[id])]
            await self._write(home, touched, found, new)

    async def replace(self, home: str, records: Sequence[Record]) -> list[str]:
        """New versions of those that are still there; the ids written. A record stays where it stands, unless it is
        now in another namespace or of another strategy: then it stands nowhere."""
        if not records:
            return []
        async with self._lock(home):
            former = await self._read(home, [record.id for record in records])
            new: dict[str, Record] = {}
            left: list[Record] = []
            for record in records:
                if (before := former.get(record.id)) is not None:
                    stays = (record.namespace, record.strategy_id) == (before.namespace, before.strategy_id)
                    new[record.id] = replace(record, around=before.around if stays else NOWHERE)
                    left += [] if stays else [before]
            said = {id for id, one in new.items() if _differs(one, former[id])}
            moved = {record.id for record in left}
            around = await self._around(home, [former[id] for id in new if id in said | moved], set(new))
            known = {id: without(one, moved) for id, one in {**around, **new}.items()}
            await self._write(home, list(known.values()), known)
        return list(new)

    async def remove(self, home: str, ids: Iterable[str]) -> list[str]:
        """Those of the ids that were there."""
        gone = list(dict.fromkeys(ids))
        if not gone:
            return []
        async with self._lock(home):
            former = await self._read(home, gone)
            around = await self._around(home, former.values(), set(gone))
            left = {id: without(record, gone) for id, record in around.items()}
            # First what its neighbours kept of it: after a failure in between, it can be deleted again.
            await self._write(home, list(left.values()), left)
            return await self._search.delete(home, gone)

    async def erase(self, home: str) -> int:
        """All of them; how many there were. No write of this process's is under way then, which might bring back what
        it found before."""
        async with self._lock(home):
            return await self._search.delete_partition(home)

    async def _around(self, home: str, records: Iterable[Record], besides: set[str]) -> dict[str, Record]:
        """Those that stand around the records, and are not `besides`."""
        return await self._read(home, [id for record in records for id in linked_ids(record) if id not in besides])

    async def _write(
        self, home: str, records: Sequence[Record], known: dict[str, Record], new: Collection[str] = ()
    ) -> None:
        """With what stands around each, which is read where it is not known. What is not `new` and was deleted
        meanwhile, perhaps through another replica, stays away."""
        missing = [id for record in records for id in linked_ids(record) if id not in known]
        known = known | await self._read(home, missing)
        if records:
            former = {record.id for record in records}.difference(new)
            await self._search.upsert(home, [joined(one, known).document() for one in records], replacing=former)

    async def _read(self, home: str, ids: Iterable[str]) -> dict[str, Record]:
        wanted = list(dict.fromkeys(ids))
        documents = await self._search.get(home, wanted) if wanted else []
        return {document.id: Record.of(document) for document in documents if document is not None}

    def _lock(self, home: str) -> asyncio.Lock:
        lock = self._writing.get(home)
        if lock is None:
            lock = self._writing[home] = asyncio.Lock()
        return lock


def _differs(one: Record, other: Record) -> bool:
    """In what its neighbours keep of it."""
    if one.text != other.text or one.vector is None or other.vector is None:
        return one.text != other.text or one.vector is not other.vector
    return not np.allclose(one.vector, other.vector, atol=1e-3)
