"""The memory plane: memories, the events of their actors' sessions, and the actors' long-term records."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Any, Final

from agentkeep.core.call import Call, CallerKind, allow
from agentkeep.core.clock import Clock, from_epoch_ms
from agentkeep.core.errors import StoreUnavailable
from agentkeep.core.identifiers import Deployment
from agentkeep.memory.branches import Branches
from agentkeep.memory.erasure import Erasure
from agentkeep.memory.event import Event
from agentkeep.memory.events import Events
from agentkeep.memory.filters import metadata_matches
from agentkeep.memory.memories import LiveMemories, Memories, MemoryStatus, not_found
from agentkeep.memory.namespaces import Layout
from agentkeep.memory.partition import ActorPartition, authorize, authorize_records, authorized_actor
from agentkeep.memory.records import Records, RecordView
from agentkeep.memory.retrieval import Retrieval
from agentkeep.memory.sessions import Sessions
from agentkeep.memory.settings import MemorySettings
from agentkeep.memory.shapes import (
    event_shape,
    memory_shape,
    memory_summary_shape,
    outcome_shapes,
    record_shape,
    record_summary_shape,
)
from agentkeep.storage.embedding import Embedder
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search import SearchStore
from agentkeep.wire.types import bedrock_agentcore as data
from agentkeep.wire.types import bedrock_agentcore_control as control

__all__ = ["MemoryPlane"]

logger = logging.getLogger(__name__)

_PAGE: Final = 20
_MEMORIES_PAGE: Final = 10
#: How long DeleteMemory waits for the removal, so that for most memories it is done when it answers.
_DELETION_PATIENCE: Final = 1.0
#: How often records that have expired, which nobody sees any more, are removed from the disk.
_PURGE_SECONDS: Final = 3600.0


class MemoryPlane:
    """Operators manage memories; sessions read and write the events and records of their own user, and no more."""

    name = "memory"
    arn_kinds = frozenset({"memory"})

    def __init__(
        self,
        store: KeyValueStore,
        deployment: Deployment,
        clock: Clock,
        search: SearchStore,
        embedder: Embedder | None = None,
        settings: MemorySettings | None = None,
    ) -> None:
        """`search` takes the vectors of `embedder`; None: records are searched by words alone."""
        live = LiveMemories(store)
        branches = Branches(store)
        self._memories = Memories(store, deployment, clock)
        self._sessions = Sessions(store, live)
        self._events = Events(store, live, self._sessions, branches, clock)
        self._branches = branches
        self._records = Records(store, search, Retrieval(search, embedder, clock), live, clock)
        self._templates = (settings or MemorySettings()).namespace_templates
        self._search = search
        self._clock = clock
        self._erasure = Erasure(store, search, self._memories)
        self._purging: asyncio.Task[None] | None = None
        self._erasing: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Goes on, in the background, with deletions that a crash interrupted, and from now on removes expired records
        from the disk. Raises StoreUnavailable where a store cannot be used; then it may be called again."""
        await self._search.purge()
        await self.resume()
        self._purging = asyncio.create_task(self._purge())

    async def resume(self) -> None:
        """Goes on, in the background, with deletions that a crash interrupted."""
        for memory_id in await self._memories.deleting():
            self._erase(memory_id)

    async def close(self) -> None:
        """Stops what runs in the background; the next start continues it."""
        tasks = [*self._erasing.values(), *([self._purging] if self._purging is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Memories.

    async def create_memory(self, call: Call, request: control.CreateMemoryInput) -> control.CreateMemoryOutput:
        memory = await self._memories.create(request, call.idempotency)
        return {"memory": memory_shape(memory, self._memories.arn(memory.id))}

    async def get_memory(self, call: Call, request: control.GetMemoryInput) -> control.GetMemoryOutput:
        memory = await self._memories.get(self._memories.id_of(request["memoryId"]))
        return {"memory": memory_shape(memory, self._memories.arn(memory.id))}

    async def list_memories(self, call: Call, request: control.ListMemoriesInput) -> control.ListMemoriesOutput:
        memories, token = await self._memories.page(request.get("maxResults", _MEMORIES_PAGE), request.get("nextToken"))
        answer: control.ListMemoriesOutput = {
            "memories": [memory_summary_shape(memory, self._memories.arn(memory.id)) for memory in memories]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    async def update_memory(self, call: Call, request: control.UpdateMemoryInput) -> control.UpdateMemoryOutput:
        memory_id = self._memories.id_of(request["memoryId"])
        memory = await self._memories.update(memory_id, request, call.idempotency)
        return {"memory": memory_shape(memory, self._memories.arn(memory.id))}

    async def delete_memory(self, call: Call, request: control.DeleteMemoryInput) -> control.DeleteMemoryOutput:
        memory_id = self._memories.id_of(request["memoryId"])
        await self._memories.start_deletion(memory_id, call.idempotency)
        await asyncio.wait((self._erase(memory_id),), timeout=_DELETION_PATIENCE)
        return {"memoryId": memory_id, "status": "DELETING"}

    # Tags of memories; other planes have those of their own resources.

    async def tag_resource(self, call: Call, request: control.TagResourceRequest) -> control.TagResourceResponse:
        await self._memories.tag(self._memories.id_of(request["resourceArn"]), request["tags"])
        return {}

    async def untag_resource(self, call: Call, request: control.UntagResourceRequest) -> control.UntagResourceResponse:
        await self._memories.untag(self._memories.id_of(request["resourceArn"]), request["tagKeys"])
        return {}

    async def list_tags_for_resource(
        self, call: Call, request: control.ListTagsForResourceRequest
    ) -> control.ListTagsForResourceResponse:
        memory = await self._memories.get(self._memories.id_of(request["resourceArn"]))
        return {"tags": dict(memory.tags)}

    # Events. Open to sessions, within what `authorize` lets them name.

    @allow(CallerKind.SESSION)
    async def create_event(self, call: Call, request: data.CreateEventInput) -> data.CreateEventOutput:
        actor = self._authorize(call, request)
        extraction: dict[str, Any] = {}
        if "extractionMode" in request:
            extraction["extractionMode"] = request["extractionMode"]
        if "extractionConfig" in request:
            extraction["extractionConfig"] = request["extractionConfig"]
        event = await self._events.append(
            actor,
            request.get("sessionId") or str(uuid.uuid4()),
            request["eventTimestamp"],
            request["payload"],
            request.get("branch"),
            {key: value["stringValue"] for key, value in request.get("metadata", {}).items()},
            extraction,
            call.idempotency,
        )
        return {"event": event_shape(event, actor)}

    @allow(CallerKind.SESSION)
    async def get_event(self, call: Call, request: data.GetEventInput) -> data.GetEventOutput:
        actor = self._authorize(call, request)
        event = await self._events.get(actor, request["sessionId"], request["eventId"])
        return {"event": event_shape(event, actor)}

    @allow(CallerKind.SESSION)
    async def list_events(self, call: Call, request: data.ListEventsInput) -> data.ListEventsOutput:
        actor = self._authorize(call, request)
        events, token = await self._events.page(
            actor,
            request["sessionId"],
            request.get("maxResults", _PAGE),
            request.get("nextToken"),
            payload=request.get("includePayloads", True),
            matches=await self._filter(actor, request),
        )
        answer: data.ListEventsOutput = {"events": [event_shape(event, actor) for event in events]}
        if token is not None:
            answer["nextToken"] = token
        return answer

    @allow(CallerKind.SESSION)
    async def delete_event(self, call: Call, request: data.DeleteEventInput) -> data.DeleteEventOutput:
        actor = self._authorize(call, request)
        await self._events.delete(actor, request["sessionId"], request["eventId"])
        return {"eventId": request["eventId"]}

    @allow(CallerKind.SESSION)
    async def list_sessions(self, call: Call, request: data.ListSessionsInput) -> data.ListSessionsOutput:
        actor = self._authorize(call, request)
        sessions, token = await self._sessions.page(
            actor,
            request.get("maxResults", _PAGE),
            request.get("nextToken"),
            with_events=request.get("filter", {}).get("eventFilter") == "HAS_EVENTS",
        )
        answer: data.ListSessionsOutput = {
            "sessionSummaries": [
                {"sessionId": session.id, "actorId": actor.actor_id, "createdAt": from_epoch_ms(session.created_ms)}
                for session in sessions
            ]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    @allow(CallerKind.SESSION)
    async def list_actors(self, call: Call, request: data.ListActorsInput) -> data.ListActorsOutput:
        """A session's list has its own user at most: that others exist is not its business."""
        memory_id = self._memories.id_of(request["memoryId"])
        own = authorized_actor(call)
        if own is not None:
            known = await self._sessions.knows(authorize(call, memory_id, own))
            return {"actorSummaries": [{"actorId": own}] if known else []}
        actors, token = await self._sessions.actors_page(
            memory_id, request.get("maxResults", _PAGE), request.get("nextToken")
        )
        answer: data.ListActorsOutput = {"actorSummaries": [{"actorId": actor} for actor in actors]}
        if token is not None:
            answer["nextToken"] = token
        return answer

    # Long-term records. Open to sessions, within what their `RecordView` lets them see and name.

    @allow(CallerKind.SESSION)
    async def batch_create_memory_records(
        self, call: Call, request: data.BatchCreateMemoryRecordsInput
    ) -> data.BatchCreateMemoryRecordsOutput:
        outcomes = await self._records.create(await self._view(call, request["memoryId"]), request, call.idempotency)
        succeeded, failed = outcome_shapes(outcomes)
        return {"successfulRecords": succeeded, "failedRecords": failed}

    @allow(CallerKind.SESSION)
    async def batch_update_memory_records(
        self, call: Call, request: data.BatchUpdateMemoryRecordsInput
    ) -> data.BatchUpdateMemoryRecordsOutput:
        outcomes = await self._records.update(await self._view(call, request["memoryId"]), request)
        succeeded, failed = outcome_shapes(outcomes)
        return {"successfulRecords": succeeded, "failedRecords": failed}

    @allow(CallerKind.SESSION)
    async def batch_delete_memory_records(
        self, call: Call, request: data.BatchDeleteMemoryRecordsInput
    ) -> data.BatchDeleteMemoryRecordsOutput:
        outcomes = await self._records.delete(await self._view(call, request["memoryId"]), request["records"])
        succeeded, failed = outcome_shapes(outcomes)
        return {"successfulRecords": succeeded, "failedRecords": failed}

    @allow(CallerKind.SESSION)
    async def get_memory_record(self, call: Call, request: data.GetMemoryRecordInput) -> data.GetMemoryRecordOutput:
        view = await self._view(call, request["memoryId"])
        record = await self._records.get(view, request["memoryRecordId"], request.get("namespace"))
        return {"memoryRecord": record_shape(record)}

    @allow(CallerKind.SESSION)
    async def delete_memory_record(
        self, call: Call, request: data.DeleteMemoryRecordInput
    ) -> data.DeleteMemoryRecordOutput:
        view = await self._view(call, request["memoryId"])
        await self._records.remove(view, request["memoryRecordId"], request.get("namespace"))
        return {"memoryRecordId": request["memoryRecordId"]}

    @allow(CallerKind.SESSION)
    async def list_memory_records(
        self, call: Call, request: data.ListMemoryRecordsInput
    ) -> data.ListMemoryRecordsOutput:
        records, token = await self._records.page(await self._view(call, request["memoryId"]), request)
        answer: data.ListMemoryRecordsOutput = {
            "memoryRecordSummaries": [record_summary_shape(record) for record in records]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    @allow(CallerKind.SESSION)
    async def retrieve_memory_records(
        self, call: Call, request: data.RetrieveMemoryRecordsInput
    ) -> data.RetrieveMemoryRecordsOutput:
        found, token = await self._records.retrieve(await self._view(call, request["memoryId"]), request)
        answer: data.RetrieveMemoryRecordsOutput = {
            "memoryRecordSummaries": [record_summary_shape(one.record, one.score) for one in found]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    async def _view(self, call: Call, memory: str) -> RecordView:
        memory_id = self._memories.id_of(memory)
        scope = authorize_records(call, memory_id)
        known = await self._memories.get(memory_id)
        if known.status is MemoryStatus.DELETING:
            raise not_found(memory_id)
        return RecordView(call, known, scope, Layout(known, self._templates))

    def _authorize(
        self,
        call: Call,
        request: data.CreateEventInput
        | data.GetEventInput
        | data.ListEventsInput
        | data.DeleteEventInput
        | data.ListSessionsInput,
    ) -> ActorPartition:
        return authorize(call, self._memories.id_of(request["memoryId"]), request["actorId"])

    async def _filter(self, actor: ActorPartition, request: data.ListEventsInput) -> Callable[[Event], bool] | None:
        asked = request.get("filter", {})
        tests: list[Callable[[Event], bool]] = []
        if "branch" in asked:
            branch = asked["branch"]
            tests.append(
                await self._branches.members(
                    actor, request["sessionId"], branch["name"], branch.get("includeParentBranches", False)
                )
            )
        if "eventMetadata" in asked:
            tests.append(metadata_matches(asked["eventMetadata"]))
        return (lambda event: all(test(event) for test in tests)) if tests else None

    async def _purge(self) -> None:
        while True:
            await self._clock.sleep(_PURGE_SECONDS)
            try:
                removed = await self._search.purge()
            except StoreUnavailable as error:
                logger.warning("expired records stay on the disk for now: %s", error)
            else:
                logger.debug("%d expired records removed", removed)

    def _erase(self, memory_id: str) -> asyncio.Task[None]:
        task = self._erasing.get(memory_id)
        if task is None:
            task = self._erasing[memory_id] = asyncio.create_task(self._erasure.erase(memory_id))
            task.add_done_callback(lambda done: self._erased(memory_id, done))
        return task

    def _erased(self, memory_id: str, task: asyncio.Task[None]) -> None:
        del self._erasing[memory_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("memory %s is not wholly deleted yet; repeat DeleteMemory: %s", memory_id, error)
