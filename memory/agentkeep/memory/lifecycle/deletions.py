"""Deletions of memories under way, each of which goes on until nothing is left."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from agentkeep.memory.lifecycle.background import Background
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
        self._under_way = Background(_failed)

    async def erase(self, memory_id: str) -> None:
        """Begins with it, and waits for a while."""
        await asyncio.wait((self._begin(memory_id),), timeout=_PATIENCE)

    async def resume(self) -> None:
        """Goes on, in the background, with deletions that a crash interrupted."""
        for memory_id in await self._memories.deleting():
            self._begin(memory_id)

    async def finish(self) -> None:
        """Returns when none is under way."""
        await self._under_way.finish()

    async def close(self) -> None:
        """Stops them; the next start continues."""
        await self._under_way.close()

    def _begin(self, memory_id: str) -> asyncio.Task[None]:
        return self._under_way.begin(memory_id, lambda: self._erasure.erase(memory_id))


def _failed(memory_id: str, error: BaseException) -> None:
    logger.error("memory %s is not wholly deleted yet; repeat DeleteMemory: %s", memory_id, error)
