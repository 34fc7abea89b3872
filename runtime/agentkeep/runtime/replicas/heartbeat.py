"""The heartbeat: keeps this replica in the table of replicas, and notices who is missing there and which runtimes go.

What a replica must do because of others happens here, once per beat; nobody need tell it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from agentkeep.core.clock import Clock
from agentkeep.core.errors import DependencyError
from agentkeep.runtime.replicas.recovery import Recovery
from agentkeep.runtime.replicas.table import Replicas
from agentkeep.runtime.sessions.sessions import Sessions

__all__ = ["BEATS_PER_LEASE", "Heartbeat"]

log = logging.getLogger(__name__)

BEATS_PER_LEASE: Final = 5
#: All sessions are read once in so many beats.
_THOROUGH: Final = 15


class Heartbeat:
    """`deleted`: which of some runtimes are deleted or being deleted."""

    def __init__(
        self,
        replicas: Replicas,
        sessions: Sessions,
        recovery: Recovery,
        clock: Clock,
        deleted: Callable[[Iterable[str]], Awaitable[set[str]]],
    ) -> None:
        self._replicas = replicas
        self._sessions = sessions
        self._recovery = recovery
        self._clock = clock
        self._deleted = deleted
        self._beats = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="heartbeat")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._recovery.stop()

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(self._replicas.lease / BEATS_PER_LEASE)
            try:
                await self.beat()
            except DependencyError as error:
                log.warning("the table of replicas could not be looked at: %s", error)
            except Exception:
                log.exception("the table of replicas could not be looked after")

    async def beat(self) -> None:
        """Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self._replicas.lease / 2):
                await self._replicas.keep()
        except (DependencyError, TimeoutError) as error:
            log.warning("the heartbeat could not be written: %s", error or "the store does not answer")
            if not self._replicas.holds():
                # Others may think that we are dead. Environments stay, until we know.
                self._sessions.cut()
            return
        await self._recovery.look_at_others(thoroughly=self._beats % _THOROUGH == 0)
        self._beats += 1
        await self._end_deleted()

    async def _end_deleted(self) -> None:
        """Another replica may have been told to delete a runtime; or a session began here that had read it before."""
        live = {session.ref.runtime_id for session in self._sessions.all_live()}
        gone = await self._deleted(live) if live else ()
        for runtime_id in gone:
            self._sessions.end_runtime(runtime_id)
