"""Faults of the SQLite search store's file: each is told with what to do, and none passes for an empty file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest

from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage import sqlite
from agentkeep.storage.search import Beneath, Selection
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.sqlite import SqliteFile
from agentkeep.testing.search import ALICE, BOB, DIMENSIONS, document, vector


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteSearchStore]:
    store = SqliteSearchStore(path, dimensions=DIMENSIONS)
    yield store
    await store.close()


async def test_a_file_that_is_no_database(path: Path, store: SqliteSearchStore) -> None:
    path.write_bytes(b"not a database, " * 100)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"records\.db.*damaged.*backup"):
            await store.upsert(ALICE, [document("a")])
        with pytest.raises(StoreUnavailable, match="damaged"):
            await store.search(ALICE, text="tea")
    assert path.read_bytes().startswith(b"not a database")


async def test_an_empty_file_is_not_taken_for_a_new_one(path: Path, store: SqliteSearchStore) -> None:
    """Truncated by whatever: an answer that there are no records would be a lie."""
    path.touch()
    with pytest.raises(StoreUnavailable, match=r"there, but empty.*backup"):
        await store.newest(ALICE)
    path.unlink()
    assert (await store.newest(ALICE)).documents == []


async def test_a_file_that_was_cut_or_overwritten(path: Path) -> None:
    """Never less than was there, without an error; and once put back, it is as it was, without a restart."""
    first = SqliteSearchStore(path, dimensions=DIMENSIONS)
    await first.upsert(ALICE, [document(f"d{n}", f"tea {n} " * 50, vector=vector(1, n, 0, 0)) for n in range(200)])
    await first.close()
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4096], whole[:8192] + os.urandom(len(whole) - 8192)):
        path.write_bytes(damaged)
        other = SqliteSearchStore(path, dimensions=DIMENSIONS)
        with pytest.raises(StoreUnavailable, match="damaged"):
            await other.search(ALICE, text="tea", vector=vector(1, 0, 0, 0), limit=500)
        path.write_bytes(whole)
        assert len(await other.search(ALICE, text="tea", limit=500)) == 200
        await other.close()


async def test_contents_that_are_gone_are_an_error(path: Path, store: SqliteSearchStore) -> None:
    await store.upsert(ALICE, [document("a", "tea"), document("b", "tea")])
    other = apsw.Connection(str(path))
    other.execute("DELETE FROM contents WHERE number = 1")
    for call in (store.search(ALICE, text="tea"), store.newest(ALICE)):
        with pytest.raises(StoreUnavailable, match=r"lost its contents.*damaged"):
            await call
    other.execute("UPDATE features SET words = x'01'; UPDATE partitions SET changes = 7; UPDATE records SET change = 7")
    with pytest.raises(StoreUnavailable, match=r"cut off.*damaged"):
        await store.search(ALICE, text="tea")
    other.close()


async def test_a_locked_file(path: Path, store: SqliteSearchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads go on; a write is refused in bounded time, and does as well later."""
    monkeypatch.setattr(sqlite, "BUSY_MS", 100)
    await store.upsert(ALICE, [document("a", "tea")])
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    assert len(await store.search(ALICE, text="tea")) == 1
    for call in (store.upsert(ALICE, [document("b", "tea")]), store.delete(ALICE, ["a"]), store.purge()):
        with pytest.raises(StoreUnavailable, match="locked; nothing was changed"):
            await call
    other.execute("ROLLBACK")
    other.close()
    assert await store.get(ALICE, ["b"]) == [None]
    await store.upsert(ALICE, [document("b", "tea")])
    assert len(await store.search(ALICE, text="tea")) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("NOT SHOWN: a full disk; no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    """What was acknowledged stays and is served; the refusal says what to do, and with room again writing goes on."""
    store = SqliteSearchStore(small_disk / "records.db", dimensions=DIMENSIONS)
    taken = 0

    async def fill() -> None:
        nonlocal taken
        while taken < 1000:
            await store.upsert(ALICE, [document(f"d{taken}-{n}", "tea", body=os.urandom(2000)) for n in range(10)])
            taken += 1

    with pytest.raises(StoreUnavailable, match=r"disk.*nothing was changed: make room"):
        await fill()
    assert 0 < taken < 1000
    assert len(await store.search(ALICE, text="tea", limit=5000)) == 10 * taken
    assert await store.get(ALICE, [f"d{taken}-0"]) == [None]
    assert subprocess.run(["mount", "-o", "remount,size=8m", small_disk]).returncode == 0
    await store.upsert(ALICE, [document("more", "tea", body=os.urandom(2000))])
    assert len(await store.search(ALICE, text="tea", limit=5000)) == 10 * taken + 1
    await store.close()


async def test_waiting_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not get its turn is refused and never done; nor is what its caller has given up."""
    monkeypatch.setattr(sqlite, "MOST_WAITING", 3)
    file = SqliteFile(path, lambda connection: connection.execute("CREATE TABLE IF NOT EXISTS t (a)").close())
    await file.write(lambda _: None)
    file._patience = 0.1
    go_on = threading.Event()
    begun = asyncio.create_task(file.write(lambda _: go_on.wait(30)))
    await asyncio.sleep(0)

    def put(number: int) -> asyncio.Task[None]:
        return asyncio.create_task(
            file.write(lambda connection: connection.execute("INSERT INTO t VALUES (?)", (number,)).close())
        )

    began = time.monotonic()
    waiting = [put(number) for number in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    with pytest.raises(StoreUnavailable, match="busy with other work"):
        await waiting[0]
    with pytest.raises(StoreUnavailable, match="others wait"):
        await waiting[2]
    assert time.monotonic() - began < 5
    assert await file.read(lambda connection: connection.execute("SELECT * FROM t").fetchall()) == []
    go_on.set()
    await begun
    await put(9)
    assert await file.read(lambda connection: connection.execute("SELECT * FROM t").fetchall()) == [(9,)]
    await file.close()


FORMER = """
CREATE TABLE partitions (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE documents (
    number INTEGER PRIMARY KEY, partition INTEGER NOT NULL REFERENCES partitions, id TEXT NOT NULL,
    created_ms INTEGER NOT NULL, expires_ms INTEGER, words REAL NOT NULL, vector BLOB, namespaces TEXT NOT NULL,
    metadata TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (partition, id)
);
CREATE INDEX documents_by_place ON documents (partition, namespaces, expires_ms, words);
CREATE INDEX documents_by_id ON documents (id);
CREATE INDEX documents_by_time ON documents (partition, created_ms DESC, id DESC);
CREATE INDEX documents_by_expiry ON documents (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE places (
    namespace TEXT NOT NULL, partition INTEGER NOT NULL, PRIMARY KEY (namespace, partition)
) WITHOUT ROWID;
CREATE TABLE vectors (model TEXT NOT NULL, dimensions INTEGER NOT NULL);
CREATE VIRTUAL TABLE texts USING fts5 (
    partition, text, context, tokenize = 'porter unicode61 remove_diacritics 2'
);
INSERT INTO texts (texts, rank) VALUES ('secure-delete', 1);
INSERT INTO vectors VALUES ('one', 4);
INSERT INTO partitions VALUES (1, 'memory-1/alice'), (7, 'memory-1/bob');
INSERT INTO places VALUES ('/facts/', 1), ('/facts/', 7);
"""


def former(path: Path) -> None:
    """A file as Parts 1 to 3 made it."""
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute(FORMER).close()
    for number, partition in ((1, 1), (2, 1), (5, 7)):
        unit = None if number == 2 else np.array([0.6, 0.8, 0, 0], np.float32).tobytes()
        connection.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, NULL, 3.5, ?, ?, ?, ?)",
            (number, partition, f"r{number}", 1000 + number, unit, '["/facts/"]', '{"k":{"string":"v"}}', b"body"),
        )
        connection.execute(
            "INSERT INTO texts (rowid, partition, text, context) VALUES (?, ?, ?, ?)",
            (number, f"p{partition}", f"tea number {number}", "milk"),
        )
    connection.close()


async def test_a_file_of_the_former_layout_is_taken_over(path: Path) -> None:
    """With all that is in it, at once or not at all; and it is as one that was always of this layout."""
    former(path)
    for _ in range(2):
        store = SqliteSearchStore(path, dimensions=DIMENSIONS, model="one")
        page = await store.newest(Beneath("memory-1"), Selection(namespace="/facts/"))
        assert [(found.id, found.text, found.context, found.body) for found in page.documents] == [
            (f"r{number}", f"tea number {number}", "milk", b"body") for number in (5, 2, 1)
        ]
        assert all(found.metadata == {"k": "v"} for found in page.documents)
        hits = await store.search(ALICE, text="milk numbers", vector=vector(0.6, 0.8, 0, 0))
        assert {hit.document.id: hit.similarity for hit in hits} == {"r1": pytest.approx(1), "r2": None}
        assert len(await store.search(BOB, text="tea")) == 1
        await store.close()
    store = SqliteSearchStore(path, dimensions=DIMENSIONS, model="one")
    await store.upsert(ALICE, [document("r1", "coffee")])
    assert [hit.document.id for hit in await store.search(ALICE, text="tea")] == ["r2"]
    assert await store.delete_partition(Beneath("memory-1")) == 3
    await store.close()
    assert not any(b"tea number" in each.read_bytes() for each in path.parent.iterdir())


async def test_a_file_of_a_later_layout_is_refused(path: Path) -> None:
    store = SqliteSearchStore(path, dimensions=DIMENSIONS)
    await store.upsert(ALICE, [document("a")])
    await store.close()
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 99)
    connection.close()
    later = SqliteSearchStore(path, dimensions=DIMENSIONS)
    with pytest.raises(StoreUnavailable, match="later version of agentkeep"):
        await later.get(ALICE, ["a"])
    await later.close()
