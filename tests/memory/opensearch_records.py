"""Tests of records, as they are elsewhere in this folder, on a real OpenSearch server."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest

from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.storage.search import Beneath
from agentkeep.storage.search_opensearch import OpenSearchSearchStore

from .conftest import SetClock

__all__ = ["MARKS", "of_module", "records_index", "search"]

MARKS = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]


def of_module(module: ModuleType) -> dict[str, Any]:
    """Its tests, and the fixtures that are its own."""
    return {name: value for name, value in vars(module).items() if name.startswith("test_") or name == "memory"}


@pytest.fixture(scope="module")
async def records_index(opensearch_url: str) -> AsyncIterator[str]:
    """An index's name: for all tests of a module, since to make one takes longer than to empty it."""
    name = f"test-{secrets.token_hex(8)}"
    yield name
    client = OpenSearchClient(opensearch_url)
    await client.request("DELETE", f"/{name}-1", ignore_unavailable=True)
    await client.close()


@pytest.fixture
async def search(opensearch_url: str, records_index: str, clock: SetClock) -> AsyncIterator[OpenSearchSearchStore]:
    """Instead of the SQLite store; empty. Follows `clock`."""
    search = OpenSearchSearchStore(OpenSearchClient(opensearch_url), dimensions=None, name=records_index, clock=clock)
    await search.delete_partition(Beneath("memory"))
    yield search
    await search.close()
