"""Extraction in the background: looks for sessions in which something waits, and waits a little for more.

Every replica looks; a lease on the actor says who does it. How long something has waited is measured from when it was
first seen here, by a clock that only goes forward: whatever the time of day does, nothing is extracted twice or never.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from agentkeep.core.clock import Clock
from agentkeep.core.errors import AgentkeepError
from agentkeep.memory.extraction.extraction import Extraction
from agentkeep.memory.extraction.marks import DUE, Due
from agentkeep.storage.interface import KeyValueStore

__all__ = ["ExtractionWorker"]

logger = logging.getLogger(__name__)

#: Seconds between two looks, and until what goes on changing is extracted all the same.
_LOOK: Final = 0.5
_LONGEST: Final = 10.0
#: Seconds until what could not be extracted now is tried again: at first, and at the most.
_SOON: Final = 1.0
_SELDOM: Final = 60.0
_AT_ONCE: Final = 500


@dataclass(slots=True)
class _Seen:
    """`value` since `changed`; `first`: when it was first seen (monotonic). `not_before`: it failed, and rests."""

    value: bytes
    changed: float
    first: float
    not_before: float = 0.0
    pause: float = _SOON


class ExtractionWorker:
    """`debounce`: seconds in which nothing more may have come; `at_once`: how many actors' are extracted at once."""

    def __init__(
        self, store: KeyValueStore, extraction: Extraction, clock: Clock, debounce: float, at_once: int
    ) -> None:
        self._store = store
        self._extraction = extraction
        self._clock = clock
        self._debounce = debounce
        self._room = asyncio.Semaphore(at_once)
        self._seen: dict[str, _Seen] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look(), name="extraction")

    async def close(self) -> None:
        """What is under way stops; any replica begins with it again."""
        tasks = [task for task in (self._looking, *self._under_way.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Extracts all that is due now, at once. Raises what `Extraction.run` raises."""
        async for key, _ in self._due():
            await self._extraction.run(Due.of(key))

    async def _look(self) -> None:
        while True:
            try:
                await self._begin()
            except AgentkeepError as error:
                logger.warning("extraction waits: %s", error)
            except Exception:
                logger.exception("what waits for extraction could not be looked for")
            # Real time, whatever clock stands still.
            await asyncio.sleep(_LOOK)

    async def _begin(self) -> None:
        now, there = self._clock.monotonic(), set[str]()
        async for key, value in self._due():
            there.add(key)
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = _Seen(value, now, now)
            elif seen.value != value:
                seen.value, seen.changed = value, now
            ready = now - seen.changed >= self._debounce or now - seen.first >= _LONGEST
            if ready and now >= seen.not_before and key not in self._under_way:
                task = self._under_way[key] = asyncio.create_task(self._extract(key, seen), name=f"extract {key}")
                task.add_done_callback(lambda _, key=key: self._under_way.pop(key, None))  # type: ignore[misc]
        for gone in self._seen.keys() - there:
            del self._seen[gone]

    async def _extract(self, key: str, seen: _Seen) -> None:
        async with self._room:
            try:
                if await self._extraction.run(Due.of(key)):
                    self._seen.pop(key, None)
                else:  # another session of the actor's is at it
                    seen.not_before = self._clock.monotonic() + _SOON
                return
            except AgentkeepError as error:
                logger.info("the extraction of %r waits: %s", key, error)
            except Exception:
                logger.exception("the extraction of %r did not end well", key)
        seen.not_before = self._clock.monotonic() + seen.pause
        seen.pause = min(2 * seen.pause, _SELDOM)

    async def _due(self) -> AsyncIterator[tuple[str, bytes]]:
        after: str | None = None
        while True:
            items = await self._store.query(DUE, after=after, limit=_AT_ONCE)
            for item in items:
                yield item.sort, item.value
            if len(items) < _AT_ONCE:
                return
            after = items[-1].sort
