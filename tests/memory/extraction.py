"""What tests of extraction say to a memory, and ask of it: as an operator, or in a session of a user's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from agentkeep.backend.own import SelfBackend
from agentkeep.memory.plane import MemoryPlane

from .conftest import OPERATOR, Client, session_of

FACTS = {"semanticMemoryStrategy": {"name": "facts", "namespaces": ["/facts/{actorId}/"]}}
PREFERENCES = {"userPreferenceMemoryStrategy": {"name": "likes", "namespaces": ["/likes/{actorId}/"]}}
SUMMARY = {"summaryMemoryStrategy": {"name": "sums", "namespaces": ["/sums/{actorId}/{sessionId}/"]}}


def client(plane: MemoryPlane, user: str | None = None) -> Client:
    return Client(SelfBackend(plane.operations), OPERATOR if user is None else session_of(user))


async def create(plane: MemoryPlane, *strategies: dict[str, Any], **rest: Any) -> str:
    answer = await client(plane).create_memory(
        name="m", eventExpiryDuration=7, memoryStrategies=list(strategies), **rest
    )
    return str(answer["memory"]["id"])


def said(*texts: str, role: str = "USER") -> list[dict[str, Any]]:
    return [{"conversational": {"role": role, "content": {"text": text}}} for text in texts]


async def say(
    plane: MemoryPlane, memory: str, actor: str, *texts: str, at: float = 0, session: str = "s", **rest: Any
) -> str:
    answer = await client(plane, actor).create_event(
        memoryId=memory,
        actorId=actor,
        sessionId=session,
        eventTimestamp=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at),
        **{"payload": said(*texts), **rest},
    )
    return str(answer["event"]["eventId"])


async def records(plane: MemoryPlane, memory: str, path: str = "/", user: str | None = None) -> list[dict[str, Any]]:
    answer = await client(plane, user).list_memory_records(memoryId=memory, namespacePath=path, maxResults=100)
    return list(answer["memoryRecordSummaries"])


async def texts(plane: MemoryPlane, memory: str, path: str = "/", user: str | None = None) -> list[str]:
    return sorted(one["content"]["text"] for one in await records(plane, memory, path, user))


async def jobs(plane: MemoryPlane, memory: str, user: str | None = None, **rest: Any) -> list[dict[str, Any]]:
    return list((await client(plane, user).list_memory_extraction_jobs(memoryId=memory, **rest))["jobs"])
