"""What becomes of sessions whose platform has ended: this replica's at its next start, another's when its heartbeat has
run out; and, where our own had run out, which sessions are no longer ours.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from agentkeep.core.ports import Keys
from agentkeep.runtime.drivers.driver import Driver
from agentkeep.runtime.records import EndReason, SessionRecord, SessionState, Version
from agentkeep.runtime.session_table import SessionTable
from agentkeep.runtime.sessions import Sessions

__all__ = ["Recovery"]

log = logging.getLogger(__name__)


class Recovery:
    """`version_of`: a runtime's version, None where there is none any more."""

    def __init__(
        self,
        sessions: Sessions,
        table: SessionTable,
        driver: Driver,
        keys: Keys,
        version_of: Callable[[str, int], Awaitable[Version | None]],
    ) -> None:
        self._sessions = sessions
        self._table = table
        self._driver = driver
        self._keys = keys
        self._version_of = version_of

    async def recover(self) -> None:
        """After a start: environments that outlived the platform are found again; all else that was ours is ended."""
        await self._table.heartbeat()
        found = {environment.id: environment for environment in await self._driver.adopt()}
        async for record in self._table.orphans(own=True):
            environment = found.pop(record.environment_id or "", None)
            version = await self._version_of(record.runtime_id, record.version)
            usable = record.state is SessionState.READY and record.owner == self._table.replica and version is not None
            if usable and environment is not None:
                assert version is not None
                await self._sessions.adopt(record, version, environment)
                continue
            if environment is not None:
                await environment.stop(0)
            await self._bury(record)
        for environment in found.values():
            await environment.stop(0)

    async def bury_orphans(self) -> None:
        """Ends the sessions of replicas that have died."""
        async for record in self._table.orphans(own=False):
            await self._bury(record)

    async def _bury(self, record: SessionRecord) -> None:
        log.info("session %s of %s did not outlive its platform", record.session_id, record.runtime_id)
        await self._keys.end_session(record.ref)
        await self._table.stopped(record, EndReason.PLATFORM_RESTARTED)

    async def verify_leases(self) -> None:
        """After our heartbeat had run out: sessions that another replica has taken are ended here."""
        for session in self._sessions.all_live():
            record = session.record
            if record is None or session.state is not SessionState.READY:
                continue
            found = await self._table.find(session.ref)
            if found is None or found.record.fence != record.fence:
                self._sessions.end(session, EndReason.LEASE_LOST)
