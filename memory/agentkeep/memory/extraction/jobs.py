"""Extractions that failed: kept until their events expire, listed, and run again when they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from agentkeep.core.call import Idempotency, SessionRef
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ConditionFailed, ResourceNotFoundException, RetryableConflictException
from agentkeep.core.pages import place, token
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.extraction.changes import Failure
from agentkeep.memory.extraction.marks import Kind, asked
from agentkeep.memory.memories import LiveMemories
from agentkeep.memory.partition import ActorPartition, jobs_partition
from agentkeep.storage.interface import Delete, KeyValueStore, Once, Put, Write
from agentkeep.storage.records import Stored, encode, find, page_of

__all__ = ["Job", "JobStatus", "Jobs"]

_ATTEMPTS: Final = 3


class JobStatus(StrEnum):
    """Only those that failed are listed."""

    FAILED = "FAILED"
    STARTED = "STARTED"


@dataclass(frozen=True, slots=True)
class Job:
    """One strategy's extraction of some messages of one session. `messages`: event id and index. `session`: whose use
    of models it was. `ends_ms`: when it expires, as its events do."""

    id: str
    actor_id: str
    session_id: str
    strategy_id: str
    messages: Sequence[tuple[str, int]]
    reason: str
    created_ms: int
    ends_ms: int
    session: SessionRef | None = None
    status: JobStatus = JobStatus.FAILED

    @classmethod
    def of(
        cls, failure: Failure, actor_id: str, session_id: str, session: SessionRef | None, now_ms: int, ends_ms: int
    ) -> Job:
        return cls(
            failure.job_id,
            actor_id,
            session_id,
            failure.strategy_id,
            failure.messages,
            failure.reason,
            now_ms,
            ends_ms,
            session,
        )

    @property
    def event_ids(self) -> list[str]:
        return list(dict.fromkeys(event_id for event_id, _ in self.messages))


class Jobs:
    def __init__(self, store: KeyValueStore, live: LiveMemories, barrier: Barrier, clock: Clock) -> None:
        self._store = store
        self._live = live
        self._barrier = barrier
        self._clock = clock

    def put(self, actor: ActorPartition, job: Job) -> Sequence[Write]:
        """To be part of the write that ends an extraction."""
        return (
            Put(actor.jobs, job.id, encode(job), expires_ms=job.ends_ms),
            Put(jobs_partition(actor.memory_id), job.id, actor.actor_id.encode(), expires_ms=job.ends_ms),
        )

    def delete(self, actor: ActorPartition, job_id: str) -> Sequence[Write]:
        return Delete(actor.jobs, job_id), Delete(jobs_partition(actor.memory_id), job_id)

    async def find(self, actor: ActorPartition, job_id: str) -> Stored[Job] | None:
        return await find(self._store, Job, actor.jobs, job_id)

    async def actor_of(self, memory_id: str, job_id: str) -> str | None:
        """Whose job it is."""
        value = await self._store.get(jobs_partition(memory_id), job_id)
        return value.decode() if value is not None else None

    async def any_of(self, actor: ActorPartition, session_id: str) -> bool:
        """Whether one of the session has failed, or is run again."""
        after: str | None = None
        while found := await page_of(self._store, Job, actor.jobs, after, 100):
            if any(one.record.session_id == session_id for one in found):
                return True
            after = found[-1].record.id
        return False

    async def page(
        self,
        memory_id: str,
        actor: ActorPartition | None,
        matches: Callable[[Job], bool],
        size: int,
        next_token: str | None,
    ) -> tuple[list[Job], str | None]:
        """Failed ones, oldest first; of one actor, or of all for operators. Complete and stable: a page begins behind
        the last of the page before."""
        after = place(next_token)
        found: list[Job] = []
        while True:
            read = await self._read(memory_id, actor, after, size + 1)
            for job_id, job in read:
                after = job_id
                if job is None or job.status is not JobStatus.FAILED or not matches(job):
                    continue
                if len(found) == size:
                    return found, token(found[-1].id)
                found.append(job)
            if len(read) <= size:
                return found, None

    async def restart(self, actor: ActorPartition, job_id: str, idempotency: Idempotency | None) -> None:
        """It will be run again, whatever happens, when this returns. Raises ResourceNotFoundException."""
        for _ in range(_ATTEMPTS):
            found = await self.find(actor, job_id)
            if found is None:
                raise _not_found(job_id)
            job = found.record
            if job.status is JobStatus.STARTED:
                return
            writes = [
                self._live.present(actor.memory_id),
                self._barrier.check(actor.memory_id, actor.actor_id),
                Put(actor.jobs, job_id, encode(replace(job, status=JobStatus.STARTED)), found.raw, job.ends_ms),
                *asked(actor, job.session_id, job_id, Kind.JOB, job.session, job.ends_ms),
            ]
            try:
                await self._store.transact(
                    writes, once=Once.of(idempotency, job_id.encode(), epoch_ms(self._clock.now()))
                )
            except ConditionFailed:
                await self._live.refresh(actor.memory_id)
                await self._barrier.refresh(actor.memory_id, actor.actor_id)
                continue
            return
        raise RetryableConflictException(f"Job {job_id} is being changed: try again")

    async def erase(self, actor: ActorPartition) -> int:
        """All of the actor's; how many there were."""
        removed = 0
        while found := await page_of(self._store, Job, actor.jobs, None, 100):
            await self._store.transact([write for one in found for write in self.delete(actor, one.record.id)])
            removed += len(found)
        return removed

    async def _read(
        self, memory_id: str, actor: ActorPartition | None, after: str | None, limit: int
    ) -> Sequence[tuple[str, Job | None]]:
        if actor is not None:
            return [(one.record.id, one.record) for one in await page_of(self._store, Job, actor.jobs, after, limit)]
        items = await self._store.query(jobs_partition(memory_id), after=after, limit=limit)
        owners = (ActorPartition.of_platform(memory_id, item.value.decode()) for item in items)
        found = await asyncio.gather(*(self.find(owner, item.sort) for owner, item in zip(owners, items, strict=True)))
        return [(item.sort, one.record if one is not None else None) for item, one in zip(items, found, strict=True)]


def job_shape(job: Job) -> dict[str, Any]:
    """An ExtractionJobMetadata."""
    messages: Sequence[Mapping[str, Any]] = [{"eventId": one, "messageIndex": index} for one, index in job.messages]
    return {
        "jobID": job.id,
        "messages": {"messagesList": messages},
        "status": JobStatus.FAILED.value,
        "failureReason": job.reason,
        "strategyId": job.strategy_id,
        "sessionId": job.session_id,
        "actorId": job.actor_id,
    }


def _not_found(job_id: str) -> ResourceNotFoundException:
    return ResourceNotFoundException(f"No extraction job {job_id}: it has succeeded since, has expired, or never was")
