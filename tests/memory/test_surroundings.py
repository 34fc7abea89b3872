"""MEM-1, MEM-4: records are found by what stood around them, and that is kept right as they come, change and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentkeep.memory.long_term.record import Record, Turn
from agentkeep.memory.long_term.writing import RecordWriter
from agentkeep.storage.search import Document, Selection, Vector
from agentkeep.storage.search_sqlite import SqliteSearchStore

HOME = "memory/records/m/of/alice"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
async def search(tmp_path: Path) -> AsyncIterator[SqliteSearchStore]:
    search = SqliteSearchStore(tmp_path / "r.db", dimensions=4)
    yield search
    await search.close()


@pytest.fixture
def writer(search: SqliteSearchStore) -> RecordWriter:
    return RecordWriter(search)


def vector(*numbers: float) -> Vector:
    return np.array(numbers, np.float32)


def record(id: str, minute: float = 0, **members: object) -> Record:
    made = Record(
        id, f"word{id}", "alice", "/facts/alice/", None, NOON + timedelta(minutes=minute), int(minute * 1000), None, {}
    )
    return replace(made, **members)  # type: ignore[arg-type]


def turns(ids: str) -> list[Record]:
    return [record(id, minute) for minute, id in enumerate(ids)]


async def around(search: SqliteSearchStore, id: str) -> tuple[list[str], list[str]]:
    """The words next to a record, and those a step further."""
    [document] = await search.get(HOME, [id])
    assert document is not None
    return document.context.split(), document.farther.split()


async def as_if_new(search: SqliteSearchStore, tmp_path: Path, ids: Sequence[str]) -> None:
    """All are as they would be if they had been written at once in this order."""
    other = SqliteSearchStore(tmp_path / "other.db", dimensions=4)
    documents = await search.get(HOME, ids)
    records = [Record.of(document) for document in documents if document is not None]
    await RecordWriter(other).add(HOME, records)
    for found, expected in zip(documents, await other.get(HOME, ids), strict=True):
        assert found is not None and expected is not None
        assert sorted(found.context.split()) == sorted(expected.context.split())
        assert sorted(found.farther.split()) == sorted(expected.farther.split())
        if expected.vector is not None:
            assert found.vector is not None
            np.testing.assert_allclose(found.vector, expected.vector, atol=2e-3)
    await other.close()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_two_each_way(search: SqliteSearchStore, writer: RecordWriter, tmp_path: Path, size: int) -> None:
    """In batches of any size."""
    records = turns("abcdefg")
    for at in range(0, len(records), size):
        await writer.add(HOME, records[at : at + size])
    assert await around(search, "a") == (["wordb"], ["wordc"])
    assert await around(search, "d") == (["wordc", "worde"], ["wordb", "wordf"])
    assert await around(search, "g") == (["wordf"], ["worde"])
    await as_if_new(search, tmp_path, "abcdefg")


async def test_in_whatever_order_they_come(search: SqliteSearchStore, writer: RecordWriter, tmp_path: Path) -> None:
    records = {one.id: one for one in turns("abcdefg")}
    await asyncio.gather(*(writer.add(HOME, [records[id]]) for id in "dbgaecf"))
    await as_if_new(search, tmp_path, "abcdefg")


async def test_the_same_batch_again_changes_nothing(search: SqliteSearchStore, writer: RecordWriter) -> None:
    await writer.add(HOME, turns("abc"))
    before = await around(search, "b")
    await writer.add(HOME, turns("abc"))
    assert await around(search, "b") == before


async def test_only_what_belongs_together(search: SqliteSearchStore, writer: RecordWriter) -> None:
    """Neither another namespace, strategy or session, nor what was said hours later; nor what is gone much earlier."""
    await writer.add(
        HOME,
        [
            record("a", 0),
            record("b", 1, namespace="/facts/alice/else/"),
            record("c", 2, strategy_id="s-1"),
            record("d", 3, turn=Turn("session-1", "001", "user")),
            record("e", 4, turn=Turn("session-2", "001", "user")),
            record("f", 180),
            record("g", 181, expires_ms=10**15),
            record("h", 182, namespace=None),
        ],
    )
    for id in "abcdeh":
        assert await around(search, id) == ([], [])
    assert await around(search, "f") == ([], [])
    assert await around(search, "g") == (["wordf"], [])


async def test_turns_stand_by_their_place(search: SqliteSearchStore, writer: RecordWriter) -> None:
    """Whatever time passes between them."""
    said = [record(id, 600 * n, turn=Turn("s", f"{9 - n}", "user")) for n, id in enumerate("cba")]
    await writer.add(HOME, said)
    assert await around(search, "a") == (["wordb"], ["wordc"])


async def test_sessions_that_mix(search: SqliteSearchStore, writer: RecordWriter, tmp_path: Path) -> None:
    one, other = (
        [record(f"{name}{n}", n, turn=Turn(name, f"{n}", "user")) for n in range(4)] for name in ("one", "two")
    )
    for pair in zip(one, other, strict=True):
        for each in pair:
            await writer.add(HOME, [each])
    assert await around(search, "one1") == (["wordone0", "wordone2"], ["wordone3"])
    await as_if_new(search, tmp_path, [each.id for each in (*one, *other)])


async def test_what_is_deleted_leaves_nothing(search: SqliteSearchStore, writer: RecordWriter, tmp_path: Path) -> None:
    vectors = dict(zip("abcdef", np.eye(6, 4, dtype=np.float32) + 0.1, strict=True))
    await writer.add(HOME, [replace(one, vector=vectors[one.id]) for one in turns("abcdef")])
    assert (await search.search(HOME, text="wordc"))[0].document.id == "c"
    assert await writer.remove(HOME, ["c", "x", "d", "c"]) == ["c", "d"]
    for gone in ("wordc", "wordd"):
        assert await search.search(HOME, text=gone) == []
    await as_if_new(search, tmp_path, "ab")
    assert await around(search, "b") == (["worda"], [])
    [left] = await search.get(HOME, ["b"])
    assert left is not None and left.vector is not None
    expected = vectors["b"] + 0.5 * vectors["a"]
    np.testing.assert_allclose(left.vector, expected / np.linalg.norm(expected), atol=2e-3)
    assert await writer.remove(HOME, ["c"]) == []


async def test_what_is_changed_is_changed_around(search: SqliteSearchStore, writer: RecordWriter) -> None:
    await writer.add(HOME, turns("abcd"))
    [document] = await search.get(HOME, ["b"])
    assert document is not None
    changed = replace(Record.of(document), text="Mei: oysters", timestamp=NOON + timedelta(days=9))
    assert await writer.replace(HOME, [changed, record("x")]) == ["b"]
    assert await around(search, "b") == (["worda", "wordc"], ["wordd"])
    assert await around(search, "a") == (["oysters"], ["wordc"])
    assert await around(search, "d") == (["wordc"], ["oysters"])
    assert await search.search(HOME, text="wordb") == []


async def test_what_is_moved_stands_alone(search: SqliteSearchStore, writer: RecordWriter) -> None:
    await writer.add(HOME, turns("abc"))
    [document] = await search.get(HOME, ["b"])
    assert document is not None
    await writer.replace(HOME, [replace(Record.of(document), namespace="/facts/alice/else/")])
    assert await around(search, "b") == ([], [])
    assert await around(search, "a") == (["wordc"], [])
    [hit] = await search.search(HOME, text="wordb")
    assert hit.document.id == "b"


async def test_vectors_are_averaged_and_the_own_is_kept(search: SqliteSearchStore, writer: RecordWriter) -> None:
    await writer.add(HOME, [record("a", 0, vector=vector(1, 0, 0, 0)), record("b", 1, vector=vector(0, 1, 0, 0))])
    [document] = await search.get(HOME, ["a"])
    assert document is not None and document.vector is not None
    np.testing.assert_allclose(document.vector, np.array([2, 1, 0, 0]) / 5**0.5, atol=1e-3)
    own = Record.of(document)
    assert own.vector is not None
    np.testing.assert_allclose(own.vector, [1, 0, 0, 0], atol=1e-3)
    opposite = record("c", 2, vector=vector(0, -1, 0, 0))
    await writer.add(HOME, [opposite])
    [hit] = [hit for hit in await search.search(HOME, vector=vector(0, -1, 0, 0)) if hit.document.id == "c"]
    assert hit.similarity is not None and hit.similarity > 0.5


async def test_one_more_changes_four_at_most(search: SqliteSearchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RecordWriter(search)
    await writer.add(HOME, turns("abcdefgh"))
    written: list[str] = []
    upsert = search.upsert

    async def counted(partition: str, documents: Sequence[Document], **rest: Any) -> None:
        written.extend(document.id for document in documents)
        await upsert(partition, documents, **rest)

    monkeypatch.setattr(search, "upsert", counted)
    await writer.add(HOME, [record("i", 8)])
    assert sorted(written) == ["g", "h", "i"]
    written.clear()
    await writer.add(HOME, [record("between", 3.5)])
    assert sorted(written) == ["between", "c", "d", "e", "f"]
    written.clear()
    await writer.remove(HOME, ["d"])
    assert sorted(written) == ["b", "between", "c", "e"]


async def test_long_after(search: SqliteSearchStore, writer: RecordWriter, tmp_path: Path) -> None:
    """Beyond what is looked through for a place, links at the end stay as they were."""
    records = [record(f"n{n:03}", n) for n in range(150)]
    for at in range(0, 150, 10):
        await writer.add(HOME, records[at : at + 10])
    page = await search.newest(HOME, Selection(namespace="/facts/alice/"), limit=200)
    assert len(page.documents) == 150
    await as_if_new(search, tmp_path, [one.id for one in records])
