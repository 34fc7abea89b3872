"""One compaction at work: actor after actor, duplicates first, then questions to the model, each with its merges."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final

from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import RetryableConflictException
from agentkeep.core.ports import Models
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.extraction.asking import Asking, ExtractionFailed
from agentkeep.memory.lifecycle.compaction_answers import Merged, parse, question, tokens
from agentkeep.memory.lifecycle.compaction_plan import MergePlan, duplicate, summary
from agentkeep.memory.lifecycle.compaction_report import CompactionReport, Failed, Merge
from agentkeep.memory.lifecycle.duplicates import duplicates
from agentkeep.memory.lifecycle.merges import Merges
from agentkeep.memory.long_term.actor_records import RecordsByActor
from agentkeep.memory.long_term.record import Record
from agentkeep.memory.partition import ActorPartition, RecordScope
from agentkeep.storage.interface import Check
from agentkeep.storage.leases import Lease
from agentkeep.storage.records import Stored
from agentkeep.storage.search import SearchStore, Selection

__all__ = ["Compactor"]

logger = logging.getLogger(__name__)

_DAY_MS: Final = 24 * 3600 * 1000
_PAGE: Final = 200
#: What one question shows at most.
_MOST_RECORDS: Final = 20
_MOST_CHARACTERS: Final = 12_000
#: Records are merged into one only if they end within so many days of one another: it ends with the first of them.
_ENDS_WITHIN_DAYS: Final = 30
#: Questions that fail one after another until no more are asked.
_PATIENCE: Final = 3
_ATTEMPTS: Final = 3
_SECONDS: Final = 120.0
#: How often, and how many seconds apart, it is tried to be alone with an actor's records.
_TRIES: Final = 60
_APART: Final = 1.0

Alone = Callable[[ActorPartition], AbstractAsyncContextManager[Lease | None]]


class Compactor:
    """`models` None: there is none."""

    def __init__(
        self,
        clock: Clock,
        search: SearchStore,
        by_actor: RecordsByActor,
        barrier: Barrier,
        merges: Merges,
        models: Models | None,
        alone: Alone,
    ) -> None:
        """`alone`: keeps extraction away from the actor's records; None where it is at work."""
        self._clock = clock
        self._search = search
        self._by_actor = by_actor
        self._barrier = barrier
        self._merges = merges
        self.alone = alone
        self._asking = Asking(models, clock, _ATTEMPTS, _SECONDS) if models is not None else None

    async def run(self, lease: Lease, stored: Stored[CompactionReport]) -> Stored[CompactionReport]:
        """To the end of the memory or of its limits. Raises LeaseLost, StoreUnavailable; then to be begun again."""
        work = _Work(self, lease, await self._merges.go_on(lease, stored))
        done: set[str] = set()
        async for actor_id, after in self._actors(work.report):
            if actor_id is not None and actor_id not in done:
                done.add(actor_id)
                await work.compact(actor_id)
                if work.is_full:
                    return await work.save(replace(work.report, complete=False))
            elif actor_id is None:
                await work.save(replace(work.report, after=after))
        return await work.save(replace(work.report, complete=work.is_complete))

    async def _actors(self, report: CompactionReport) -> AsyncIterator[tuple[str | None, str | None]]:
        """Those with old records, some of them more than once; then None, and how far the memory is gone through."""
        wanted = report.wanted
        if wanted.actor_id is not None:
            yield wanted.actor_id, None
            return
        everything = RecordScope.of_platform(wanted.memory_id).readable
        after = report.after
        while True:
            page = await self._search.newest(
                everything, Selection(namespace_path=wanted.namespace), limit=_PAGE, after=after
            )
            for document in page.documents:
                owner = Record.of(document).owner
                if owner is not None and document.created_ms < _cutoff(report):
                    yield owner, None
            after = page.after
            if after is None:
                return
            yield None, after

    async def old(self, report: CompactionReport, actor_id: str) -> list[Record]:
        """The actor's records that are meant."""
        records = self._by_actor.of(report.wanted.memory_id, actor_id)
        found: list[Record] = []
        after: str | None = None
        while True:
            page, after = await records.page(strategy_id=report.wanted.strategy_id, after=after, limit=_PAGE)
            found += [one for one in page if one.created_ms < _cutoff(report) and _is_beneath(one, report)]
            if after is None:
                return found

    async def seen(self, report: CompactionReport, actor_id: str) -> Check | None:
        """With which what is made of the actor's records may be written; None: the actor is being erased."""
        try:
            return await self._barrier.read(report.wanted.memory_id, actor_id)
        except RetryableConflictException:
            return None

    async def ask(self, report: CompactionReport, actor_id: str, records: Sequence[Record]) -> list[Merged]:
        """Raises ExtractionFailed."""
        assert self._asking is not None
        asked = question(records, report.wanted.model_id or "", actor_id)
        return await self._asking.ask(asked, lambda document: parse(document, records))

    @property
    def has_models(self) -> bool:
        return self._asking is not None

    async def pause(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    def now_ms(self) -> int:
        return epoch_ms(self._clock.now())

    @property
    def merges(self) -> Merges:
        return self._merges


class _Work:
    """A run, and the report as it is now."""

    def __init__(self, compactor: Compactor, lease: Lease, stored: Stored[CompactionReport]) -> None:
        self._compactor = compactor
        self._lease = lease
        self._stored = stored
        self._failed_in_a_row = 0
        self._left_out = False

    @property
    def is_complete(self) -> bool:
        """Of what has been gone through."""
        return not self._left_out

    @property
    def report(self) -> CompactionReport:
        return self._stored.record

    @property
    def is_full(self) -> bool:
        return self.report.is_full or self._failed_in_a_row >= _PATIENCE

    async def save(self, report: CompactionReport) -> Stored[CompactionReport]:
        self._stored = await self._compactor.merges.save(self._lease, self._stored, report)
        return self._stored

    async def compact(self, actor_id: str) -> None:
        actor = ActorPartition.of_platform(self.report.wanted.memory_id, actor_id)
        for _ in range(_TRIES):
            async with self._compactor.alone(actor) as alone:
                if alone is not None:
                    await self._compact(actor_id)
                    return
            await self._compactor.pause(_APART)
        logger.info("%s leaves an actor out, for whom records are being extracted", self.report.id)
        self._left_out = True

    async def _compact(self, actor_id: str) -> None:
        seen = await self._compactor.seen(self.report, actor_id)
        if seen is None:
            return
        records = await self._compactor.old(self.report, actor_id)
        if not records:
            return
        await self.save(replace(self.report, actors=self.report.actors + 1, seen=self.report.seen + len(records)))
        for group in _groups(records):
            left = {record.id: record for record in group}
            for alike in duplicates(group):
                if self.is_full:
                    return
                first = duplicate(alike)
                is_merged = await self._merge(seen, "duplicates", first, alike)
                for other in alike:
                    del left[other.id]
                if is_merged:
                    left[first.id] = first
            for chunk in _chunks(list(left.values())):
                if self.is_full:
                    return
                await self._ask(seen, actor_id, chunk)

    async def _ask(self, seen: Check, actor_id: str, records: Sequence[Record]) -> None:
        report = self.report
        wanted = report.wanted
        if wanted.model_id is None or (
            wanted.since_ms is not None and all(record.created_ms < wanted.since_ms for record in records)
        ):
            return
        asked = question(records, wanted.model_id, actor_id)
        report = replace(
            report,
            questions=report.questions + 1,
            input_tokens=report.input_tokens + tokens(asked.system) + tokens(asked.prompt),
        )
        if wanted.dry_run:
            ids = [record.id for record in records]
            await self.save(report.with_merge(Merge(actor_id, records[0].namespace, "model", None, ids), 0, 0))
            return
        try:
            answer = await self._compactor.ask(report, actor_id, records)
        except ExtractionFailed as failed:
            self._failed_in_a_row += 1
            left = Failed(actor_id, records[0].namespace, len(records), failed.reason)
            await self.save(report.with_failure(left))
            return
        self._failed_in_a_row = 0
        output = sum(tokens(one.text) for one in answer)
        await self.save(replace(report, output_tokens=report.output_tokens + output))
        for one in answer:
            seed = f"{report.id}#{','.join(record.id for record in one.records)}"
            record = summary(seed, one.text, one.records, f"compaction {wanted.model_id}", self._compactor.now_ms())
            await self._merge(seen, "model", record, one.records)

    async def _merge(self, seen: Check, how: str, merged: Record, records: Sequence[Record]) -> bool:
        """False where the records changed meanwhile: then they stay."""
        ids = [record.id for record in records if record.id != merged.id]
        assert merged.owner is not None
        if self.report.wanted.dry_run:
            merge = Merge(merged.owner, merged.namespace, how, None, [merged.id, *ids])
            await self.save(self.report.with_merge(merge, len(ids), 0))
            return True
        before = self.report.written
        plan = MergePlan.of(merged.owner, how, merged, records)
        self._stored = await self._compactor.merges.begin(self._lease, self._stored, seen, plan)
        return self.report.written > before


def _cutoff(report: CompactionReport) -> int:
    return report.requested_ms - report.wanted.older_than_days * _DAY_MS


def _is_beneath(record: Record, report: CompactionReport) -> bool:
    path = report.wanted.namespace
    return path is None or (record.namespace is not None and record.namespace.startswith(path))


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """Those that may be merged with one another, the oldest first."""
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in sorted(records, key=lambda one: (one.timestamp, one.created_ms, one.id)):
        ends = None if record.expires_ms is None else record.expires_ms // (_ENDS_WITHIN_DAYS * _DAY_MS)
        metadata = repr(sorted(record.metadata.items()))
        found.setdefault((record.namespace, record.strategy_id, metadata, ends), []).append(record)
    return list(found.values())


def _chunks(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Of two or more, each for one question."""
    chunk: list[Record] = []
    size = 0
    for record in records:
        if chunk and (len(chunk) == _MOST_RECORDS or size + len(record.text) > _MOST_CHARACTERS):
            if len(chunk) > 1:
                yield chunk
            chunk, size = [], 0
        chunk.append(record)
        size += len(record.text)
    if len(chunk) > 1:
        yield chunk
