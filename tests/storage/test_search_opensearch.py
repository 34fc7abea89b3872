"""The OpenSearch search store: the contract, and what is its own, on a real OpenSearch."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.storage.search_opensearch import OpenSearchSearchStore
from agentkeep.testing.search import DIMENSIONS, SearchStoreContract

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


class TestContract(SearchStoreContract):
    pass
