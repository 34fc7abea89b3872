"""Calls of OpenAPI operations: arguments become a request, its answer a tool's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
from mcp.types import CallToolResult, TextContent

from agentkeep.gateway.targets.credentials import Outgoing
from agentkeep.gateway.targets.errors import TargetFailed, TargetRefused, told
from agentkeep.gateway.targets.openapi import BODY, OpenApiTool
from agentkeep.gateway.targets.wire import TargetWire

__all__ = ["call_openapi"]


async def call_openapi(
    wire: TargetWire, operation: OpenApiTool, arguments: Mapping[str, Any], outgoing: Outgoing
) -> CallToolResult:
    """Raises TargetError. What the service says of a request it does not accept (4xx) is the tool's error, for the
    agent to read."""
    url, query, headers = _request(operation, arguments)
    headers |= outgoing.headers
    content = None
    if (body := _body(operation, arguments)) is not None:
        content = orjson.dumps(body)
        headers["content-type"] = "application/json"
    headers.setdefault("accept", "application/json")
    try:
        async with (
            wire.client(headers) as client,
            client.stream(
                operation.method, url, params=[*query, *outgoing.query.items()] or None, content=content
            ) as response,
        ):
            data = await response.aread()
    except httpx2.HTTPError as error:
        raise TargetFailed(f"{operation.method} {operation.url}: {told(error)}") from None
    except httpx2.InvalidURL as error:
        raise TargetRefused(f"{operation.url} with these arguments is no URL: {error}") from None
    if response.status_code >= 500 or 300 <= response.status_code < 400:
        raise TargetFailed(f"{operation.method} {operation.url} answered {response.status_code}")
    return _result(response, data)


def _request(operation: OpenApiTool, arguments: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]], dict[str, str]]:
    url = operation.url
    query: list[tuple[str, str]] = []
    headers: dict[str, str] = {}
    for parameter in operation.parameters:
        if (value := arguments.get(parameter.name)) is None:
            if parameter.place == "path":
                raise TargetRefused(f"Path parameter {parameter.name} must not be null")
            continue
        texts = [_text(one) for one in value] if isinstance(value, list) else [_text(value)]
        match parameter.place:
            case "path":
                joined = ",".join(texts)
                if joined in ("", ".", ".."):
                    # It would lead to another path than the operation's.
                    raise TargetRefused(f"Path parameter {parameter.name} must not be {joined!r}")
                url = url.replace(f"{{{parameter.name}}}", quote(joined, safe=""))
            case "query":
                pairs = texts if parameter.explode else [",".join(texts)]
                query += [(parameter.name, text) for text in pairs]
            case _:
                joined = ",".join(texts)
                if not joined.isascii() or not joined.isprintable():
                    raise TargetRefused(f"Header parameter {parameter.name} must be printable ASCII")
                headers[parameter.name.lower()] = joined
    return url, query, headers


def _body(operation: OpenApiTool, arguments: Mapping[str, Any]) -> Any | None:
    if operation.body is None:
        return None
    if operation.nested:
        return arguments.get(BODY)
    return {name: arguments[name] for name in arguments if name in operation.body}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _result(response: httpx2.Response, data: bytes) -> CallToolResult:
    text = data.decode("utf-8", "replace")
    structured = None
    if response.headers.get("content-type", "").partition(";")[0].strip().endswith("json"):
        try:
            parsed = orjson.loads(data) if data else None
        except orjson.JSONDecodeError as error:
            raise TargetFailed(f"the target's answer is not JSON although it says so: {error}") from None
        structured = parsed if isinstance(parsed, dict) else None
    failed = response.status_code >= 400
    if failed:
        text = f"The service answered {response.status_code}: {text}"
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=None if failed else structured,
        is_error=failed,
    )
