"""Deletions of memories under way, each of which goes on until nothing is left."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from agentkeep.memory.lifecycle.erasure import Erasure
from agentkeep.memory.memories import Memories

__all__ = ["Deletions"]

logger = logging.getLogger(__name__)

#: How long DeleteMemory waits for the removal, so that for most memories it is done when it answers.
_PATIENCE: Final = 1.0


class Deletions:
    def __init__(self, memories: Memories, erasure: Erasure) -> None:
        self._memories = memories
        self._erasure = erasure
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def erase(self, memory_id: str) -> None:
        """Begins with it, and waits for a while."""
        await asyncio.wait((self._begin(memory_id),), timeout=_PATIENCE)

    async def resume(self) -> None:
        """Goes on, in the background, with deletions that a crash interrupted."""
        for memory_id in await self._memories.deleting():
            self._begin(memory_id)

    async def finish(self) -> None:
        """Returns when none is under way."""
        await asyncio.gather(*self._under_way.values())

    async def close(self) -> None:
        """Stops them; the next start continues."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, memory_id: str) -> asyncio.Task[None]:
        task = self._under_way.get(memory_id)
        if task is None:
            task = self._under_way[memory_id] = asyncio.create_task(self._erasure.erase(memory_id))
            task.add_done_callback(lambda done: self._done(memory_id, done))
        return task

    def _done(self, memory_id: str, task: asyncio.Task[None]) -> None:
        del self._under_way[memory_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("memory %s is not wholly deleted yet; repeat DeleteMemory: %s", memory_id, error)
