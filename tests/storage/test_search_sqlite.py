"""The SQLite search store: the contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentkeep.core.clock import epoch_ms
from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage import search_sqlite
from agentkeep.storage.search import Beneath, Document, Selection
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.search_sqlite_blocks import BLOCK
from agentkeep.testing.search import (
    ALICE,
    BOB,
    DIMENSIONS,
    SearchStoreContract,
    SharedSearchStoreContract,
    document,
    vector,
)


@pytest.fixture
async def search_store(tmp_path: Path) -> AsyncIterator[SqliteSearchStore]:
    store = SqliteSearchStore(tmp_path / "records.db", dimensions=DIMENSIONS)
    yield store
    await store.close()


@pytest.fixture
async def other_store(tmp_path: Path) -> AsyncIterator[SqliteSearchStore]:
    store = SqliteSearchStore(tmp_path / "records.db", dimensions=DIMENSIONS)
    yield store
    await store.close()


class TestContract(SearchStoreContract, SharedSearchStoreContract):
    pass


async def test_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    first = SqliteSearchStore(path, dimensions=DIMENSIONS)
    await first.upsert(ALICE, [document("a", "tea", vector=vector(1, 0, 0, 0))])
    await first.close()
    second = SqliteSearchStore(path, dimensions=DIMENSIONS)
    [hit] = await second.search(ALICE, text="tea", vector=vector(1, 0, 0, 0))
    assert (hit.document.id, hit.similarity) == ("a", pytest.approx(1))
    await second.close()


async def test_refuses_quotes_in_namespaces(search_store: SqliteSearchStore) -> None:
    """By which it tells where a namespace begins."""
    with pytest.raises(ValueError, match="quotes"):
        await search_store.upsert(ALICE, [document("a", namespaces=['/a"/b/'])])
    await search_store.upsert(ALICE, [document("a", namespaces=["/a/", "/é\\/"])])
    for selection in (Selection(namespace="/é\\/"), Selection(namespace_path="/é"), Selection(namespace="/a/")):
        assert len((await search_store.newest(ALICE, selection)).documents) == 1
    for selection in (Selection(namespace="/a"), Selection(namespace="a/"), Selection(namespace_path="a/")):
        assert (await search_store.newest(ALICE, selection)).documents == []


async def test_vectors_of_another_model_are_refused(tmp_path: Path) -> None:
    """With the way out; and without a model the file is searched by words, whatever vectors it has."""
    path = tmp_path / "records.db"
    first = SqliteSearchStore(path, dimensions=DIMENSIONS, model="one")
    await first.upsert(ALICE, [document("a", "tea", vector=vector(1, 0, 0, 0))])
    await first.close()
    for other in ({"model": "two", "dimensions": DIMENSIONS}, {"model": "one", "dimensions": 5}):
        store = SqliteSearchStore(path, **other)
        with pytest.raises(StoreUnavailable, match=r"'one' .*configure the former model again, or none"):
            await store.purge()
        await store.close()
    wordless = SqliteSearchStore(path, dimensions=None)
    await wordless.upsert(ALICE, [document("b", "tea")])
    assert {hit.document.id for hit in await wordless.search(ALICE, text="tea")} == {"a", "b"}
    with pytest.raises(ValueError):
        await wordless.search(ALICE, vector=vector(1, 0, 0, 0))
    await wordless.close()
    again = SqliteSearchStore(path, dimensions=DIMENSIONS, model="one")
    hits = await again.search(ALICE, vector=vector(1, 0, 0, 0))
    assert [(hit.document.id, hit.similarity) for hit in hits] == [("a", pytest.approx(1))]
    await again.close()


async def test_scores_tell_nothing_of_other_partitions(search_store: SqliteSearchStore) -> None:
    """MEM-2: how rare a word is among other users' documents does not show in this user's scores."""
    await search_store.upsert(ALICE, [document("a", "tea with milk"), document("b", "a car")])
    [before] = await search_store.search(ALICE, text="tea")
    await search_store.upsert(BOB, [document(f"x{number}", "tea tea") for number in range(50)])
    [after] = await search_store.search(ALICE, text="tea")
    assert after.lexical == before.lexical


async def test_what_is_erased_is_not_on_the_disk(search_store: SqliteSearchStore, tmp_path: Path) -> None:
    """MEM-4, right to erasure: no word of an erased user stays in the database's files."""
    await search_store.upsert(BOB, [document("b", "nothing of the kind")])
    await search_store.upsert(
        ALICE, [document(f"a{number}", "xylophone tea", body=b"xylophone") for number in range(50)]
    )
    assert any(b"xylophone" in path.read_bytes() for path in tmp_path.iterdir())
    await search_store.delete_partition(ALICE)
    assert not any(b"xyloph" in path.read_bytes() for path in tmp_path.iterdir())


async def test_files_are_the_owners_alone(search_store: SqliteSearchStore, tmp_path: Path) -> None:
    await search_store.upsert(ALICE, [document("a")])
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


async def test_the_cache_is_bounded_and_changes_nothing(tmp_path: Path) -> None:
    room_for_two = 2 * 10 * 90
    store = SqliteSearchStore(tmp_path / "small.db", dimensions=DIMENSIONS, cache_bytes=room_for_two)
    random = np.random.default_rng(7)
    rows = random.normal(size=(5, 10, DIMENSIONS)).astype(np.float32)
    for user, vectors in enumerate(rows):
        await store.upsert(f"u{user}", [document(f"d{number}", vector=row) for number, row in enumerate(vectors)])
    query = rows[0][0]
    for _ in range(2):
        for user, vectors in enumerate(rows):
            hits = await store.search(f"u{user}", vector=query)
            cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
            expected = {f"d{number}": pytest.approx(float(cosine), abs=1e-5) for number, cosine in enumerate(cosines)}
            assert {hit.document.id: hit.similarity for hit in hits} == expected
            assert store._cache.size <= room_for_two
    await store.close()


async def test_what_is_remembered_is_what_is_there(search_store: SqliteSearchStore, tmp_path: Path) -> None:
    """After any changes a store that has searched all along finds what one finds that begins now."""
    random = np.random.default_rng(17)
    words = [f"w{number}" for number in range(12)]
    now = epoch_ms(datetime.now(UTC))

    def some() -> list[Document]:
        return [
            document(
                f"d{random.integers(60)}",
                " ".join(random.choice(words, 6)),
                context=" ".join(random.choice(words, 3)),
                vector=None if random.random() < 0.1 else random.normal(size=DIMENSIONS).astype(np.float32),
                namespaces=[f"/n{random.integers(3)}/"],
                expires_ms=now - 1 if random.random() < 0.1 else None,
            )
            for _ in range(random.integers(1, 25))
        ]

    for _ in range(40):
        await search_store.upsert(ALICE, some())
        match random.integers(8):
            case 0:
                await search_store.delete(ALICE, [f"d{number}" for number in random.integers(60, size=20)])
            case 1:
                await search_store.purge()
            case 2:
                await search_store.delete_partition(ALICE)
        fresh = SqliteSearchStore(tmp_path / "records.db", dimensions=DIMENSIONS)
        asked: dict[str, Any] = {"text": " ".join(random.choice(words, 3)), "vector": random.normal(size=DIMENSIONS)}
        for selection in (Selection(), Selection(namespace="/n1/")):
            found = [
                {
                    hit.document.id: (hit.document.text, hit.lexical, hit.similarity)
                    for hit in await store.search(ALICE, selection=selection, limit=20, **asked)
                }
                for store in (search_store, fresh)
            ]
            assert found[0].keys() == found[1].keys()
            for id, (text, lexical, similarity) in found[1].items():
                assert found[0][id][0] == text
                assert found[0][id][1] == pytest.approx(lexical)
                assert found[0][id][2] == (None if similarity is None else pytest.approx(similarity, abs=1e-6))
        await fresh.close()


async def test_a_partition_too_large_to_be_kept_is_searched_all_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(23)
    count = BLOCK + 50
    rows = random.normal(size=(count, DIMENSIONS)).astype(np.float32)
    texts = [" ".join(random.choice(["tea", "milk", "jam"], 3)) for _ in range(count)]
    documents = [document(f"d{n}", texts[n], vector=rows[n], created_ms=n) for n in range(count)]
    found = []
    for cache_bytes in (0, 100_000_000):
        store = SqliteSearchStore(tmp_path / f"{cache_bytes}.db", dimensions=DIMENSIONS, cache_bytes=cache_bytes)
        await store.upsert(ALICE, documents)
        for _ in range(2):
            hits = await store.search(ALICE, text="tea", vector=rows[0], limit=50)
            found.append({hit.document.id: (hit.lexical, hit.similarity) for hit in hits})
            assert store._cache.size <= cache_bytes
        await store.close()
    assert found[0] == found[1] == found[2] == found[3]
    nearest = np.argsort(-(rows @ rows[0]) / np.linalg.norm(rows, axis=1), kind="stable")[:50]
    assert {f"d{n}" for n in nearest} <= found[0].keys()


async def test_large_deletions_go_in_portions(search_store: SqliteSearchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other write waits for long, however much there is to erase or purge."""
    monkeypatch.setattr(search_sqlite, "AT_ONCE", 10)
    for number, count in enumerate((25, 0, 10, 3, 3, 3, 20)):
        documents = [document(f"d{each}", "tea", namespaces=["/n/"]) for each in range(count)]
        await search_store.upsert(f"memory-1/u{number}", documents)
    await search_store.upsert("memory-2/u", [document(f"d{each}", "tea", expires_ms=1) for each in range(25)])
    await search_store.upsert("memory-2/u", [document("kept", "tea")])
    assert await search_store.delete_partition("memory-1/u0") == 25
    assert await search_store.search("memory-1/u0", text="tea") == []
    assert await search_store.delete_partition(Beneath("memory-1")) == 39
    assert (await search_store.newest(Beneath("memory-1"), Selection(namespace="/n/"))).documents == []
    assert await search_store.purge() == 25
    assert [hit.document.id for hit in await search_store.search("memory-2/u", text="tea")] == ["kept"]
