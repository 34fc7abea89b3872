"""MEM-4: records of a category are kept for as long as it says, and not a moment longer."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentkeep.core.errors import ValidationException
from agentkeep.memory.long_term.categories import limited
from agentkeep.memory.tags import expiries
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import Client, SetClock

SHORT = {"agentkeep:expiry:facts": "2", "agentkeep:expiry:/notes/": "1", "agentkeep:expiry:/notes/alice/long": "9"}


async def create(operator: Client, tags: dict[str, str], days: int | None = None) -> tuple[str, str]:
    """A memory with a strategy `facts`; both ids."""
    strategy: dict[str, Any] = {"name": "facts", "namespaces": ["/facts/{actorId}/"]}
    if days is not None:
        strategy["recordExpirySpecification"] = {"recordExpiryDurationDays": days}
    answer = await operator.create_memory(
        name="m", eventExpiryDuration=7, tags=tags, memoryStrategies=[{"semanticMemoryStrategy": strategy}]
    )
    return answer["memory"]["id"], answer["memory"]["strategies"][0]["strategyId"]


async def write(operator: Client, memory: str, namespace: str, strategy: str | None = None, **request: Any) -> str:
    one: dict[str, Any] = {
        "requestIdentifier": "r",
        "namespaces": [namespace],
        "content": {"text": "a fact"},
        "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
    }
    if strategy is not None:
        one["memoryStrategyId"] = strategy
    answer = await operator.batch_create_memory_records(memoryId=memory, records=[one], **request)
    return str(answer["successfulRecords"][0]["memoryRecordId"])


async def update(operator: Client, memory: str, record: str, **changes: Any) -> None:
    request = {name: changes.pop(name) for name in ("recordExpirySpecification",) if name in changes}
    changed = {"memoryRecordId": record, "timestamp": datetime(2026, 1, 2, tzinfo=UTC), **changes}
    answer = await operator.batch_update_memory_records(memoryId=memory, records=[changed], **request)
    assert not answer["failedRecords"]


async def seen(operator: Client, memory: str) -> set[str]:
    """By list and by search, which agree."""
    listed = await operator.list_memory_records(memoryId=memory, namespacePath="/")
    found = await operator.retrieve_memory_records(
        memoryId=memory, namespacePath="/", searchCriteria={"searchQuery": "fact"}
    )
    ids = {one["memoryRecordId"] for one in listed["memoryRecordSummaries"]}
    assert ids == {one["memoryRecordId"] for one in found["memoryRecordSummaries"]}
    return ids


async def test_each_category_has_its_own_time(
    operator: Client, clock: SetClock, search: SqliteSearchStore, tmp_path: Path
) -> None:
    memory, facts = await create(operator, SHORT, days=31)
    fact = await write(operator, memory, "/facts/alice/", facts)
    note = await write(operator, memory, "/notes/alice/")
    long = await write(operator, memory, "/notes/alice/long/")
    other = await write(operator, memory, "/facts/alice/")
    assert await seen(operator, memory) == {fact, note, long, other}
    day = timedelta(days=1)
    clock.moment += day - timedelta(milliseconds=2)
    assert await seen(operator, memory) == {fact, note, long, other}
    clock.moment += timedelta(milliseconds=2)
    assert await seen(operator, memory) == {fact, other}  # the shortest of those that apply
    clock.moment += day
    assert await seen(operator, memory) == {other}
    assert await search.purge() == 3
    files = b"".join(file.read_bytes() for file in tmp_path.glob("records.db*"))
    assert [one for one in (fact, note, long, other) if one.encode() in files] == [other]


async def test_who_writes_may_ask_for_less_and_not_for_more(operator: Client, clock: SetClock) -> None:
    memory, facts = await create(operator, {"agentkeep:expiry:facts": "40"})
    more = {"recordExpirySpecification": {"recordExpiryDurationDays": 400}}
    less = {"recordExpirySpecification": {"recordExpiryDurationDays": 31}}
    for request, days in ((more, 40), (less, 31), ({}, 40)):
        record = await write(operator, memory, "/facts/alice/", facts, **request)
        ends = (await operator.get_memory_record(memoryId=memory, memoryRecordId=record))["memoryRecord"]["expiresAt"]
        assert ends - clock.moment < timedelta(days=days)
        assert ends - clock.moment > timedelta(days=days, seconds=-1)


async def test_an_update_keeps_the_time(operator: Client, clock: SetClock) -> None:
    """It does not begin again; and in another category that one's goes for it too."""
    memory, facts = await create(operator, {"agentkeep:expiry:facts": "5", "agentkeep:expiry:/preferences/": "1"})
    kept = await write(operator, memory, "/facts/alice/", facts)
    moved = await write(operator, memory, "/facts/alice/", facts)
    clock.moment += timedelta(days=3)
    await update(operator, memory, kept, content={"text": "another fact"})
    await update(operator, memory, moved, namespaces=["/preferences/alice/"])
    more = {"recordExpiryDurationDays": 400}
    asked = await write(operator, memory, "/facts/alice/", facts)
    await update(operator, memory, asked, recordExpirySpecification=more)
    clock.moment += timedelta(days=1)
    assert await seen(operator, memory) == {kept, asked}
    clock.moment += timedelta(days=1)
    assert await seen(operator, memory) == {asked}
    clock.moment += timedelta(days=3)
    assert await seen(operator, memory) == set()


@pytest.mark.parametrize(
    ("key", "value"),
    [("facts", "0"), ("facts", "1.5"), ("facts", "-1"), ("facts", "soon"), ("", "3"), ("/", "3"), ("facts", "36501")],
)
async def test_a_tag_that_says_nothing_is_refused(operator: Client, key: str, value: str) -> None:
    with pytest.raises(ValidationException, match="agentkeep:expiry"):
        await create(operator, {f"agentkeep:expiry:{key}": value})
    memory, _ = await create(operator, {})
    arn = (await operator.get_memory(memoryId=memory))["memory"]["arn"]
    with pytest.raises(ValidationException, match="agentkeep:expiry"):
        await operator.tag_resource(resourceArn=arn, tags={f"agentkeep:expiry:{key}": value})


def test_categories_of_a_namespace_are_whole_segments() -> None:
    tags = {"agentkeep:expiry:/facts": "3"}
    assert expiries(tags) == {"/facts/": 3}
    kept: Callable[[str], int | None] = lambda path: limited(None, tags, None, path)  # noqa: E731
    assert [kept(path) for path in ("/facts/", "/facts/alice/", "/factsheets/", "/a/facts/")] == [3, 3, None, None]
