"""Extraction of what waits in one session: read, planned, written, told to be done. The one place that does it.

                      a crash: read again        a crash: written again, the same
  waiting ─▶ read ─▶ extracted ─▶ plan stored ─▶ records written ─▶ waiting, plan gone; failed jobs there
                                    (one write)                       (one write)

A plan is stored only while the lease is held, the memory lives, and nothing of the actor was erased since it was read.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from opentelemetry.trace import StatusCode

from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    AgentkeepError,
    ConditionFailed,
    ResourceNotFoundException,
    RetryableConflictException,
)
from agentkeep.core.telemetry import ERROR_TYPE, step
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.extraction.asking import INTERNAL_ERROR, ExtractionFailed
from agentkeep.memory.extraction.by_model import ModelExtractor
from agentkeep.memory.extraction.by_rules import RuleExtractor
from agentkeep.memory.extraction.changes import Changes, Failure, Plan
from agentkeep.memory.extraction.groups import groups
from agentkeep.memory.extraction.jobs import Job, Jobs
from agentkeep.memory.extraction.kinds import extracted
from agentkeep.memory.extraction.loading import Loading
from agentkeep.memory.extraction.making import Extractor, Work
from agentkeep.memory.extraction.marks import DUE, Due, Kind, Waiting, in_session
from agentkeep.memory.extraction.material import Material
from agentkeep.memory.keys import MemoryKeys
from agentkeep.memory.long_term.actor_records import ActorRecords, RecordsByActor
from agentkeep.memory.memories import LiveMemories, Memories, Memory, MemoryStatus
from agentkeep.memory.partition import ActorPartition
from agentkeep.memory.strategies import Strategy
from agentkeep.storage.interface import Delete, KeyValueStore, Put, Write, partition
from agentkeep.storage.leases import Lease, LeaseLost, Leases

__all__ = ["Extraction"]

logger = logging.getLogger(__name__)

_LEASES: Final = partition("memory", "extraction-leases")
_DAY_MS: Final = 24 * 3600 * 1000
#: Items that are looked at together.
_AT_ONCE: Final = 100


class Extraction:
    def __init__(
        self,
        store: KeyValueStore,
        memories: Memories,
        live: LiveMemories,
        barrier: Barrier,
        keys: MemoryKeys,
        records: RecordsByActor,
        loading: Loading,
        jobs: Jobs,
        by_model: ModelExtractor | None,
        clock: Clock,
    ) -> None:
        self._store = store
        self._memories = memories
        self._live = live
        self._barrier = barrier
        self._keys = keys
        self._records = records
        self._loading = loading
        self._jobs = jobs
        self._by_model = by_model
        self._by_rules = RuleExtractor()
        self._clock = clock
        self._leases = Leases(store, clock, _LEASES)

    async def run(self, due: Due) -> bool:
        """All that waits there; False where another is at work on the actor. Raises StoreUnavailable, and
        RetryableConflictException (the actor is being erased, another has taken over): then run it again."""
        actor = ActorPartition.of_platform(due.memory_id, due.actor_id)
        async with self.alone(actor) as lease:
            if lease is None:
                return False
            try:
                await lease.renew()  # before a model is asked in vain
            except LeaseLost:
                raise RetryableConflictException(
                    "the lease ended when it was taken: the clock here must be far behind the store's"
                ) from None
            while await self._step(due, actor, lease):
                pass
        return True

    def alone(self, actor: ActorPartition) -> AbstractAsyncContextManager[Lease | None]:
        """While it lasts nobody else extracts anything of the actor's; None: somebody does."""
        return self._leases.hold(partition(actor.memory_id, actor.actor_id))

    def ends(self, memory: Memory) -> int:
        """Until when what waits is kept, as events are."""
        return epoch_ms(self._clock.now()) + memory.event_expiry_days * _DAY_MS

    async def _step(self, due: Due, actor: ActorPartition, lease: Lease) -> bool:
        """Whether there may be more to do."""
        try:
            memory = await self._memories.get(due.memory_id)
        except ResourceNotFoundException:
            memory = None
        if memory is None or memory.status is MemoryStatus.DELETING:
            await self._store.transact([Delete(DUE, due.key)])  # its deletion removes the rest
            return False
        sealed = await self._store.get(actor.plans, due.session_id)
        if sealed is not None:
            key = await self._keys.of(memory.id)
            await self._carry_out(
                memory, actor, due.session_id, Plan.load(key.open(sealed, _label(actor, due.session_id))), lease
            )
            return True
        as_it_was = await self._store.get(DUE, due.key)
        barrier = await self._barrier.read(memory.id, due.actor_id)
        waiting = await self._waiting(due, actor)
        if not waiting:
            await self._done(due, as_it_was)
            return False
        plan = await self._planned(memory, actor, due.session_id, waiting)
        key = await self._keys.of(memory.id)
        sealed = key.seal(plan.dump(), _label(actor, due.session_id))
        ends = self.ends(memory)
        try:
            await self._store.transact(
                [
                    lease.check,
                    self._live.present(memory.id),
                    barrier,
                    Put(actor.plans, due.session_id, sealed, expires_ms=ends),
                ]
            )
        except ConditionFailed:
            raise RetryableConflictException("what was extracted is not written: it was overtaken") from None
        await self._carry_out(memory, actor, due.session_id, plan, lease)
        return True

    async def _waiting(self, due: Due, actor: ActorPartition) -> list[Waiting]:
        """A restarted job by itself, or events and what was ingested together."""
        after, before = in_session(due.session_id)
        while items := await self._store.query(actor.pending, after=after, before=before, limit=_AT_ONCE):
            found = [Waiting.of(item) for item in items]
            if not due.events:
                found = [one for one in found if one.kind is not Kind.EVENT]
            if jobs := [one for one in found if one.kind is Kind.JOB]:
                return jobs[:1]
            if found:
                return found
            after = items[-1].sort
        return []

    async def _done(self, due: Due, as_it_was: bytes | None) -> None:
        """Nothing waits any more; unless something has come meanwhile, for which it stays."""
        if as_it_was is not None:
            try:
                await self._store.transact([Delete(DUE, due.key, as_it_was)])
            except ConditionFailed:
                pass

    # Planning.

    async def _planned(
        self, memory: Memory, actor: ActorPartition, session_id: str, waiting: Sequence[Waiting]
    ) -> Plan:
        job: Job | None = None
        if waiting[0].kind is Kind.JOB:
            found = await self._jobs.find(actor, waiting[0].id)
            if found is None:  # it has expired
                return Plan([waiting[0].sort])
            job = found.record
            material = await self._loading.of_job(actor, job)
            strategies = [one for one in extracted(memory.strategies) if one.id == job.strategy_id]
            session, done = job.session, list(waiting)
        else:
            material, done = await self._loading.waiting(actor, session_id, waiting)
            strategies = list(extracted(memory.strategies))
            session = done[-1].session
        sorts = [one.sort for one in done]
        changes, failures = Changes(), list[Failure]()
        if material:
            work = Work(
                self._records.of(memory.id, actor.actor_id),
                session_id,
                await self._loading.earlier(actor, session_id, material),
                epoch_ms(self._clock.now()),
                " ".join((memory.id, actor.actor_id, *sorts)),
                session,
                memory.tags,
            )
            for outcome in await asyncio.gather(
                *(self._extracted(memory, strategy, work, material, job) for strategy in strategies)
            ):
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                else:
                    changes += outcome
        ingested = [one.id for one in done if one.kind is Kind.INGESTED]
        job_id = job.id if job is not None else None
        return Plan.of(sorts, changes, failures, ingested=ingested, job_id=job_id, session=session)

    async def _extracted(
        self, memory: Memory, strategy: Strategy, work: Work, material: Sequence[Material], job: Job | None
    ) -> Changes | Failure:
        by_model = self._by_model
        extractor: Extractor = by_model if by_model is not None and by_model.serves(strategy) else self._by_rules
        changes = Changes()
        attributes = {"memory.id": memory.id, "agentkeep.strategy.id": strategy.id}
        with step("memory", "ExtractMemoryRecords", work.session, work.records.actor_id, attributes) as span:
            try:
                for group in groups(memory, strategy, work.records.actor_id, material):
                    changes += await extractor.changes(work, group)
            except ExtractionFailed as error:
                reason = error.reason
            except AgentkeepError:  # a store or a key is away, or the memory is gone by now: nothing of it is lost
                raise
            except Exception:
                logger.exception("strategy %s of memory %s failed on what it was given", strategy.id, memory.id)
                reason = INTERNAL_ERROR
            else:
                span.set_attribute("agentkeep.records.added", len(changes.added))
                span.set_attribute("agentkeep.records.updated", len(changes.replaced))
                return changes
            span.set_attribute(ERROR_TYPE, reason)
            span.set_status(StatusCode.ERROR, reason)
        messages = [(message.event_id, message.index) for one in material for message in one.messages]
        job_id = job.id if job is not None else f"job-{work.now_ms:013}-{secrets.token_hex(8)}"
        logger.warning("extraction job %s of memory %s, strategy %s failed: %s", job_id, memory.id, strategy.id, reason)
        return Failure(job_id, strategy.id, messages, reason)

    # Carrying it out.

    async def _carry_out(
        self, memory: Memory, actor: ActorPartition, session_id: str, plan: Plan, lease: Lease
    ) -> None:
        records, changes = self._records.of(memory.id, actor.actor_id), plan.changes
        if changes.ids:
            await records.put(changes.added, replacing=changes.replaced)
        now, ends = epoch_ms(self._clock.now()), self.ends(memory)
        jobs = [Job.of(one, actor.actor_id, session_id, plan.session, now, ends) for one in plan.failures]
        writes: list[Write] = [
            lease.check,
            self._live.present(memory.id),
            self._barrier.check(memory.id, actor.actor_id),
            Delete(actor.plans, session_id),
            *(Delete(actor.pending, sort) for sort in plan.done),
            *await self._loading.kept_for(actor, plan.ingested, jobs),
        ]
        if plan.job_id is not None and not jobs:
            found = await self._jobs.find(actor, plan.job_id)
            if found is not None:
                writes += [*self._jobs.delete(actor, plan.job_id), *self._loading.forgotten(actor, found.record)]
        for job in jobs:
            writes += self._jobs.put(actor, job)
        await self._finish(memory, records, changes, writes, lease)

    async def _finish(
        self, memory: Memory, records: ActorRecords, changes: Changes, writes: Sequence[Write], lease: Lease
    ) -> None:
        try:
            await self._store.transact(writes)
            return
        except ConditionFailed as error:
            failed = error.index
        try:
            await self._live.refresh(memory.id)
            await self._barrier.refresh(memory.id, records.actor_id)
        except (ResourceNotFoundException, RetryableConflictException):
            # It came too late for what removes all of the memory's, or the actor's.
            await records.delete(changes.ids)
            raise RetryableConflictException("what was extracted is taken back: it is being erased") from None
        if failed == 0:
            raise RetryableConflictException("another has taken over what was extracted") from None
        raise RetryableConflictException("what was extracted is told to be done later") from None


def _label(actor: ActorPartition, session_id: str) -> str:
    return f"plan {actor.memory_id} {actor.actor_id} {session_id}"
