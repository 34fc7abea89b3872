"""MEM-1: which records answer a query, and what scores mean."""

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.identifiers import Deployment
from agentkeep.memory.plane import MemoryPlane
from agentkeep.memory.settings import MemorySettings
from agentkeep.storage.embedding import EmbeddingUnavailable
from agentkeep.storage.embedding_minilm import MiniLmEmbedder
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search import Vector
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, OPERATOR, Client, SetClock
from .test_records import put, record

FACTS = [
    "Is vegetarian and never eats meat.",
    "Lives on the third floor of a house in Vienna.",
    "The order A-1001 has not arrived.",
    "The order A-1002 was refunded.",
    "Works as a nurse at night.",
]


class Failing(MiniLmEmbedder):
    """Fails until it is mended."""

    broken = True

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        if self.broken:
            raise EmbeddingUnavailable("out of order")
        return await super().embed(texts)


@pytest.fixture
async def embedder() -> AsyncIterator[Failing]:
    embedder = Failing()
    embedder.broken = False
    yield embedder
    await embedder.close()


@pytest.fixture
async def backend(
    store: KeyValueStore, clock: SetClock, embedder: Failing, tmp_path: Path
) -> AsyncIterator[SelfBackend]:
    search = SqliteSearchStore(tmp_path / "r.db", dimensions=embedder.dimensions, model=embedder.name, clock=clock)
    plane = MemoryPlane(store, Deployment(), clock, search, embedder, key_service=KEY_SERVICE)
    yield SelfBackend(plane.operations)
    await plane.close()
    await search.close()


async def scores(client: Client, memory: str, query: str, path: str = "/facts/") -> dict[str, float]:
    answer = await client.retrieve_memory_records(
        memoryId=memory, namespacePath=path, searchCriteria={"searchQuery": query}
    )
    return {one["content"]["text"]: one["score"] for one in answer["memoryRecordSummaries"]}


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("Can she have a steak?", 0),
        ("Which city is her home in?", 1),
        ("A-1001", 2),
        ("What happened to A-1002?", 3),
        ("What is her profession?", 4),
    ],
)
async def test_by_words_and_by_meaning(operator: Client, memory: str, query: str, best: int) -> None:
    """A paraphrase shares no word with its answer, and two order numbers mean the same: it takes both."""
    await put(operator, memory, *(record(fact, "/facts/alice/") for fact in FACTS))
    found = await scores(operator, memory, query)
    assert next(iter(found)) == FACTS[best]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(0 <= score <= 1 for score in found.values())


async def test_scores_compare(operator: Client, memory: str) -> None:
    """What is said in the query's own words scores high, what has nothing to do with it low, however few there are."""
    await put(operator, memory, record(FACTS[0], "/facts/alice/"))
    assert (await scores(operator, memory, "Is vegetarian and never eats meat"))[FACTS[0]] > 0.9
    assert (await scores(operator, memory, "The printer is out of paper."))[FACTS[0]] < 0.15


async def test_without_the_model_by_words(
    operator: Client, memory: str, embedder: Failing, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, once in a while, and fails nothing; when the model is back, records are embedded again."""
    embedder.broken = True
    with caplog.at_level(logging.WARNING, "agentkeep.memory.long_term.retrieval"):
        [record_id] = await put(operator, memory, record(FACTS[4], "/facts/alice/"))
        assert list(await scores(operator, memory, "the nurse")) == [FACTS[4]]
        assert await scores(operator, memory, "profession") == {}
    assert len(caplog.records) == 1
    assert "by words alone" in caplog.text
    assert "nurse" not in caplog.text
    embedder.broken = False
    assert await scores(operator, memory, "profession") == {}
    await clock.sleep(60)
    change: dict[str, Any] = {"memoryRecordId": record_id, "timestamp": clock.now(), "content": {"text": FACTS[4]}}
    await operator.batch_update_memory_records(memoryId=memory, records=[change])
    assert list(await scores(operator, memory, "profession")) == [FACTS[4]]


async def test_a_plane_without_a_model(store: KeyValueStore, search: SqliteSearchStore, clock: SetClock) -> None:
    plane = MemoryPlane(store, Deployment(), clock, search, key_service=KEY_SERVICE)
    operator = Client(SelfBackend(plane.operations), OPERATOR)
    memory = (await operator.create_memory(name="words", eventExpiryDuration=7))["memory"]["id"]
    await put(operator, memory, *(record(fact, "/facts/alice/") for fact in FACTS))
    found = await scores(operator, memory, "Where is order A-1002?")
    assert next(iter(found)) == FACTS[3]
    assert FACTS[2] in found


async def test_a_second_look(store: KeyValueStore, clock: SetClock, embedder: Failing, tmp_path: Path) -> None:
    """Where it is wanted, a turn that tells goes before one that asks; facts stay in their order."""
    search = SqliteSearchStore(tmp_path / "again.db", dimensions=embedder.dimensions, model=embedder.name, clock=clock)
    said = ["Ann: Where did you go on your holiday?", "Bo: We went to Rome by train, with the kids and the dog."]
    orders = {}
    for reranking in (False, True):
        settings = MemorySettings(reranking=reranking)
        plane = MemoryPlane(store, Deployment(), clock, search, embedder, settings, key_service=KEY_SERVICE)
        operator = Client(SelfBackend(plane.operations), OPERATOR)
        memory = (await operator.create_memory(name=f"again{reranking}", eventExpiryDuration=7))["memory"]["id"]
        await put(operator, memory, *(record(text, "/facts/alice/") for text in said))
        found = await scores(operator, memory, "Where was the holiday?")
        orders[reranking] = list(found)
        assert all(0 <= score <= 1 for score in found.values())
        await put(operator, memory, *(record(fact, "/facts/bob/") for fact in FACTS))
        facts = await scores(operator, memory, "What happened to A-1002?", "/facts/bob/")
        assert next(iter(facts)) == FACTS[3]
        await plane.close()
    assert orders == {False: said, True: said[::-1]}
    await search.close()
