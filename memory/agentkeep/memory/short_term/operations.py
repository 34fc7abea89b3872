"""Operations on events, sessions and actors."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

from agentkeep.core.call import Call, CallerKind, allow
from agentkeep.core.clock import from_epoch_ms
from agentkeep.memory.memories import Memories
from agentkeep.memory.partition import ActorPartition, authorize, authorized_actor
from agentkeep.memory.shapes import event_shape
from agentkeep.memory.short_term.branches import Branches
from agentkeep.memory.short_term.event import Event
from agentkeep.memory.short_term.events import Events
from agentkeep.memory.short_term.filters import metadata_matches
from agentkeep.memory.short_term.sessions import Sessions
from agentkeep.wire.types import bedrock_agentcore as data

__all__ = ["EventOperations"]

_PAGE: Final = 20


class EventOperations:
    """Open to sessions, within what `authorize` lets them name."""

    name = "memory"
    arn_kinds: frozenset[str] = frozenset()

    def __init__(self, memories: Memories, events: Events, sessions: Sessions, branches: Branches) -> None:
        self._memories = memories
        self._events = events
        self._sessions = sessions
        self._branches = branches

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
            call.caller.session,
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
                    actor,
                    await self._events.place(actor, request["sessionId"]),
                    branch["name"],
                    branch.get("includeParentBranches", False),
                )
            )
        if "eventMetadata" in asked:
            tests.append(metadata_matches(asked["eventMetadata"]))
        return (lambda event: all(test(event) for test in tests)) if tests else None
