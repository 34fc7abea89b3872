"""Targets of every kind, listed and called in one way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp.types import CallToolResult

from agentkeep.core.call import Caller
from agentkeep.core.errors import DependencyError, ValidationException
from agentkeep.gateway.records import TargetRecord, Tool
from agentkeep.gateway.targets.arguments import ArgumentSchemas, BadSchema
from agentkeep.gateway.targets.credentials import TargetCredentials
from agentkeep.gateway.targets.errors import TargetError, TargetFailed, TargetRefused, TargetTimeout
from agentkeep.gateway.targets.mcp_server import McpServers
from agentkeep.gateway.targets.openapi import OpenApiTool, openapi_tools
from agentkeep.gateway.targets.openapi_calls import call_openapi
from agentkeep.gateway.targets.wire import TargetWire

__all__ = ["TargetListingFailed", "Targets"]

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_LONGEST_DESCRIPTION: Final = 16_384
_MOST_PREPARED: Final = 256


class TargetListingFailed(DependencyError):
    """The target did not say which tools it has."""


class Targets:
    """Implements `ToolLister`, and calls tools. `listing_seconds`: for the whole of a listing."""

    def __init__(
        self,
        wire: TargetWire,
        credentials: TargetCredentials,
        schemas: ArgumentSchemas,
        *,
        listing_seconds: float,
    ) -> None:
        self._wire = wire
        self._credentials = credentials
        self._schemas = schemas
        self._mcp_servers = McpServers(wire)
        self._listing_seconds = listing_seconds
        self._prepared: dict[str, tuple[object, dict[str, OpenApiTool]]] = {}

    async def list_tools(self, target: TargetRecord) -> Sequence[Tool]:
        try:
            async with asyncio.timeout(self._listing_seconds):
                return self._checked(await self._listed(target))
        except TargetRefused as error:
            raise ValidationException(str(error)) from None
        except TimeoutError:
            raise TargetListingFailed(
                f"Target {target.name} did not list its tools within {self._listing_seconds:g} seconds"
            ) from None
        except TargetError as error:
            raise TargetListingFailed(f"Target {target.name} did not list its tools: {error}") from None

    async def call(
        self,
        target: TargetRecord,
        tool: Tool,
        arguments: Mapping[str, Any],
        caller: Caller,
        user_token: str | None,
        seconds: float,
    ) -> CallToolResult:
        """Raises TargetError; TargetTimeout after `seconds`."""
        try:
            async with asyncio.timeout(seconds) as limit:
                outgoing = await self._credentials.outgoing(target, caller, user_token)
                if (url := _mcp_endpoint(target)) is not None:
                    result = await self._mcp_servers.call(url, tool.name, arguments, outgoing)
                else:
                    operation = self._openapi(target).get(tool.name)
                    if operation is None:
                        raise TargetFailed(f"the document has no operation {tool.name} any more")
                    result = await call_openapi(self._wire, operation, arguments, outgoing)
        except TimeoutError:
            if not limit.expired():
                raise
            raise TargetTimeout(f"The tool did not answer within {seconds:g} seconds") from None
        self._check_result(tool, result)
        return result

    async def _listed(self, target: TargetRecord) -> Sequence[Tool]:
        if (url := _mcp_endpoint(target)) is not None:
            self._wire.allowed.check_url(url)
            return await self._mcp_servers.list_tools(url, await self._credentials.for_listing(target))
        operations = openapi_tools(_openapi_text(target)).values()
        for operation in operations:
            self._wire.allowed.check_url(operation.url.partition("{")[0])
        return [operation.tool for operation in operations]

    def _checked(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        """Raises TargetRefused for tools that could not be offered: all of the target's, so that none goes missing in
        silence."""
        seen: set[str] = set()
        for tool in tools:
            if _NAME.fullmatch(tool.name) is None:
                raise TargetRefused(
                    f"Tool {tool.name[:128]!a} cannot be offered: names are 1 to 128 ASCII letters, digits and _ . -"
                )
            if tool.name in seen:
                raise TargetRefused(f"Tool {tool.name} is listed twice")
            seen.add(tool.name)
            if len(tool.description) > _LONGEST_DESCRIPTION:
                raise TargetRefused(f"The description of tool {tool.name} is longer than {_LONGEST_DESCRIPTION}")
            for schema, what in ((tool.input_schema, "input"), (tool.output_schema, "output")):
                try:
                    if schema is not None:
                        self._schemas.prepare(schema)
                except BadSchema as error:
                    raise TargetRefused(f"The {what} schema of tool {tool.name} cannot be used: {error}") from None
        return tools

    def _check_result(self, tool: Tool, result: CallToolResult) -> None:
        """Clients check a tool's structured answer against what it promised, and fail hard; so it is checked here."""
        if tool.output_schema is None or result.is_error:
            return
        try:
            faults = self._schemas.faults(tool.output_schema, result.structured_content)
        except BadSchema as error:
            raise TargetFailed(f"its output schema cannot be used: {error}") from None
        if faults:
            raise TargetFailed(f"its result does not fit the output schema it announced: {'; '.join(faults)}")

    def _openapi(self, target: TargetRecord) -> dict[str, OpenApiTool]:
        revision = (target.gateway_id, target.updated_at)
        kept = self._prepared.get(target.id)
        if kept is None or kept[0] != revision:
            kept = self._prepared[target.id] = revision, openapi_tools(_openapi_text(target))
            if len(self._prepared) > _MOST_PREPARED:
                del self._prepared[next(iter(self._prepared))]
        return kept[1]


def _mcp_endpoint(target: TargetRecord) -> str | None:
    server = target.configuration.get("mcp", {}).get("mcpServer")
    return server["endpoint"] if server else None


def _openapi_text(target: TargetRecord) -> str:
    schema = target.configuration.get("mcp", {}).get("openApiSchema")
    if not schema or "inlinePayload" not in schema:
        raise TargetRefused("A target must be an MCP server (mcpServer) or an OpenAPI document (openApiSchema)")
    text: str = schema["inlinePayload"]
    return text
