"""Embeddings: the local model from installed packages, and the cache for queries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from agentkeep.storage import embedding_minilm
from agentkeep.storage.embedding import CachedEmbedder, EmbeddingUnavailable
from agentkeep.storage.embedding_minilm import MiniLmEmbedder
from agentkeep.storage.search import Vector


@pytest.fixture
async def minilm() -> AsyncIterator[MiniLmEmbedder]:
    embedder = MiniLmEmbedder()
    yield embedder
    await embedder.close()


async def test_minilm_knows_what_means_the_same(minilm: MiniLmEmbedder) -> None:
    texts = ["The user is vegetarian.", "Her flat is on the third floor.", "He drives an old lorry."]
    vectors = await minilm.embed(texts)
    assert all(vector.shape == (minilm.dimensions,) and vector.dtype == np.float32 for vector in vectors)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    for query, nearest in (("Does she eat meat?", 0), ("Which storey does she live on?", 1), ("What truck has he?", 2)):
        [vector] = await minilm.embed([query])
        assert int(np.argmax([float(vector @ one) for one in vectors])) == nearest


async def test_minilm_is_the_same_alone_and_in_a_batch(minilm: MiniLmEmbedder) -> None:
    long, short = "a long text " * 2000, "short"
    [alone] = await minilm.embed([short])
    [_, beside] = await minilm.embed([long, short])
    np.testing.assert_array_equal(alone, beside)


async def test_minilm_leaves_the_loop_free(minilm: MiniLmEmbedder) -> None:
    await minilm.load()
    work = asyncio.create_task(minilm.embed(["a text of some words " * 40] * 20))
    turns = 0
    while not work.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20


async def test_minilm_says_what_is_missing(minilm: MiniLmEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_minilm, "MODEL", ("no_such_package", "model.onnx"))
    with pytest.raises(EmbeddingUnavailable, match=r"no_such_package is not installed: install agentkeep\[embedded\]"):
        await minilm.load()


async def test_minilm_fails_as_an_embedder(minilm: MiniLmEmbedder) -> None:
    await minilm.load()

    def vector(text: str) -> Vector:
        raise MemoryError(text)

    minilm._vector = vector
    with pytest.raises(EmbeddingUnavailable, match="MemoryError") as failed:
        await minilm.embed(["a secret"])
    assert "secret" not in str(failed.value)


class Counting:
    name = "counting"
    dimensions = 1

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        self.asked += texts
        await asyncio.sleep(0)
        if self.fails:
            raise EmbeddingUnavailable("it rains")
        return [np.array([len(text)], np.float32) for text in texts]

    async def close(self) -> None:
        pass


async def test_queries_are_embedded_once() -> None:
    counting = Counting()
    cached = CachedEmbedder(counting, entries=2)
    assert [vector[0] for vector in await asyncio.gather(*map(cached.embed, ["a", "a", "bb"]))] == [1, 1, 2]
    assert counting.asked == ["a", "bb"]
    await cached.embed("ccc")
    await cached.embed("bb")
    await cached.embed("a")
    assert counting.asked == ["a", "bb", "ccc", "a"]


async def test_failures_are_not_remembered() -> None:
    counting = Counting()
    cached = CachedEmbedder(counting)
    counting.fails = True
    with pytest.raises(EmbeddingUnavailable):
        await cached.embed("a")
    counting.fails = False
    assert (await cached.embed("a"))[0] == 1
