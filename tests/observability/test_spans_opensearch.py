"""The span store on a real OpenSearch, against its contract; and what only it has."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from agentkeep.core.errors import StoreUnavailable
from agentkeep.observability.spans import SpanStore
from agentkeep.observability.spans_opensearch import OpenSearchSpanStore
from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.testing.clock import SetClock
from agentkeep.testing.spans import DAY, LIMITS, SESSION, SpanStoreContract, span

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def clock() -> SetClock:
    return SetClock(datetime(2026, 11, 23, tzinfo=UTC))


@pytest.fixture
async def index(opensearch_url: str) -> AsyncIterator[str]:
    name = f"test-{secrets.token_hex(8)}"
    yield name
    client = OpenSearchClient(opensearch_url)
    await client.request("DELETE", f"/{name}-1", ignore_unavailable=True)
    await client.close()


@pytest.fixture
async def span_store(opensearch_url: str, index: str, clock: SetClock) -> AsyncIterator[SpanStore]:
    store = OpenSearchSpanStore(OpenSearchClient(opensearch_url), LIMITS, clock, name=index)
    yield store
    await store.close()


class TestContract(SpanStoreContract):
    pass


async def test_what_is_over_leaves_the_disk(
    opensearch_url: str, index: str, span_store: SpanStore, clock: SetClock
) -> None:
    """Not only the answers: by the writes that come later."""
    await span_store.add(SESSION, [span(number) for number in range(1, 4)])
    await span_store.add(None, [span(number) for number in range(1, 4 + LIMITS.unowned)])
    client = OpenSearchClient(opensearch_url)

    async def held() -> int:
        await client.request("POST", f"/{index}/_refresh")
        count: int = (await client.request("GET", f"/{index}/_count"))["count"]
        return count

    assert await held() == 3 + 3 + LIMITS.unowned
    clock.advance(61)
    await span_store.add(SESSION, [])
    async with asyncio.timeout(20):
        while await held() != 3 + LIMITS.unowned:
            await asyncio.sleep(0.1)
    newest = [int(one.span_id, 16) for one in await span_store.unowned()]
    assert newest == list(range(3 + LIMITS.unowned, 3, -1))
    clock.advance(3 * DAY)
    await span_store.add(SESSION, [])
    async with asyncio.timeout(20):
        while await held() != 0:
            await asyncio.sleep(0.1)
    await client.close()


async def test_a_server_that_is_away(span_store: SpanStore) -> None:
    store = OpenSearchSpanStore(OpenSearchClient("http://127.0.0.1:1"))
    with pytest.raises(StoreUnavailable, match="not to be reached"):
        await store.add(SESSION, [span(1)])
    await store.close()
