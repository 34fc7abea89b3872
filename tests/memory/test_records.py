"""Long-term memory records, by the contract."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.errors import ResourceNotFoundException, ValidationException
from agentkeep.core.identifiers import Deployment
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search import Beneath
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, Client, SetClock, session_of

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
UNKNOWN = "mem-" + "0" * 36
KEYS = [{"key": "topic", "type": "STRING"}, {"key": "tags", "type": "STRINGLIST"}, {"key": "weight", "type": "NUMBER"}]


@pytest.fixture
async def memory(operator: Client) -> str:
    created = await operator.create_memory(name="notes", eventExpiryDuration=7, indexedKeys=KEYS)
    return str(created["memory"]["id"])


def record(text: str, *namespaces: str, identifier: str = "r", **rest: Any) -> dict[str, Any]:
    return {
        "requestIdentifier": identifier,
        "namespaces": list(namespaces),
        "content": {"text": text},
        "timestamp": WHEN,
        **rest,
    }


async def put(client: Client, memory: str, *records: dict[str, Any], **rest: Any) -> list[str]:
    answer = await client.batch_create_memory_records(memoryId=memory, records=list(records), **rest)
    assert answer["failedRecords"] == []
    return [one["memoryRecordId"] for one in answer["successfulRecords"]]


async def texts(client: Client, memory: str, **where: Any) -> list[str]:
    answer = await client.list_memory_records(memoryId=memory, **where)
    return [one["content"]["text"] for one in answer["memoryRecordSummaries"]]


async def found(client: Client, memory: str, query: str, criteria: Any = None, **where: Any) -> list[str]:
    answer = await client.retrieve_memory_records(
        memoryId=memory, searchCriteria={"searchQuery": query, **(criteria or {})}, **where
    )
    return [one["content"]["text"] for one in answer["memoryRecordSummaries"]]


async def test_a_record_comes_back_as_it_was_put(operator: Client, memory: str, clock: SetClock) -> None:
    metadata = {
        "topic": {"stringValue": "drinks"},
        "tags": {"stringListValue": ["hot", "leaf"]},
        "weight": {"numberValue": 2.5},
        "seen": {"dateTimeValue": WHEN},
    }
    [record_id] = await put(operator, memory, record("likes tea", "facts/alice", metadata=metadata))
    assert record_id.startswith("mem-")
    assert len(record_id) == 40
    got = (await operator.get_memory_record(memoryId=memory, memoryRecordId=record_id))["memoryRecord"]
    created = clock.now().replace(microsecond=clock.now().microsecond // 1000 * 1000)
    assert got == {
        "memoryRecordId": record_id,
        "content": {"text": "likes tea"},
        "memoryStrategyId": "none",
        "namespaces": ["/facts/alice/"],
        "createdAt": created,
        "timestamp": WHEN,
        "metadata": metadata,
    }
    listed = await operator.list_memory_records(memoryId=memory, namespace="/facts/alice/")
    assert listed == {"memoryRecordSummaries": [got]}
    [hit] = (
        await operator.retrieve_memory_records(
            memoryId=memory, namespace="/facts/alice", searchCriteria={"searchQuery": "what tea does she like"}
        )
    )["memoryRecordSummaries"]
    assert 0 < hit.pop("score") <= 1
    assert hit == got


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"namespace": "/facts/alice/"}, {"alice"}),
        ({"namespace": "facts/alice"}, {"alice"}),
        ({"namespace": "/facts/"}, set()),
        ({"namespacePath": "/facts/alice"}, {"alice", "deeper"}),  # as langgraph's store asks
        ({"namespacePath": "/facts/ali"}, set()),  # by whole segments
        ({"namespacePath": "/facts/"}, {"alice", "deeper", "alicea"}),
        ({"namespacePath": "/"}, {"alice", "deeper", "alicea", "other"}),
        ({"namespacePath": "/nowhere/"}, set()),
    ],
)
async def test_namespaces(operator: Client, memory: str, where: dict[str, str], expected: set[str]) -> None:
    await put(
        operator,
        memory,
        record("alice", "/facts/alice/"),
        record("deeper", "/facts/alice/work"),
        record("alicea", "/facts/alicea/"),
        record("other", "/notes/of/nobody"),
        record("nowhere"),
    )
    assert set(await texts(operator, memory, **where)) == expected
    assert set(await found(operator, memory, "alice deeper alicea other nowhere", **where)) == expected


async def test_exactly_one_namespace_and_no_wildcard(operator: Client, memory: str) -> None:
    for where in ({}, {"namespace": "/a/", "namespacePath": "/a/"}, {"namespace": "*"}, {"namespacePath": "/a/*"}):
        with pytest.raises(ValidationException):
            await texts(operator, memory, **where)
        with pytest.raises(ValidationException):
            await found(operator, memory, "x", **where)


async def test_what_is_not_there(operator: Client, memory: str) -> None:
    for call in (
        operator.get_memory_record(memoryId=memory, memoryRecordId=UNKNOWN),
        operator.delete_memory_record(memoryId=memory, memoryRecordId=UNKNOWN),
        operator.list_memory_records(memoryId="none-0123456789", namespace="/a/"),
        operator.batch_create_memory_records(memoryId="none-0123456789", records=[]),
    ):
        with pytest.raises(ResourceNotFoundException):
            await call
    [record_id] = await put(operator, memory, record("x", "/facts/alice/"))
    for operation in (operator.get_memory_record, operator.delete_memory_record):
        with pytest.raises(ResourceNotFoundException):  # not in the namespace it is said to be in
            await operation(memoryId=memory, memoryRecordId=record_id, namespace="/facts/bob/")
    answer = await operator.delete_memory_record(memoryId=memory, memoryRecordId=record_id, namespace="facts/alice")
    assert answer == {"memoryRecordId": record_id}
    with pytest.raises(ResourceNotFoundException):
        await operator.get_memory_record(memoryId=memory, memoryRecordId=record_id)


async def test_each_record_of_a_batch_stands_alone(operator: Client, memory: str) -> None:
    answer = await operator.batch_create_memory_records(
        memoryId=memory,
        records=[
            record("good", "/facts/alice/", identifier="a"),
            record("wildcard", "/facts/*/", identifier="b"),
            record("strategy", "/facts/alice/", identifier="c", memoryStrategyId="none-such"),
            record("number", "/facts/alice/", identifier="d", metadata={"weight": {"numberValue": float("nan")}}),
        ],
    )
    [good] = answer["successfulRecords"]
    assert (good["requestIdentifier"], good["status"]) == ("a", "SUCCEEDED")
    assert [(one["requestIdentifier"], one["status"], one["errorCode"]) for one in answer["failedRecords"]] == [
        (name, "FAILED", 400) for name in "bcd"
    ]
    assert all(one["errorMessage"] and len(one["memoryRecordId"]) == 40 for one in answer["failedRecords"])
    assert await texts(operator, memory, namespacePath="/") == ["good"]

    change = {"timestamp": WHEN, "content": {"text": "better"}}
    answer = await operator.batch_update_memory_records(
        memoryId=memory,
        records=[
            {"memoryRecordId": good["memoryRecordId"], **change},
            {"memoryRecordId": good["memoryRecordId"], **change},
            {"memoryRecordId": UNKNOWN, **change},
        ],
    )
    assert [one["memoryRecordId"] for one in answer["successfulRecords"]] == [good["memoryRecordId"]]
    assert [one["errorCode"] for one in answer["failedRecords"]] == [400, 404]
    assert await texts(operator, memory, namespacePath="/") == ["better"]

    answer = await operator.batch_delete_memory_records(
        memoryId=memory,
        records=[
            {"memoryRecordId": good["memoryRecordId"], "namespace": "/facts/bob/"},
            {"memoryRecordId": good["memoryRecordId"]},
            {"memoryRecordId": UNKNOWN},
        ],
    )
    assert [one["memoryRecordId"] for one in answer["successfulRecords"]] == [good["memoryRecordId"]]
    assert [one["errorCode"] for one in answer["failedRecords"]] == [404, 404]
    assert await texts(operator, memory, namespacePath="/") == []


async def test_an_update_changes_what_it_names(operator: Client, memory: str) -> None:
    metadata = {"topic": {"stringValue": "drinks"}}
    [record_id] = await put(operator, memory, record("likes tea", "/facts/alice/", metadata=metadata))

    async def update(**change: Any) -> dict[str, Any]:
        answer = await operator.batch_update_memory_records(
            memoryId=memory, records=[{"memoryRecordId": record_id, "timestamp": WHEN, **change}]
        )
        assert answer["failedRecords"] == [], answer
        got: dict[str, Any] = (await operator.get_memory_record(memoryId=memory, memoryRecordId=record_id))[
            "memoryRecord"
        ]
        return got

    later = WHEN + timedelta(days=1)
    got = await update(timestamp=later)
    assert (got["content"]["text"], got["metadata"], got["timestamp"]) == ("likes tea", metadata, later)
    got = await update(content={"text": "likes coffee"}, sourceNamespaces=["/facts/alice"])
    assert (got["namespaces"], got["metadata"]) == (["/facts/alice/"], metadata)
    assert await found(operator, memory, "tea", namespacePath="/") == []
    got = await update(namespaces=["preferences/alice"], metadata={"topic": {"stringValue": "coffee"}})
    assert (got["namespaces"], got["metadata"]) == (["/preferences/alice/"], {"topic": {"stringValue": "coffee"}})
    answer = await operator.batch_update_memory_records(
        memoryId=memory,
        records=[{"memoryRecordId": record_id, "timestamp": WHEN, "namespaces": ["/preferences/bob/"]}],
    )
    assert "stays with its actor" in answer["failedRecords"][0]["errorMessage"]
    assert await texts(operator, memory, namespacePath="/") == ["likes coffee"]


def filter_on(key: str, operator: str, **right: Any) -> dict[str, Any]:
    return {"left": {"metadataKey": key}, "operator": operator} | ({"right": {"metadataValue": right}} if right else {})


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (filter_on("topic", "EQUALS_TO", stringValue="tea"), {"cup"}),
        (filter_on("weight", "EQUALS_TO", numberValue=2), {"cup"}),
        (filter_on("topic", "EXISTS"), {"cup", "jug"}),
        (filter_on("topic", "NOT_EXISTS"), {"pot"}),
        (filter_on("tags", "CONTAINS", stringListValue=["hot", "leaf"]), {"cup"}),
        (filter_on("tags", "CONTAINS", stringValue="hot"), {"cup", "jug"}),
        (filter_on("weight", "GREATER_THAN", numberValue=2), {"jug"}),
        (filter_on("weight", "GREATER_THAN_OR_EQUALS", numberValue=2), {"cup", "jug"}),
        (filter_on("weight", "LESS_THAN", numberValue=3), {"cup"}),
        (filter_on("weight", "LESS_THAN_OR_EQUALS", numberValue=3), {"cup", "jug"}),
        (filter_on("topic", "BEFORE", dateTimeValue=WHEN + timedelta(days=1)), {"mug"}),
        (filter_on("topic", "AFTER", dateTimeValue=WHEN + timedelta(days=1)), set()),
    ],
)
async def test_metadata_filters(operator: Client, memory: str, condition: Any, expected: set[str]) -> None:
    def having(text: str, **metadata: Any) -> dict[str, Any]:
        return record(text, "/facts/alice/", **({"metadata": metadata} if metadata else {}))

    tea, milk, hot, leaf = ({"stringValue": "tea"}, {"stringValue": "milk"}, "hot", "leaf")
    await put(
        operator,
        memory,
        having("cup", topic=tea, tags={"stringListValue": [hot, leaf]}, weight={"numberValue": 2}),
        having("jug", topic=milk, tags={"stringListValue": [hot]}, weight={"numberValue": 3}),
        having("pot"),
    )
    if expected == {"mug"} or condition["operator"] == "AFTER":
        await put(operator, memory, having("mug", topic={"dateTimeValue": WHEN}))
    where = {"namespace": "/facts/alice/"}
    assert set(await texts(operator, memory, **where, metadataFilters=[condition])) == expected
    assert set(await found(operator, memory, "cup jug pot mug", {"metadataFilters": [condition]}, **where)) == expected


@pytest.mark.parametrize(
    "condition",
    [
        filter_on("colour", "EXISTS"),
        filter_on("topic", "EXISTS", stringValue="tea"),
        filter_on("topic", "EQUALS_TO"),
        filter_on("topic", "BEFORE", stringValue="yesterday"),
        filter_on("weight", "GREATER_THAN", stringValue="1"),
        filter_on("weight", "GREATER_THAN", numberValue=float("inf")),
    ],
)
async def test_refuses_filters_that_are_none(operator: Client, memory: str, condition: Any) -> None:
    with pytest.raises(ValidationException):
        await texts(operator, memory, namespacePath="/", metadataFilters=[condition])


async def test_strategies(operator: Client, memory: str) -> None:
    strategy = {
        "semanticMemoryStrategy": {"name": "facts", "recordExpirySpecification": {"recordExpiryDurationDays": 40}}
    }
    updated = await operator.update_memory(memoryId=memory, memoryStrategies={"addMemoryStrategies": [strategy]})
    strategy_id = updated["memory"]["strategies"][0]["strategyId"]
    [of_strategy, _] = await put(
        operator,
        memory,
        record("of a strategy", f"/strategies/{strategy_id}/actors/alice/", memoryStrategyId=strategy_id),
        record("of none", "/facts/alice/"),
    )
    where = {"namespacePath": "/"}
    assert await texts(operator, memory, **where, memoryStrategyId=strategy_id) == ["of a strategy"]
    assert await found(operator, memory, "none strategy", {"memoryStrategyId": "none"}, **where) == ["of none"]
    got = (await operator.get_memory_record(memoryId=memory, memoryRecordId=of_strategy))["memoryRecord"]
    assert got["memoryStrategyId"] == strategy_id
    assert got["expiresAt"] - got["createdAt"] == timedelta(days=40)  # as the strategy keeps them


async def test_expiry(operator: Client, memory: str, clock: SetClock, search: SqliteSearchStore) -> None:
    """MEM-4: a record's time is over for every reader, whether or not it has been removed from the disk."""
    spec = {"recordExpirySpecification": {"recordExpiryDurationDays": 31}}
    gone, kept = await put(operator, memory, record("gone", "/facts/a/"), record("kept", "/facts/a/"), **spec)
    got = (await operator.get_memory_record(memoryId=memory, memoryRecordId=gone))["memoryRecord"]
    assert got["expiresAt"] - got["createdAt"] == timedelta(days=31)
    await operator.batch_update_memory_records(
        memoryId=memory,
        records=[{"memoryRecordId": kept, "timestamp": WHEN}],
        recordExpirySpecification={"action": "REMOVE"},
    )
    assert "expiresAt" not in (await operator.get_memory_record(memoryId=memory, memoryRecordId=kept))["memoryRecord"]
    await clock.sleep(32 * 86400)
    assert await texts(operator, memory, namespacePath="/") == ["kept"]
    assert await found(operator, memory, "gone kept", namespacePath="/") == ["kept"]
    with pytest.raises(ResourceNotFoundException):
        await operator.get_memory_record(memoryId=memory, memoryRecordId=gone)
    assert await search.purge() == 1


async def test_what_has_expired_leaves_the_disk_by_itself(
    operator: Client, memory: str, store: KeyValueStore, search: SqliteSearchStore, clock: SetClock
) -> None:
    spec = {"recordExpirySpecification": {"recordExpiryDurationDays": 31}}
    await put(operator, memory, record("gone", "/facts/a/"), **spec)
    await clock.sleep(32 * 86400)
    plane = MemoryPlane(store, Deployment(), clock, search, key_service=KEY_SERVICE)
    await plane.start()
    await plane.close()
    assert await search.purge() == 0


async def test_pages_are_complete_while_others_write(operator: Client, memory: str, clock: SetClock) -> None:
    for number in range(13):
        await put(operator, memory, record(f"tea {number}", "/facts/alice/"))
        await clock.sleep(number % 2)
    seen: list[str] = []
    more: dict[str, str] = {}
    while True:
        page = await operator.list_memory_records(memoryId=memory, namespacePath="/facts/", maxResults=5, **more)
        seen += [one["content"]["text"] for one in page["memoryRecordSummaries"]]
        if "nextToken" not in page:
            break
        more = {"nextToken": page["nextToken"]}
        last = page["memoryRecordSummaries"][-1]["memoryRecordId"]
        await operator.delete_memory_record(memoryId=memory, memoryRecordId=last)
        await clock.sleep(1)
        await put(operator, memory, record("late", "/facts/alice/"))
    assert sorted(seen) == sorted(f"tea {number}" for number in range(13))


async def test_the_best_come_in_pages(operator: Client, memory: str) -> None:
    await put(
        operator, memory, *(record("tea " * (1 + number % 4) + "leaf " * number, "/facts/a/") for number in range(9))
    )
    criteria = {"searchQuery": "tea", "topK": 7}
    whole = await operator.retrieve_memory_records(
        memoryId=memory, namespace="/facts/a/", searchCriteria=criteria, maxResults=100
    )
    assert "nextToken" not in whole
    scores = [one["score"] for one in whole["memoryRecordSummaries"]]
    assert len(scores) == 7
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    pages: list[Any] = []
    more: dict[str, str] = {}
    while True:
        page = await operator.retrieve_memory_records(
            memoryId=memory, namespace="/facts/a/", searchCriteria=criteria, maxResults=3, **more
        )
        pages += page["memoryRecordSummaries"]
        if "nextToken" not in page:
            break
        more = {"nextToken": page["nextToken"]}
    assert pages == whole["memoryRecordSummaries"]


@pytest.mark.parametrize("sort", ["", "x", "1 2", "1 x mem", "'; DROP TABLE documents", "9" * 40 + ".mem"])
async def test_refuses_tokens_it_never_gave(operator: Client, memory: str, sort: str) -> None:
    token = base64.urlsafe_b64encode(sort.encode()).decode()
    with pytest.raises(ValidationException):
        await texts(operator, memory, namespacePath="/", nextToken=token)
    with pytest.raises(ValidationException):
        await found(operator, memory, "x", namespacePath="/", nextToken=token)


async def test_a_token_makes_its_records_once(operator: Client, memory: str) -> None:
    batch = {"memoryId": memory, "records": [record("x", "/facts/a/", identifier="x"), record("*", "/*/")]}
    first = await operator.batch_create_memory_records(**batch, token="t")
    await operator.batch_delete_memory_records(
        memoryId=memory, records=[{"memoryRecordId": first["successfulRecords"][0]["memoryRecordId"]}]
    )
    assert await operator.batch_create_memory_records(**batch, token="t") == first
    assert await texts(operator, memory, namespacePath="/") == []  # what was deleted since stays so
    with pytest.raises(ValidationException) as refused:
        await operator.batch_create_memory_records(memoryId=memory, records=[record("y", "/facts/a/")], token="t")
    assert refused.value.reason == "IdempotentParameterMismatchException"


async def test_a_repetition_after_a_failure_halfway_makes_no_second_record(
    operator: Client, memory: str, store: KeyValueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXE-6: the records were written, and then the platform died before it could say so."""
    transact = store.transact

    async def die(*arguments: Any, **rest: Any) -> Any:
        if arguments[0] and rest.get("once") is not None and rest["once"].reference:
            raise ConnectionError
        return await transact(*arguments, **rest)

    batch = {"memoryId": memory, "records": [record("x", "/facts/a/"), record("y", "/facts/b/")], "token": "t"}
    with monkeypatch.context() as dying:
        dying.setattr(store, "transact", die)
        with pytest.raises(ConnectionError):
            await operator.batch_create_memory_records(**batch)
    answer = await operator.batch_create_memory_records(**batch)
    assert len(answer["successfulRecords"]) == 2
    assert sorted(await texts(operator, memory, namespacePath="/")) == ["x", "y"]


async def test_a_deleted_memory_leaves_no_records(
    backend: SelfBackend, operator: Client, memory: str, search: SqliteSearchStore
) -> None:
    await put(operator, memory, record("x", "/facts/a/"), record("y", "/nobody/knows/"), record("z"))
    await put(Client(backend, session_of("a")), memory, record("w", "/a/s/"))
    assert len((await search.newest(Beneath(f"memory/records/{memory}"))).documents) == 4
    await operator.delete_memory(memoryId=memory)
    assert (await search.newest(Beneath("memory/records"))).documents == []
    with pytest.raises(ResourceNotFoundException):
        await texts(operator, memory, namespacePath="/")


async def test_a_write_that_meets_a_deletion_leaves_nothing(
    operator: Client, memory: str, search: SqliteSearchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert = search.upsert

    async def late(*arguments: Any, **rest: Any) -> None:
        await operator.delete_memory(memoryId=memory)
        await upsert(*arguments, **rest)

    monkeypatch.setattr(search, "upsert", late)
    with pytest.raises(ResourceNotFoundException):
        await operator.batch_create_memory_records(memoryId=memory, records=[record("late", "/facts/a/")])
    assert (await search.newest(Beneath("memory/records"))).documents == []
