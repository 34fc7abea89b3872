"""What MCP, A2A and AG-UI runtimes answer, and what of an agent's answer passes. On the wire, with the real front."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from botocore.exceptions import ClientError
from runtime_wire import SESSION, RuntimeWire, runtime_wire

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import (
    AccessDeniedException,
    ConflictException,
    InternalServerException,
    ResourceNotFoundException,
    RetryableConflictException,
    RuntimeClientError,
    ServiceError,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
    ThrottlingException,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.runtime.invocations.refusals import McpSessionNotFound, NotAcceptableException
from agentkeep.runtime.pump.envelopes import error_envelope, rpc_id
from agentkeep.wire.model import service

OPERATION = service("bedrock-agentcore").operation("InvokeAgentRuntime")
CALL = b'{"params":{},"method":"tools/list","jsonrpc":"2.0","id":7}'


def protocol(name: str, **more: Any) -> dict[str, Any]:
    return {"protocolConfiguration": {"serverProtocol": name, **more}}


def session() -> str:
    return str(uuid.uuid4())


@pytest.fixture
async def wire(platform: Any) -> AsyncIterator[RuntimeWire]:
    async with runtime_wire(platform) as wire:
        yield wire


def answers(platform: Any, status: int, body: bytes = b"", **headers: str) -> None:
    """From now on the agents' answer."""

    async def answer(agent: Any, request: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    platform.driver.behaviour.answer = answer


# The table of envelopes: contract notes 1.6.

MCP, A2A, AGUI = 0, 1, 2
TABLE: list[tuple[ServiceError, tuple[Any, int], tuple[Any, int], tuple[Any, int]]] = [
    (UnauthorizedException("x", "Bearer"), (-32001, 401), (None, 401), ("UNAUTHORIZED", 401)),
    (AccessDeniedException("x"), (-32002, 403), (None, 403), ("ACCESS_DENIED", 403)),
    (ThrottlingException("x"), (-32003, 200), (-32053, 429), ("RATE_LIMIT_EXCEEDED", 429)),
    (ServiceQuotaExceededException("x"), (-32003, 200), (-32053, 429), ("SERVICE_QUOTA_EXCEEDED", 429)),
    (ResourceNotFoundException("x"), (-32004, 200), (-32051, 404), ("INTERNAL_ERROR", 404)),
    (ConflictException("x"), (-32005, 200), (-32054, 409), ("SESSION_BUSY", 409)),
    (RetryableConflictException("x"), (-32005, 200), (-32054, 409), ("SESSION_BUSY", 409)),
    (ValidationException("x"), (-32006, 200), (-32052, 400), ("VALIDATION_ERROR", 400)),
    (RuntimeClientError("x"), (-32010, 200), (-32055, 424), ("AGENT_ERROR", 200)),
    (InternalServerException("x"), (-32603, 200), (-32603, 500), ("INTERNAL_ERROR", 500)),
    (ServiceUnavailableException("x"), (-32603, 200), (-32603, 503), ("INTERNAL_ERROR", 503)),
]


@pytest.mark.parametrize(("error", "mcp", "a2a", "agui"), TABLE, ids=lambda value: getattr(value, "code", None))
def test_the_envelopes(error: ServiceError, mcp: Any, a2a: Any, agui: Any) -> None:
    """EXE-1. And whatever the envelope, the header that names the error."""
    status, lines, body = error_envelope(error, OPERATION, "MCP", 7)
    assert (status, json.loads(body)) == (
        mcp[1],
        {"jsonrpc": "2.0", "id": 7, "error": {"code": mcp[0], "message": "x"}},
    )
    status, a2a_lines, body = error_envelope(error, OPERATION, "A2A", "r-1")
    document = json.loads(body)
    assert status == a2a[1]
    if a2a[0] is None:
        assert document == {"message": "x"}
    else:
        assert document == {"jsonrpc": "2.0", "id": "r-1", "error": {"code": a2a[0], "message": "x"}}
    status, agui_lines, body = error_envelope(error, OPERATION, "AGUI")
    assert status == agui[1] and body.startswith(b"data: ") and body.endswith(b"\n\n")
    assert json.loads(body[6:]) == {"type": "RUN_ERROR", "message": "x", "code": agui[0]}
    assert b"content-type: text/event-stream\r\n" in agui_lines
    for found in (lines, a2a_lines, agui_lines):
        assert any(line.startswith(b"x-amzn-errortype: ") for line in found)
        assert sum(line.startswith(b"content-type:") for line in found) == 1


def test_what_answers_no_call_says_it_by_its_status() -> None:
    """A 200 would tell an MCP client that its notification, or its GET, was served."""
    for error, status in ((RuntimeClientError("x"), 424), (ThrottlingException("x"), 429)):
        assert error_envelope(error, OPERATION, "MCP")[0] == status
    assert error_envelope(McpSessionNotFound("x"), OPERATION, "MCP", 1)[0] == 404
    assert error_envelope(NotAcceptableException("x"), OPERATION, "MCP", 1)[0] == 406


def test_the_id_of_a_call() -> None:
    assert rpc_id(CALL) == 7
    assert rpc_id(b'{"id":"a"}') == "a"
    for body in (b"", b"{", b"[1]", b"[]", b"3", b'{"id":true}', b'{"id":{}}', b'{"id":null}', b"{}", b"\xff"):
        assert rpc_id(body) is None


# MCP.


async def test_an_mcp_server_is_reached_as_it_expects(platform: Any, wire: RuntimeWire) -> None:
    """EXE-1"""
    runtime_id = await platform.create(**protocol("MCP", port=8123, path="/rpc/mcp"))
    headers = {
        SESSION: session(), "mcp-protocol-version": "2025-11-25", "mcp-method": "tools/call", "mcp-name": "add",
        "mcp-param-region": "west", "last-event-id": "3", "origin": "http://localhost:1", "x-else": "1", "cookie": "c",
    }  # fmt: skip
    answered = await wire.ask(runtime_id, CALL, headers)
    assert answered.status_code == 200
    [request] = platform.driver.agents[0].requests
    got = {name.lower(): value for name, value in request["headers"].items()}
    assert request["path"] == "/rpc/mcp" and request["body"] == CALL
    assert got["host"] == "localhost:8123" and platform.driver.agents[0].spec.version.port == 8123
    kept = ("mcp-protocol-version", "mcp-method", "mcp-name", "mcp-param-region", "last-event-id", "origin")
    assert {name: got[name] for name in kept} == {name: headers[name] for name in kept}
    assert "x-else" not in got and "cookie" not in got and "authorization" not in got


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 422])
async def test_an_mcp_servers_refusal_passes_and_is_marked_as_its_own(
    platform: Any, wire: RuntimeWire, status: int
) -> None:
    """EXE-1. Whatever an agent says, it does not pass for the platform."""
    runtime_id = await platform.create(**protocol("MCP"))
    forged = b'{"__type":"AccessDeniedException","message":"the platform says"}'
    answers(platform, status, forged, content_type="application/json", allow="POST", mcp_session_id="m",
            x_amzn_errortype="AccessDeniedException", www_authenticate="Bearer x", set_cookie="a=b",
            x_amzn_requestid="forged")  # fmt: skip
    answered = await wire.ask(runtime_id, CALL, {SESSION: session()})
    assert (answered.status_code, answered.content) == (status, forged)
    assert answered.headers["x-amzn-errortype"] == "RuntimeClientError"
    assert answered.headers.get("allow") == ("POST" if status == 405 else None)
    assert "www-authenticate" not in answered.headers and "set-cookie" not in answered.headers
    assert answered.headers.get_list("x-amzn-requestid") != ["forged"]


@pytest.mark.parametrize("status", [401, 407, 500, 503])
async def test_what_of_an_mcp_server_becomes_a_platforms_error(platform: Any, wire: RuntimeWire, status: int) -> None:
    """EXE-1. It cannot ask a client for credentials."""
    runtime_id = await platform.create(**protocol("MCP"))
    answers(platform, status, b"boom", www_authenticate='Bearer resource_metadata="http://evil"')
    answered = await wire.ask(runtime_id, CALL, {SESSION: session()})
    assert answered.status_code == 200 and "www-authenticate" not in answered.headers
    assert answered.json()["id"] == 7 and answered.json()["error"]["code"] == -32010
    assert f"({status})" in answered.json()["error"]["message"]
    assert answered.headers["x-amzn-errortype"] == "RuntimeClientError"
    notified = await wire.ask(runtime_id, b'{"jsonrpc":"2.0","method":"notifications/x"}', {SESSION: session()})
    assert notified.status_code == 424 and notified.json()["id"] is None


async def test_mcp_clients_take_both_kinds_of_answers(platform: Any, wire: RuntimeWire) -> None:
    runtime_id = await platform.create(**protocol("MCP"))
    for accept in ("application/json", "text/event-stream", "", "text/html"):
        refused = await wire.ask(runtime_id, CALL, {SESSION: session(), "accept": accept or "x/y"})
        assert refused.status_code == 406 and refused.json()["error"]["code"] == -32011 and refused.json()["id"] == 7
    assert platform.driver.agents == [], "no environment was made for them"
    assert (await wire.ask(runtime_id, CALL, {SESSION: session(), "accept": "*/*"})).status_code == 200


async def test_get_and_delete_are_mcps(platform: Any, wire: RuntimeWire) -> None:
    """EXE-1, and nobody else's; nor is a body with them."""
    seen = []

    async def answer(agent: Any, request: web.Request) -> web.StreamResponse:
        seen.append((request.method, request.path, await request.read(), request.headers.get("content-length")))
        if request.method == "DELETE":
            return web.Response(status=204)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"id: 1\ndata: hello\n\n")
        return response

    platform.driver.behaviour.answer = answer
    runtime_id, name = await platform.create(**protocol("MCP")), session()
    stream = await wire.ask(runtime_id, b"", {SESSION: name, "accept": "text/event-stream"}, method="GET")
    assert stream.content == b"id: 1\ndata: hello\n\n" and stream.headers["content-type"] == "text/event-stream"
    gone = await wire.ask(runtime_id, b"", {SESSION: name}, method="DELETE")
    assert gone.status_code == 204 and gone.content == b""
    assert seen == [("GET", "/mcp", b"", None), ("DELETE", "/mcp", b"", None)]
    assert (await wire.ask(runtime_id, b"x", {SESSION: name}, method="GET")).status_code == 400
    assert (await wire.ask(runtime_id, b"", {SESSION: name}, method="PUT")).status_code == 404
    for other in ("HTTP", "A2A", "AGUI"):
        other_id = await platform.create(f"other{other}", **protocol(other))
        for method in ("GET", "DELETE"):
            refused = await wire.ask(other_id, b"", {SESSION: session()}, method=method)
            assert (refused.status_code, refused.json()) == (
                405,
                {"message": "An agent runtime is invoked with POST"},
            )
    assert len(platform.driver.agents) == 1


async def test_who_only_listens_keeps_no_session_busy(platform: Any, wire: RuntimeWire, clock: Any) -> None:
    """EXE-2: an MCP client holds a GET open as long as it lives; the session is idle nevertheless."""
    hold = asyncio.Event()

    async def answer(agent: Any, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": here\n\n")
        if request.method == "GET":
            await hold.wait()
        return response

    platform.driver.behaviour.answer = answer
    lifecycle = {"idleRuntimeSessionTimeout": 60, "maxLifetime": 600}
    runtime_id, name = await platform.create(lifecycleConfiguration=lifecycle, **protocol("MCP")), session()
    listening = asyncio.create_task(wire.ask(runtime_id, b"", {SESSION: name}, method="GET"))
    live = platform.plane._parts.sessions.live
    ref = SessionRef(runtime_id, name)
    async with asyncio.timeout(10):
        while not (platform.driver.agents and platform.driver.agents[0].requests):
            await asyncio.sleep(0.01)
        while live(ref).turns:
            await asyncio.sleep(0.01)
    for _ in range(12):
        await clock.move(10)
    async with asyncio.timeout(10):
        while live(ref) is not None:
            await clock.move(1)
    hold.set()
    with pytest.raises(Exception, match=r"peer closed|disconnected|incomplete|ReadError"):
        await listening


# A2A and AG-UI.


async def test_a2a_errors(platform: Any, wire: RuntimeWire) -> None:
    """EXE-1"""
    runtime_id = await platform.create(**protocol("A2A"))
    answers(platform, 500, b"boom")
    failed = await wire.ask(runtime_id, CALL, {SESSION: session()})
    assert (failed.status_code, failed.json()["error"]["code"], failed.json()["id"]) == (424, -32055, 7)
    missing = await wire.ask(runtime_id, CALL, {SESSION: session()}, query="?qualifier=nowhere")
    assert (missing.status_code, missing.json()["error"]["code"], missing.json()["id"]) == (404, -32051, 7)
    platform.settings.max_sessions = 1
    full = await wire.ask(runtime_id, CALL, {SESSION: session()})
    assert (full.status_code, full.json()["error"]["code"]) == (429, -32053)
    [agent] = platform.driver.agents
    assert agent.requests[0]["path"] == "/" and agent.spec.version.port == 9000 and agent.pings


async def test_ag_ui_errors_are_events(platform: Any, wire: RuntimeWire) -> None:
    """EXE-1"""
    runtime_id = await platform.create(**protocol("AGUI"))
    answers(platform, 422, b'{"type":"RUN_FINISHED"}')
    failed = await wire.ask(runtime_id, b"{}", {SESSION: session()})
    assert failed.status_code == 200 and failed.headers["content-type"] == "text/event-stream"
    event = json.loads(failed.content.removeprefix(b"data: "))
    assert (event["type"], event["code"]) == ("RUN_ERROR", "AGENT_ERROR")
    assert failed.headers["x-amzn-errortype"] == "RuntimeClientError"
    sse = b'data: {"type":"RUN_STARTED"}\n\ndata: {"type":"RUN_FINISHED"}\n\n'
    answers(platform, 200, sse, content_type="text/event-stream")
    passed = await wire.ask(runtime_id, b"{}", {SESSION: session()})
    assert passed.content == sse and passed.headers["content-type"] == "text/event-stream"
    assert platform.driver.agents[0].requests[0]["path"] == "/invocations"


async def test_http_errors_stay_plain(platform: Any, wire: RuntimeWire) -> None:
    runtime_id = await platform.create()
    answers(platform, 404, b"not here")
    failed = await wire.ask(runtime_id, CALL, {SESSION: session()})
    assert failed.status_code == 424 and set(failed.json()) == {"message"}
    assert failed.headers["x-amzn-errortype"] == "RuntimeClientError"


async def test_who_is_not_proved_learns_no_protocol(platform: Any, wire: RuntimeWire, provider: Any) -> None:
    """EXE-1. A wrong signature, no signature, and a token where none is taken: as for a runtime that is not there."""
    runtime_id = await platform.create(**protocol("MCP"))
    plain = await wire.ask(runtime_id, CALL, signed=False)
    assert plain.status_code == 403 and "www-authenticate" not in plain.headers
    assert plain.content == (await wire.ask("nothing-0000000000", CALL, signed=False)).content
    by_token = await wire.ask(runtime_id, CALL, bearer=provider.token("alice"))
    assert by_token.status_code == 403 and "jsonrpc" not in by_token.text
    assert by_token.content == (await wire.ask("nothing-0000000000", CALL, bearer=provider.token("alice"))).content


# Tokens: the challenge, and where it leads.


async def test_without_a_token_the_answer_says_where_to_get_one(
    platform: Any, wire: RuntimeWire, provider: Any
) -> None:
    """IDN-5: RFC 9728; MCP clients begin without a token, and find out."""
    authorizer = provider.authorizer["customJWTAuthorizer"] | {
        "allowedScopes": ["tools", "api/read"],
        "advertisedScopeMapping": {"api/read": "https://api.example/read"},
    }
    runtime_id = await platform.create(authorizerConfiguration={"customJWTAuthorizer": authorizer}, **protocol("MCP"))
    for method, body, asked in (
        ("POST", CALL, {}),
        ("GET", b"", {}),
        ("POST", CALL, {"headers": {"authorization": "Bearer"}}),
    ):
        refused = await wire.ask(runtime_id, body, method=method, signed=False, **asked)
        assert refused.status_code == 401 and refused.headers["x-amzn-errortype"] == "UnauthorizedException"
        assert refused.json()["error"]["code"] == -32001
        challenge = refused.headers["www-authenticate"]
        assert challenge.endswith('scope="tools https://api.example/read"')
    place = challenge.split('resource_metadata="')[1].split('"')[0]
    assert place.startswith("http://127.0.0.1:4780/")  # the public URL
    found = await wire.http.get(wire.url + place.removeprefix("http://127.0.0.1:4780"))
    resource = wire.target(runtime_id).replace(wire.url, "http://127.0.0.1:4780")
    assert (found.status_code, found.json()) == (
        200,
        {
            "resource": resource,
            "authorization_servers": [provider.url],
            "bearer_methods_supported": ["header"],
            "scopes_supported": ["tools", "https://api.example/read"],
        },
    )
    lacking = await wire.ask(runtime_id, CALL, {SESSION: session()}, bearer=provider.token("alice", scope="other"))
    assert (lacking.status_code, lacking.headers["x-amzn-errortype"]) == (403, "AccessDeniedException")
    assert lacking.json()["error"]["code"] == -32002
    told = 'Bearer error="insufficient_scope", scope="tools https://api.example/read", resource_metadata="http://127'
    assert lacking.headers["www-authenticate"].startswith(told)
    wrong = await wire.ask(runtime_id, CALL, bearer=provider.token("alice", scope="tools", aud="other"))
    assert wrong.status_code == 403 and "www-authenticate" not in wrong.headers, "which no other token mends"
    token = provider.token("alice", scope="tools")
    assert (await wire.ask(runtime_id, CALL, {SESSION: session()}, bearer=token)).status_code == 200


async def test_signed_runtimes_have_no_such_document(platform: Any, wire: RuntimeWire, provider: Any) -> None:
    tail = "invocations/.well-known/oauth-protected-resource"
    signed, tokens = (
        await platform.create("signed"),
        await platform.create("tokens", authorizerConfiguration=provider.authorizer),
    )
    missing = [await wire.ask(name, method="GET", tail=tail, signed=False) for name in (signed, "nothing-0000000000")]
    missing.append(await wire.ask(tokens, method="GET", tail=tail, query="?qualifier=nowhere", signed=False))
    missing.append(await wire.ask(tokens, method="POST", tail=tail, signed=False))
    assert {(answer.status_code, answer.content) for answer in missing} == {(404, missing[0].content)}
    assert (await wire.ask(tokens, method="GET", tail=tail, signed=False)).status_code == 200


# Agent cards.

CARD = {"name": "orders", "url": "http://platform/runtimes/x/invocations/", "skills": [{"id": "a", "tags": []}]}


async def test_an_agents_card(platform: Any, wire: RuntimeWire, provider: Any) -> None:
    """EXE-1: by boto3, by a signed GET, by a token; from the session's own agent, as it is."""

    async def answer(agent: Any, request: web.Request) -> web.Response:
        assert (request.method, request.path) == ("GET", "/.well-known/agent-card.json")
        return web.json_response(CARD | {"session": request.headers[SESSION]})

    platform.driver.behaviour.answer = answer
    runtime_id, name = await platform.create("signed", **protocol("A2A", path="/a2a")), session()
    arn = platform.deployment.arn(f"runtime/{runtime_id}")
    client = wire.client()
    found = await asyncio.to_thread(client.get_agent_card, agentRuntimeArn=arn, runtimeSessionId=name)
    assert found["agentCard"] == CARD | {"session": name}
    assert (found["runtimeSessionId"], found["statusCode"]) == (name, 200)
    tail = "invocations/.well-known/agent-card.json"
    plain = await wire.ask(runtime_id, headers={SESSION: name}, method="GET", tail=tail)
    assert plain.json() == CARD | {"session": name} and plain.headers["content-type"] == "application/json"
    assert len(platform.driver.agents) == 1
    tokens = await platform.create("tokens", authorizerConfiguration=provider.authorizer, **protocol("A2A"))
    mine = session()
    by_token = await wire.ask(tokens, headers={SESSION: mine}, method="GET", tail=tail, bearer=provider.token("alice"))
    assert by_token.json() == CARD | {"session": mine}
    others = await wire.ask(tokens, headers={SESSION: mine}, method="GET", tail=tail, bearer=provider.token("bob"))
    assert others.status_code == 403, "another user's session"
    assert (await wire.ask(tokens, method="GET", tail=tail)).status_code == 403, "takes tokens only"
    unsigned = await wire.ask(tokens, method="GET", tail=tail, signed=False)
    assert unsigned.status_code == 401 and "resource_metadata=" in unsigned.headers["www-authenticate"]
    for name in (runtime_id, "nothing-0000000000"):
        unsigned = await wire.ask(name, method="GET", tail=tail, signed=False)
        assert unsigned.status_code == 403 and "www-authenticate" not in unsigned.headers


@pytest.mark.parametrize("body", [b"no JSON", b"[1]", b'"x"', b'{"a":"' + b"x" * (1 << 20) + b'"}'])
async def test_a_card_that_is_none(platform: Any, wire: RuntimeWire, body: bytes) -> None:
    runtime_id = await platform.create(**protocol("A2A"))
    answers(platform, 200, body)
    arn, client = platform.deployment.arn(f"runtime/{runtime_id}"), wire.client()
    with pytest.raises(ClientError, match="RuntimeClientError"):
        await asyncio.to_thread(client.get_agent_card, agentRuntimeArn=arn)
    assert all(live.turns == 0 for live in platform.plane._parts.sessions.all_live())


async def test_only_a2a_runtimes_have_cards(platform: Any, wire: RuntimeWire) -> None:
    runtime_id = await platform.create(**protocol("MCP"))
    arn, client = platform.deployment.arn(f"runtime/{runtime_id}"), wire.client()
    with pytest.raises(ClientError, match=r"ValidationException.*serverProtocol A2A"):
        await asyncio.to_thread(client.get_agent_card, agentRuntimeArn=arn)
    assert platform.driver.agents == []


async def test_the_address_a_card_names_is_served(platform: Any, wire: RuntimeWire) -> None:
    """AGENTCORE_RUNTIME_URL ends with a slash, and A2A clients post to what the card says."""
    runtime_id = await platform.create(**protocol("A2A"))
    answered = await wire.ask(runtime_id, CALL, {SESSION: session()}, tail="invocations/")
    assert answered.status_code == 200
    url = platform.driver.agents[0].spec.environment["AGENTCORE_RUNTIME_URL"]
    assert url == wire.target(runtime_id, "invocations/").replace(wire.url, "http://127.0.0.1:4780")


# Where each protocol is spoken.


@pytest.mark.parametrize(
    ("name", "port", "path"),
    [("HTTP", 8080, "/invocations"), ("AGUI", 8080, "/invocations"), ("MCP", 8000, "/mcp"), ("A2A", 9000, "/")],
)
async def test_ports_and_paths(platform: Any, wire: RuntimeWire, name: str, port: int, path: str) -> None:
    """EXE-1: each protocol's own, and those that are named."""
    for settings, expected in (({}, (port, path)), ({"port": 8011, "path": "/a/b%20c"}, (8011, "/a/b%20c"))):
        runtime_id = await platform.create(f"agent{len(platform.driver.agents)}", **protocol(name, **settings))
        assert (await wire.ask(runtime_id, CALL, {SESSION: session()})).status_code == 200
        agent = platform.driver.agents[-1]
        assert agent.spec.version.port == expected[0]
        assert agent.requests[0]["path"].replace(" ", "%20") == expected[1]
        assert bool(agent.pings) == (name != "MCP")


@pytest.mark.parametrize("path", ["mcp", "/a b", "/a\r\nx: y", "/" * 2049, "", "/?a"])
async def test_paths_that_are_none(platform: Any, path: str) -> None:
    with pytest.raises(ValidationException) as refused:
        await platform.create(**protocol("MCP", path=path))
    assert [field.name for field in refused.value.fields] == ["protocolConfiguration.path"]
