"""Limits of tools: exact, for however many callers and replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from mcp import MCPError
from mcp.types import CallToolResult
from tool_stack import mcp_client, tool_stack
from tool_stand_ins import openapi, orders_service

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.gateway.catalogue.entries import AuditLevel, CatalogueEntry, RiskClass
from agentkeep.gateway.limits.rate_limits import RateLimits
from agentkeep.gateway.records import RateLimitRecord
from agentkeep.storage.valkey import ValkeyKeyValueStore

CALLERS = 200
LIMIT = 37
SESSION = SessionRef("support-0123456789", "session-" + "1" * 32)
ENTRY = CatalogueEntry(RiskClass.READ, AuditLevel.METADATA, 60, 1000, 1000)
ALICE = Caller(CallerKind.SESSION, "arn:alice", "ASIA", User("alice", claims={"tier": "gold"}), SESSION)


@pytest.mark.parametrize("kind", ["catalogue", "rate limit"])
async def test_of_two_hundred_callers_through_two_replicas_exactly_as_many_run_as_may(
    store: ValkeyKeyValueStore, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """GOV-3: a limit of a session, and a rate limit of the gateway, at two endpoints on one store."""
    entries = [{"dimensions": {"toolName": "Orders___get_order"}, "requests": [{"rate": LIMIT, "period": "minute"}]}]
    async with tool_stack(store, replicas=2) as stack, orders_service() as orders:
        limits = [(("toolName",), entries)] if kind == "rate limit" else []
        gateway = await stack.gateway({"Orders": openapi(orders)}, jwt=False, limits=limits)
        chosen = {"callsPerMinute": 100_000} | ({"callsPerSession": LIMIT} if kind == "catalogue" else {})
        await stack.operate("PUT", f"/catalogue/{gateway.id}/Orders___get_order", chosen | {"timeoutSeconds": 60})
        alice = User("alice")
        keys = await stack.session_keys(SESSION, alice)
        endpoints = [await stack.listen(SESSION, alice, replica) for replica in (0, 1)]

        async def call(number: int) -> CallToolResult | MCPError:
            url = f"{endpoints[number % 2]}/gateways/{gateway.id}/mcp"
            async with mcp_client(url, keys=keys, mode="2026-07-28") as client:
                await gate.wait()
                try:
                    result = await client.call_tool("Orders___get_order", {"order_id": str(number)})
                except MCPError as refused:
                    return refused
            return result

        # All of it must be within one minute's window.
        if kind == "rate limit":
            await wait_for_room_in_the_minute(20)
        gate = asyncio.Event()
        calls = [asyncio.create_task(call(number)) for number in range(CALLERS)]
        gate.set()
        outcomes = await asyncio.gather(*calls)
        refused = [outcome for outcome in outcomes if isinstance(outcome, MCPError) or outcome.is_error]
        assert len(orders.asked) == LIMIT and len(refused) == CALLERS - LIMIT
        for outcome in refused:
            if isinstance(outcome, MCPError):
                error = outcome.error
                assert (error.code, error.message) == (-32003, "Rate limit exceeded")
                assert error.data["limitKey"] == "rl-0/toolName=Orders___get_order"
                assert error.data["metric"] == "requests" and 1 <= error.data["retryAfter"] <= 60
            else:
                assert outcome.structured_content["error"]["limitKey"] == "catalogue/callsPerSession"
        with capsys.disabled():
            print(f"\n{kind}: {CALLERS} concurrent callers, 2 replicas, limit {LIMIT}: {len(orders.asked)} ran")


async def wait_for_room_in_the_minute(seconds: int = 2) -> None:
    left = 60 - SystemClock().now().second
    if left <= seconds:
        await asyncio.sleep(left + 0.1)


def record(*entries: Mapping[str, Any], keys: Sequence[str] = ("targetName", "toolName")) -> RateLimitRecord:
    now = SystemClock().now()
    return RateLimitRecord("gw-1", "rl-1", keys, entries, now, now)


def entry(rate: float, period: str = "minute", **dimensions: str) -> dict[str, Any]:
    return {"dimensions": dimensions, "requests": [{"rate": rate, "period": period}]}


async def runs(limits: RateLimits, record: RateLimitRecord, caller: Caller = ALICE, name: str = "a___x") -> int:
    """How many of twenty calls run."""
    taken = [await limits.take([record], ENTRY, caller, "gw-1", name) for _ in range(20)]
    return taken.count(None)


async def test_the_most_specific_entry_applies(store: ValkeyKeyValueStore) -> None:
    """GOV-3"""
    await wait_for_room_in_the_minute()
    limits = RateLimits(store)
    limit = record(
        entry(9, targetName="*", toolName="*"), entry(7, targetName="a", toolName="*"),
        entry(3, targetName="a", toolName="a___x"),
    )  # fmt: skip
    assert [await runs(limits, limit, name=name) for name in ("a___x", "a___y", "b___x", "b___y")] == [3, 7, 9, 9]


@pytest.mark.parametrize(("rate", "period", "expected"), [(0, "second", 0), (0.5, "minute", 1), (2.5, "minute", 5)])
async def test_rates_of_any_size_are_kept(store: ValkeyKeyValueStore, rate: float, period: str, expected: int) -> None:
    await wait_for_room_in_the_minute()
    limit = record(entry(rate, period, targetName="a", toolName="a___x"))
    assert await runs(RateLimits(store), limit) == expected


async def test_users_are_counted_for_themselves_and_claims_choose(store: ValkeyKeyValueStore) -> None:
    await wait_for_room_in_the_minute()
    limits = RateLimits(store)
    by_user = record(entry(4, **{"$.context.jwt.sub": "*"}), keys=["$.context.jwt.sub"])
    bob = Caller(CallerKind.SESSION, "arn:bob", "ASIB", User("bob"), SESSION)
    assert [await runs(limits, by_user, caller) for caller in (ALICE, bob)] == [4, 4]
    by_tier = record(entry(2, **{"$.context.jwt.tier": "gold"}), keys=["$.context.jwt.tier"])
    # Who has no such claim is not limited by it.
    assert [await runs(limits, by_tier, caller) for caller in (ALICE, bob)] == [2, 20]


async def test_what_one_limit_refuses_uses_up_nothing_of_the_others(store: ValkeyKeyValueStore) -> None:
    """GOV-3"""
    await wait_for_room_in_the_minute()
    limits = RateLimits(store)
    few = CatalogueEntry(RiskClass.READ, AuditLevel.METADATA, 60, 3, 1000)
    blocked = record(entry(0, targetName="a", toolName="a___x"))
    for _ in range(10):
        reached = await limits.take([blocked], few, ALICE, "gw-1", "a___x")
        assert reached is not None and reached.modelled
    assert [await limits.take([], few, ALICE, "gw-1", "a___x") is None for _ in range(4)] == [True, True, True, False]
