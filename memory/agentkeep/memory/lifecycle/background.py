"""Work under way in the background, each under a name, and under one name once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Background"]


class Background:
    """`failed` is told of work that ended with an error; what to do about it is its business."""

    def __init__(self, failed: Callable[[str, BaseException], None]) -> None:
        self._failed = failed
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """The work of that name: begun now, or before."""
        task = self._under_way.get(name)
        if task is None:
            task = self._under_way[name] = asyncio.create_task(work(), name=name)
            task.add_done_callback(lambda done: self._ended(name, done))
        return task

    async def finish(self) -> None:
        """Returns when none is under way. Raises what one raised."""
        await asyncio.gather(*self._under_way.values())

    async def close(self) -> None:
        """Stops them all."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._under_way[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(name, error)
