"""The OpenSearch search store: the contract, and what is its own, on a real OpenSearch."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage import opensearch_index, search_opensearch_scores
from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.storage.search import Beneath, Document, Selection
from agentkeep.storage.search_opensearch import OpenSearchSearchStore
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.testing.search import (
    ALICE,
    BOB,
    DIMENSIONS,
    SearchStoreContract,
    SharedSearchStoreContract,
    document,
    vector,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
async def index(opensearch_url: str) -> AsyncIterator[str]:
    """The name of an index that is not there yet."""
    name = f"test-{secrets.token_hex(8)}"
    yield name
    client = OpenSearchClient(opensearch_url)
    await client.request("DELETE", f"/{name}-1", ignore_unavailable=True)
    await client.close()


@pytest.fixture
async def search_store(opensearch_url: str, index: str) -> AsyncIterator[OpenSearchSearchStore]:
    store = OpenSearchSearchStore(OpenSearchClient(opensearch_url), dimensions=DIMENSIONS, name=index)
    yield store
    await store.close()


@pytest.fixture
async def other_store(opensearch_url: str, index: str) -> AsyncIterator[OpenSearchSearchStore]:
    store = OpenSearchSearchStore(OpenSearchClient(opensearch_url), dimensions=DIMENSIONS, name=index)
    yield store
    await store.close()


class TestContract(SearchStoreContract, SharedSearchStoreContract):
    pass


@pytest.fixture
async def client(opensearch_url: str) -> AsyncIterator[OpenSearchClient]:
    client = OpenSearchClient(opensearch_url)
    yield client
    await client.close()


def random_words(random: np.random.Generator, count: int) -> str:
    return " ".join(random.choice(VOCABULARY, size=count))


VOCABULARY = [
    *("tea", "teas", "milk", "running", "runs", "Crème", "naïve", "don't", "A-1001", "3.50", "日本語", "it's"),
    *("order", "ordered", "orders", "the", "of", "refund", "e_mail", "x" * 300, "ÄÖÜ", "generalization"),
]


async def test_scores_as_sqlite_does(search_store: OpenSearchSearchStore, tmp_path: Path) -> None:
    """So a threshold means the same in each deployment: on random texts, for one partition and for all together."""
    random = np.random.default_rng(11)
    other = SqliteSearchStore(tmp_path / "records.db", dimensions=DIMENSIONS)
    for user in range(3):
        documents = [
            Document(
                f"d{user}-{number}",
                random_words(random, random.integers(0, 25)),
                number,
                context=random_words(random, random.integers(0, 25)),
                vector=random.normal(size=DIMENSIONS).astype(np.float32) if number % 5 else None,
                namespaces=["/a/"] if number % 2 else ["/b/"],
            )
            for number in range(40)
        ]
        for store in (search_store, other):
            await store.upsert(f"m/u{user}", documents)
    for _ in range(10):
        asked = {"text": random_words(random, 4), "vector": random.normal(size=DIMENSIONS).astype(np.float32)}
        for place in ("m/u1", Beneath("m")):
            for selection in (Selection(), Selection(namespace="/a/")):
                found = [
                    {
                        hit.document.id: (hit.lexical, hit.similarity)
                        for hit in await store.search(place, selection=selection, limit=500, **asked)
                    }
                    for store in (search_store, other)
                ]
                assert found[0].keys() == found[1].keys()
                for id, (lexical, similarity) in found[1].items():
                    assert found[0][id][0] == pytest.approx(lexical, rel=1e-5)
                    assert found[0][id][1] == (None if similarity is None else pytest.approx(similarity, abs=1e-5))
    await other.close()


async def test_scores_tell_nothing_of_other_partitions(search_store: OpenSearchSearchStore) -> None:
    """MEM-2: how rare a word is among other users' documents does not show in this user's scores."""
    await search_store.upsert(ALICE, [document("a", "tea with milk"), document("b", "a car")])
    [before] = await search_store.search(ALICE, text="tea")
    await search_store.upsert(BOB, [document(f"x{number}", "tea tea") for number in range(50)])
    [after] = await search_store.search(ALICE, text="tea")
    assert after.lexical == before.lexical


STRANGE = [
    *("*", "m*", "m/*", "m?", "M/ALICE", "m/alice ", " m/alice", "m/alice/", "m//alice", "/", "//", "", "_all"),
    *('m/"alice"', "m/alice\\", "m/alice\n", "m/alice\x00", "m/al\u0131ce", "m/ＡＬＩＣＥ", "m/a\u0301", "m/á"),
    *("m/alice OR 1=1", '{"match_all":{}}', "m/[TO]", "../m", "💥", "m/" + "x" * 50_000, "m/" + "x" * 50_001),
]


async def test_strange_partitions_are_each_their_own(search_store: OpenSearchSearchStore) -> None:
    """MEM-2: none is a pattern, too long, or the same as another."""
    for number, name in enumerate([*STRANGE, "m/alice"]):
        await search_store.upsert(name, [document("d", f"tea {number}", vector=vector(1, 0, 0, 0))])
    for number, name in enumerate([*STRANGE, "m/alice"]):
        hits = await search_store.search(name, text="tea", vector=vector(1, 0, 0, 0))
        assert [hit.document.text for hit in hits] == [f"tea {number}"], name
        assert [found.text for found in (await search_store.newest(name)).documents] == [f"tea {number}"]
        [mine] = await search_store.get(name, ["d"])
        assert mine is not None and mine.text == f"tea {number}"
    for name in STRANGE:
        assert await search_store.delete_partition(name) == 1
    [left] = await search_store.get("m/alice", ["d"])
    assert left is not None


@given(
    names=st.lists(st.text(alphabet='ab/*\\"é ', max_size=6), min_size=2, max_size=4, unique=True),
    text=st.text(alphabet='ab/*:()"~^ ANDORT', max_size=30),
)
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_partitions_never_mix(search_store: OpenSearchSearchStore, names: list[str], text: str) -> None:
    """MEM-2, for whatever names and queries: what a partition is asked for comes from it, and all of it does."""
    for name in names:
        mine = [document(f"{name}#{number}", f"{text} a b", vector=vector(1, number, 0, 0)) for number in range(2)]
        await search_store.upsert(name, mine)
    for name in names:
        own = {f"{name}#0", f"{name}#1"}
        hits = await search_store.search(name, text=text or "a", vector=vector(1, 0, 0, 0))
        assert {hit.document.id for hit in hits} == own
        assert {found.id for found in (await search_store.newest(name)).documents} == own
        others = [f"{other}#0" for other in names if other != name]
        assert await search_store.get(name, others) == [None] * len(others)
        assert await search_store.delete(name, others) == []
        below = {f"{other}#{number}" for other in names if other.startswith(f"{name}/") for number in range(2)}
        everywhere = await search_store.search(Beneath(name), text="a", vector=vector(1, 0, 0, 0))
        assert {hit.document.id for hit in everywhere} == below
    for name in names:
        await search_store.delete_partition(name)


async def test_many_partitions_at_once(search_store: OpenSearchSearchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """For operators: in portions, of which the best of all are given."""
    monkeypatch.setattr(search_opensearch_scores, "PARTITIONS_AT_ONCE", 3)
    for number in range(8):
        documents = [document(f"{number}-{each}", "tea " + "x " * (number + each)) for each in range(3)]
        await search_store.upsert(f"m/u{number}", documents)
    hits = await search_store.search(Beneath("m"), text="tea", limit=24)
    assert len(hits) == 24
    assert [hit.lexical for hit in hits] == sorted((hit.lexical for hit in hits), reverse=True)
    best = await search_store.search(Beneath("m"), text="tea", limit=5)
    assert [hit.lexical for hit in best] == pytest.approx([hit.lexical for hit in hits[:5]])


async def test_near_vectors_are_found_among_many(search_store: OpenSearchSearchStore) -> None:
    """By Lucene's graph, with the partition in its filter: hardly a neighbour is missed, and none is another's."""
    random = np.random.default_rng(5)
    rows = random.normal(size=(2, 1500, DIMENSIONS)).astype(np.float32)
    for user, vectors in zip((ALICE, BOB), rows, strict=True):
        for start in range(0, 1500, 500):
            part = range(start, start + 500)
            await search_store.upsert(user, [document(f"{user} {n}", vector=vectors[n]) for n in part])
    kept = 0
    for _ in range(5):
        query = random.normal(size=DIMENSIONS).astype(np.float32)
        cosines = rows[0] @ query / np.linalg.norm(rows[0], axis=1)
        nearest = {f"{ALICE} {number}" for number in np.argsort(-cosines)[:50]}
        found = {hit.document.id for hit in await search_store.search(ALICE, vector=query, limit=50)}
        assert all(id.startswith(f"{ALICE} ") for id in found) and len(found) == 50
        kept += len(found & nearest)
    assert kept >= 0.95 * 5 * 50


async def test_vectors_of_another_model_are_refused(opensearch_url: str, index: str) -> None:
    """With the way out; and without a model the index is searched by words, whatever vectors it has."""

    def store(**members: Any) -> OpenSearchSearchStore:
        return OpenSearchSearchStore(OpenSearchClient(opensearch_url), name=index, **members)

    first = store(dimensions=DIMENSIONS, model="one")
    await first.upsert(ALICE, [document("a", "tea", vector=vector(1, 0, 0, 0))])
    await first.close()
    for other in ({"model": "two", "dimensions": DIMENSIONS}, {"model": "one", "dimensions": 5}):
        refused = store(**other)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"'one' .*configure the former model again, or none"):
                await refused.purge()
        await refused.close()
    wordless = store(dimensions=None)
    await wordless.upsert(ALICE, [document("b", "tea")])
    assert {hit.document.id for hit in await wordless.search(ALICE, text="tea")} == {"a", "b"}
    with pytest.raises(ValueError):
        await wordless.search(ALICE, vector=vector(1, 0, 0, 0))
    await wordless.close()
    again = store(dimensions=DIMENSIONS, model="one")
    hits = await again.search(ALICE, vector=vector(1, 0, 0, 0))
    assert [(hit.document.id, hit.similarity) for hit in hits] == [("a", pytest.approx(1))]
    await again.close()


async def test_replicas_of_a_service_make_one_index(opensearch_url: str, index: str, client: OpenSearchClient) -> None:
    """They start together, and first with words alone; vectors are compared by Lucene, other engines not being sure
    to run."""
    stores = [OpenSearchSearchStore(OpenSearchClient(opensearch_url), dimensions=None, name=index) for _ in range(3)]
    stores += [
        OpenSearchSearchStore(OpenSearchClient(opensearch_url), dimensions=DIMENSIONS, name=index) for _ in range(3)
    ]
    await asyncio.gather(*(store.upsert(ALICE, [document(f"d{n}")]) for n, store in enumerate(stores)))
    assert len((await stores[0].newest(ALICE)).documents) == 6
    for store in stores:
        await store.close()
    [made] = (await client.request("GET", f"/{index}")).values()
    assert made["mappings"]["properties"]["embedding"]["method"]["engine"] == "lucene"


async def test_an_index_that_was_removed_is_not_made_up(
    search_store: OpenSearchSearchStore, index: str, client: OpenSearchClient
) -> None:
    """By a write, with fields guessed from it: it is made again as it is to be."""
    await search_store.upsert(ALICE, [document("a", "tea")])
    [before] = (await client.request("GET", f"/{index}/_mapping")).values()
    await client.request("DELETE", f"/{index}-1")
    await search_store.upsert(ALICE, [document("b", "tea")])
    [after] = (await client.request("GET", f"/{index}/_mapping")).values()
    assert after == before
    assert [found.id for found in (await search_store.newest(ALICE)).documents] == ["b"]


@pytest.fixture
async def refusing(client: OpenSearchClient, index: str, search_store: OpenSearchSearchStore) -> AsyncIterator[None]:
    """OpenSearch refuses documents with the id `poison`, and takes the rest of a batch."""
    await search_store.upsert(ALICE, [document("old", "former tea", vector=vector(0, 1, 0, 0), metadata={"k": 1.0})])
    script = {"fail": {"if": "ctx.id == 'poison'", "message": "no"}}
    await client.request("PUT", f"/_ingest/pipeline/{index}", {"processors": [script]})
    await client.request("PUT", f"/{index}-1/_settings", {"index.default_pipeline": index})
    yield
    await client.request("PUT", f"/{index}-1/_settings", {"index.default_pipeline": "_none"})
    await client.request("DELETE", f"/_ingest/pipeline/{index}")


async def test_of_a_batch_that_fails_nothing_is_left(search_store: OpenSearchSearchStore, refusing: None) -> None:
    """Neither what was new, nor what replaced an earlier document."""
    batch = [document("new", "tea"), document("old", "tea", vector=vector(1, 0, 0, 0)), document("poison", "tea")]
    with pytest.raises(StoreUnavailable, match="not stored"):
        await search_store.upsert(ALICE, batch)
    [new, old, poison] = await search_store.get(ALICE, ["new", "old", "poison"])
    assert new is None and poison is None and old is not None
    assert (old.text, old.metadata) == ("former tea", {"k": 1.0})
    hits = await search_store.search(ALICE, text="former", vector=vector(0, 1, 0, 0))
    assert [(hit.document.id, hit.similarity) for hit in hits] == [("old", pytest.approx(1))]
    assert hits[0].lexical == pytest.approx(1, abs=0.01)


async def test_a_server_that_is_away_or_slow() -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    for url, reason in (("http://127.0.0.1:1", "not to be reached"), (f"http://127.0.0.1:{port}", "time limit")):
        store = OpenSearchSearchStore(OpenSearchClient(url, time_limit=0.3), dimensions=DIMENSIONS)
        with pytest.raises(StoreUnavailable, match=reason):
            await store.search(ALICE, text="tea")
        with pytest.raises(StoreUnavailable):
            await store.upsert(ALICE, [document("a")])
        await store.close()
    silent.close()


async def test_ids_too_long_for_a_term_are_refused(search_store: OpenSearchSearchStore) -> None:
    long = "é" * 4000
    await search_store.upsert(ALICE, [document(long)])
    assert [found.id for found in (await search_store.newest(ALICE)).documents] == [long]
    with pytest.raises(ValueError, match="8000 bytes"):
        await search_store.upsert(ALICE, [document("good"), document(long + "x")])
    assert await search_store.get(ALICE, ["good"]) == [None]


async def test_large_deletions_go_in_portions(
    search_store: OpenSearchSearchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is soon done, however much there is to erase or purge."""
    monkeypatch.setattr(opensearch_index, "PORTION", 10)
    await search_store.upsert(ALICE, [document(f"a{number}", "tea") for number in range(25)])
    await search_store.upsert(BOB, [document(f"b{number}", "tea", expires_ms=1) for number in range(20)])
    await search_store.upsert(BOB, [document("kept", "tea")])
    assert await search_store.delete_partition(ALICE) == 25
    assert await search_store.search(ALICE, text="tea") == []
    assert await search_store.purge() == 20
    assert await search_store.purge() == 0
    assert [hit.document.id for hit in await search_store.search(BOB, text="tea")] == ["kept"]


async def test_an_index_without_writes(
    search_store: OpenSearchSearchStore, index: str, client: OpenSearchClient
) -> None:
    """As where the disk is full: what is there is served, writes are refused at once and say what to do, and with the
    block gone they go on. To OpenSearch a deletion is a write, too."""
    await search_store.upsert(ALICE, [document("a", "tea"), document("b", "tea")])
    for block in ("read_only_allow_delete", "write"):
        await client.request("PUT", f"/{index}-1/_settings", {f"index.blocks.{block}": True})
        began = time.monotonic()
        for batch in ([document("c", "tea")], [document("a", "milk"), document("d", "tea")]):
            with pytest.raises(StoreUnavailable, match="its disk is full, or an operator has set it read-only"):
                await search_store.upsert(ALICE, batch)
        assert time.monotonic() - began < 20
        assert {hit.document.id for hit in await search_store.search(ALICE, text="tea")} == {"a", "b"}
        with pytest.raises(StoreUnavailable, match="its disk is full"):
            await search_store.delete(ALICE, ["b"])
        await client.request("PUT", f"/{index}-1/_settings", {f"index.blocks.{block}": None})
        await search_store.upsert(ALICE, [document("b", "tea")])
    assert await search_store.get(ALICE, ["c", "d"]) == [None, None]
