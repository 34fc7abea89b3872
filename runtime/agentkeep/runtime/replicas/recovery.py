"""What becomes of sessions whose platform has ended: this replica's at its next start; another's, which is dead, by its
heir, who takes over what of it lives and ends the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from agentkeep.core.errors import DependencyError
from agentkeep.core.ports import Keys
from agentkeep.runtime.drivers.driver import AdoptedEnvironment, Driver
from agentkeep.runtime.records import EndReason, SessionRecord, SessionState, Version
from agentkeep.runtime.sessions.sessions import Sessions
from agentkeep.runtime.sessions.table import SessionTable

__all__ = ["Recovery"]

log = logging.getLogger(__name__)

_AT_ONCE: Final = 16


class Recovery:
    """`version_of`: a runtime's version, None where there is none any more. `inherited` is told a dead replica's name
    when nothing of its sessions is left."""

    def __init__(
        self,
        sessions: Sessions,
        table: SessionTable,
        driver: Driver,
        keys: Keys,
        version_of: Callable[[str, int], Awaitable[Version | None]],
        inherited: Callable[[str], Awaitable[None]],
    ) -> None:
        self._sessions = sessions
        self._table = table
        self._replicas = table.replicas
        self._driver = driver
        self._keys = keys
        self._version_of = version_of
        self._inherited = inherited
        self._legacies: dict[str, asyncio.Task[None]] = {}

    async def recover(self) -> None:
        """After a start: environments that outlived the platform are found again; all else that was ours is ended."""
        await self._replicas.register()
        found = {environment.id: environment for environment in await self._driver.adopt()}
        async for record in self._table.of_owner(self._table.replica):
            environment = found.pop(record.environment_id or "", None)
            version = await self._usable(record)
            if version is not None and environment is not None:
                await self._sessions.adopt(record, version, environment)
                continue
            if environment is not None:
                await environment.stop(0)
            await self._bury(record, EndReason.PLATFORM_RESTARTED)
        for environment in found.values():
            await environment.stop(0)

    async def _usable(self, record: SessionRecord) -> Version | None:
        """The version of a session that could go on if its environment lives."""
        version = await self._version_of(record.runtime_id, record.version)
        return version if record.state is SessionState.READY else None

    async def look_at_others(self, *, thoroughly: bool) -> None:
        """Finds who is dead, and looks after what those left whose heir this replica is. `thoroughly`: reads every
        session, for those of replicas of which nothing else is known. Raises StoreUnavailable."""
        dead = await self._replicas.observe()
        if thoroughly:
            dead += [name for name in await self._table.strays() if await self._replicas.inherit(name)]
            if not self._legacies and not dead:
                await self._end_unknown()
        for name in dead:
            self._look_after(name)

    async def looked_after(self, replica: str) -> None:
        """Returns when nothing is left of a dead replica whose heir this one is."""
        await asyncio.wait([self._look_after(replica)])

    def _look_after(self, replica: str) -> asyncio.Task[None]:
        task = self._legacies.get(replica)
        if task is None:
            task = self._legacies[replica] = asyncio.create_task(self._settle(replica), name=f"heir-of-{replica}")
            task.add_done_callback(lambda task: self._settled(replica, task))
        return task

    def _settled(self, replica: str, task: asyncio.Task[None]) -> None:
        self._legacies.pop(replica, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # It is still ours to look after: the next look at the table begins again.
            if isinstance(error, DependencyError):
                log.warning("what replica %s left cannot be looked after now: %s", replica, error)
            else:
                log.error("what replica %s left cannot be looked after", replica, exc_info=error)

    async def _settle(self, replica: str) -> None:
        found = {environment.id: environment for environment in await self._driver.take_over(replica)}
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(record: SessionRecord, environment: AdoptedEnvironment | None) -> None:
            async with at_once:
                await self._take_over(record, environment)

        async with asyncio.TaskGroup() as group:
            async for record in self._table.of_owner(replica):
                group.create_task(one(record, found.pop(record.environment_id or "", None)))
        for environment in found.values():
            await environment.stop(0)
        await self._inherited(replica)
        await self._replicas.forget(replica)

    async def _take_over(self, record: SessionRecord, environment: AdoptedEnvironment | None) -> None:
        version = await self._usable(record)
        if environment is not None and version is not None:
            taken = await self._table.inherit(record)
            if taken is not None:
                await self._sessions.adopt(taken, version, environment)
                return
        if environment is not None:
            await environment.stop(0)
        await self._bury(record, EndReason.REPLICA_LOST)

    async def _bury(self, record: SessionRecord, reason: EndReason) -> None:
        log.info("session %s of %s did not outlive its platform", record.session_id, record.runtime_id)
        await self._keys.end_session(record.ref)
        await self._table.stopped(record, reason)

    async def _end_unknown(self) -> None:
        """Sessions that the table says are this replica's, and of which it knows nothing: lost, before it registered
        again."""
        async for record in self._table.of_owner(self._table.replica):
            if self._sessions.live(record.ref) is None:
                await self._bury(record, EndReason.REPLICA_LOST)

    async def stop(self) -> None:
        for task in list(self._legacies.values()):
            task.cancel()
        await asyncio.gather(*self._legacies.values(), return_exceptions=True)
