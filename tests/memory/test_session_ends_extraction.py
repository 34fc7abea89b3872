"""MEM-3: a session's events, extraction that waits for its end, and what becomes of events whose extraction failed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from extraction_stand import ModelStand, extracting, serving, settled

from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import SessionRef, User
from agentkeep.core.ports import EndedSession
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, Client, SetClock

TAGS = {"agentkeep:extraction": "at-session-end", "agentkeep:events": "until-session-end"}
#: A category with its own prompt, model, namespace and expiry.
OF_PLACES = {
    "customMemoryStrategy": {
        "name": "places",
        "namespaceTemplates": ["/places/{actorId}/"],
        "recordExpirySpecification": {"recordExpiryDurationDays": 31},
        "configuration": {
            "semanticOverride": {
                "extraction": {"appendToPrompt": "Only places the user lives in.", "modelId": "of-places"},
                "consolidation": {"appendToPrompt": "The newest place alone.", "modelId": "of-places"},
            }
        },
    }
}


@pytest.fixture
async def model() -> ModelStand:
    return ModelStand()


@pytest.fixture
async def plane(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, model: ModelStand
) -> AsyncIterator[MemoryPlane]:
    async with serving(model) as url, extracting(store, search, clock, KEY_SERVICE, url) as plane:
        yield plane


@pytest.fixture
def backend(plane: MemoryPlane) -> SelfBackend:
    return SelfBackend(plane.operations)


@pytest.fixture
async def diary(operator: Client) -> str:
    made = await operator.create_memory(name="m", eventExpiryDuration=7, memoryStrategies=[OF_PLACES], tags=TAGS)
    return str(made["memory"]["id"])


async def _say(operator: Client, memory: str, text: str) -> None:
    said = [{"conversational": {"role": "USER", "content": {"text": text}}}]
    await operator.create_event(
        memoryId=memory, actorId="alice", sessionId="s", eventTimestamp=datetime.now(UTC), payload=said
    )


async def _end(plane: MemoryPlane, clock: SetClock) -> None:
    await plane.session_ends.session_ended(EndedSession(SessionRef("agent", "s"), User("alice"), 1, clock.now()))
    await _look(plane, clock)


async def _look(plane: MemoryPlane, clock: SetClock) -> None:
    """Whatever was to be done now is, in turns."""
    for _ in range(2):
        await clock.sleep(61)
        await plane.session_ends.settle()
        await settled(plane)
    await clock.sleep(61)
    await plane.session_ends.settle()


async def _events(operator: Client, memory: str) -> int:
    return len((await operator.list_events(memoryId=memory, actorId="alice", sessionId="s"))["events"])


async def _places(operator: Client, memory: str) -> list[dict[str, Any]]:
    found = await operator.list_memory_records(memoryId=memory, namespace="/places/alice/")
    return list(found["memoryRecordSummaries"])


async def test_a_category_of_the_operators_own(
    operator: Client, plane: MemoryPlane, clock: SetClock, model: ModelStand, diary: str
) -> None:
    """The hook's prompt, category and expiry are those of the memory's strategies."""
    await _say(operator, diary, "I live in Vienna")
    await settled(plane)
    assert model.asked == []
    await _end(plane, clock)
    assert await _events(operator, diary) == 0
    (place,) = await _places(operator, diary)
    assert place["content"]["text"] == "live in Vienna"
    got = await operator.get_memory_record(memoryId=diary, memoryRecordId=place["memoryRecordId"])
    assert (got["memoryRecord"]["expiresAt"] - place["createdAt"]).days >= 30
    assert any("Only places the user lives in." in system for _, _, system in model.asked)


async def test_events_of_a_failed_extraction_stay_until_it_has_succeeded(
    operator: Client, plane: MemoryPlane, clock: SetClock, model: ModelStand, diary: str
) -> None:
    model.status = 404
    await _say(operator, diary, "I live in Vienna")
    await _end(plane, clock)
    assert await _events(operator, diary) == 1
    (job,) = (await operator.list_memory_extraction_jobs(memoryId=diary))["jobs"]
    assert (job["sessionId"], job["actorId"]) == ("s", "alice")
    # More is said after the end, by an application: not to be lost either.
    model.status = 200
    await _say(operator, diary, "I work in Graz")
    await _look(plane, clock)
    assert await _events(operator, diary) == 2
    await operator.start_memory_extraction_job(memoryId=diary, extractionJob={"jobId": job["jobID"]})
    await _look(plane, clock)
    assert await _events(operator, diary) == 0
    assert {one["content"]["text"] for one in await _places(operator, diary)} == {"live in Vienna", "work in Graz"}


async def test_what_was_held_back_is_extracted_though_the_tag_is_gone(
    operator: Client, plane: MemoryPlane, clock: SetClock, diary: str
) -> None:
    await _say(operator, diary, "I live in Vienna")
    arn = (await operator.get_memory(memoryId=diary))["memory"]["arn"]
    await operator.untag_resource(resourceArn=arn, tagKeys=list(TAGS))
    await _end(plane, clock)
    assert len(await _places(operator, diary)) == 1
    assert await _events(operator, diary) == 1
