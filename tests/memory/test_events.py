"""Events: order, pages, filters, branches, expiry, and that nothing is lost or altered."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkeep.core.errors import ResourceNotFoundException, ValidationException
from agentkeep.memory.keys import MemoryKey
from agentkeep.memory.short_term import events as events_module
from agentkeep.memory.short_term.event import Place, decode, encode

from .conftest import Client, SetClock

A = {"actorId": "user/1:a", "sessionId": "s"}


async def test_an_event_comes_back_as_it_went(operator: Client, memory: str) -> None:
    payload = [
        {"conversational": {"content": {"text": "grüße 😀"}, "role": "USER"}},
        {"blob": {"a": [1, 2.5, None, True, {"b": "\u0000\n"}]}},
        {"blob": '{"a": 1}'},
        {"json": {"content": {"z": 1, "a": 2}}},
    ]
    given = {
        **A,
        "memoryId": memory,
        "eventTimestamp": datetime(2026, 5, 4, 3, 2, 1, 234567, tzinfo=UTC),
        "payload": payload,
        "metadata": {"kind": {"stringValue": "x"}, "empty": {"stringValue": ""}},
    }
    event = (await operator.create_event(**given))["event"]
    # ordered, and told, in milliseconds
    assert event == {
        **given,
        "eventId": event["eventId"],
        "eventTimestamp": datetime(2026, 5, 4, 3, 2, 1, 234000, tzinfo=UTC),
    }
    assert list(event["payload"][3]["json"]["content"]) == ["z", "a"]
    assert event["eventId"].startswith("0000001777863721234#")
    where = {**A, "memoryId": memory}
    assert (await operator.get_event(**where, eventId=event["eventId"]))["event"] == event
    assert await operator.list_events(**where) == {"events": [event]}
    assert await operator.list_events(**where, includePayloads=False) == {"events": [{**event, "payload": []}]}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(st.lists(JSON, max_size=3))
def test_documents_are_kept_value_for_value(documents: list[Any]) -> None:
    payload = [{"blob": document} for document in documents]
    place, event_id = Place(MemoryKey(bytes(32)), "p", "s"), "0000001777863721234#00"
    value = encode(place, event_id, payload, None, {}, None)
    assert repr(decode(place, event_id, value, payload=True).payload) == repr(payload)  # 1 is not 1.0


async def test_a_session_is_made_up_where_none_is_given(operator: Client, memory: str) -> None:
    event = (await operator.create_event(memoryId=memory, actorId="a", eventTimestamp=datetime.now(UTC), payload=[]))[
        "event"
    ]
    (session,) = (await operator.list_sessions(memoryId=memory, actorId="a"))["sessionSummaries"]
    assert session["sessionId"] == event["sessionId"]


async def test_newest_first_and_the_later_inserted_among_equals(operator: Client, memory: str) -> None:
    for text, at in (("c", 3), ("a", 1), ("d1", 4), ("d2", 4.0001), ("b", 2), ("d3", 4)):
        await operator.event(memory, "a", "s", text, at)
    assert await operator.texts(memory, "a", "s") == ["d3", "d2", "d1", "c", "b", "a"]


async def test_a_page_has_twenty_unless_asked_otherwise(operator: Client, memory: str) -> None:
    for number in range(25):
        await operator.event(memory, "a", "s", number, number)
    where = {"memoryId": memory, "actorId": "a", "sessionId": "s"}
    first = await operator.list_events(**where)
    assert len(first["events"]) == 20
    second = await operator.list_events(**where, nextToken=first["nextToken"])
    assert len(second["events"]) == 5
    assert "nextToken" not in second
    exact = await operator.list_events(**where, maxResults=25)
    assert "nextToken" not in exact
    assert len((await operator.list_events(**where, maxResults=1))["events"]) == 1
    assert await operator.texts(memory, "a", "s", maxResults=3) == list(range(25))[::-1]


async def test_pages_are_complete_while_others_write(operator: Client, memory: str) -> None:
    await asyncio.gather(*(operator.event(memory, "a", "s", number, number) for number in range(60)))
    done = False

    async def disturb() -> None:
        number = 0
        while not done:
            event = await operator.event(memory, "a", "s", "new", number % 70 + 0.5)
            if number % 2:
                await operator.delete_event(memoryId=memory, actorId="a", sessionId="s", eventId=event)
            number += 1

    task = asyncio.create_task(disturb())
    seen = await operator.texts(memory, "a", "s", maxResults=4)
    done = True
    await task
    assert [text for text in seen if text != "new"] == list(range(60))[::-1]


async def test_pages_end_before_they_are_too_large(
    operator: Client, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_PAGE_BYTES", 3000)
    for number in range(10):
        await operator.event(memory, "a", "s", f"{number}" + "x" * 1000, number, metadata={"k": {"stringValue": "v"}})
    where = {"memoryId": memory, "actorId": "a", "sessionId": "s"}
    page = await operator.list_events(**where)
    assert len(page["events"]) == 3
    for narrow in ({}, {"filter": {"eventMetadata": [{"left": {"metadataKey": "k"}, "operator": "EXISTS"}]}}):
        assert [text[0] for text in await operator.texts(memory, "a", "s", **narrow)] == list("9876543210")


async def test_empty_sessions_and_missing_events(operator: Client, memory: str) -> None:
    where = {"memoryId": memory, "actorId": "nobody", "sessionId": "never"}
    assert await operator.list_events(**where) == {"events": []}
    assert await operator.list_sessions(memoryId=memory, actorId="nobody") == {"sessionSummaries": []}
    assert await operator.list_actors(memoryId=memory) == {"actorSummaries": []}
    for operation in (operator.get_event, operator.delete_event):
        with pytest.raises(ResourceNotFoundException):
            await operation(**where, eventId="0000001777863721234#ab")
    for call in (
        operator.event("none-0123456789", "a", "s"),
        operator.list_events(memoryId="none-0123456789", actorId="a", sessionId="s"),
    ):
        with pytest.raises(ResourceNotFoundException, match="Memory not found"):
            await call


async def test_a_deleted_event_is_gone_and_its_session_stays(operator: Client, memory: str) -> None:
    event = await operator.event(memory, "a", "s")
    where = {"memoryId": memory, "actorId": "a", "sessionId": "s"}
    assert await operator.delete_event(**where, eventId=event) == {"eventId": event}
    with pytest.raises(ResourceNotFoundException):
        await operator.get_event(**where, eventId=event)
    assert await operator.list_events(**where) == {"events": []}
    who = {"memoryId": memory, "actorId": "a"}
    assert len((await operator.list_sessions(**who))["sessionSummaries"]) == 1
    assert await operator.list_sessions(**who, filter={"eventFilter": "HAS_EVENTS"}) == {"sessionSummaries": []}


async def test_an_equal_request_stores_nothing_twice(operator: Client, memory: str) -> None:
    async def create(text: str, session: dict[str, str]) -> Any:
        return await operator.create_event(
            memoryId=memory,
            actorId="a",
            **session,
            eventTimestamp=datetime(2026, 1, 1, tzinfo=UTC),
            payload=[{"blob": text}],
            token="t",
        )

    first = await create("x", {})
    assert await create("x", {}) == first  # the session made up at first too
    with pytest.raises(ValidationException):
        await create("y", {})
    session = first["event"]["sessionId"]
    assert await operator.texts(memory, "a", session) == ["x"]
    await operator.delete_event(memoryId=memory, actorId="a", sessionId=session, eventId=first["event"]["eventId"])
    assert await create("x", {}) == first
    assert await operator.texts(memory, "a", session) == []


async def test_events_expire(operator: Client, clock: SetClock) -> None:
    """MEM-1, MEM-4: after the memory's eventExpiryDuration, counted from creation; an update counts for later ones."""
    memory = (await operator.create_memory(name="short", eventExpiryDuration=3))["memory"]["id"]
    await operator.event(memory, "a", "s", "first")
    await clock.sleep(2 * 86400)
    await operator.event(memory, "a", "s", "second")
    await operator.update_memory(memoryId=memory, eventExpiryDuration=30)
    await operator.event(memory, "a", "s", "third")
    await clock.sleep(86400 - 0.001)
    assert await operator.texts(memory, "a", "s") == ["third", "second", "first"]
    await clock.sleep(0.001)
    assert await operator.texts(memory, "a", "s") == ["third", "second"]
    await clock.sleep(2 * 86400)
    assert await operator.texts(memory, "a", "s") == ["third"]
    await clock.sleep(27 * 86400)
    assert await operator.texts(memory, "a", "s") == []
    assert len((await operator.list_actors(memoryId=memory))["actorSummaries"]) == 1
    await clock.sleep(3 * 86400)
    assert await operator.list_sessions(memoryId=memory, actorId="a") == {"sessionSummaries": []}
    assert await operator.list_actors(memoryId=memory) == {"actorSummaries": []}


async def test_limits_of_size(operator: Client, memory: str) -> None:
    where = {"memoryId": memory, "actorId": "a", "sessionId": "s", "eventTimestamp": datetime.now(UTC)}
    await operator.create_event(**where, payload=[{"blob": "x" * 10_000_000}])
    await operator.create_event(**where, payload=[{"json": {"content": "x" * 100_000}}])
    with pytest.raises(ValidationException, match="10 MB"):
        await operator.create_event(**where, payload=[{"blob": "x" * 11_000_000}])
    with pytest.raises(ValidationException, match=r"payload\.1.*100 KB"):
        await operator.create_event(**where, payload=[{"blob": ""}, {"json": {"content": "x" * 110_000}}])
    with pytest.raises(ValidationException, match="eventTimestamp"):
        await operator.create_event(**{**where, "eventTimestamp": datetime(1969, 12, 31, tzinfo=UTC)}, payload=[])


def metadata_filter(*expressions: tuple[str, str, str | None]) -> dict[str, Any]:
    return {
        "filter": {
            "eventMetadata": [
                {
                    "left": {"metadataKey": key},
                    "operator": operator,
                    **({} if value is None else {"right": {"metadataValue": {"stringValue": value}}}),
                }
                for key, operator, value in expressions
            ]
        }
    }


async def test_metadata_filters_are_all_met(operator: Client, memory: str) -> None:
    for number in range(30):
        metadata = {"n": {"stringValue": f"{number % 3}"}}
        if number % 2:
            metadata["odd"] = {"stringValue": "yes"}
        await operator.event(memory, "a", "s", number, number, metadata=metadata)

    async def matching(*expressions: tuple[str, str, str | None], size: int = 2) -> list[Any]:
        found = await operator.texts(memory, "a", "s", maxResults=size, **metadata_filter(*expressions))
        return found[::-1]

    assert await matching(("n", "EQUALS_TO", "1")) == list(range(1, 30, 3))
    assert await matching(("n", "EQUALS_TO", "1"), ("odd", "EXISTS", None)) == [1, 7, 13, 19, 25]
    assert await matching(("n", "EQUALS_TO", "1"), ("odd", "NOT_EXISTS", None)) == [4, 10, 16, 22, 28]
    assert await matching(("n", "EQUALS_TO", "1"), ("n", "EQUALS_TO", "2")) == []
    assert await matching(("none", "EXISTS", None)) == []
    assert await matching(("none", "NOT_EXISTS", None), size=100) == list(range(30))
    page = await operator.list_events(
        memoryId=memory, actorId="a", sessionId="s", maxResults=1, **metadata_filter(("n", "EQUALS_TO", "0"))
    )
    assert [event["payload"][0]["blob"] for event in page["events"]] == [27]  # the newest that matches, at once
    for wrong in (("n", "EQUALS_TO", None), ("n", "EXISTS", "1")):
        with pytest.raises(ValidationException, match="right"):
            await matching(wrong)


async def test_a_filter_finds_the_one_among_many(
    operator: Client, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await operator.event(memory, "a", "s", "needle", 0, metadata={"k": {"stringValue": "v"}})
    await asyncio.gather(*(operator.event(memory, "a", "s", "hay", number) for number in range(1, 600)))
    needle = metadata_filter(("k", "EQUALS_TO", "v"))
    page = await operator.list_events(memoryId=memory, actorId="a", sessionId="s", maxResults=1, **needle)
    assert [event["payload"][0]["blob"] for event in page["events"]] == ["needle"]
    monkeypatch.setattr(events_module, "_LONGEST_SCAN", 250)
    page = await operator.list_events(memoryId=memory, actorId="a", sessionId="s", **needle)
    assert page["events"] == []  # nothing so far, but a token to go on with
    assert await operator.texts(memory, "a", "s", **needle) == ["needle"]


async def test_branches(operator: Client, memory: str) -> None:
    """main: 0 1 2 3; fork, from 1: f0 f1; twig, from f0: t0."""
    main = [await operator.event(memory, "a", "s", f"{n}", n) for n in range(3)]
    fork = await operator.event(memory, "a", "s", "f0", 10, branch={"name": "fork", "rootEventId": main[1]})
    await operator.event(memory, "a", "s", "f1", 11, branch={"name": "fork"})
    await operator.event(memory, "a", "s", "t0", 12, branch={"name": "twig", "rootEventId": fork})
    await operator.event(memory, "a", "s", "3", 13)

    async def of(name: str, parents: bool | None = None) -> list[Any]:
        branch: dict[str, Any] = {"name": name}
        if parents is not None:
            branch["includeParentBranches"] = parents
        return await operator.texts(memory, "a", "s", filter={"branch": branch}, maxResults=2)

    assert await operator.texts(memory, "a", "s") == ["3", "t0", "f1", "f0", "2", "1", "0"]  # no filter: all branches
    assert await of("fork") == ["f1", "f0"]
    assert await of("fork", False) == ["f1", "f0"]
    assert await of("fork", True) == ["f1", "f0", "1", "0"]
    assert await of("twig", True) == ["t0", "f0", "1", "0"]
    assert await of("main") == await of("main", True) == ["3", "2", "1", "0"]
    assert await of("unknown", True) == []
    event = await operator.get_event(memoryId=memory, actorId="a", sessionId="s", eventId=fork)
    assert event["event"]["branch"] == {"name": "fork", "rootEventId": main[1]}


async def test_a_branch_begins_in_its_own_session(operator: Client, memory: str) -> None:
    elsewhere = await operator.event(memory, "a", "other")
    for root in (elsewhere, "0000001777863721234#ab"):
        with pytest.raises(ValidationException) as refused:
            await operator.event(memory, "a", "s", branch={"name": "fork", "rootEventId": root})
        assert refused.value.reason == "EventInOtherSession"


async def test_sessions_and_actors_have_pages(operator: Client, memory: str, clock: SetClock) -> None:
    began = clock.now().replace(microsecond=clock.now().microsecond // 1000 * 1000)
    for number in range(12):
        await operator.event(memory, f"actor{number:02}", "s")
        await operator.event(memory, "a", f"s{number:02}")
    await clock.sleep(60)
    await operator.event(memory, "a", "s00", "again")

    async def pages(operation: Any, member: str, **request: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        token: dict[str, str] = {}
        while True:
            answer = await operation(memoryId=memory, maxResults=5, **request, **token)
            assert len(answer[member]) <= 5
            found += answer[member]
            if "nextToken" not in answer:
                return found
            token = {"nextToken": answer["nextToken"]}

    sessions = await pages(operator.list_sessions, "sessionSummaries", actorId="a")
    assert sessions == [{"sessionId": f"s{n:02}", "actorId": "a", "createdAt": began} for n in range(12)]
    actors = await pages(operator.list_actors, "actorSummaries")
    assert actors == [{"actorId": name} for name in ["a", *(f"actor{n:02}" for n in range(12))]]
    alive = await pages(operator.list_sessions, "sessionSummaries", actorId="a", filter={"eventFilter": "HAS_EVENTS"})
    assert alive == sessions


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)))
def test_times_are_rounded_down_to_milliseconds(moment: datetime) -> None:
    from agentkeep.core.clock import SystemClock
    from agentkeep.memory.short_term.event import EventIds, timestamp_of

    aware = moment.replace(tzinfo=UTC)
    told = timestamp_of(EventIds(SystemClock()).next(aware))
    assert timedelta(0) <= aware - told < timedelta(milliseconds=1)
    assert told.microsecond % 1000 == 0
