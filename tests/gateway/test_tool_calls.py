"""Tools through a gateway, as unmodified MCP clients call them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from mcp import MCPError
from tool_stack import PERMIT_ALL, ToolStack, mcp_client, tool_stack
from tool_stand_ins import OrdersService, notes_server, orders_service, serving_mcp

from agentkeep.core.call import SessionRef, User
from agentkeep.storage.valkey import ValkeyKeyValueStore

SESSION = SessionRef("support-0123456789", "session-" + "1" * 32)


@pytest.fixture
async def stack(store: ValkeyKeyValueStore) -> AsyncIterator[ToolStack]:
    async with tool_stack(store) as stack:
        yield stack


@pytest.fixture
async def orders() -> AsyncIterator[OrdersService]:
    async with orders_service() as service:
        yield service


@pytest.fixture
async def notes() -> AsyncIterator[str]:
    async with serving_mcp(notes_server()) as url:
        yield url


def openapi(service: OrdersService) -> dict[str, object]:
    return {"mcp": {"openApiSchema": {"inlinePayload": service.document}}}


def server(url: str) -> dict[str, object]:
    return {"mcp": {"mcpServer": {"endpoint": url}}}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_official_client_lists_and_calls_tools_of_both_kinds_of_target(
    stack: ToolStack, orders: OrdersService, notes: str, mode: str
) -> None:
    """GOV-1"""
    gateway = await stack.gateway({"Orders": openapi(orders), "Notes": server(notes)})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice"), mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {"Orders___get_order", "Orders___request_refund", "Notes___add"} <= tools.keys()
        assert tools["Orders___get_order"].input_schema["required"] == ["order_id"]
        order = await client.call_tool("Orders___get_order", {"order_id": "A/1", "fields": ["a", "b"]})
        total = await client.call_tool("Notes___add", {"a": 2, "b": 3})
    assert not order.is_error and order.structured_content == {
        "order": "A/1",
        "status": "shipped",
        "fields": ["a", "b"],
    }
    assert orders.asked[0][1] == "/orders/A%2F1?fields=a&fields=b"
    assert total.structured_content == {"total": 5}
