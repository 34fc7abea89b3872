"""The right to be forgotten: erasure of one actor, from one memory or from all.

    requested ──▶ removed, memory by memory ──▶ looked for again, and not found ──▶ ended

The request is durable before anything is removed, and is what the report becomes. Until it has ended the actor's writes
are refused (`Barrier`). Any replica goes on with it after a crash, one at a time; each step may happen twice.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    ResourceNotFoundException,
    StoreUnavailable,
)
from agentkeep.core.ports import Audit, AuditRecord
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.lifecycle.background import Background
from agentkeep.memory.lifecycle.erasable import Erasable
from agentkeep.memory.lifecycle.search_for_actor import ActorSearch
from agentkeep.memory.memories import Memories, Memory, MemoryStatus
from agentkeep.storage.interface import ABSENT, KeyValueStore, Put, Write, partition
from agentkeep.storage.leases import Lease, Leases
from agentkeep.storage.records import Stored, decode, encode, find

__all__ = ["ActorErasures", "ErasureReport"]

logger = logging.getLogger(__name__)

_REPORTS: Final = partition("memory", "erasures")
_LEASES: Final = partition("memory", "erasure-leases")
#: How long a request is waited for, so that most are done when they are answered.
_PATIENCE: Final = 1.0
#: Seconds between two looks for erasures whose replica died.
_LOOK: Final = 15.0
#: Passes over everything until one finds nothing. More are needed only where something is wrong.
_PASSES: Final = 5


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """What was removed, as far as it has come; nothing of its content. `memory_id` None: of all memories.

    `removed`: memory -> kind -> how many. `attempts` above 1: it was interrupted, and what an attempt removed just
    before its end may not be counted. `found_after`: what the last look found, by kind; nothing, once it has ended.
    `in_files`: whether bytes of the actor's records are left in the search store's files; None where that cannot be
    told. `nobodys`: memory -> ids of records that are no actor's and whose namespace names the actor (100 at most of
    each memory). `beneath`: memory -> how many records of others lie beneath the actor's namespaces. Both stay.
    """

    id: str
    actor_id: str
    memory_id: str | None
    requested_by: str
    requested_ms: int
    attempts: int = 0
    removed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    found_after: Mapping[str, int] | None = None
    in_files: bool | None = None
    nobodys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    beneath: Mapping[str, int] = field(default_factory=dict)
    finished_ms: int | None = None


class ActorErasures:
    def __init__(
        self,
        store: KeyValueStore,
        clock: Clock,
        memories: Memories,
        barrier: Barrier,
        erasables: Sequence[Erasable],
        search: ActorSearch,
        audit: Audit | None,
        report_days: int,
        settle_seconds: float,
    ) -> None:
        """`settle_seconds`: how long a write of another replica's, which the barrier came too late for, may take."""
        self._store = store
        self._clock = clock
        self._memories = memories
        self._barrier = barrier
        self._erasables = erasables
        self._search = search
        self._audit = audit
        self._settle_seconds = settle_seconds
        self._kept_ms = report_days * 24 * 3600 * 1000
        self._leases = Leases(store, clock, _LEASES)
        self._under_way = Background(_failed)
        self._looking: asyncio.Task[None] | None = None

    async def request(self, actor_id: str, memory_id: str | None, requested_by: str) -> ErasureReport:
        """Begins, and waits for a while. The same again while it is under way is the same erasure.

        Raises ResourceNotFoundException for a memory that is none, ConflictException where another erasure of the actor
        is under way.
        """
        if memory_id is not None:
            await self._memories.get(memory_id)
        report = await self._requested(actor_id, memory_id, requested_by)
        await asyncio.wait((self._begin(report.id),), timeout=_PATIENCE)
        return await self.report(report.id)

    async def report(self, erasure: str) -> ErasureReport:
        """Raises ResourceNotFoundException."""
        return (await self._find(erasure)).record

    async def latest(self, limit: int) -> list[ErasureReport]:
        """Latest first."""
        return [
            decode(ErasureReport, item.value) for item in await self._store.query(_REPORTS, limit=limit, reverse=True)
        ]

    async def start(self) -> None:
        """Goes on with what was interrupted, here or on other replicas. Raises StoreUnavailable."""
        await self.resume()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="erasures")

    async def resume(self) -> None:
        for erasure in await self._barrier.under_way():
            self._begin(erasure)

    async def finish(self) -> None:
        """Returns when none is under way here."""
        await self._under_way.finish()

    async def close(self) -> None:
        """Stops; whoever is there, or the next start, goes on."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._under_way.close()

    async def _requested(self, actor_id: str, memory_id: str | None, requested_by: str) -> ErasureReport:
        before, other = await self._barrier.of(actor_id)
        if other is not None:
            report = await self.report(other)
            if report.memory_id != memory_id:
                raise ConflictException(f"Erasure {other} of this actor is under way: try again when it has ended")
            return report
        now = epoch_ms(self._clock.now())
        report = ErasureReport(f"erasure-{now:013d}-{secrets.token_hex(4)}", actor_id, memory_id, requested_by, now)
        await self._record(report, "actor-erasure-requested", now)
        try:
            await self._store.transact(
                [
                    self._barrier.closed(actor_id, report.id, memory_id, before),
                    Put(_REPORTS, report.id, encode(report), expect=ABSENT),
                ]
            )
        except ConditionFailed:
            raise ConflictException("Another erasure of this actor has just begun: try again") from None
        return report

    def _begin(self, erasure: str) -> asyncio.Task[None]:
        return self._under_way.begin(erasure, lambda: self._run(erasure))

    async def _look(self) -> None:
        while True:
            await self._clock.sleep(_LOOK)
            try:
                await self.resume()
            except StoreUnavailable as error:
                logger.warning("interrupted erasures wait for the store: %s", error)
            except Exception:
                logger.exception("erasures could not be looked after")

    async def _run(self, erasure: str) -> None:
        async with self._leases.hold(erasure) as lease:
            if lease is None:
                return  # another replica is at it
            stored = await self._find(erasure)
            if stored.record.finished_ms is not None:
                return
            stored = await self._save(lease, stored, stored.but(attempts=stored.record.attempts + 1))
            sample: list[str] = []
            for memory_id in await self._affected(stored.record):
                sample += await self._search.sample(memory_id, stored.record.actor_id)
                if memory_id not in stored.record.removed:
                    removed = await self._remove(memory_id, stored.record.actor_id)
                    stored = await self._save(lease, stored, _with_removed(stored.record, memory_id, removed))
            if self._settle_seconds:
                await self._clock.sleep(self._settle_seconds)
            stored = await self._verified(lease, stored, sample)
            now = epoch_ms(self._clock.now())
            report = stored.but(finished_ms=now)
            await self._record(report, "actor-erased", now)
            await self._save(
                lease, stored, report, self._barrier.opened(report.actor_id, report.id, report.memory_id, now)
            )
        logger.info("erasure %s has ended", erasure)

    async def _affected(self, report: ErasureReport) -> list[str]:
        """Without those that are being deleted, by which all in them goes."""
        return [
            memory.id
            async for memory in self._all_memories()
            if memory.status is MemoryStatus.ACTIVE and report.memory_id in (None, memory.id)
        ]

    async def _all_memories(self) -> AsyncIterator[Memory]:
        token: str | None = None
        while True:
            page, token = await self._memories.page(100, token)
            for memory in page:
                yield memory
            if token is None:
                return

    async def _remove(self, memory_id: str, actor_id: str) -> Mapping[str, int]:
        removed: Counter[str] = Counter()
        for one in self._erasables:
            removed.update(await one.erase_actor(memory_id, actor_id))
        return +removed

    async def _verified(
        self, lease: Lease, stored: Stored[ErasureReport], sample: Sequence[str]
    ) -> Stored[ErasureReport]:
        """Everything is gone through again, until nothing more is removed; then the stores are searched. `sample`: ids
        of records that were there."""
        actor_id = stored.record.actor_id
        for _ in range(_PASSES):
            found: Counter[str] = Counter()
            for memory_id in await self._affected(stored.record):
                more = await self._remove(memory_id, actor_id)
                found.update(more)
                stored = await self._save(lease, stored, _with_removed(stored.record, memory_id, more))
            if not found:
                break
        else:
            raise RuntimeError(f"{dict(found)} were there again after {_PASSES} passes, though the actor cannot write")
        nobodys: dict[str, Sequence[str]] = {}
        beneath: dict[str, int] = {}
        for memory_id in await self._affected(stored.record):
            found.update(await self._search.found(memory_id, actor_id))
            if ids := await self._search.nobodys(memory_id, actor_id):
                nobodys[memory_id] = ids
            if number := await self._search.beneath(memory_id, actor_id):
                beneath[memory_id] = number
        in_files = await self._search.in_files(sample)
        report = stored.but(found_after=dict(found), in_files=in_files, nobodys=nobodys, beneath=beneath)
        stored = await self._save(lease, stored, report)
        if found:
            raise RuntimeError(f"a search found {dict(found)} after all was removed")
        return stored

    async def _save(
        self, lease: Lease, before: Stored[ErasureReport], report: ErasureReport, *others: Write
    ) -> Stored[ErasureReport]:
        """Raises ConditionFailed where another replica has taken over."""
        if report == before.record and not others:
            return before
        raw = encode(report)
        ends = None if report.finished_ms is None else report.finished_ms + self._kept_ms
        await self._store.transact([lease.check, Put(_REPORTS, report.id, raw, before.raw, ends), *others])
        return Stored(report, raw)

    async def _find(self, erasure: str) -> Stored[ErasureReport]:
        stored = await find(self._store, ErasureReport, _REPORTS, erasure)
        if stored is None:
            raise ResourceNotFoundException(f"Report not found: {erasure}")
        return stored

    async def _record(self, report: ErasureReport, kind: str, at_ms: int) -> None:
        """Durable before what it tells of; told twice, it is one record."""
        if self._audit is None:
            return
        where = "all memories" if report.memory_id is None else f"memory {report.memory_id}"
        what = "asked to erase" if report.finished_ms is None else "had erased"
        removed: Counter[str] = Counter()
        for counts in report.removed.values():
            removed.update(counts)
        details = {"report": report.id, "memory": report.memory_id or "all"}
        details |= {kind: str(number) for kind, number in removed.items()}
        await self._audit.record(
            AuditRecord(
                kind,
                f"{report.requested_by} {what} a user's data from {where}.",
                report.requested_by,
                None,
                report.actor_id,
                from_epoch_ms(at_ms),
                details,
                id=f"{kind}-{report.id}",
            )
        )


def _with_removed(report: ErasureReport, memory_id: str, counts: Mapping[str, int]) -> ErasureReport:
    together = Counter(report.removed.get(memory_id, {}))
    together.update(counts)
    return replace(report, removed={**report.removed, memory_id: dict(together)})


def _failed(erasure: str, error: BaseException) -> None:
    if isinstance(error, ConditionFailed):
        logger.info("another replica goes on with erasure %s", erasure)
    else:
        logger.error("erasure %s goes on in a while: %s", erasure, error)
