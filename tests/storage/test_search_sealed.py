"""The sealed search store: the contract, scores as without, and what the store beneath gets to see."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentkeep.core.errors import SealBroken
from agentkeep.core.sealing import SealingKey
from agentkeep.storage.file_search import FileSearch
from agentkeep.storage.search import Beneath, Condition, Document, Operator, SearchStore, Selection
from agentkeep.storage.search_blinding import Blinding
from agentkeep.storage.search_sealed import sealed_search
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.search_words import Stemmer
from agentkeep.testing.search import ALICE, BOB, DIMENSIONS, SearchStoreContract, document, vector

#: The first row of the turn in three dimensions, by a key of 32 times `k`.
PINNED = (-0.992925, -0.113955, 0.0333776)
VOCABULARY = (
    *("run", "runs", "running", "runner", "tea", "teas", "green", "order", "orders", "ordered", "crème", "Zürich"),
    *("A-1001", "7", "house", "houses"),
)


class Key(SealingKey):
    mixed = False


class Keys:
    """One key for each memory, which is a partition's first part."""

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}

    async def of(self, partition: str) -> Key:
        return self._keys.setdefault(partition.split("/")[0], Key(secrets.token_bytes(32)))


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
async def beneath(tmp_path: Path) -> AsyncIterator[SqliteSearchStore]:
    store = SqliteSearchStore(tmp_path / "records.db", dimensions=DIMENSIONS)
    yield store
    await store.close()


@pytest.fixture
def search_store(beneath: SqliteSearchStore, keys: Keys) -> SearchStore:
    return sealed_search(beneath, keys.of)


class TestContract(SearchStoreContract):
    pass


def texts(random: np.random.Generator) -> str:
    return " ".join(random.choice(VOCABULARY, size=random.integers(0, 25)))


def documents(random: np.random.Generator, count: int) -> list[Document]:
    return [
        Document(
            f"d{number}",
            texts(random),
            number,
            context=texts(random),
            farther=texts(random),
            vector=random.normal(size=DIMENSIONS).astype(np.float32) if number % 5 else None,
            namespaces=["/a/"] if number % 2 else ["/b/"],
        )
        for number in range(count)
    ]


async def found(store: SearchStore, **query: Any) -> list[tuple[str, float, float | None]]:
    hits = await store.search(ALICE, **query)
    return sorted((hit.document.id, hit.lexical, hit.similarity) for hit in hits)


async def test_scores_are_those_of_clear_documents(search_store: SearchStore, tmp_path: Path) -> None:
    """MEM-6: sealing costs no accuracy; not even two forms of one word in a query count otherwise."""
    random = np.random.default_rng(7)
    clear = SqliteSearchStore(tmp_path / "clear.db", dimensions=DIMENSIONS)
    put = documents(random, 60)
    await clear.upsert(ALICE, put)
    await search_store.upsert(ALICE, put)
    for text in (
        "running tea",
        "runs run running",
        "order ORDERED orders, Zürich creme!",
        "nowhere",
        "",
        texts(random),
    ):
        query = {"text": text, "vector": vector(1, 2, -3, 0.5), "selection": Selection(namespace="/a/")}
        expected, got = await found(clear, **query), await found(search_store, **query)
        assert [one[0] for one in got] == [one[0] for one in expected]
        for (_, lexical, similarity), (_, wanted, near) in zip(got, expected, strict=True):
            assert lexical == pytest.approx(wanted, abs=1e-6)
            assert similarity == pytest.approx(near, abs=1e-5)
    await clear.close()


def test_a_stemmer_leaves_blinded_words_whole() -> None:
    """All forms of all: else a query would look for what no document has."""
    stems, blinding = Stemmer(), Blinding(Key(secrets.token_bytes(32)))
    for number in range(2000):
        [word] = blinding.text([f"word{number}"]).split()
        assert stems.of(word) == [word]
    forms = blinding.query(["tea"] * 10).split()
    assert len(set(forms)) == len(forms) > 3
    assert set(stems.of(" ".join(forms))) == {blinding.text(["tea"])}


async def test_a_turn_keeps_angles_and_is_the_same_for_ever() -> None:
    blinding, again, other = (Blinding(Key(key * 32)) for key in (b"a", b"a", b"b"))
    turn = await blinding.turn(384)
    np.testing.assert_allclose(turn @ turn.T, np.eye(384), atol=1e-5)
    np.testing.assert_array_equal(turn, await again.turn(384))
    assert np.abs(turn @ (await other.turn(384)).T - np.eye(384)).max() > 0.5
    # Stored vectors depend on these very numbers: a change of them is a loss of all that is stored.
    np.testing.assert_allclose((await Blinding(Key(b"k" * 32)).turn(3))[0], PINNED, atol=1e-6)


MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
SECRETS = Document(
    "r1",
    "Saffron mussels",
    5,
    context="ordered at Marenzi",
    farther="beside Tyrolean dumplings",
    vector=vector(1, 0, 0, 0),
    namespaces=["/facts/alice/"],
    metadata={"dish": "bouillabaisse", "guests": ["Quentin", "Rosalind"], "price": 12.5, "at": MOMENT},
    body=b'{"note": "wheelchair"}',
)


async def test_the_store_beneath_sees_no_word(search_store: SearchStore, beneath: SqliteSearchStore) -> None:
    """MEM-6."""
    await search_store.upsert(ALICE, [SECRETS])
    [stored] = await beneath.get(ALICE, ["r1"])
    assert stored is not None
    seen = repr(stored).lower() + repr(stored.body).lower()
    for word in [
        "saffron",
        "mussel",
        "marenzi",
        "tyrolean",
        "dumpling",
        "bouillabaisse",
        "quentin",
        "rosalind",
        "wheelchair",
    ]:
        assert word not in seen
    assert stored.metadata["price"] == 12.5  # numbers and times are compared, so they stay
    assert stored.metadata["at"] == MOMENT
    assert list(stored.namespaces) == ["/facts/alice/"]
    assert stored.vector is not None
    assert abs(float(stored.vector[0])) < 0.9999
    [got] = await search_store.get(ALICE, ["r1"])
    assert got is not None
    assert dict(got.metadata) == SECRETS.metadata
    assert (got.text, got.context, got.farther, got.body) == (
        *(SECRETS.text, SECRETS.context, SECRETS.farther, SECRETS.body),
    )


async def test_what_is_moved_or_changed_does_not_open(search_store: SearchStore, beneath: SqliteSearchStore) -> None:
    """MEM-2, MEM-6: who can write to the store cannot put one user's record before another, nor one of his own."""
    await search_store.upsert(ALICE, [SECRETS])
    [stored] = await beneath.get(ALICE, ["r1"])
    assert stored is not None
    changed = stored.body[:-1] + bytes([stored.body[-1] ^ 1])
    forged: list[tuple[str, Document]] = [
        (BOB, stored),
        (ALICE, replace(stored, id="r2")),
        ("memory-2/alice", stored),
        (ALICE, replace(stored, body=changed)),
        (ALICE, replace(stored, body=b"")),
        (ALICE, replace(stored, body=b"{}", text="mussels")),
    ]
    for partition, one in forged:
        await beneath.upsert(partition, [one])
        with pytest.raises(SealBroken):
            await search_store.get(partition, [one.id])
        if partition != BOB:  # of the same memory: operators, who see all of it, are not told where in it a record is
            with pytest.raises(SealBroken):
                await search_store.newest(Beneath(partition.split("/")[0]))
        await beneath.delete(partition, [one.id])
        await search_store.upsert(ALICE, [SECRETS])


async def test_documents_from_before_there_were_keys(beneath: SqliteSearchStore) -> None:
    """They stay readable and are found among the sealed ones, in pages without gaps."""
    await beneath.upsert(
        ALICE,
        [
            document(f"old{n}", "green tea", created_ms=n, metadata={"k": "v"}, vector=vector(1, n, 0, 0))
            for n in range(3)
        ],
    )
    key = Key(secrets.token_bytes(32))
    key.mixed = True

    async def key_of(_: str) -> Key:
        return key

    store = sealed_search(beneath, key_of)
    await store.upsert(
        ALICE,
        [
            document(f"new{n}", "black tea", created_ms=10 + n, metadata={"k": "v"}, vector=vector(1, 0, n, 0))
            for n in range(3)
        ],
    )
    everything = {f"{age}{n}" for age in ("old", "new") for n in range(3)}
    hits = await store.search(ALICE, text="tea", vector=vector(1, 0, 0, 0))
    assert {hit.document.id for hit in hits} == everything
    assert all(hit.lexical > 0 and hit.similarity is not None for hit in hits)
    assert len(await store.search(ALICE, text="tea", limit=4)) == 4
    for selection in (Selection(), Selection(conditions=[Condition("k", Operator.EQUALS_TO, "v")])):
        seen: list[str] = []
        after = None
        while True:
            page = await store.newest(ALICE, selection, limit=2, after=after)
            seen += [one.id for one in page.documents]
            if (after := page.after) is None:
                break
        assert seen == ["new2", "new1", "new0", "old2", "old1", "old0"]


async def test_it_can_tell_of_files_where_the_store_beneath_can(search_store: SearchStore, keys: Keys) -> None:
    class OfNoFiles:
        pass

    assert isinstance(search_store, FileSearch)
    assert await search_store.in_files(["r1"]) is False
    await search_store.upsert(ALICE, [SECRETS])
    assert await search_store.in_files(["r1"]) is True
    store: Any = OfNoFiles()
    assert not isinstance(sealed_search(store, keys.of), FileSearch)
