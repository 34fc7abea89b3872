"""Compactions of memories: asked for by operators, or begun when their time has come; one a memory at a time.

The request is durable before anything is done, and is what the report becomes. Any replica goes on with it after a
crash.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import orjson

from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    ResourceNotFoundException,
    ServiceError,
    StoreUnavailable,
    ValidationException,
)
from agentkeep.core.ports import Audit, AuditRecord
from agentkeep.memory.lifecycle.background import Background
from agentkeep.memory.lifecycle.compaction_report import CompactionReport, Wanted
from agentkeep.memory.lifecycle.compactor import Compactor
from agentkeep.memory.lifecycle.merges import PLANS, REPORTS
from agentkeep.memory.memories import Memories, MemoryStatus
from agentkeep.memory.settings import MemorySettings
from agentkeep.storage.interface import ABSENT, Delete, KeyValueStore, Put, Write, partition
from agentkeep.storage.leases import Lease, LeaseLost, Leases
from agentkeep.storage.records import Stored, decode, encode, find

__all__ = ["SCHEDULE", "Compactions"]

logger = logging.getLogger(__name__)

#: Who asks for those that nobody asks for.
SCHEDULE: Final = "agentkeep:schedule"

#: Memory -> its compaction under way.
_UNDER_WAY: Final = partition("memory", "compacting")
#: Memory -> when it was compacted by the schedule.
_LAST: Final = partition("memory", "compacted")
_LEASES: Final = partition("memory", "compaction-leases")
_DAY_MS: Final = 24 * 3600 * 1000
_PATIENCE: Final = 1.0
_AT_ONCE: Final = 100
#: Seconds between two looks: for what was interrupted, and for memories whose time has come.
_LOOK: Final = 15.0
_LOOK_AT_SCHEDULE: Final = 600.0


class Compactions:
    def __init__(
        self,
        store: KeyValueStore,
        clock: Clock,
        memories: Memories,
        compactor: Compactor,
        settings: MemorySettings,
        audit: Audit | None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._memories = memories
        self._compactor = compactor
        self._settings = settings
        self._audit = audit
        self._leases = Leases(store, clock, _LEASES)
        self._running = Background(_failed)
        self._looking: asyncio.Task[None] | None = None

    async def request(self, wanted: Wanted, requested_by: str) -> CompactionReport:
        """Begins, and waits for a while. Raises ResourceNotFoundException, ConflictException where one of the memory is
        under way, ValidationException."""
        if wanted.model_id is not None and not self._compactor.has_models:
            raise ValidationException("model: no gateway answers here: leave it out, to merge duplicates alone")
        memory = await self._memories.get(wanted.memory_id)
        if memory.status is MemoryStatus.DELETING:
            raise ConflictException(f"Memory {memory.id} is being deleted")
        report = await self._requested(wanted, requested_by)
        await asyncio.wait((self._begin(wanted.memory_id, report.id),), timeout=_PATIENCE)
        return await self.report(report.id)

    async def report(self, compaction: str) -> CompactionReport:
        """Raises ResourceNotFoundException."""
        return (await self._find(compaction)).record

    async def latest(self, limit: int) -> list[CompactionReport]:
        """Latest first."""
        return [
            decode(CompactionReport, item.value) for item in await self._store.query(REPORTS, limit=limit, reverse=True)
        ]

    async def start(self) -> None:
        """Goes on with what was interrupted, here or on other replicas. Raises StoreUnavailable."""
        await self.resume()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="compactions")

    async def resume(self) -> None:
        after: str | None = None
        while items := await self._store.query(_UNDER_WAY, after=after, limit=_AT_ONCE):
            after = items[-1].sort
            for item in items:
                self._begin(item.sort, item.value.decode())

    async def schedule(self) -> None:
        """Begins what is due, of memories that are not being compacted."""
        every = self._settings.compaction_interval_days * _DAY_MS
        token: str | None = None
        while True:
            memories, token = await self._memories.page(_AT_ONCE, token)
            for memory in memories:
                last = await self._store.get(_LAST, memory.id)
                done = orjson.loads(last) if last is not None else None
                if done is None or epoch_ms(self._clock.now()) - done["at_ms"] >= every:
                    wanted = Wanted(
                        memory.id,
                        self._settings.compaction_age_days,
                        model_id=self._settings.compaction_model or None,
                        since_ms=None if done is None else done["cutoff_ms"],
                    )
                    try:
                        await self.request(wanted, SCHEDULE)
                    except ServiceError as error:
                        logger.info("memory %s is not compacted now: %s", memory.id, error.message)
            if token is None:
                return

    async def finish(self) -> None:
        """Returns when none is under way here."""
        await self._running.finish()

    async def close(self) -> None:
        """Stops; whoever is there, or the next start, goes on."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._running.close()

    async def _requested(self, wanted: Wanted, requested_by: str) -> CompactionReport:
        now = epoch_ms(self._clock.now())
        report = CompactionReport(f"compaction-{now:013d}-{secrets.token_hex(4)}", wanted, requested_by, now)
        try:
            await self._store.transact(
                [
                    Put(_UNDER_WAY, wanted.memory_id, report.id.encode(), expect=ABSENT),
                    Put(REPORTS, report.id, encode(report), expect=ABSENT),
                ]
            )
        except ConditionFailed as failed:
            other = (failed.current or b"").decode()
            raise ConflictException(f"Memory {wanted.memory_id} is being compacted: {other}") from None
        return report

    def _begin(self, memory_id: str, compaction: str) -> asyncio.Task[None]:
        return self._running.begin(compaction, lambda: self._run(memory_id, compaction))

    async def _look(self) -> None:
        scheduled: float | None = None
        while True:
            await self._clock.sleep(_LOOK)
            try:
                await self.resume()
                now = self._clock.monotonic()
                if self._settings.compaction_interval_days and (
                    scheduled is None or now - scheduled >= _LOOK_AT_SCHEDULE
                ):
                    scheduled = now
                    await self.schedule()
            except StoreUnavailable as error:
                logger.warning("compactions wait for the store: %s", error)
            except Exception:
                logger.exception("compactions could not be looked after")

    async def _run(self, memory_id: str, compaction: str) -> None:
        async with self._leases.hold(memory_id) as lease:
            if lease is None:
                return  # another replica is at it
            stored = await find(self._store, CompactionReport, REPORTS, compaction)
            if stored is None or stored.record.finished_ms is not None:
                return
            try:
                memory = await self._memories.get(memory_id)
            except ResourceNotFoundException:
                memory = None
            if memory is None or memory.status is MemoryStatus.DELETING:
                await self._end(lease, stored, replace(stored.record, complete=False))
                return
            begun = stored.but(attempts=stored.record.attempts + 1)
            stored = await self._compactor.run(lease, await self._compactor.merges.save(lease, stored, begun))
            await self._record(stored.record)
            await self._end(lease, stored, stored.record)
        logger.info("%s of memory %s has ended", compaction, memory_id)

    async def _end(self, lease: Lease, stored: Stored[CompactionReport], report: CompactionReport) -> None:
        now = epoch_ms(self._clock.now())
        report = replace(report, finished_ms=now, after=None)
        wanted = report.wanted
        writes: list[Write] = [
            lease.check,
            Put(REPORTS, report.id, encode(report), stored.raw, now + self._settings.report_days * _DAY_MS),
            Delete(_UNDER_WAY, wanted.memory_id, expect=report.id.encode()),
            Delete(PLANS, report.id),  # there is one only where the memory was deleted in the midst of it
        ]
        if report.requested_by == SCHEDULE:
            # What the limits left out is looked at next time.
            cutoff = report.requested_ms - wanted.older_than_days * _DAY_MS if report.complete else wanted.since_ms
            last = orjson.dumps({"at_ms": report.requested_ms, "cutoff_ms": cutoff})
            writes.append(Put(_LAST, wanted.memory_id, last))
        try:
            await self._store.transact(writes)
        except ConditionFailed:
            raise LeaseLost(report.id) from None

    async def _find(self, compaction: str) -> Stored[CompactionReport]:
        stored = await find(self._store, CompactionReport, REPORTS, compaction)
        if stored is None:
            raise ResourceNotFoundException(f"Report not found: {compaction}")
        return stored

    async def _record(self, report: CompactionReport) -> None:
        """Told twice, it is one record."""
        if self._audit is None or report.wanted.dry_run:
            return
        details: Mapping[str, str] = {
            "report": report.id,
            "memory": report.wanted.memory_id,
            "merged": str(report.merged),
            "written": str(report.written),
        }
        await self._audit.record(
            AuditRecord(
                "memory-compacted",
                f"{report.requested_by} had memory {report.wanted.memory_id} compacted.",
                report.requested_by,
                None,
                report.wanted.actor_id,
                from_epoch_ms(report.requested_ms),
                details,
                id=f"memory-compacted-{report.id}",
            )
        )


def _failed(compaction: str, error: BaseException) -> None:
    if isinstance(error, LeaseLost):
        logger.info("another replica goes on with %s", compaction)
    else:
        logger.error("%s goes on in a while: %s", compaction, error)
