"""MCP servers as targets: a session of its own for every call, so that what a server keeps of one is no other's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
from mcp import MCPError
from mcp.client import Client
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    ListToolsRequest,
    ListToolsResult,
    PaginatedRequestParams,
)
from mcp.types import Tool as McpTool
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from agentkeep.gateway.records import Tool
from agentkeep.gateway.targets.credentials import Outgoing
from agentkeep.gateway.targets.errors import TargetError, TargetFailed, told
from agentkeep.gateway.targets.wire import TargetWire

__all__ = ["McpServers"]

logger = logging.getLogger(__name__)

_CLIENT: Final = Implementation(name="agentkeep-gateway", version="1.0.0")
_MOST_PAGES: Final = 100
_MOST_TOOLS: Final = 1000  # AgentCore's, of a target


class McpServers:
    def __init__(self, wire: TargetWire) -> None:
        self._wire = wire
        self._eras: dict[str, str] = {}  # by URL: what a server was found to speak, so that it is not probed each time

    async def list_tools(self, url: str, outgoing: Outgoing) -> list[Tool]:
        """Raises TargetError."""
        tools: list[Tool] = []
        async with self._session(url, outgoing) as session:
            cursor: str | None = None
            for _ in range(_MOST_PAGES):
                page = await session.send_request(
                    ListToolsRequest(params=PaginatedRequestParams(cursor=cursor)), ListToolsResult
                )
                tools += [_tool(tool) for tool in page.tools]
                cursor = page.next_cursor
                if cursor is None:
                    return tools
                if len(tools) > _MOST_TOOLS:
                    break
        raise TargetFailed(f"it has more than {_MOST_TOOLS} tools, or lists them without end")

    async def call(self, url: str, name: str, arguments: Mapping[str, Any], outgoing: Outgoing) -> CallToolResult:
        """Raises TargetError."""
        async with self._session(url, outgoing) as session:
            return await session.send_request(
                CallToolRequest(params=CallToolRequestParams(name=name, arguments=dict(arguments))), CallToolResult
            )

    @asynccontextmanager
    async def _session(self, url: str, outgoing: Outgoing) -> AsyncIterator[ClientSession]:
        if outgoing.query:
            url = str(httpx2.URL(url).copy_merge_params(dict(outgoing.query)))
        known = self._eras.get(url)
        try:
            async with (
                self._wire.client(outgoing.headers) as http,
                Client(
                    streamable_http_client(url, http_client=http, max_sse_event_size=self._wire.most_bytes),
                    mode=known or "auto",
                    client_info=_CLIENT,
                ) as client,
            ):
                if known is None:
                    modern = client.protocol_version in MODERN_PROTOCOL_VERSIONS
                    self._eras[url] = client.protocol_version if modern else "legacy"
                yield client.session
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._eras.pop(url, None)
            raise _failure(error) from error


def _failure(error: BaseException) -> BaseException:
    """What the client's task groups wrapped, as ours."""
    if isinstance(error, BaseExceptionGroup):
        return _failure(error.exceptions[0])
    if isinstance(error, TargetError):
        return error
    if isinstance(error, MCPError):
        return TargetFailed(f"it answered with error {error.code}: {error}")
    if isinstance(error, ValidationError):
        return TargetFailed("its answer is not what MCP says")
    if isinstance(error, Exception):
        return TargetFailed(told(error))
    return error


def _tool(tool: McpTool) -> Tool:
    annotations = tool.annotations.model_dump(by_alias=True, exclude_none=True) if tool.annotations else {}
    return Tool(tool.name, tool.description or tool.title or "", tool.input_schema, tool.output_schema, annotations)
