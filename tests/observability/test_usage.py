"""Usage records: kept per session, on real Valkey, and read by operators over HTTP."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import SystemClock
from agentkeep.core.ports import UsageRecord
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.prices import Prices
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.observability.usage_app import UsageApp
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.valkey import ValkeyKeyValueStore

NOW = datetime.now(UTC).replace(microsecond=123_456)
RECORD = UsageRecord(
    session=SessionRef("runtime-1", "session/1"),
    user_id="alice",
    model_id="claude",
    provider="bedrock",
    input_tokens=11,
    output_tokens=7,
    cache_read_tokens=3,
    cache_write_tokens=2,
    latency_ms=12.5,
    at=NOW,
    request_id="r-1",
)


@pytest.fixture
def usage(store: KeyValueStore) -> KeyValueUsage:
    return KeyValueUsage(store)


async def test_gives_back_a_sessions_records_oldest_first(usage: KeyValueUsage) -> None:
    """OBS-2"""
    assert RECORD.session is not None
    later = replace(RECORD, at=NOW + timedelta(seconds=1), request_id="r-2", estimated=True)
    await usage.record(later)
    await usage.record(RECORD)
    await usage.record(RECORD)  # a write repeated after an unclear failure counts once
    assert await usage.of_session(RECORD.session) == [RECORD, later]
    totals = await usage.totals(RECORD.session)
    assert (totals.calls, totals.estimated_calls) == (2, 1)
    assert (totals.input_tokens, totals.output_tokens) == (22, 14)
    assert (totals.cache_read_tokens, totals.cache_write_tokens, totals.latency_ms) == (6, 4, 25)


async def test_sessions_do_not_mix(usage: KeyValueUsage) -> None:
    await usage.record(RECORD)
    for other in (SessionRef("runtime-1", "session"), SessionRef("runtime-1/session", "1"), SessionRef("", "")):
        assert await usage.of_session(other) == []
    await usage.record(replace(RECORD, session=None, request_id="operator"))
    assert RECORD.session is not None
    assert len(await usage.of_session(RECORD.session)) == 1


async def test_reads_more_than_a_page(usage: KeyValueUsage) -> None:
    assert RECORD.session is not None
    for number in range(501):
        await usage.record(replace(RECORD, request_id=f"r-{number:04}"))
    assert (await usage.totals(RECORD.session)).calls == 501


async def test_records_expire(store: KeyValueStore) -> None:
    usage = KeyValueUsage(store, days=1)
    assert RECORD.session is not None
    await usage.record(replace(RECORD, at=NOW - timedelta(days=2)))
    assert await usage.of_session(RECORD.session) == []


async def test_operators_read_it_over_http(usage: KeyValueUsage, store: ValkeyKeyValueStore, serving: Any) -> None:
    await usage.record(RECORD)
    budgets = SessionBudgets(store, SystemClock(), default=1000)
    assert RECORD.session is not None
    await budgets.reserve(RECORD.session, 11, 5)
    async with serving(UsageApp(usage, budgets, Prices())) as url, aiohttp.ClientSession() as client:
        async with client.get(f"{url}/usage/runtime-1/{quote('session/1', safe='')}") as response:
            answer = await response.json()
        assert answer["session"] == {"runtime_id": "runtime-1", "session_id": "session/1"}
        assert answer["totals"]["calls"] == 1
        assert answer["budget"] == {"tokens": 1000, "used": 16, "left": 984}
        [call] = answer["calls"]
        assert (call["model_id"], call["input_tokens"], call["user_id"]) == ("claude", 11, "alice")
        async with client.get(f"{url}/usage/none/none") as response:
            assert (await response.json())["totals"]["calls"] == 0
        for method, path, status in (
            ("GET", "/usage/x", 404),
            ("GET", "/usage/x/y/z", 404),
            ("POST", "/usage/x/y", 405),
        ):
            async with client.request(method, url + path) as response:
                assert response.status == status
