"""MEM-4: old records become fewer, nothing that still holds is lost, and it is known what each was made of."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.errors import AccessDeniedException, ConflictException, ValidationException
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Question
from agentkeep.memory.lifecycle.compaction_report import CompactionReport, Wanted
from agentkeep.memory.lifecycle.compactions import SCHEDULE, Compactions
from agentkeep.memory.lifecycle.compactor import Compactor
from agentkeep.memory.lifecycle.duplicates import duplicates
from agentkeep.memory.lifecycle.merges import Merges
from agentkeep.memory.long_term.actor_records import ActorRecords
from agentkeep.memory.long_term.record import Record, Source
from agentkeep.memory.partition import ActorPartition
from agentkeep.memory.plane import MemoryPlane
from agentkeep.memory.settings import MemorySettings
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, OPERATOR, Client, SetClock

WHO = OPERATOR.principal
Answer = Callable[[Question], str]


class ScriptedModels:
    """A provider's model, in place of one outside."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.answer_with: Answer = all_together

    async def answer(self, question: Question) -> str:
        self.asked.append(question)
        return self.answer_with(question)


def shown(question: Question) -> list[dict[str, Any]]:
    return [json.loads(line) for line in question.prompt.splitlines()[1:-1]]


def all_together(question: Question) -> str:
    """One text for all records that are shown."""
    records = shown(question)
    words = {word for record in records for word in record["text"].split()}
    text = " ".join(sorted(words))
    return json.dumps({"merged": [{"text": text, "records": [record["record"] for record in records]}]})


@pytest.fixture
def models() -> ScriptedModels:
    return ScriptedModels()


@pytest.fixture
def make(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, models: ScriptedModels
) -> Callable[..., MemoryPlane]:
    def make(**settings: Any) -> MemoryPlane:
        return MemoryPlane(
            store,
            Deployment("eu-west-1", "123456789012"),
            clock,
            search,
            settings=MemorySettings(**settings),
            key_service=KEY_SERVICE,
            models=models,
        )

    return make


@pytest.fixture
async def plane(make: Callable[..., MemoryPlane]) -> AsyncIterator[MemoryPlane]:
    plane = make()
    yield plane
    await plane.close()


@pytest.fixture
def backend(plane: MemoryPlane) -> SelfBackend:
    return SelfBackend(plane.operations)


async def put(
    plane: MemoryPlane, memory: str, actor: str, texts: Sequence[str], days_old: float = 100, **changes: Any
) -> list[str]:
    """Old records of an actor, each made of an event."""
    clock = plane.compactions._clock
    at = clock.now() - timedelta(days=days_old)
    start = len(await held(plane, memory, actor))
    records = [
        Record(
            **{
                "id": f"mem-{actor.encode().hex()}-{start + number}-{'x' * 30}"[:40],
                "text": text,
                "owner": actor,
                "namespace": f"/facts/{actor}/",
                "strategy_id": None,
                "timestamp": at + timedelta(seconds=number),
                "created_ms": int((at + timedelta(seconds=number)).timestamp() * 1000),
                "expires_ms": None,
                "metadata": {},
                "sources": (Source("s", f"event-{start + number}"),),
                **changes,
            }
        )
        for number, text in enumerate(texts)
    ]
    return list(await plane.records_by_actor.of(memory, actor).put(records))


async def held(plane: MemoryPlane, memory: str, actor: str) -> list[Record]:
    """The actor's records, the oldest first."""
    found, _ = await plane.records_by_actor.of(memory, actor).page(limit=1000)
    return sorted(found, key=lambda record: (record.created_ms, record.id))


async def compact(plane: MemoryPlane, memory: str, model: str | None = "m", **wanted: Any) -> CompactionReport:
    report = await plane.compactions.request(Wanted(memory, 90, model_id=model, **wanted), WHO)
    await plane.compactions.finish()
    return await plane.compactions.report(report.id)


COFFEE = ["Drinks coffee in the morning", "Drinks coffee, black, in the morning", "Likes coffee black"]


async def test_old_records_become_one(plane: MemoryPlane, memory: str, models: ScriptedModels) -> None:
    old = await put(plane, memory, "alice", COFFEE)
    young = await put(plane, memory, "alice", ["Drinks tea now"], days_old=10)
    bobs = await put(plane, memory, "alice/bob", COFFEE[:1])
    report = await compact(plane, memory)
    one, two = sorted(await held(plane, memory, "alice"), key=lambda record: record.id in young)
    assert two.id in young
    assert set(one.text.split()) == set(" ".join(COFFEE).split())
    assert {source.record_id for source in one.sources if source.record_id} == set(old)
    assert {source.event_id for source in one.sources if source.event_id} == {"event-0", "event-1", "event-2"}
    assert (one.namespace, one.method) == ("/facts/alice/", "compaction m")
    assert [record.id for record in await held(plane, memory, "alice/bob")] == bobs
    (asked,) = models.asked
    assert (asked.user_id, asked.purpose, asked.model_id) == ("alice", "compaction", "m")
    assert (report.complete, report.seen, report.merged, report.written, report.questions) == (True, 4, 3, 1, 1)
    assert report.input_tokens > report.output_tokens > 0
    (merge,) = report.merges
    assert (merge.actor_id, merge.how, merge.record_id, set(merge.records)) == ("alice", "model", one.id, set(old))


async def test_what_stands_for_what_is_known_after_a_second_time(
    plane: MemoryPlane, memory: str, clock: SetClock
) -> None:
    first = await put(plane, memory, "alice", COFFEE)
    await compact(plane, memory)
    (between,) = await held(plane, memory, "alice")
    clock.moment += timedelta(days=100)
    later = await put(plane, memory, "alice", ["Gave up coffee for good, in May, on advice"], days_old=95)
    await compact(plane, memory)
    (one,) = await held(plane, memory, "alice")
    assert {source.record_id for source in one.sources if source.record_id} == {*first, between.id, *later}
    assert {source.event_id for source in one.sources if source.event_id} == {
        *("event-0", "event-1", "event-2"),
        f"event-{1}",
    } | {source.event_id for source in between.sources if source.event_id}


async def test_without_a_model_duplicates_alone(plane: MemoryPlane, memory: str, models: ScriptedModels) -> None:
    texts = ["Has a dog.", "has  the dog", "Code 4711", "Code 4712", "Likes C", "Likes C++", "Has a dog"]
    ids = await put(plane, memory, "alice", texts)
    report = await compact(plane, memory, None)
    left = await held(plane, memory, "alice")
    assert [record.text for record in left] == ["Code 4711", "Code 4712", "Likes C", "Likes C++", "Has a dog"]
    assert left[-1].id == ids[-1]
    assert set(left[-1].sources) == {
        *(Source("s", f"event-{number}") for number in (0, 1, 6)),
        *(Source(record_id=ids[number]) for number in (0, 1)),
    }
    assert (report.merged, report.written, report.questions, models.asked) == (2, 1, 0, [])
    assert report.merges[0].how == "duplicates"


async def test_a_dry_run_changes_nothing(
    plane: MemoryPlane, memory: str, models: ScriptedModels, search: SqliteSearchStore
) -> None:
    ids = await put(plane, memory, "alice", [*COFFEE, COFFEE[0]])
    before = [record.document() for record in await held(plane, memory, "alice")]
    report = await compact(plane, memory, dry_run=True)
    after = [record.document() for record in await held(plane, memory, "alice")]
    assert [(one.id, one.text, one.body, one.created_ms) for one in after] == [
        (one.id, one.text, one.body, one.created_ms) for one in before
    ]
    assert models.asked == []
    assert (report.complete, report.seen, report.merged, report.written, report.questions) == (True, 4, 1, 0, 1)
    assert report.input_tokens > 0
    assert [(one.how, set(one.records)) for one in report.merges] == [
        ("duplicates", {ids[0], ids[3]}),
        ("model", {*ids[1:]}),
    ]


GARBAGE: dict[str, Answer] = {
    "no JSON": lambda _: "Sure! Here are your merged records:",
    "another shape": lambda _: '{"summaries": []}',
    "a record that is not there": lambda _: '{"merged": [{"text": "x", "records": [1, 4]}]}',
    "a single one": lambda _: '{"merged": [{"text": "x", "records": [1]}]}',
    "a record twice": lambda _: '{"merged": [{"text": "x", "records": [1, 2]}, {"text": "y", "records": [2, 3]}]}',
    "no text": lambda _: '{"merged": [{"text": "  ", "records": [1, 2]}]}',
    "longer than before": lambda _: json.dumps({"merged": [{"text": "Drinks coffee " * 20, "records": [1, 2, 3]}]}),
    "an invented number": lambda _: '{"merged": [{"text": "Drinks 7 cups", "records": [1, 2, 3]}]}',
}


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE)
async def test_a_bad_answer_changes_nothing(
    plane: MemoryPlane, memory: str, models: ScriptedModels, answer: Answer
) -> None:
    ids = await put(plane, memory, "alice", COFFEE)
    models.answer_with = answer
    report = await compact(plane, memory)
    assert [record.id for record in await held(plane, memory, "alice")] == ids
    assert (report.complete, report.merged, report.written, report.failures) == (True, 0, 0, 1)
    (failed,) = report.failed
    assert (failed.actor_id, failed.records) == ("alice", 3)
    assert failed.reason


async def test_objects_stay_objects(plane: MemoryPlane, memory: str, models: ScriptedModels) -> None:
    texts = [json.dumps({"preference": f"likes {what}", "context": "said so"}) for what in ("tea", "green tea")]
    ids = await put(plane, memory, "alice", texts)
    models.answer_with = lambda _: '{"merged": [{"text": "likes tea", "records": [1, 2]}]}'
    assert (await compact(plane, memory)).failures == 1
    assert [record.id for record in await held(plane, memory, "alice")] == ids
    text = json.dumps({"preference": "likes green tea", "context": "said so"})
    models.answer_with = lambda _: json.dumps({"merged": [{"text": text, "records": [1, 2]}]})
    await compact(plane, memory)
    assert [record.text for record in await held(plane, memory, "alice")] == [text]


async def test_a_model_that_does_not_answer_is_left_alone(
    plane: MemoryPlane, memory: str, models: ScriptedModels
) -> None:
    def refused(_: Question) -> str:
        raise AccessDeniedException("no such route")

    models.answer_with = refused
    for number in range(6):
        await put(plane, memory, f"user{number}", COFFEE)
    report = await compact(plane, memory)
    assert (report.complete, report.failures, report.merged) == (False, 3, 0)


async def test_limits_and_choices(plane: MemoryPlane, memory: str, models: ScriptedModels) -> None:
    for actor in ("alice", "bob"):
        await put(plane, memory, actor, COFFEE)
        await put(plane, memory, actor, COFFEE, namespace=f"/preferences/{actor}/", strategy_id="tastes")
    report = await compact(plane, memory, most_questions=1)
    assert (report.complete, report.questions, report.written) == (False, 1, 1)
    report = await compact(plane, memory, actor_id="bob", namespace="/preferences/")
    assert (report.complete, report.written, report.actors) == (True, 1, 1)
    assert report.merges[0].namespace == "/preferences/bob/"
    report = await compact(plane, memory, strategy_id="tastes", actor_id="bob")
    assert report.written == 0
    with pytest.raises(ValidationException):
        await MemoryPlane(
            plane.compactions._store,
            Deployment("eu-west-1", "123456789012"),
            plane.compactions._clock,
            plane.compactions._compactor._search,
            key_service=KEY_SERVICE,
        ).compactions.request(Wanted(memory, 90, model_id="m"), WHO)


async def test_what_must_not_be_merged(plane: MemoryPlane, memory: str, clock: SetClock) -> None:
    """Of other metadata, that end at other times; and what is merged ends with the first of them."""
    soon, late = (int((clock.moment + timedelta(days=days)).timestamp() * 1000) for days in (31, 400))
    await put(plane, memory, "alice", ["Coffee"], metadata={"of": "work"})
    await put(plane, memory, "alice", ["coffee"], metadata={"of": "home"})
    await put(plane, memory, "alice", ["coffee!"], expires_ms=late)
    ids = await put(plane, memory, "alice", ["Coffee and cake", "Coffee or cake"], expires_ms=soon)
    report = await compact(plane, memory)
    assert (report.written, report.merged) == (1, 2)
    assert set(report.merges[0].records) == set(ids)
    (one,) = [record for record in await held(plane, memory, "alice") if record.method]
    assert one.expires_ms == soon


async def test_what_its_user_changed_meanwhile_stays(
    plane: MemoryPlane, operator: Client, memory: str, models: ScriptedModels, clock: SetClock
) -> None:
    ids = await put(plane, memory, "alice", COFFEE)
    loop = asyncio.get_running_loop()
    changes = {
        "updated": lambda: operator.batch_update_memory_records(
            memoryId=memory,
            records=[{"memoryRecordId": ids[0], "timestamp": clock.moment, "content": {"text": "Gave up coffee"}}],
        ),
        "deleted": lambda: operator.delete_memory_record(memoryId=memory, memoryRecordId=ids[2]),
    }
    answer_now = models.answer
    for change in changes.values():

        async def answers(question: Question, change: Any = change) -> str:
            await change()
            return await answer_now(question)

        models.answer = answers  # type: ignore[method-assign]
        before = len(await held(plane, memory, "alice"))
        report = await compact(plane, memory)
        assert (report.changed, report.written) == (1, 0)
        assert len(await held(plane, memory, "alice")) in (before, before - 1)
    assert loop.is_running()
    assert {record.text for record in await held(plane, memory, "alice")} == {"Gave up coffee", COFFEE[1]}


async def test_what_its_user_changed_at_the_last_moment_stays(
    plane: MemoryPlane, operator: Client, memory: str, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the merged record is known to be right, and before what it stands for is deleted."""
    ids = await put(plane, memory, "alice", COFFEE)
    sealed = Merges._sealed
    calls = 0

    async def then_changed(self: Merges, report: CompactionReport, plan: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 2:  # as written
            change = {"memoryRecordId": ids[0], "timestamp": clock.moment, "content": {"text": "Gave up coffee"}}
            await operator.batch_update_memory_records(memoryId=memory, records=[change])
        return await sealed(self, report, plan)

    monkeypatch.setattr(Merges, "_sealed", then_changed)
    assert (await compact(plane, memory)).written == 1
    changed, merged = await held(plane, memory, "alice")
    assert (changed.id, changed.text) == (ids[0], "Gave up coffee")
    assert ids[0] in {source.record_id for source in merged.sources}


STEPS = (
    (Merges, "save"),
    (Merges, "_write"),
    (Merges, "_sealed"),
    (Merges, "_end"),
    (ActorRecords, "put"),
    (ActorRecords, "delete"),
    (Compactions, "_end"),
)


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "name"), STEPS, ids=[f"{kind.__name__}.{name}" for kind, name in STEPS])
async def test_killed_at_any_step_it_goes_on(
    plane: MemoryPlane,
    make: Callable[..., MemoryPlane],
    operator: Client,
    models: ScriptedModels,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    name: str,
    after: bool,
) -> None:
    """EXE-6: killed before or after any step, it is ended by another replica, with the same result as ever; at no time
    is a word lost."""
    step = getattr(kind, name)
    words = {word for text in COFFEE for word in text.split()}
    for number in range(20):
        memory = (await operator.create_memory(name=f"m{number}", eventExpiryDuration=7))["memory"]["id"]
        ids = await put(plane, memory, "alice", [*COFFEE, "Has a dog", "has a dog"])
        calls = 0

        async def dies(*args: Any, number: int = number, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number + 1 and not after:
                raise asyncio.CancelledError
            result = await step(*args, **named)
            if calls == number + 1:
                raise asyncio.CancelledError
            return result

        monkeypatch.setattr(kind, name, dies)
        report = await plane.compactions.request(Wanted(memory, 90, model_id="m"), WHO)
        monkeypatch.undo()
        died = calls > number
        now = await held(plane, memory, "alice")
        assert words <= {word for record in now for word in record.text.split()}
        report = await plane.compactions.report(report.id)
        attempts = report.attempts + (report.finished_ms is None)
        successor = make()
        await successor.compactions.resume()
        await successor.compactions.finish()
        report = await successor.compactions.report(report.id)
        await successor.close()
        assert report.finished_ms is not None
        assert report.complete is True
        assert report.attempts == attempts
        (one,) = await held(plane, memory, "alice")
        assert set(ids) == {source.record_id for source in one.sources if source.record_id}
        assert (report.written, report.merged) == (2, 5)
        assert len(report.merges) == 2
        if not died:
            assert number > 0
            return
    pytest.fail("more steps than expected")


async def test_two_replicas_do_it_once(
    plane: MemoryPlane, make: Callable[..., MemoryPlane], memory: str, models: ScriptedModels
) -> None:
    await put(plane, memory, "alice", COFFEE)
    entered, may_go_on = asyncio.Event(), asyncio.Event()
    answer_now = models.answer

    async def slow(question: Question) -> str:
        entered.set()
        await may_go_on.wait()
        return await answer_now(question)

    models.answer = slow  # type: ignore[method-assign]
    asked = asyncio.create_task(plane.compactions.request(Wanted(memory, 90, model_id="m"), WHO))
    await entered.wait()
    other = make()
    await other.compactions.resume()
    await other.compactions.finish()
    with pytest.raises(ConflictException, match="is being compacted"):
        await other.compactions.request(Wanted(memory, 90), WHO)
    may_go_on.set()
    report = await asked
    await plane.compactions.finish()
    assert len(models.asked) == 1
    assert (await other.compactions.report(report.id)).written == 1
    await other.close()


async def test_who_was_stopped_for_too_long_changes_nothing(
    plane: MemoryPlane,
    make: Callable[..., MemoryPlane],
    memory: str,
    models: ScriptedModels,
    clock: SetClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A holder whose lease another has taken is fenced off: what it goes on with fails."""
    await put(plane, memory, "alice", COFFEE)
    answer_now = models.answer
    other = make()

    async def stopped(question: Question) -> str:
        models.answer = answer_now  # type: ignore[method-assign]
        clock.moment += timedelta(seconds=60)
        await other.compactions.resume()
        await other.compactions.finish()
        return await answer_now(question)

    models.answer = stopped  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO):
        await compact(plane, memory)
    assert "another replica goes on with compaction-" in caplog.text
    (report,) = await other.compactions.latest(10)
    assert (report.attempts, report.written, report.merged) == (2, 1, 3)
    assert len(await held(plane, memory, "alice")) == 1
    await other.close()


async def test_who_is_being_extracted_for_waits(
    plane: MemoryPlane, memory: str, models: ScriptedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a new version of a record would be lost with the old one."""
    for actor in ("alice", "bob"):
        await put(plane, memory, actor, COFFEE)
    waited = 0

    async def wait(self: Compactor, seconds: float) -> None:
        nonlocal waited
        waited += 1

    monkeypatch.setattr(Compactor, "pause", wait)
    async with plane.extraction.standing.alone(ActorPartition.of_platform(memory, "alice")) as alone:
        assert alone is not None
        report = await compact(plane, memory)
    assert (report.complete, report.written) == (False, 1)
    assert waited > 1
    assert len(await held(plane, memory, "alice")) == 3
    assert (await compact(plane, memory)).complete is True
    assert len(await held(plane, memory, "alice")) == 1


async def test_an_erasure_in_its_midst(plane: MemoryPlane, memory: str, models: ScriptedModels) -> None:
    """Nothing that was made of erased records comes to be."""
    await put(plane, memory, "alice", COFFEE)
    answer_now = models.answer

    async def erased(question: Question) -> str:
        await plane.erasures.request("alice", None, WHO)
        await plane.erasures.finish()
        return await answer_now(question)

    models.answer = erased  # type: ignore[method-assign]
    report = await compact(plane, memory)
    assert await held(plane, memory, "alice") == []
    assert (report.complete, report.written) == (True, 0)


@pytest.mark.parametrize(("kind", "name"), [(ActorRecords, "put"), (Merges, "_write"), (ActorRecords, "delete")])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_an_erasure_at_any_step(
    plane: MemoryPlane, memory: str, monkeypatch: pytest.MonkeyPatch, kind: type, name: str, after: bool
) -> None:
    await put(plane, memory, "alice", COFFEE)
    step = getattr(kind, name)

    async def erased_there(*args: Any, **named: Any) -> Any:
        monkeypatch.undo()
        if not after:
            await plane.erasures.request("alice", None, WHO)
            await plane.erasures.finish()
        result = await step(*args, **named)
        if after:
            await plane.erasures.request("alice", None, WHO)
            await plane.erasures.finish()
        return result

    monkeypatch.setattr(kind, name, erased_there)
    report = await compact(plane, memory)
    assert report.finished_ms is not None
    assert await held(plane, memory, "alice") == []


async def test_by_the_schedule(
    make: Callable[..., MemoryPlane], plane: MemoryPlane, memory: str, models: ScriptedModels, clock: SetClock
) -> None:
    """When it is due, and then about what is new alone."""
    scheduled = make(compaction_interval_days=7, compaction_age_days=30, compaction_model="m")
    models.answer_with = lambda _: '{"merged": []}'
    await put(plane, memory, "alice", COFFEE)

    async def look() -> list[CompactionReport]:
        await scheduled.compactions.schedule()
        await scheduled.compactions.finish()
        return (await scheduled.compactions.latest(10))[::-1]

    (first,) = await look()
    assert (first.requested_by, first.questions, first.complete) == (SCHEDULE, 1, True)
    assert len(await look()) == 1
    clock.moment += timedelta(days=8)
    assert [report.questions for report in await look()] == [1, 0]
    await put(plane, memory, "alice", ["Likes cake"], days_old=0)
    clock.moment += timedelta(days=31)
    assert [report.questions for report in await look()] == [1, 0, 1]
    await scheduled.close()


def test_duplicates_say_the_same() -> None:
    def record(text: str, number: int) -> Record:
        return Record(str(number), text, "a", "/a/", None, SetClock().moment, number, None, {})

    texts = ["It is -5 °C", "It is 5 °C", "“The” cat", "cat", "", "...", "Straße", "STRASSE", "3.5", "35"]
    found = duplicates([record(text, number) for number, text in enumerate(texts)])
    assert sorted([one.id for one in alike] for alike in found) == [["3", "2"], ["7", "6"]]
