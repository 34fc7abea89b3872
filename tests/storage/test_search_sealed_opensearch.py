"""The sealed search store around OpenSearch: the contract, and what the index gets to see (MEM-6)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from agentkeep.core.sealing import SealingKey
from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.storage.search import Document, SearchStore
from agentkeep.storage.search_opensearch import OpenSearchSearchStore
from agentkeep.storage.search_sealed import sealed_search
from agentkeep.testing.search import ALICE, DIMENSIONS, SearchStoreContract, vector

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Key(SealingKey):
    mixed = False


@pytest.fixture
async def index(opensearch_url: str) -> AsyncIterator[str]:
    """The name of an index that is not there yet."""
    name = f"test-{secrets.token_hex(8)}"
    yield name
    client = OpenSearchClient(opensearch_url)
    await client.request("DELETE", f"/{name}-1", ignore_unavailable=True)
    await client.close()


@pytest.fixture
async def search_store(opensearch_url: str, index: str) -> AsyncIterator[SearchStore]:
    store = OpenSearchSearchStore(OpenSearchClient(opensearch_url), dimensions=DIMENSIONS, name=index)
    key = Key(secrets.token_bytes(32))

    async def key_of(_: str) -> Key:
        return key

    yield sealed_search(store, key_of)
    await store.close()


class TestContract(SearchStoreContract):
    pass


async def test_the_index_has_no_word(search_store: SearchStore, opensearch_url: str, index: str) -> None:
    """Neither in what it keeps nor in the terms it finds documents by; but the control, as it keeps ids."""
    await search_store.upsert(
        ALICE,
        [
            Document(
                "control-quokka",
                "Saffron mussels",
                5,
                context="ordered at Marenzi",
                farther="beside Tyrolean dumplings",
                vector=vector(1, 0, 0, 0),
                metadata={"dish": "bouillabaisse", "guests": ["Quentin"]},
                body=b"wheelchair",
            )
        ],
    )
    words = ("saffron", "mussel", "marenzi", "tyrolean", "dumpl", "bouillabaiss", "quentin", "wheelchair")
    client = OpenSearchClient(opensearch_url)
    answer = await client.request("POST", f"/{index}/_search", {"query": {"match_all": {}}})
    seen = orjson.dumps(answer).lower()
    assert b"control-quokka" in seen
    assert not [word for word in words if word.encode() in seen]
    assert await found(client, index, {"prefix": {"words": "a"}}) == 1  # it has words, all of them blinded
    for word in words:
        assert await found(client, index, {"prefix": {"words": word}}) == 0
        assert await found(client, index, {"wildcard": {"facts": f"*{word}*"}}) == 0
    await client.close()
    [hit] = await search_store.search(ALICE, text="mussels", vector=vector(1, 0, 0, 0))
    assert hit.document.text == "Saffron mussels"


async def found(client: OpenSearchClient, index: str, query: dict[str, Any]) -> int:
    answer = await client.request("POST", f"/{index}/_search", {"query": query})
    return len(answer["hits"]["hits"])
