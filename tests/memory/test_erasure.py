"""MEM-4: a user is forgotten, wholly, whatever happens meanwhile; and nobody else loses anything."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from extraction_stand import settled

from agentkeep.backend.own import SelfBackend
from agentkeep.core.errors import (
    ConflictException,
    ResourceNotFoundException,
    RetryableConflictException,
    StoreUnavailable,
)
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import AuditRecord
from agentkeep.memory.lifecycle.actor_erasures import ActorErasures, ErasureReport
from agentkeep.memory.lifecycle.erasure import EventsErasure, RecordsErasure
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, OPERATOR, Client, SetClock, session_of

WHO = OPERATOR.principal
DEPLOYMENT = Deployment("eu-west-1", "123456789012")


class KeptAudit:
    """The port, in a list."""

    def __init__(self) -> None:
        self.records: dict[str, AuditRecord] = {}

    async def record(self, record: AuditRecord) -> None:
        self.records[record.id] = record


@pytest.fixture
def audit() -> KeptAudit:
    return KeptAudit()


@pytest.fixture
async def plane(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, audit: KeptAudit
) -> AsyncIterator[MemoryPlane]:
    plane = MemoryPlane(store, DEPLOYMENT, clock, search, key_service=KEY_SERVICE, audit=audit)
    yield plane
    await plane.close()


@pytest.fixture
def backend(plane: MemoryPlane) -> SelfBackend:
    return SelfBackend(plane.operations)


async def fill(operator: Client, memory: str, actor: str, secret: str = "secret") -> None:
    """Two sessions with a branch each, and two records."""
    for session in ("s1", "s2"):
        root = await operator.event(memory, actor, session, f"{secret} of {actor}")
        await operator.event(memory, actor, session, secret, branch={"name": "fork", "rootEventId": root})
    await record(operator, memory, f"/facts/{actor}/", f"{secret} of {actor}")
    await record(operator, memory, f"/preferences/{actor}/", f"{secret} taste of {actor}")


async def record(client: Client, memory: str, namespace: str, text: str) -> str:
    answer = await client.batch_create_memory_records(
        memoryId=memory,
        records=[
            {
                "requestIdentifier": "r",
                "namespaces": [namespace],
                "content": {"text": text},
                "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
            }
        ],
    )
    assert not answer["failedRecords"]
    return str(answer["successfulRecords"][0]["memoryRecordId"])


async def kept(operator: Client, memory: str, actor: str) -> dict[str, Any]:
    """All that can be seen of an actor."""
    sessions = await operator.list_sessions(memoryId=memory, actorId=actor)
    ids = [one["sessionId"] for one in sessions["sessionSummaries"]]
    found = await operator.list_memory_records(memoryId=memory, namespacePath="/", maxResults=100)
    records = [
        one["content"]["text"]
        for one in found["memoryRecordSummaries"]
        if one["namespaces"][0] in (f"/facts/{actor}/", f"/preferences/{actor}/")
    ]
    return {
        "sessions": sorted(ids),
        "events": [await operator.texts(memory, actor, session) for session in sorted(ids)],
        "records": sorted(records),
    }


NOTHING = {"sessions": [], "events": [], "records": []}


async def erase(plane: MemoryPlane, actor: str, memory: str | None) -> ErasureReport:
    report = await plane.erasures.request(actor, memory, WHO)
    await plane.erasures.finish()
    return await plane.erasures.report(report.id)


async def test_an_actor_is_forgotten_in_all_memories(
    plane: MemoryPlane, operator: Client, memory: str, store: Any, tmp_path: Path, audit: KeptAudit
) -> None:
    """MEM-4: nothing is left in either store, in their files neither; others keep all they had."""
    second = (await operator.create_memory(name="second", eventExpiryDuration=7))["memory"]["id"]
    others = ("team/alice", "tea", "teams", "TEAM", "alice")
    for where in (memory, second):
        for number, actor in enumerate(("team", *others)):
            await fill(operator, where, actor, f"secret{number}")
    teams = [await record(operator, memory, "/facts/team/", "secret0 too") for _ in range(3)]
    bobs = await record(operator, memory, "/facts/team/bob/", "secret too")
    before = [await kept(operator, where, actor) for where in (memory, second) for actor in others]
    report = await erase(plane, "team", None)
    assert [await kept(operator, where, actor) for where in (memory, second) for actor in others] == before
    for where in (memory, second):
        assert await kept(operator, where, "team") == NOTHING
        records = 5 if where == memory else 2
        assert report.removed[where] == {"events": 4, "branches": 2, "sessions": 2, "records": records}
        assert "team" not in [one["actorId"] for one in (await operator.list_actors(memoryId=where))["actorSummaries"]]
        found = await operator.retrieve_memory_records(
            memoryId=where, namespace="/facts/team/", searchCriteria={"searchQuery": "secret0"}
        )
        assert found["memoryRecordSummaries"] == []
    assert report.found_after == {}
    assert report.in_files is False
    assert (report.requested_by, report.attempts, report.beneath) == (WHO, 1, {memory: 3, second: 2})
    keys = await store._client.execute(("KEYS", f"{store._prefix}*"), repeatable=True)
    assert not [key for key in keys if key.endswith((b"/team", b"/team/s1", b"/team/s2"))]
    files = b"".join(file.read_bytes() for file in tmp_path.glob("records.db*"))
    assert bobs.encode() in files
    assert not [one for one in teams if one.encode() in files]
    assert b"secret0" not in files
    asked, done = (one for one in audit.records.values() if "erase" in one.kind or "erasure" in one.kind)
    assert (asked.kind, done.kind) == ("actor-erasure-requested", "actor-erased")
    assert (done.user_id, done.principal, done.details["records"], done.details["events"]) == ("team", WHO, "7", "8")


async def test_in_one_memory_alone(plane: MemoryPlane, operator: Client, memory: str) -> None:
    second = (await operator.create_memory(name="second", eventExpiryDuration=7))["memory"]["id"]
    for where in (memory, second):
        await fill(operator, where, "alice")
    before = await kept(operator, second, "alice")
    report = await erase(plane, "alice", memory)
    assert await kept(operator, memory, "alice") == NOTHING
    assert await kept(operator, second, "alice") == before
    assert set(report.removed) == {memory}
    with pytest.raises(ResourceNotFoundException):
        await plane.erasures.request("alice", "never-there", WHO)
    again = await erase(plane, "alice", memory)
    assert again.id != report.id
    assert again.removed == {memory: {}}
    assert again.in_files is None


async def test_what_names_the_actor_and_is_not_the_actors_is_told(
    plane: MemoryPlane, operator: Client, memory: str
) -> None:
    named = await record(operator, memory, "/team/notes/alice/", "of nobody's, about alice")
    await record(operator, memory, "/team/notes/alices/", "of nobody's")
    await record(operator, memory, "/facts/alice/work/", "an operator's, for alice/work as far as anybody can tell")
    report = await erase(plane, "alice", None)
    assert report.nobodys == {memory: [named]}
    assert report.beneath == {memory: 1}
    assert report.removed == {memory: {}}
    listed = await operator.list_memory_records(memoryId=memory, namespacePath="/")
    assert len(listed["memoryRecordSummaries"]) == 3


class Interrupted(Exception):
    pass


#: Every place at which an erasure waits for something durable.
STEPS = (
    (EventsErasure, "erase_actor"),
    (RecordsErasure, "erase_actor"),
    (ActorErasures, "_save"),
    (ActorErasures, "_record"),
)


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "name"), STEPS, ids=[f"{kind.__name__}.{name}" for kind, name in STEPS])
async def test_killed_at_any_step_it_goes_on(
    plane: MemoryPlane,
    operator: Client,
    memory: str,
    store: KeyValueStore,
    search: SqliteSearchStore,
    clock: SetClock,
    audit: KeptAudit,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    name: str,
    after: bool,
) -> None:
    """EXE-6: killed before or after every time a step is taken, it is ended by another replica; till then the actor
    cannot write."""
    step = getattr(kind, name)
    for number in range(20):
        await fill(operator, memory, "alice")
        await fill(operator, memory, "alice/work")
        calls = 0

        async def dies(*args: Any, number: int = number) -> Any:
            nonlocal calls
            calls += 1
            if calls == number + 1 and not after:
                raise asyncio.CancelledError
            result = await step(*args)
            if calls == number + 1:
                raise asyncio.CancelledError
            return result

        monkeypatch.setattr(kind, name, dies)
        try:
            await plane.erasures.request("alice", None, WHO)
            await plane.erasures.finish()
        except asyncio.CancelledError:
            pass  # `_record` is called before anything is begun
        monkeypatch.undo()
        died = calls > number
        under_way = await plane.erasures._barrier.under_way()
        if under_way:
            with pytest.raises(RetryableConflictException):
                await operator.event(memory, "alice", "s1", "late")
            with pytest.raises(RetryableConflictException):
                await record(operator, memory, "/facts/alice/", "late")
            await operator.event(memory, "alice/work", "s3", "another's")
            successor = MemoryPlane(store, DEPLOYMENT, clock, search, key_service=KEY_SERVICE, audit=audit)
            await successor.erasures.resume()
            await successor.erasures.finish()
            report = await successor.erasures.report(under_way[0])
            await successor.close()
            assert report.finished_ms is not None
            assert report.found_after == {}
        elif not (died and (kind, name) == (ActorErasures, "_record") and number == 0):
            assert await kept(operator, memory, "alice") == NOTHING
        assert len((await kept(operator, memory, "alice/work"))["events"]) >= 2
        await operator.event(memory, "alice", "s1", "welcome back")
        await erase(plane, "alice", None)
        assert await kept(operator, memory, "alice") == NOTHING
        if not died:
            assert number > 0
            return
    pytest.fail("more steps than expected")


async def test_two_replicas_do_it_once(
    plane: MemoryPlane,
    operator: Client,
    memory: str,
    store: KeyValueStore,
    search: SqliteSearchStore,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(operator, memory, "alice")
    erase_actor = EventsErasure.erase_actor
    entered, may_go_on = asyncio.Event(), asyncio.Event()
    times = 0

    async def slow(self: EventsErasure, memory_id: str, actor_id: str) -> Any:
        nonlocal times
        times += 1
        entered.set()
        await may_go_on.wait()
        return await erase_actor(self, memory_id, actor_id)

    monkeypatch.setattr(EventsErasure, "erase_actor", slow)
    asked = asyncio.create_task(plane.erasures.request("alice", None, WHO))
    await entered.wait()
    other = MemoryPlane(store, DEPLOYMENT, clock, search, key_service=KEY_SERVICE)
    await other.erasures.resume()
    await other.erasures.finish()
    same = asyncio.create_task(other.erasures.request("alice", None, "somebody else"))
    with pytest.raises(ConflictException):
        await other.erasures.request("alice", memory, WHO)
    assert times == 1
    may_go_on.set()
    report, known = await asked, await same
    await plane.erasures.finish()
    assert known.id == report.id
    assert times == 2  # once, and once more to see that nothing is left
    assert (await other.erasures.report(report.id)).removed == {
        memory: {"events": 4, "branches": 2, "sessions": 2, "records": 2}
    }
    await other.close()


async def test_what_was_read_before_is_not_written_after(plane: MemoryPlane, operator: Client, memory: str) -> None:
    """A write made of what is erased by now fails, also when the erasure has long ended."""
    await fill(operator, memory, "alice")
    barrier, store = plane.erasures._barrier, plane.erasures._store
    seen, others = await barrier.read(memory, "alice"), await barrier.read(memory, "bob")
    await erase(plane, "alice", memory)
    with pytest.raises(Exception, match="found another value"):
        await store.transact([seen])
    await store.transact([others, await barrier.read(memory, "alice")])


async def test_what_waits_to_be_extracted_is_not_any_more(
    plane: MemoryPlane, operator: Client, clock: SetClock
) -> None:
    strategy = {"semanticMemoryStrategy": {"name": "facts", "namespaces": ["/facts/{actorId}/"]}}
    created = await operator.create_memory(name="m", eventExpiryDuration=7, memoryStrategies=[strategy])
    memory = created["memory"]["id"]
    said = {"conversational": {"role": "USER", "content": {"text": "I have a dog called Rex."}}}
    for actor in ("alice", "alice/work"):
        where = {"memoryId": memory, "actorId": actor, "sessionId": "s"}
        await operator.create_event(**where, eventTimestamp=clock.moment, payload=[said])
        await operator.ingest_data(**where, contentTimestamp=clock.moment, source={"inline": {"payload": [said]}})
    report = await erase(plane, "alice", None)
    assert report.removed[memory]["waiting for extraction"] == 2
    await settled(plane)
    assert await extracted(operator, memory, "alice/work")
    assert await kept(operator, memory, "alice") == NOTHING
    assert await extracted(operator, memory, "alice") == []


async def extracted(operator: Client, memory: str, actor: str) -> list[Any]:
    answer = await operator.list_memory_records(memoryId=memory, namespace=f"/facts/{actor}/")
    return list(answer["memoryRecordSummaries"])


async def test_a_memory_that_is_deleted_in_its_midst(
    plane: MemoryPlane, operator: Client, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(operator, memory, "alice")
    erase_actor = EventsErasure.erase_actor

    async def deleted(self: EventsErasure, memory_id: str, actor_id: str) -> Any:
        monkeypatch.undo()
        await operator.delete_memory(memoryId=memory)
        return await erase_actor(self, memory_id, actor_id)

    monkeypatch.setattr(EventsErasure, "erase_actor", deleted)
    report = await erase(plane, "alice", memory)
    if report.finished_ms is None:
        await plane.erasures.resume()
        await plane.erasures.finish()
    assert (await plane.erasures.report(report.id)).found_after == {}
    assert await plane.erasures._barrier.under_way() == []


async def test_a_store_that_is_away_delays_it(
    plane: MemoryPlane, operator: Client, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(operator, memory, "alice")

    async def away(self: RecordsErasure, memory_id: str, actor_id: str) -> Any:
        raise StoreUnavailable("the search store is away")

    monkeypatch.setattr(RecordsErasure, "erase_actor", away)
    report = await plane.erasures.request("alice", None, WHO)
    assert report.finished_ms is None
    monkeypatch.undo()
    await plane.erasures.resume()
    await plane.erasures.finish()
    report = await plane.erasures.report(report.id)
    assert (report.attempts, report.found_after) == (2, {})
    assert await kept(operator, memory, "alice") == NOTHING


async def test_sessions_go_on_afterwards(plane: MemoryPlane, backend: SelfBackend, memory: str) -> None:
    alice = Client(backend, session_of("alice"))
    await alice.event(memory, "alice", "s", "before")
    await erase(plane, "alice", None)
    assert await alice.texts(memory, "alice", "s") == []
    await alice.event(memory, "alice", "s", "after")
    await record(alice, memory, "/facts/alice/", "after")
    assert await alice.texts(memory, "alice", "s") == ["after"]
