"""MEM-3: nothing is lost, repeated or left over where extraction fails, is killed or overtaken, or its data goes."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from extraction_stand import ModelStand, extracting, serving, settled
from platform_process import PlatformProcess, running_platform

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import (
    RetryableConflictException,
    StoreUnavailable,
)
from agentkeep.core.ports import EndedSession
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import KeyValueStore, Once
from agentkeep.storage.search import Beneath
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, SetClock
from .extraction import FACTS, SUMMARY, client, create, jobs, said, say, texts


@pytest.fixture
def plane(by_model: MemoryPlane) -> MemoryPlane:
    return by_model


# Failures.


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ("no json at all", "MODEL_ERROR"),
        ('{"facts": [{"fact": "", "messages": []}]}', "MODEL_ERROR"),
        ('{"facts": "none"}', "MODEL_ERROR"),
        ("[1, 2", "MODEL_ERROR"),
        (429, "THROTTLING"),
        (503, "SERVICE_UNAVAILABLE"),
        (401, "ACCESS_DENIED"),
        (404, "RESOURCE_NOT_FOUND"),
    ],
)
async def test_a_failed_job_is_listed_and_run_again(
    plane: MemoryPlane, model: ModelStand, answers: str | int, reason: str
) -> None:
    """MEM-3. A bad answer loses nothing, and nothing of it is served."""
    memory = await create(plane, FACTS, SUMMARY)
    if isinstance(answers, int):
        model.status = answers
    else:
        good = model.does
        model.does = lambda purpose, data: answers if purpose == "extraction" else good(purpose, data)
    event = await say(plane, memory, "alice", "I like tea", "I live in Bern")
    await settled(plane)
    failed = {job["strategyId"].split("-")[0]: job for job in await jobs(plane, memory)}
    assert failed.keys() == ({"facts", "sums"} if isinstance(answers, int) else {"facts"})
    job = failed["facts"]
    assert job["failureReason"] == f"CUSTOM_MODEL_BEDROCK_{reason}"
    assert (job["status"], job["actorId"], job["sessionId"]) == ("FAILED", "alice", "s")
    assert job["messages"]["messagesList"] == [{"eventId": event, "messageIndex": index} for index in (0, 1)]
    assert await texts(plane, memory, "/facts/") == []
    model.status, model.does = 200, ModelStand().does
    for one in failed.values():
        started = await client(plane, "alice").start_memory_extraction_job(
            memoryId=memory, extractionJob={"jobId": one["jobID"]}, token=f"t {one['jobID']}"
        )
        assert started["jobId"] == one["jobID"]
    assert await jobs(plane, memory) == []
    await settled(plane)
    assert await texts(plane, memory, "/facts/") == ["like tea", "live in Bern"]
    assert await texts(plane, memory, "/sums/") == ["I like tea / I live in Bern"]
    assert await jobs(plane, memory) == []


async def test_a_slow_model_is_given_up_on(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, model: ModelStand, model_url: str
) -> None:
    async with extracting(
        store, search, clock, KEY_SERVICE, model_url, extraction_seconds=0.3, extraction_attempts=1
    ) as plane:
        memory = await create(plane, FACTS)
        await say(plane, memory, "alice", "I like tea")
        model.waits = asyncio.Event()
        await settled(plane)
        (job,) = await jobs(plane, memory)
        assert job["failureReason"] == "CUSTOM_MODEL_BEDROCK_MODEL_TIMEOUT"
        model.waits.set()
        await client(plane).start_memory_extraction_job(memoryId=memory, extractionJob={"jobId": job["jobID"]})
        await settled(plane)
        assert await texts(plane, memory) == ["like tea"]


async def test_a_restarted_job_that_fails_is_listed_again(plane: MemoryPlane, model: ModelStand) -> None:
    memory = await create(plane, FACTS)
    model.status = 404
    await say(plane, memory, "alice", "I like tea")
    await settled(plane)
    (before,) = await jobs(plane, memory)
    model.status = 403
    await client(plane).start_memory_extraction_job(memoryId=memory, extractionJob={"jobId": before["jobID"]})
    await settled(plane)
    (after,) = await jobs(plane, memory)
    assert after["jobID"] == before["jobID"]
    assert after["failureReason"] == "CUSTOM_MODEL_BEDROCK_ACCESS_DENIED"
    assert after["messages"] == before["messages"]


async def test_pages_of_failed_jobs_are_whole(plane: MemoryPlane, model: ModelStand) -> None:
    memory = await create(plane, FACTS)
    model.status = 404
    for number in range(7):
        await say(plane, memory, f"u{number % 2}", f"I am {number}", session=f"s{number}")
    await settled(plane)
    for wanted, count in (({}, 7), ({"actorId": "u0"}, 4), ({"sessionId": "s3"}, 1), ({"strategyId": "no"}, 0)):
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = await client(plane).list_memory_extraction_jobs(
                memoryId=memory, maxResults=2, filter=wanted, **token
            )
            found += [job["jobID"] for job in page["jobs"]]
            if "nextToken" not in page:
                break
            token = {"nextToken": page["nextToken"]}
        assert len(found) == len(set(found)) == count, wanted


# Crashes, replicas, clocks.


class Crashing:
    """A key-value store under a replica that dies at its n-th write."""

    def __init__(self, store: KeyValueStore, lives: int) -> None:
        self._store = store
        self._lives = lives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def transact(self, writes: Any, once: Once | None = None) -> Any:
        if any("memory/due" in repr(one) or "memory/p" in repr(one) for one in writes):
            self._lives -= 1
            if self._lives < 0:
                raise StoreUnavailable("the replica is dead")
        return await self._store.transact(writes, once)


@pytest.mark.parametrize("lives", [0, 1, 2])
async def test_a_crash_anywhere_changes_nothing_twice(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, plane: MemoryPlane, model: ModelStand, lives: int
) -> None:
    """EXE-6. Before the plan is stored, before it is told to be done, before its end: the next replica goes on, with
    the plan if there is one, so that no model is asked twice about what is written already."""
    memory = await create(plane, FACTS, SUMMARY)
    await say(plane, memory, "alice", "I like tea", "I live in Bern", "You walk dogs")
    async with serving(model) as url, extracting(Crashing(store, lives), search, clock, KEY_SERVICE, url) as dying:
        with pytest.raises(StoreUnavailable):
            await dying.extraction.worker.settle()
    asked = len(model.asked)
    await settled(plane)
    assert len(model.asked) == (2 * asked if lives == 0 else asked)
    assert await texts(plane, memory, "/facts/") == ["like tea", "live in Bern", "walk dogs"]
    assert await texts(plane, memory, "/sums/") == ["I like tea / I live in Bern / You walk dogs"]
    for where in (f"memory/pending/{memory}/alice", f"memory/plans/{memory}/alice", "memory/due"):
        assert await store.query(where) == []


async def test_of_two_replicas_one_extracts(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, plane: MemoryPlane, model: ModelStand
) -> None:
    """EXE-6: exactly once, while events come to both."""
    memory = await create(plane, SUMMARY)
    async with serving(model) as url, extracting(store, search, clock, KEY_SERVICE, url) as other:
        for number in range(12):
            await say((plane, other)[number % 2], memory, "alice", f"word{number:02}", at=number)
            if number % 3 == 0:
                await asyncio.gather(plane.extraction.worker.settle(), other.extraction.worker.settle())
        await settled(plane)
        await settled(other)
    (summary,) = await texts(plane, memory, "/sums/")
    assert summary.split(" / ") == [f"word{number:02}" for number in range(12)]


async def test_clocks_that_jump_lose_and_repeat_nothing(plane: MemoryPlane, clock: SetClock) -> None:
    memory = await create(plane, SUMMARY)
    for number, jump in enumerate((0, 86400, -2 * 86400, 3600, -60, 0)):
        clock.moment += timedelta(seconds=jump)
        await say(plane, memory, "alice", f"word{number}", at=-number)
        if number % 2:
            await settled(plane)
    await settled(plane)
    (summary,) = await texts(plane, memory, "/sums/")
    assert sorted(summary.split(" / ")) == [f"word{number}" for number in range(6)]


async def test_no_model_is_asked_by_whose_clock_is_far_behind(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, plane: MemoryPlane, model: ModelStand
) -> None:
    """Such a replica holds no lease. Another, or the same when its clock is right again, goes on."""
    memory = await create(plane, FACTS)
    await say(plane, memory, "alice", "I like tea")
    behind = SetClock()
    behind.moment = clock.moment - timedelta(hours=1)
    async with serving(model) as url, extracting(store, search, behind, KEY_SERVICE, url) as replica:
        with pytest.raises(RetryableConflictException):
            await replica.extraction.worker.settle()
        assert model.asked == []
        behind.moment = clock.moment
        await settled(replica)
    assert await texts(plane, memory) == ["like tea"]


async def test_the_worker_extracts_by_itself(plane: MemoryPlane) -> None:
    """In the background, soon after the last event."""
    memory = await create(plane, FACTS)
    plane.extraction.worker.start()
    await say(plane, memory, "alice", "I like tea")
    for _ in range(200):
        if await texts(plane, memory):
            break
        await asyncio.sleep(0.05)
    assert await texts(plane, memory) == ["like tea"]


@pytest.mark.parametrize("status", [200, 404])
async def test_events_wait_for_their_sessions_end_where_they_are_to(
    plane: MemoryPlane, model: ModelStand, clock: SetClock, status: int
) -> None:
    """MEM-3: the tags agentkeep:extraction and agentkeep:events. No event goes before it is extracted."""
    tags = {"agentkeep:extraction": "at-session-end", "agentkeep:events": "until-session-end"}
    memory = await create(plane, FACTS, tags=tags)
    await say(plane, memory, "alice", "I like tea")
    await settled(plane)
    assert model.asked == []
    model.status = status
    await plane.session_ends.session_ended(EndedSession(SessionRef("agent", "s"), User("alice"), 1, clock.now()))
    await plane.session_ends.settle()
    listed = {"memoryId": memory, "actorId": "alice", "sessionId": "s"}
    assert (await client(plane).list_events(**listed))["events"]
    await settled(plane)
    await clock.sleep(61)
    await plane.session_ends.settle()
    assert await texts(plane, memory) == (["like tea"] if status == 200 else [])
    assert bool((await client(plane).list_events(**listed))["events"]) is (status != 200)


# What goes.


async def test_an_erased_actor_leaves_nothing_to_extract(
    plane: MemoryPlane, store: KeyValueStore, model: ModelStand
) -> None:
    """MEM-4. What waits, failed jobs and what they keep; nothing of anybody else."""
    memory = await create(plane, FACTS)
    model.status = 404
    for user in ("alice", "alice/2", "bob"):
        await say(plane, memory, user, f"I am {user}")
    await settled(plane)
    for user in ("alice", "alice/2", "bob"):
        await say(plane, memory, user, f"I like {user}", at=1)
    removed = await plane.extraction.standing.erase_actor(memory, "alice")
    assert removed == {"waiting for extraction": 1, "extraction jobs": 1}
    model.status = 200
    await settled(plane)
    assert await texts(plane, memory) == ["like alice/2", "like bob"]
    assert {job["actorId"] for job in await jobs(plane, memory)} == {"alice/2", "bob"}
    await client(plane).delete_memory(memoryId=memory)
    await plane.deletions.finish()
    rest = [item for where in ("memory/due", f"memory/failed-jobs/{memory}") for item in await store.query(where)]
    assert rest == []


async def test_deleted_events_are_not_extracted(plane: MemoryPlane, model: ModelStand) -> None:
    memory = await create(plane, FACTS)
    gone = await say(plane, memory, "alice", "I hate this")
    await say(plane, memory, "alice", "I like tea", at=1)
    await client(plane, "alice").delete_event(memoryId=memory, actorId="alice", sessionId="s", eventId=gone)
    await settled(plane)
    assert await texts(plane, memory) == ["like tea"]
    assert "hate" not in repr(model.asked)


@pytest.mark.parametrize("goes", ["memory", "actor"])
async def test_nothing_is_written_of_what_goes(
    plane: MemoryPlane, model: ModelStand, search: SqliteSearchStore, goes: str
) -> None:
    """MEM-4. A memory that is deleted, an actor who is erased, while a model thinks about their events."""
    memory = await create(plane, FACTS)
    await say(plane, memory, "alice", "I like tea")
    model.waits = asyncio.Event()
    working = asyncio.create_task(plane.extraction.worker.settle())
    async with asyncio.timeout(20):
        while not model.asked:
            await asyncio.sleep(0.01)
    if goes == "memory":
        await client(plane).delete_memory(memoryId=memory)
        await plane.deletions.finish()
    else:
        await plane.erasures.request("alice", memory, "operator")
        await plane.erasures.finish()
    model.waits.set()
    await asyncio.gather(working, return_exceptions=True)
    if goes == "actor":
        await settled(plane)
        assert await texts(plane, memory) == []
    assert await search.delete_partition(Beneath(f"memory/records/{memory}")) == 0


@pytest.mark.slow
def test_a_killed_platform_goes_on_extracting(tmp_path: Path) -> None:
    """EXE-6: what was said before a kill is remembered after it, once."""
    with running_platform(tmp_path) as platform:
        memory = platform.client("bedrock-agentcore-control").create_memory(
            name="m", eventExpiryDuration=7, memoryStrategies=[FACTS]
        )["memory"]["id"]
        data = platform.client("bedrock-agentcore")
        for number in range(40):
            data.create_event(
                memoryId=memory,
                actorId=f"user{number % 4}",
                sessionId=f"s{number % 8}",
                eventTimestamp=datetime.now(UTC),
                payload=said(f"I said {number}"),
            )
            if number == 20:
                data = killed(platform, tmp_path)
        found: list[str] = []
        deadline = time.monotonic() + 60
        while len(found) < 40 and time.monotonic() < deadline:
            time.sleep(0.5)
            page = data.list_memory_records(memoryId=memory, namespacePath="/facts/", maxResults=100)
            found = [one["content"]["text"] for one in page["memoryRecordSummaries"]]
        assert sorted(found) == sorted(f"I said {number}" for number in range(40))


def killed(platform: PlatformProcess, data: Path) -> Any:
    """A client of the platform that was started in place of the killed one."""
    process = psutil.Process(platform.pid)
    family = [process, *process.children(recursive=True)]
    process.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    platform.run("up", "--detach", "--port", "0")
    return PlatformProcess(data).client("bedrock-agentcore")  # its port is another
