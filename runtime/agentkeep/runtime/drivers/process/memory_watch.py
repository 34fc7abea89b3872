"""Where no control group limits memory: looks at what sessions hold; one over its limit loses its largest process.

That is what the kernel does in a control group. Weaker than one (a session can overshoot between two looks), better
than nothing: an ordinary user's sessions could otherwise take all there is. Each process also has RLIMIT_DATA.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from agentkeep.core.clock import Clock
from agentkeep.runtime.drivers.process.environment import ProcessEnvironment
from agentkeep.runtime.drivers.process.process_tree import holding, tree
from agentkeep.runtime.drivers.process.tasks import in_thread

__all__ = ["MemoryWatch", "held_by"]

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds
_RESIDENT = ("RssAnon:", "RssShmem:", "VmSwap:")
_PROPORTIONAL = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")


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
            for environment in self._environments():
                if environment.alive:
                    await self._look(environment)

    async def _look(self, environment: ProcessEnvironment) -> None:
        limit = environment.spec.limits.memory
        held = await in_thread(held_by, environment.roots, limit)
        size = sum(held.values())
        if not environment.alive or size <= limit:
            return
        largest = max(held, key=lambda pid: held[pid])
        logger.warning("%s holds %d MiB, more than it may", environment.id, size >> 20)
        if largest == environment.pid:
            environment.kill(f"out of memory: it held {size >> 20} MiB, its limit is {limit >> 20} MiB")
        else:
            await in_thread(_kill, largest, environment.roots)


def held_by(roots: Sequence[int], limit: int) -> dict[int, int]:
    """Pid → bytes held, of a session's PID 1 (which inherits every orphan), the shells of its commands, and all below
    them. Counted roughly first; if that exceeds `limit`, exactly: pages shared with the fork server count in part.
    Blocking."""
    pids = [pid for root in roots for pid in tree(root)]
    rough = {pid: _sum(Path(f"/proc/{pid}/status"), _RESIDENT) for pid in pids}
    if sum(rough.values()) <= limit:
        return rough
    return {pid: _sum(Path(f"/proc/{pid}/smaps_rollup"), _PROPORTIONAL) for pid in pids}


def _sum(path: Path, names: tuple[str, ...]) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(names))


def _kill(pid: int, roots: Sequence[int]) -> None:
    """Ends one process, if it is still the session's."""
    for root in roots:
        with holding(pid, root) as pidfd:
            if pidfd is not None:
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    pass
