"""Targets that misbehave, agents that do, and addresses that are out of bounds."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from tool_stack import ToolStack, mcp_client, tool_stack
from tool_stand_ins import (
    HostileMcpServer,
    OrdersService,
    hostile_mcp_server,
    notes_server,
    openapi,
    orders_document,
    orders_service,
    server,
    serving_mcp,
)

from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import DependencyError, StoreUnavailable, ValidationException
from agentkeep.gateway.audit.trail import AuditTrail
from agentkeep.gateway.records import TargetRecord
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.gateway.targets.addresses import AllowedAddresses
from agentkeep.gateway.targets.errors import TargetFailed, TargetRefused
from agentkeep.gateway.targets.openapi import openapi_tools
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.storage.valkey import ValkeyKeyValueStore

SMALL = GatewaySettings(
    allowed_target_hosts=("127.0.0.0/8",), response_bytes=300_000, tool_seconds=1, listing_seconds=1
)


@pytest.fixture
async def stack(store: ValkeyKeyValueStore) -> AsyncIterator[ToolStack]:
    async with tool_stack(store, settings=SMALL) as stack:
        yield stack


@pytest.fixture
async def orders() -> AsyncIterator[OrdersService]:
    async with orders_service() as service:
        yield service


@pytest.fixture
async def hostile() -> AsyncIterator[HostileMcpServer]:
    async with hostile_mcp_server() as made:
        yield made


def target(configuration: dict[str, Any], credentials: tuple[Any, ...] = ()) -> TargetRecord:
    now = SystemClock().now()
    return TargetRecord("gw-1", "t-1", "t", "CREATING", configuration, credentials, (), now, now)


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ("hangs", "TargetTimeout"),
        ("endless", "TargetFailed"),
        ("redirects", "TargetFailed"),
        ("fails", "TargetFailed"),
        ("not_json", "TargetFailed"),
        ("squeezed", "TargetFailed"),
    ],
)
async def test_a_service_that_misbehaves_is_a_failed_call_and_no_more(
    stack: ToolStack, orders: OrdersService, tool: str, code: str
) -> None:
    """GOV-3: it hangs, answers for ever, leads to the metadata address, breaks its word. The agent is told that it
    failed; what the service said of its inside stays in the trail."""
    gateway = await stack.gateway({"Orders": openapi(orders)})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        began = time.monotonic()
        result = await client.call_tool(f"Orders___{tool}", {})
        assert time.monotonic() - began < 5
        assert result.is_error and result.structured_content["error"]["code"] == code
        assert "hunter2" not in result.model_dump_json()
        assert not (await client.call_tool("Orders___get_order", {"order_id": "A-1"})).is_error
    _, trail = await stack.operate("GET", f"/audit?gateway={gateway.id}")
    assert [call["status"] for call in trail["calls"]] == ["TIMED_OUT" if tool == "hangs" else "FAILED", "SUCCEEDED"]


async def test_what_a_service_says_to_the_agent_reaches_it(stack: ToolStack, orders: OrdersService) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        result = await client.call_tool("Orders___get_order", {"order_id": "unknown"})
    assert result.is_error and "404" in result.content[0].text and "no such order" in result.content[0].text


async def test_the_cause_is_told_where_the_gateway_is_set_to_debug(stack: ToolStack, orders: OrdersService) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)}, document={"exceptionLevel": "DEBUG"})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        result = await client.call_tool("Orders___fails", {})
    assert "answered 503" in result.content[0].text and result.meta["debug"]["type"] == "TargetFailed"


async def test_a_call_ends_when_its_caller_leaves(stack: ToolStack, orders: OrdersService) -> None:
    """The target's connection ends too, and the trail says what happened."""
    gateway = await stack.gateway({"Orders": openapi(orders)})
    await stack.operate("PUT", f"/catalogue/{gateway.id}/Orders___hangs", {"timeoutSeconds": 600})
    token = await stack.token("alice")
    for version in ("2025-06-18", "2026-07-28"):
        orders.hanging.clear()
        ended = orders.ended
        request = asyncio.create_task(_post_call(stack, stack.mcp_url(gateway), token, version))
        await asyncio.wait_for(orders.hanging.wait(), 5)
        request.cancel()
        async with asyncio.timeout(5):
            while orders.ended == ended:
                await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        while True:
            _, trail = await stack.operate("GET", f"/audit?gateway={gateway.id}")
            if [call["status"] for call in trail["calls"]] == ["CANCELLED", "CANCELLED"]:
                break
            await asyncio.sleep(0.05)


async def _post_call(stack: ToolStack, url: str, token: str, version: str) -> None:
    params: dict[str, Any] = {"name": "Orders___hangs", "arguments": {}}
    headers = {
        "authorization": f"Bearer {token}",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": version,
    }
    if version == "2026-07-28":
        meta = "io.modelcontextprotocol/"
        params["_meta"] = {
            f"{meta}protocolVersion": version,
            f"{meta}clientInfo": {"name": "c", "version": "1"},
            f"{meta}clientCapabilities": {},
        }
        headers |= {"mcp-method": "tools/call", "mcp-name": "Orders___hangs"}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    async with stack.http.post(url, json=message, headers=headers) as response:
        raise AssertionError(await response.text())


# An agent that misbehaves.


async def test_names_that_try_to_be_others_are_unknown(stack: ToolStack, orders: OrdersService) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    names = (
        "get_order", "Orders__get_order", "Orders____get_order", "Orders___get_order___get_order", "___get_order",
        "Orders___", "orders___get_order", "Orders___get_order\u0000", "Оrders___get_order", "Orders___\u202eredro_teg",
        "../Orders___get_order", "x" * 100_000, "",
    )  # fmt: skip
    token = await stack.token("alice")
    for name in names:
        status, answer = await _rpc(stack, stack.mcp_url(gateway), token, "tools/call", {"name": name, "arguments": {}})
        assert status == 200 and answer["error"]["code"] == -32602, name
        assert len(answer["error"]["message"]) < 400
    assert orders.asked == []


async def _rpc(stack: ToolStack, url: str, token: str, method: str, params: Any) -> tuple[int, Any]:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    return await _send(stack, url, token, body.encode())


async def _send(stack: ToolStack, url: str, token: str, body: bytes) -> tuple[int, Any]:
    headers = {
        "authorization": f"Bearer {token}",
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
    }
    async with stack.http.post(url, data=io.BytesIO(body), headers=headers) as response:
        return response.status, json.loads(await response.read())


async def test_requests_that_are_too_much_are_refused_and_the_next_is_served(
    stack: ToolStack, orders: OrdersService
) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    url, token = stack.mcp_url(gateway), await stack.token("alice")
    large = {"name": "Orders___get_order", "arguments": {"order_id": "x" * 10_000_000}}
    assert (await _rpc(stack, url, token, "tools/call", large))[0] == 413
    for body in (
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"[" * 100_000 + b"]" * 100_000,
        b"\xff\xfe",
        b"",
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"Orders___get_order","arguments":NaN}}',
    ):
        status, answer = await _send(stack, url, token, body)
        assert status == 400 and answer["error"]["code"] in (-32700, -32600)
    # Said twice, a member counts once, and for everybody the same.
    twice = b'{"order_id":"A-1","order_id":7}'
    call = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"Orders___get_order","arguments":%b}}'
    _, answer = await _send(stack, url, token, call % twice)
    assert "integer found, string expected" in answer["result"]["content"][0]["text"]
    _, answer = await _send(stack, url, token, call % b'{"order_id":123456789012345678901234567890}')
    assert answer["result"]["isError"]
    assert orders.asked == []
    async with mcp_client(url, token=token) as client:
        assert not (await client.call_tool("Orders___get_order", {"order_id": "A-1"})).is_error


@pytest.mark.parametrize("order", [".", "..", "", "../refunds", "A/../../refunds", "A?x=1", "A#b", "%2e%2e", "Ä b"])
async def test_a_path_parameter_stays_in_its_place(stack: ToolStack, orders: OrdersService, order: str) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        result = await client.call_tool("Orders___get_order", {"order_id": order})
    if order in (".", "..", ""):
        assert result.is_error and orders.asked == []
    else:
        assert result.structured_content["order"] == order
        assert orders.asked[0][1].count("/") == 2 and "?" not in orders.asked[0][1]


async def test_the_server_goes_on_after_a_defect_that_ends_its_tasks(stack: ToolStack, orders: OrdersService) -> None:
    gateway = await stack.gateway({"Orders": openapi(orders)})
    token = await stack.token("alice")
    group = stack.replicas[0].tools._server._manager._task_group
    group.start_soon(_fail)
    await asyncio.sleep(0.05)
    async with mcp_client(stack.mcp_url(gateway), token=token) as client:
        assert not (await client.call_tool("Orders___get_order", {"order_id": "A-1"})).is_error


async def _fail() -> None:
    raise RuntimeError("a defect")


# MCP servers that lie.


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([{"name": "Оrders", "inputSchema": {"type": "object"}}], "cannot be offered"),
        ([{"name": "x" * 129, "inputSchema": {"type": "object"}}], "cannot be offered"),
        ([{"name": "a", "inputSchema": {"type": "object"}}] * 2, "listed twice"),
        ([{"name": "a", "inputSchema": {"type": "object", "$ref": "http://127.0.0.1/x"}}], "schema of tool a"),
        ([{"name": "a", "inputSchema": {"type": "object", "properties": {"b": {"pattern": "("}}}}], "schema of tool a"),
        ([{"name": "a", "description": "x" * 20_000, "inputSchema": {"type": "object"}}], "description of tool a"),
    ],
)
async def test_tools_that_cannot_be_offered_are_refused_by_name(
    stack: ToolStack, hostile: HostileMcpServer, tools: list[Any], said: str
) -> None:
    hostile.tools = tools
    with pytest.raises(ValidationException, match=said):
        await stack.lister.list_tools(target(server(hostile.url)))


async def test_a_server_that_lists_without_end_or_too_much_is_not_waited_for(
    stack: ToolStack, hostile: HostileMcpServer
) -> None:
    hostile.cursor = "again"
    with pytest.raises(DependencyError, match="did not list its tools"):
        await stack.lister.list_tools(target(server(hostile.url)))
    hostile.cursor = None
    hostile.tools = [
        {"name": f"t{i}", "description": "x" * 1000, "inputSchema": {"type": "object"}} for i in range(900)
    ]
    with pytest.raises(DependencyError, match="larger than 300000 bytes"):
        await stack.lister.list_tools(target(server(hostile.url)))
    hostile.tools = [{"name": "a"}]
    with pytest.raises(DependencyError, match="not what MCP says"):
        await stack.lister.list_tools(target(server(hostile.url)))
    with pytest.raises(DependencyError, match="did not list its tools"):
        await stack.lister.list_tools(target(server("http://127.0.0.1:1/mcp")))


async def _stream_for_ever(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b": still there\n\n")
        await asyncio.sleep(0.01)


async def _hang(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


async def _redirect(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("http://169.254.169.254/mcp")


async def _huge(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    result = {"content": [{"type": "text", "text": "x" * 2_000_000}]}
    return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result})


def _answers(result: Any) -> Any:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result})

    return answer


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (_hang, "TargetTimeout"),
        (_stream_for_ever, "TargetTimeout"),
        (_redirect, "TargetFailed"),
        (_huge, "TargetFailed"),
        (_answers({"content": "text"}), "TargetFailed"),
        (_answers([]), "TargetFailed"),
        (_answers({"content": [], "structuredContent": {"total": "many"}}), "TargetFailed"),
        (_answers({"content": []}), "TargetFailed"),
    ],
)
async def test_an_mcp_server_that_lies_is_a_failed_call_and_no_more(
    stack: ToolStack, hostile: HostileMcpServer, answer: Any, code: str
) -> None:
    """GOV-3"""
    hostile.tools = [
        {
            "name": "add",
            "inputSchema": {"type": "object"},
            "outputSchema": {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]},
        }
    ]
    gateway = await stack.gateway({"Hostile": server(hostile.url)})
    hostile.answer = answer
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        result = await client.call_tool("Hostile___add", {})
        assert result.is_error and result.structured_content["error"]["code"] == code
        hostile.answer = _answers({"content": [], "structuredContent": {"total": 5}})
        assert (await client.call_tool("Hostile___add", {})).structured_content == {"total": 5}


async def test_a_tool_that_runs_too_long_is_stopped_at_an_mcp_server_too(stack: ToolStack) -> None:
    async with serving_mcp(notes_server()) as url:
        gateway = await stack.gateway({"Notes": server(url)})
        async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
            result = await client.call_tool("Notes___hangs", {})
    assert result.structured_content["error"]["code"] == "TargetTimeout"


# Credentials.


async def test_an_api_key_is_shown_to_the_target_it_is_for_and_to_nobody_else(stack: ToolStack) -> None:
    """GOV-4, IDN-3: the agent never holds it."""
    provider = await stack.identity._api_keys.create("notes", "key-of-the-platform", {}, {})
    configured = {
        "credentialProviderType": "API_KEY",
        "credentialProvider": {
            "apiKeyCredentialProvider": {"providerArn": provider.arn, "credentialParameterName": "X-Api-Key"}
        },
    }
    async with serving_mcp(notes_server()) as url:
        gateway = await stack.gateway({"Notes": server(url)}, credentials=[configured])
        async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
            result = await client.call_tool("Notes___whoami", {})
    assert json.loads(result.content[0].text) == {"shown": {"x-api-key": "key-of-the-platform"}, "aws": []}
    records, _ = await KeyValueAudit(stack.store).page(AuditFilter(kind="api-key-used", user="alice"), 10)
    (used,) = records
    assert (used.details["provider"], used.details["resource"]) == ("notes", f"target Notes of gateway {gateway.id}")
    assert "key-of-the-platform" not in str(used)


@pytest.mark.parametrize("key", ["s3cret-k3y\n", "s3cret-k3y\u00e9", " s3cret-k3y"], ids=ascii)
async def test_a_key_that_no_header_can_hold(
    stack: ToolStack, orders: OrdersService, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """As it is with a line's end that came along. HTTP clients quote what they cannot send: it never comes to that."""
    provider = await stack.identity._api_keys.create(f"orders-{len(key)}{ord(key[-1])}", key, {}, {})
    configured = {
        "credentialProviderType": "API_KEY",
        "credentialProvider": {"apiKeyCredentialProvider": {"providerArn": provider.arn}},
    }
    gateway = await stack.gateway(
        {"Orders": openapi(orders)}, credentials=[configured], document={"exceptionLevel": "DEBUG"}
    )
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        result = await client.call_tool("Orders___get_order", {"order_id": "A-1"})
    assert result.is_error and orders.asked == []
    assert f"credential provider {provider.name} cannot be sent in a header" in result.content[0].text
    assert "s3cret-k3y" not in result.content[0].text + caplog.text


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n"], ids=["status", "header"])
async def test_a_target_that_repeats_its_key(
    stack: ToolStack, orders: OrdersService, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    """In an answer that is no HTTP, which clients quote: not into the log, the trail or an agent's context."""

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (shown,) = (line for line in head.split(b"\r\n") if b"s3cret-k3y" in line)
        writer.write(answer + shown.partition(b":")[2].strip() + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    provider = await stack.identity._api_keys.create(f"repeated-{len(answer)}", "s3cret-k3y", {}, {})
    configured = {
        "credentialProviderType": "API_KEY",
        "credentialProvider": {"apiKeyCredentialProvider": {"providerArn": provider.arn}},
    }
    async with await asyncio.start_server(repeat, "127.0.0.1", 0) as listening:
        orders.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        gateway = await stack.gateway(
            {"Orders": openapi(orders)}, credentials=[configured], document={"exceptionLevel": "DEBUG"}
        )
        async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
            result = await client.call_tool("Orders___get_order", {"order_id": "A-1"})
    assert "RemoteProtocolError" in result.content[0].text
    assert "s3cret-k3y" not in result.content[0].text + caplog.text


async def test_a_key_in_a_query_is_in_no_log(
    stack: ToolStack, orders: OrdersService, caplog: pytest.LogCaptureFixture
) -> None:
    """HTTP clients log the URLs that they call, at the platform's own level."""
    caplog.set_level("INFO")
    provider = await stack.identity._api_keys.create("in-the-query", "s3cret-k3y", {}, {})
    shown = {"providerArn": provider.arn, "credentialLocation": "QUERY_PARAMETER", "credentialParameterName": "key"}
    configured = {
        "credentialProviderType": "API_KEY",
        "credentialProvider": {"apiKeyCredentialProvider": shown},
    }
    gateway = await stack.gateway({"Orders": openapi(orders)}, credentials=[configured])
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        assert not (await client.call_tool("Orders___get_order", {"order_id": "A-1"})).is_error
    assert "s3cret-k3y" in str(orders.asked)
    ours = [record for record in caplog.records if record.name != "aiohttp.access"]  # which is the target's
    assert ours and "s3cret-k3y" not in str([record.getMessage() for record in ours])


async def test_without_the_users_token_a_target_that_wants_it_is_not_called(
    stack: ToolStack, orders: OrdersService
) -> None:
    """IDN-2: no falling back to anybody else's identity."""
    passthrough = [{"credentialProviderType": "JWT_PASSTHROUGH"}]
    gateway = await stack.gateway({"Orders": openapi(orders)}, jwt=False, credentials=passthrough)
    async with mcp_client(stack.mcp_url(gateway), keys=stack.operator) as client:
        result = await client.call_tool("Orders___get_order", {"order_id": "A-1"})
    assert "called with the user's own token" in result.content[0].text and orders.asked == []


# The trail.


class Unwritable:
    """The trail's store, away when an intent is to be written."""

    def __init__(self, store: ValkeyKeyValueStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def transact(self, *arguments: Any, **named: Any) -> None:
        raise StoreUnavailable("the store does not answer")


@pytest.mark.parametrize("risk", ["high-impact", "read"])
async def test_a_call_whose_intent_cannot_be_written_is_not_made(
    stack: ToolStack, orders: OrdersService, risk: str
) -> None:
    """GOV-7: whatever the tool's class."""
    gateway = await stack.gateway({"Orders": openapi(orders)})
    await stack.operate("PUT", f"/catalogue/{gateway.id}/Orders___get_order", {"riskClass": risk})
    calls = stack.replicas[0].tools._server._calls
    kept, calls._trail = calls._trail, AuditTrail(Unwritable(stack.store), days=1, most_bytes=1000)
    async with mcp_client(stack.mcp_url(gateway), token=await stack.token("alice")) as client:
        result = await client.call_tool("Orders___get_order", {"order_id": "A-1"})
        assert result.structured_content["error"]["code"] == "ServiceUnavailableException"
        assert orders.asked == []
        calls._trail = kept
        assert not (await client.call_tool("Orders___get_order", {"order_id": "A-1"})).is_error


# Addresses.


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/", "https://169.254.169.254/", "https://[fe80::1]/", "https://[fd00:ec2::254]/",
        "https://10.0.0.1/", "https://192.168.1.1/", "https://[::1]/", "https://127.0.0.1/", "https://0.0.0.0/",
        "https://[::ffff:169.254.169.254]/", "https://[::ffff:10.0.0.1]/", "https://[64:ff9b::a9fe:a9fe]/",
        "https://[2002:7f00:1::]/", "https://100.64.0.1/", "https://224.0.0.1/", "http://example.com/",
        "http://8.8.8.8/", "ftp://example.com/", "https://user:pw@example.com/", "file:///etc/passwd", "https:///x",
    ],
)  # fmt: skip
def test_addresses_out_of_bounds_are_refused(address: str) -> None:
    with pytest.raises(TargetRefused):
        AllowedAddresses().check_url(address)


async def test_names_are_looked_at_when_they_are_resolved() -> None:
    """What a name leads to may change after a target was made."""
    nowhere = AllowedAddresses()
    nowhere.check_url("https://localhost/")
    with pytest.raises(TargetRefused, match="not a public address"):
        await nowhere.resolve("localhost", 443, encrypted=True)
    # Opened by the operator of the platform; but never the metadata address.
    opened = AllowedAddresses(("127.0.0.0/8", "::1", "0.0.0.0/0"))
    assert await opened.resolve("localhost", 443, encrypted=False) in ("127.0.0.1", "::1")
    with pytest.raises(TargetRefused, match="never called"):
        await opened.resolve("169.254.169.254", 80, encrypted=False)
    with pytest.raises(TargetFailed, match="cannot be resolved"):
        await opened.resolve("nothing.invalid", 443, encrypted=True)
    with pytest.raises(ValueError, match="neither a network"):
        AllowedAddresses(("10.0.0.1/8",))


# OpenAPI documents.


def changed(path: str, value: Any) -> str:
    """The orders document with one member replaced; None removes it."""
    document: Any = orders_document("https://orders.example")
    *parents, last = path.split("|")
    part = document
    for name in parents:
        part = part[int(name)] if isinstance(part, list) else part[name]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return json.dumps(document)


GET = "paths|/orders/{order_id}|get"
POST = "paths|/refunds|post"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("openapi", "2.0", "#/openapi must be 3.0.x or 3.1.x"),
        ("servers", None, "#/servers must name the service's URL"),
        ("servers", [{"url": "https://{region}.example"}], "#/servers/0/url must be a whole URL"),
        ("servers", [{"url": "/api"}], "#/servers/0/url must be a whole URL"),
        (f"{GET}|operationId", None, "#/paths/~1orders~1{order_id}/get/operationId must name the tool"),
        (f"{GET}|operationId", "request_refund", "#/paths/~1refunds/post/operationId is another operation's too"),
        (f"{GET}|parameters", [{"name": "s", "in": "cookie", "schema": {}}], "get/parameters/0/in must be path"),
        (f"{GET}|parameters", [{"name": "Authorization", "in": "header", "schema": {}}], "is not an agent's to set"),
        (f"{GET}|parameters", [{"name": "X-Amz-Date", "in": "header", "schema": {}}], "is not an agent's to set"),
        (f"{GET}|parameters", [{"name": "f", "in": "query", "schema": {"type": "object"}}], "objects belong into"),
        (f"{GET}|parameters", [{"name": "f", "in": "query", "style": "pipeDelimited", "schema": {}}], "/style must be"),
        (f"{GET}|parameters", [{"name": "order_id", "in": "query", "schema": {}}], "another parameter's too"),
        (f"{GET}|parameters", [{"$ref": "other.json#/x"}], "references must stay in the document"),
        (f"{GET}|parameters", [{"$ref": "#/components/parameters/None"}], "which is not there"),
        ("paths|/orders/{order_id}|parameters", [], "path and path parameters do not agree: order_id"),
        (f"{POST}|requestBody|content", {"text/xml": {}}, "#/paths/~1refunds/post/requestBody/content must offer"),
        ("paths", {}, "#/paths must have at least one operation"),
        ("components|parameters|OrderId", {"$ref": "#/components/parameters/OrderId"}, "refers to itself"),
    ],
)
def test_what_a_document_asks_for_and_cannot_have_is_refused_by_its_pointer(path: str, value: Any, said: str) -> None:
    with pytest.raises(TargetRefused) as refusal:
        openapi_tools(changed(path, value))
    assert said in str(refusal.value)


def test_schemas_of_documents_become_json_schema() -> None:
    tools = openapi_tools(changed("info", {}))
    refund = tools["request_refund"].tool.input_schema
    assert refund["properties"]["amount"] == {"type": "number", "exclusiveMinimum": 0}
    assert refund["properties"]["reason"] == {"type": ["string", "null"]}
    assert refund["required"] == ["order_id", "amount"] and refund["additionalProperties"] is False
    assert tools["get_order"].tool.annotations["readOnlyHint"] is True


def test_a_body_that_cannot_be_told_from_parameters_is_a_member_of_its_own() -> None:
    node = {
        "type": "object",
        "properties": {"order_id": {"type": "string"}, "next": {"$ref": "#/components/schemas/Node"}},
    }
    document = json.loads(changed("components|schemas|Node", node))
    document["paths"]["/orders/{order_id}"]["put"] = {
        "operationId": "put_order",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Node"}}},
        },
    }
    tool = openapi_tools(json.dumps(document))["put_order"]
    schema = tool.tool.input_schema
    assert tool.nested and schema["required"] == ["order_id", "body"]
    assert schema["properties"]["body"] == {"$ref": "#/$defs/components.schemas.Node"}
    assert schema["$defs"]["components.schemas.Node"]["properties"]["next"] == {
        "$ref": "#/$defs/components.schemas.Node"
    }
