"""How the driver's own small services run: the session edge and the firewall service."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

__all__ = ["until_told"]


async def until_told(work: Coroutine[Any, Any, None]) -> None:
    """Works, and says so on standard error, until SIGINT or SIGTERM. Raises what `work` raises."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    task = asyncio.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
