"""Operations on extraction: data that goes straight to it, and jobs that failed."""

from __future__ import annotations

import uuid
from typing import Any, Final, cast

from agentkeep.core.call import Call, CallerKind, allow
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    FieldError,
    ResourceNotFoundException,
    RetryableConflictException,
    ValidationException,
)
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.extraction.jobs import Job, Jobs, job_shape
from agentkeep.memory.extraction.kinds import extracted
from agentkeep.memory.extraction.loading import Ingested, Loading
from agentkeep.memory.extraction.marks import Kind, asked
from agentkeep.memory.memories import LiveMemories, Memories
from agentkeep.memory.partition import ActorPartition, authorize, authorized_actor
from agentkeep.memory.short_term.event import EventIds
from agentkeep.memory.short_term.sessions import Sessions
from agentkeep.storage.interface import KeyValueStore, Once
from agentkeep.wire.types import bedrock_agentcore as data

__all__ = ["ExtractionOperations"]

_PAGE: Final = 20
_DAY_MS: Final = 24 * 3600 * 1000
_ATTEMPTS: Final = 3


class ExtractionOperations:
    """Open to sessions, within what `authorize` lets them name."""

    name = "memory"
    arn_kinds: frozenset[str] = frozenset()

    def __init__(
        self,
        store: KeyValueStore,
        memories: Memories,
        live: LiveMemories,
        barrier: Barrier,
        sessions: Sessions,
        loading: Loading,
        jobs: Jobs,
        clock: Clock,
    ) -> None:
        self._store = store
        self._memories = memories
        self._live = live
        self._barrier = barrier
        self._sessions = sessions
        self._loading = loading
        self._jobs = jobs
        self._clock = clock
        self._ids = EventIds(clock)

    @allow(CallerKind.SESSION)
    async def ingest_data(self, call: Call, request: data.IngestDataInput) -> data.IngestDataOutput:
        actor = authorize(call, self._memories.id_of(request["memoryId"]), request["actorId"])
        memory = await self._memories.get(actor.memory_id)
        if not extracted(memory.strategies):
            message = (
                "has no strategy by which records are extracted: add one with UpdateMemory, or write records with "
                "BatchCreateMemoryRecords"
            )
            raise ValidationException(f"Memory {memory.id} {message}", fields=[FieldError("memoryId", message)])
        session_id = request.get("sessionId") or str(uuid.uuid4())
        item_id = self._ids.next(request["contentTimestamp"])
        ingested = Ingested(
            request["contentTimestamp"],
            cast(list[dict[str, Any]], request["source"]["inline"]["payload"]),
            {key: value["stringValue"] for key, value in request.get("metadata", {}).items()},
            request.get("extractionConfig", {}).get("namespaceVariables", {}),
        )
        for _ in range(_ATTEMPTS):
            live = await self._live.of(actor.memory_id)
            now = epoch_ms(self._clock.now())
            ends = now + live.days * _DAY_MS
            writes = [
                live.check,
                self._barrier.check(actor.memory_id, actor.actor_id),
                await self._loading.keep(actor, item_id, ingested, ends),
                *self._sessions.listed(actor, session_id, now, ends),
                *asked(actor, session_id, item_id, Kind.INGESTED, call.caller.session, ends),
            ]
            try:
                replayed = await self._store.transact(writes, once=Once.of(call.idempotency, session_id.encode(), now))
            except ConditionFailed:
                await self._live.refresh(actor.memory_id)
                await self._barrier.refresh(actor.memory_id, actor.actor_id)
                continue
            return {"sessionId": session_id if replayed is None else replayed.reference.decode()}
        raise RetryableConflictException(f"Memory {actor.memory_id} is being changed: try again")

    @allow(CallerKind.SESSION)
    async def list_memory_extraction_jobs(
        self, call: Call, request: data.ListMemoryExtractionJobsInput
    ) -> data.ListMemoryExtractionJobsOutput:
        memory_id = self._memories.id_of(request["memoryId"])
        wanted = request.get("filter", {})
        actor_id = wanted.get("actorId", authorized_actor(call))
        actor = authorize(call, memory_id, actor_id) if actor_id is not None else None

        def matches(job: Job) -> bool:
            return (
                wanted.get("strategyId", job.strategy_id) == job.strategy_id
                and wanted.get("sessionId", job.session_id) == job.session_id
            )

        await self._live.require(memory_id)
        size, next_token = request.get("maxResults", _PAGE), request.get("nextToken")
        jobs, token = await self._jobs.page(memory_id, actor, matches, size, next_token)
        answer: data.ListMemoryExtractionJobsOutput = {
            "jobs": [cast(data.ExtractionJobMetadata, job_shape(job)) for job in jobs]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    @allow(CallerKind.SESSION)
    async def start_memory_extraction_job(
        self, call: Call, request: data.StartMemoryExtractionJobInput
    ) -> data.StartMemoryExtractionJobOutput:
        """An agent finds its own user's jobs, and no others."""
        memory_id, job_id = self._memories.id_of(request["memoryId"]), request["extractionJob"]["jobId"]
        own = authorized_actor(call)
        await self._live.require(memory_id)
        actor_id = own if own is not None else await self._jobs.actor_of(memory_id, job_id)
        if actor_id is None:
            raise ResourceNotFoundException(f"No extraction job {job_id}: it has succeeded since, or never was")
        actor: ActorPartition = authorize(call, memory_id, actor_id)
        await self._jobs.restart(actor, job_id, call.idempotency)
        return {"jobId": job_id}
