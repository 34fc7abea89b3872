"""What a gateway is to MCP clients: a server of tools, through the official `mcp` package, without sessions.

One server object serves all gateways; which one, and for whom, a request brings along (`scope["agentkeep.inbound"]`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
)
from mcp.types import Tool as McpTool

from agentkeep.core.errors import ValidationException
from agentkeep.core.pages import place, token
from agentkeep.gateway.mcp.calls import ToolCalls
from agentkeep.gateway.mcp.inbound import Inbound
from agentkeep.gateway.records import GatewayRecord, Tool
from agentkeep.service.asgi import Receive, Scope, Send

__all__ = ["INBOUND", "McpServer", "supported_versions"]

logger = logging.getLogger(__name__)

INBOUND: Final = "agentkeep.inbound"
_VERSIONS: Final = ("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
_PAGE: Final = 200


def supported_versions(gateway: GatewayRecord) -> tuple[str, ...]:
    """The protocol versions a gateway accepts; all that are known where it names none."""
    configured = _protocol(gateway).get("supportedVersions") or _VERSIONS
    return tuple(version for version in configured if version in _VERSIONS)


def _protocol(gateway: GatewayRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (gateway.document.get("protocolConfiguration") or {}).get("mcp") or {}
    return found


class McpServer:
    """`app` is ASGI, and serves requests that bear their `Inbound`. `start` and `close` frame its life."""

    def __init__(self, calls: ToolCalls, *, most_bytes: int) -> None:
        self._calls = calls
        server: Server[dict[str, Any]] = Server(
            "agentcore-gateway",
            version="1.0.0",
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            # Arguments are not mirrored into headers here, so a call need not list the tools first.
            get_tool_input_schema=lambda _name: None,
        )
        server.middleware = [self._as_configured]  # in the place of the package's own spans: ours know the session
        self._server = server
        self._most_bytes = most_bytes
        self._manager: StreamableHTTPSessionManager
        self._serving: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._manager.handle_request(scope, receive, send)

    async def start(self) -> None:
        # A task of its own: what the package opens must be closed by the task that opened it.
        self._serving = asyncio.create_task(self._serve(), name="gateway MCP server")
        await self._ready.wait()

    async def close(self) -> None:
        self._closing.set()
        if self._serving is not None:
            await self._serving
        await self._calls.close()

    async def _serve(self) -> None:
        """All requests are tasks of one group of the package's; should one of them ever end it, there is a new one."""
        while not self._closing.is_set():
            self._manager = StreamableHTTPSessionManager(
                self._server, json_response=True, stateless=True, max_request_body_size=self._most_bytes
            )
            try:
                async with self._manager.run():
                    self._ready.set()
                    await self._closing.wait()
            except Exception:
                logger.exception("the MCP server failed and is started again")

    # What is served.

    async def _list_tools(
        self, ctx: ServerRequestContext[dict[str, Any]], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        inbound = _inbound(ctx)
        tools = await self._calls.visible(inbound)
        if _protocol(inbound.gateway).get("disableMcpListToolsPagination"):
            return ListToolsResult(tools=[_shown(name, tool) for name, tool in tools])
        begin = 0
        if params is not None and params.cursor is not None:
            try:
                after = place(params.cursor)
            except ValidationException:
                raise MCPError(code=INVALID_PARAMS, message="This is no cursor of tools/list") from None
            # Behind the tool the page before ended with; where that is gone, from the beginning.
            begin = next((index + 1 for index, (name, _) in enumerate(tools) if name == after), 0)
        page = tools[begin : begin + _PAGE]
        more = len(tools) > begin + _PAGE
        return ListToolsResult(
            tools=[_shown(name, tool) for name, tool in page], next_cursor=token(page[-1][0]) if more else None
        )

    async def _call_tool(
        self, ctx: ServerRequestContext[dict[str, Any]], params: CallToolRequestParams
    ) -> CallToolResult:
        return await self._calls.call(_inbound(ctx), params.name, params.arguments or {})

    async def _as_configured(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """What a gateway says of itself when a client begins."""
        if ctx.method not in ("initialize", "server/discover"):
            return await call_next(ctx)
        gateway = _inbound(ctx).gateway
        if ctx.method == "initialize":
            wanted = (ctx.params or {}).get("protocolVersion")
            if wanted not in supported_versions(gateway):
                raise MCPError(code=INVALID_PARAMS, message=f"Unsupported MCP protocol version: {str(wanted)[:64]}")
        result = await call_next(ctx)
        instructions = _protocol(gateway).get("instructions")
        if instructions and isinstance(result, dict):
            result["instructions"] = instructions
        return result


def _inbound(ctx: ServerRequestContext[Any, Any]) -> Inbound:
    assert ctx.request is not None
    inbound: Inbound = ctx.request.scope[INBOUND]
    return inbound


def _shown(name: str, tool: Tool) -> McpTool:
    return McpTool.model_validate(
        {
            "name": name,
            "description": tool.description,
            "inputSchema": dict(tool.input_schema),
            "outputSchema": dict(tool.output_schema) if tool.output_schema is not None else None,
            "annotations": dict(tool.annotations) or None,
        }
    )
