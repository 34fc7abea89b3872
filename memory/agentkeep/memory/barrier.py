"""Keeps an actor's writes away while the actor is being erased, and what was read before it from being written after.

One item an actor, of whichever memory is being erased: every write of the actor's checks, as part of the write, that it
is as this process knows it. So a write that an erasure would not see fails; and so does one that was made of what is
erased by now, such as facts that a model found in events.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from agentkeep.core.errors import RetryableConflictException
from agentkeep.storage.interface import ABSENT, Check, Expected, KeyValueStore, Put, Write, partition

__all__ = ["Barrier", "being_erased"]

_ERASING: Final = partition("memory", "erasing")
#: How long it is remembered that there was an erasure: longer than anything takes from its reading to its writing.
_REMEMBERED_MS: Final = 24 * 3600 * 1000
_CACHED: Final = 10_000
_AT_ONCE: Final = 100


class Barrier:
    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._known: dict[tuple[str, str], bytes] = {}

    # Of those who write.

    def check(self, memory_id: str, actor_id: str) -> Check:
        """To be part of a write of the actor's. Where it fails: `refresh`, then again."""
        return Check(_ERASING, actor_id, self._known.get((memory_id, actor_id), ABSENT))

    async def refresh(self, memory_id: str, actor_id: str) -> None:
        """Raises RetryableConflictException while the actor is being erased."""
        check = await self.read(memory_id, actor_id)
        if not isinstance(check.expect, bytes):
            self._known.pop((memory_id, actor_id), None)
            return
        if len(self._known) >= _CACHED:
            self._known.clear()
        self._known[memory_id, actor_id] = check.expect

    async def closed_to(self, memory_id: str, actor_ids: Iterable[str]) -> frozenset[str]:
        """Those of the actors that are being erased; of the others, `refresh`."""
        closed: set[str] = set()
        for actor_id in actor_ids:
            try:
                await self.refresh(memory_id, actor_id)
            except RetryableConflictException:
                closed.add(actor_id)
        return frozenset(closed)

    async def read(self, memory_id: str, actor_id: str) -> Check:
        """As it is now: for who reads the actor's data, and later writes what it made of that. With this check the
        write fails if the actor was erased in between. Raises RetryableConflictException while that is under way."""
        value = await self._store.get(_ERASING, actor_id)
        if value is None:
            return Check(_ERASING, actor_id, ABSENT)
        if _is_closed(value, memory_id):
            raise being_erased()
        return Check(_ERASING, actor_id, value)

    # Of the erasure.

    async def under_way(self) -> list[str]:
        """The erasures that have not ended."""
        found: list[str] = []
        after: str | None = None
        while items := await self._store.query(_ERASING, after=after, limit=_AT_ONCE):
            after = items[-1].sort
            found += [held["erasure"] for item in items if (held := orjson.loads(item.value))["under_way"]]
        return found

    async def of(self, actor_id: str) -> tuple[bytes | None, str | None]:
        """What is known of the actor's erasures, and the one under way."""
        value = await self._store.get(_ERASING, actor_id)
        held = orjson.loads(value) if value is not None else None
        return value, held["erasure"] if held is not None and held["under_way"] else None

    @staticmethod
    def closed(actor_id: str, erasure: str, memory_id: str | None, before: bytes | None) -> Write:
        """`memory_id` None: in every memory. `before`: as `of` found it, with none under way."""
        expect: Expected = ABSENT if before is None else before
        return Put(_ERASING, actor_id, _held(erasure, memory_id, under_way=True), expect)

    @staticmethod
    def opened(actor_id: str, erasure: str, memory_id: str | None, now_ms: int) -> Write:
        """Of that erasure, and of no other."""
        before = _held(erasure, memory_id, under_way=True)
        after = _held(erasure, memory_id, under_way=False)
        return Put(_ERASING, actor_id, after, before, now_ms + _REMEMBERED_MS)


def being_erased() -> RetryableConflictException:
    return RetryableConflictException("The data of this actor is being erased: try again when that has ended")


def _is_closed(value: bytes, memory_id: str) -> bool:
    held = orjson.loads(value)
    return bool(held["under_way"]) and held["memory"] in (None, memory_id)


def _held(erasure: str, memory_id: str | None, *, under_way: bool) -> bytes:
    return orjson.dumps({"erasure": erasure, "memory": memory_id, "under_way": under_way})
