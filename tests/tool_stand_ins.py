"""Stand-ins for what gateways call: an OpenAPI service and MCP servers, on loopback, with a wire; and hostile ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from aiohttp import web
from aiohttp.test_utils import TestServer
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations
from pydantic import BaseModel

METADATA_ADDRESS = "http://169.254.169.254/latest/meta-data/"


def orders_document(url: str) -> dict[str, Any]:
    """An OpenAPI document as teams write them: references, a reused parameter, a body."""
    return {
        "openapi": "3.0.3",
        "info": {"title": "Orders", "version": "1"},
        "servers": [{"url": url}],
        "paths": {
            "/orders/{order_id}": {
                "parameters": [{"$ref": "#/components/parameters/OrderId"}],
                "get": {
                    "operationId": "get_order",
                    "summary": "The status of an order.",
                    "parameters": [
                        {"name": "fields", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                        {"name": "X-Language", "in": "header", "schema": {"type": "string", "enum": ["en", "de"]}},
                    ],
                    "responses": {"200": {"description": "The order"}},
                },
            },
            "/refunds": {
                "post": {
                    "operationId": "request_refund",
                    "summary": "Asks for a refund.",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refund"}}},
                    },
                    "responses": {"201": {"description": "Asked"}},
                }
            },
            **{
                f"/{name}": {"get": {"operationId": name, "responses": {"200": {"description": "?"}}}}
                for name in ("hangs", "endless", "redirects", "fails", "not_json", "squeezed")
            },
        },
        "components": {
            "parameters": {
                "OrderId": {"name": "order_id", "in": "path", "required": True, "schema": {"type": "string"}}
            },
            "schemas": {
                "Refund": {
                    "type": "object",
                    "required": ["order_id", "amount"],
                    "properties": {
                        "order_id": {"type": "string", "pattern": "^[A-Z]-[0-9]+$"},
                        "amount": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
                        "reason": {"type": "string", "nullable": True},
                    },
                }
            },
        },
    }


class OrdersService:
    """Keeps what it was asked. `ended`: how many hanging requests came to their end."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.hanging = asyncio.Event()
        self.ended = 0
        self.pause = 0.0

    @property
    def document(self) -> str:
        return json.dumps(orders_document(self.url))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append(
            (
                request.method,
                request.raw_path,
                {k.lower(): v for k, v in request.headers.items()},
                body and json.loads(body),
            )
        )
        await asyncio.sleep(self.pause)
        match request.path:
            case "/hangs":
                self.hanging.set()
                try:
                    await asyncio.sleep(3600)
                finally:
                    self.ended += 1
            case "/endless":
                response = web.StreamResponse()
                await response.prepare(request)
                while True:
                    await response.write(b"x" * 65536)
            case "/redirects":
                raise web.HTTPFound(METADATA_ADDRESS)
            case "/fails":
                return web.Response(status=503, text="psql: password is hunter2")
            case "/not_json":
                return web.Response(text="<html>", content_type="application/json")
            case "/squeezed":
                return web.Response(body=b"\x1f\x8b", headers={"content-encoding": "gzip"})
            case "/refunds":
                return web.json_response({"refund": "R-1", "state": "asked"}, status=201)
            case path if path.startswith("/orders/"):
                order = request.path.removeprefix("/orders/")
                if order == "unknown":
                    return web.json_response({"message": "no such order"}, status=404)
                return web.json_response(
                    {"order": order, "status": "shipped", "fields": request.query.getall("fields", [])}
                )
        raise web.HTTPNotFound()


@asynccontextmanager
async def orders_service() -> AsyncIterator[OrdersService]:
    service = OrdersService()
    async with _serving(service.handle) as url:
        service.url = url
        yield service


def openapi(service: OrdersService) -> dict[str, Any]:
    """A target's configuration."""
    return {"mcp": {"openApiSchema": {"inlinePayload": service.document}}}


def server(url: str) -> dict[str, Any]:
    """A target's configuration."""
    return {"mcp": {"mcpServer": {"endpoint": url}}}


class Sum(BaseModel):
    total: int


def notes_server() -> MCPServer[Any]:
    """A well-behaved MCP server, made with the official package."""
    server: MCPServer[Any] = MCPServer("notes")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def add(a: int, b: int) -> Sum:
        """Adds two numbers."""
        return Sum(total=a + b)

    @server.tool()
    async def whoami(ctx: Context) -> str:
        """What this server was shown of the caller."""
        request = ctx.request_context.request
        assert request is not None
        shown = {name: value for name, value in request.headers.items() if name in ("authorization", "x-api-key")}
        aws = [name for name in request.headers if name.startswith(("x-amz", "x-amzn"))]
        return json.dumps({"shown": shown, "aws": aws})

    @server.tool()
    async def hangs() -> str:
        """Never answers."""
        await asyncio.sleep(3600)
        return ""

    return server


@asynccontextmanager
async def serving_mcp(server: MCPServer[Any]) -> AsyncIterator[str]:
    """The URL of a server's MCP endpoint."""
    config = uvicorn.Config(server.streamable_http_app(), host="127.0.0.1", port=0, log_level="critical", ws="none")
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        running.should_exit = True
        running.force_exit = True
        await task


class HostileMcpServer:
    """Speaks MCP by hand, and lies. `tools`: what it lists. `answer`: what it makes of tools/call."""

    def __init__(self) -> None:
        self.url = ""
        self.tools: list[Any] = [{"name": "tool", "description": "?", "inputSchema": {"type": "object"}}]
        self.cursor: str | None = None
        self.answer: Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]] = self.nothing

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        message = await request.json()
        match message.get("method"):
            case "initialize":
                return self.result(
                    message,
                    {
                        "protocolVersion": "2025-06-18",
                        "capabilities": {"tools": {}},
                        "serverInfo": {"name": "hostile", "version": "0"},
                    },
                )
            case "tools/list":
                listed = {"tools": self.tools} | ({"nextCursor": self.cursor} if self.cursor else {})
                return self.result(message, listed)
            case "tools/call":
                return await self.answer(request, message)
            case method if "id" in message:
                error = {"code": -32601, "message": f"no {method}"}
                return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error})
        return web.Response(status=202)

    def result(self, message: dict[str, Any], result: Any) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result})

    async def nothing(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        return self.result(message, {"content": []})


@asynccontextmanager
async def hostile_mcp_server() -> AsyncIterator[HostileMcpServer]:
    server = HostileMcpServer()
    async with _serving(server.handle) as url:
        server.url = f"{url}/mcp"
        yield server


@asynccontextmanager
async def _serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    application = web.Application(client_max_size=50_000_000)
    application.router.add_route("*", "/{path:.*}", handler)
    server = TestServer(application)
    await server.start_server(shutdown_timeout=0.1)
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.close()
