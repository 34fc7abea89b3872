"""Where no control group limits memory: looks at what sessions hold, and ends those over their limit.

Weaker than a control group (a session can overshoot between two looks), better than nothing: an ordinary user's
sessions could otherwise take all there is. Each process is also limited by RLIMIT_DATA.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from agentkeep.core.clock import Clock
from agentkeep.runtime.drivers.process.environment import ProcessEnvironment
from agentkeep.runtime.drivers.process.tasks import in_thread

__all__ = ["MemoryWatch", "resident"]

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds
_COUNTED = ("RssAnon:", "RssShmem:", "VmSwap:")


class MemoryWatch:
    def __init__(self, environments: Callable[[], Sequence[ProcessEnvironment]], clock: Clock) -> None:
        self._environments = environments
        self._clock = clock
        self._task = asyncio.create_task(self._watch(), name="memory watch")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(INTERVAL)
            living = [environment for environment in self._environments() if environment.alive]
            held = await in_thread(_resident, [environment.pid for environment in living])
            for environment, size in zip(living, held, strict=True):
                limit = environment.spec.limits.memory
                if environment.alive and size > limit:
                    environment.kill(f"out of memory: it held {size >> 20} MiB, its limit is {limit >> 20} MiB")


def _resident(pids: list[int]) -> list[int]:
    return [resident(pid) for pid in pids]


def resident(pid: int) -> int:
    """Bytes held by a process and all below it. PID 1 of a namespace inherits every orphan, so none is missed.
    Pages shared with the fork server count each time; that errs on the side of the limit. Blocking."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(_COUNTED):
                total += int(line.split()[1]) << 10
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                total += resident(int(child))
    except OSError:  # it has just ended
        pass
    return total
