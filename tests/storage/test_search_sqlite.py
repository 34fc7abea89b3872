"""The SQLite search store: the contract, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.search import Document, Selection
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.testing.search import ALICE, BOB, DIMENSIONS, SearchStoreContract, document, vector


@pytest.fixture
async def search_store(tmp_path: Path) -> AsyncIterator[SqliteSearchStore]:
    store = SqliteSearchStore(tmp_path / "records.db", dimensions=DIMENSIONS)
    yield store
    await store.close()


class TestContract(SearchStoreContract):
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


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "broken.db"
    path.write_bytes(b"not a database, " * 100)
    store = SqliteSearchStore(path, dimensions=DIMENSIONS)
    with pytest.raises(StoreUnavailable, match=r"broken\.db"):
        await store.upsert(ALICE, [Document("a", "", 0)])
    await store.close()
