"""What has expired, which nobody sees any more, leaves the disk."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from agentkeep.core.clock import Clock
from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.search import SearchStore

__all__ = ["Purge"]

logger = logging.getLogger(__name__)

_SECONDS: Final = 3600.0


class Purge:
    def __init__(self, search: SearchStore, clock: Clock) -> None:
        self._search = search
        self._clock = clock
        self._going_on: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Once now, and every hour. Raises StoreUnavailable."""
        await self._search.purge()
        self._going_on = asyncio.create_task(self._go_on())

    async def close(self) -> None:
        if self._going_on is not None:
            self._going_on.cancel()
            await asyncio.gather(self._going_on, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            await self._clock.sleep(_SECONDS)
            try:
                removed = await self._search.purge()
            except StoreUnavailable as error:
                logger.warning("expired records stay on the disk for now: %s", error)
            else:
                logger.debug("%d expired records removed", removed)
