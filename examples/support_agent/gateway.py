"""The tools of an AgentCore Gateway, as LangChain's. They are called as the user: with the token he came with."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Tool

GATEWAY_URL = os.environ.get("GATEWAY_URL")


async def gateway_tools(authorization: str) -> list[BaseTool]:
    """The tools that this user may use; none without a gateway, or without a user's token."""
    if not GATEWAY_URL or not authorization:
        return []
    tools: list[Tool] = []
    async with connected(authorization) as gateway:
        page = await gateway.list_tools()
        tools += page.tools
        while page.next_cursor:
            page = await gateway.list_tools(cursor=page.next_cursor)
            tools += page.tools
    return [langchain_tool(tool, authorization) for tool in tools]


def langchain_tool(tool: Tool, authorization: str) -> BaseTool:
    async def call(**arguments: Any) -> str:
        done, text = await ask(authorization, tool.name, arguments)
        if not done:
            raise ToolException(text)  # told to the model, so that it can tell the user
        return text

    return StructuredTool(
        name=tool.name,
        description=tool.description or tool.name,
        args_schema=tool.input_schema,
        coroutine=call,
        handle_tool_error=True,
    )


async def ask(authorization: str, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
    """Whether the tool did it, and what it says; or the gateway, which may refuse."""
    async with connected(authorization) as gateway:
        try:
            result = await gateway.call_tool(name, arguments)
        except MCPError as refused:
            return False, str(refused)
        return not result.is_error, "\n".join(block.text for block in result.content if block.type == "text")


@asynccontextmanager
async def connected(authorization: str) -> AsyncIterator[Client]:
    headers = {"Authorization": authorization}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(GATEWAY_URL, http_client=http)) as client,
    ):
        yield client
