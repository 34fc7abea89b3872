"""Mcp-Session-Id: how an MCP client finds its session again, and nobody another's."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from botocore.exceptions import ClientError
from runtime_wire import SESSION, RuntimeWire, runtime_wire

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import RuntimeClientError, StoreUnavailable
from agentkeep.runtime.invocations.mcp_sessions import McpSessions
from agentkeep.runtime.invocations.refusals import McpSessionNotFound

MCP = {"serverProtocol": "MCP"}
CALL = b'{"method":"tools/list","jsonrpc":"2.0","id":7}'
HEADER = "mcp-session-id"


@pytest.fixture
async def wire(platform: Any) -> AsyncIterator[RuntimeWire]:
    async with runtime_wire(platform) as wire:
        yield wire


@pytest.fixture
async def runtime_id(platform: Any) -> str:
    return str(await platform.create(protocolConfiguration=MCP))


def stateful(platform: Any, new_id: Callable[[], str] = lambda: uuid.uuid4().hex) -> None:
    """Servers that make an id for who comes without one, and know no other (as the official SDKs do)."""
    known: dict[str, set[str]] = {}

    async def answer(agent: Any, request: web.Request) -> web.Response:
        given = request.headers.get(HEADER)
        mine = known.setdefault(agent.id, set())
        if given is None:
            given = new_id()
            mine.add(given)
        elif given not in mine:
            return web.json_response({"error": "no such session"}, status=404)
        return web.json_response({"environment": agent.id}, headers={HEADER: given})

    platform.driver.behaviour.answer = answer


def received(platform: Any) -> list[str | None]:
    """The Mcp-Session-Ids that agents have seen, in order."""
    return [
        {name.lower(): value for name, value in request["headers"].items()}.get(HEADER)
        for agent in platform.driver.agents
        for request in agent.requests
    ]


async def test_a_stateful_servers_id_leads_back_to_its_session(
    platform: Any, wire: RuntimeWire, runtime_id: str
) -> None:
    """EXE-1: `initialize` without an id; the server's own is returned, and names the session from then on."""
    stateful(platform)
    first, second = [await wire.ask(runtime_id, CALL) for _ in range(2)]
    assert first.headers[HEADER] != second.headers[HEADER]
    assert first.headers[SESSION] != second.headers[SESSION]
    for opened in (second, first, first, second):
        again = await wire.ask(runtime_id, CALL, {HEADER: opened.headers[HEADER]})
        assert again.json() == opened.json() and again.headers[SESSION] == opened.headers[SESSION]
        assert again.headers[HEADER] == opened.headers[HEADER]
    assert len(platform.driver.agents) == 2
    assert received(platform).count(None) == 2, "no id was made up for a server that makes its own"


async def test_a_stateless_server_sees_the_platforms_id(platform: Any, wire: RuntimeWire, runtime_id: str) -> None:
    """EXE-1: invented, returned, forwarded."""
    opened = await wire.ask(runtime_id, CALL)
    mine = opened.headers[HEADER]
    assert mine == opened.headers[SESSION]
    again = await wire.ask(runtime_id, CALL, {HEADER: mine})
    assert again.headers[HEADER] == again.headers[SESSION] == mine
    assert received(platform) == [None, mine] and len(platform.driver.agents) == 1


async def test_a_client_may_choose_its_id(platform: Any, wire: RuntimeWire, runtime_id: str) -> None:
    chosen = str(uuid.uuid4())
    for _ in range(2):
        answered = await wire.ask(runtime_id, CALL, {HEADER: chosen})
        assert answered.headers[HEADER] == answered.headers[SESSION] == chosen
    assert len(platform.driver.agents) == 1 and received(platform) == [chosen, chosen]


async def test_an_id_nobody_knows_is_404(platform: Any, wire: RuntimeWire, runtime_id: str) -> None:
    """By which MCP clients know that they must initialize again. No environment is made for it."""
    answered = await wire.ask(runtime_id, CALL, {HEADER: "0" * 32})
    assert (answered.status_code, answered.json()["error"]["code"], answered.json()["id"]) == (404, -32004, 7)
    assert platform.driver.agents == []


async def test_a_session_that_began_anew_answers_as_its_server_does(
    platform: Any, wire: RuntimeWire, runtime_id: str
) -> None:
    """The id still names the session; its new server has never heard of it, and says so."""
    stateful(platform)
    opened = await wire.ask(runtime_id, CALL)
    name = opened.headers[SESSION]
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=name)
    again = await wire.ask(runtime_id, CALL, {HEADER: opened.headers[HEADER]})
    assert again.status_code == 404 and again.headers[SESSION] == name
    assert again.headers["x-amzn-errortype"] == "RuntimeClientError", "the server's word"


async def test_which_of_two_names_counts(platform: Any, wire: RuntimeWire, runtime_id: str) -> None:
    """The Runtime-Session-Id of a session that lives; else a known Mcp-Session-Id: boto3 makes the former up."""
    stateful(platform)
    first, second = [await wire.ask(runtime_id, CALL) for _ in range(2)]
    made_up = {HEADER: first.headers[HEADER], SESSION: str(uuid.uuid4())}
    assert (await wire.ask(runtime_id, CALL, made_up)).json() == first.json()
    other = {HEADER: first.headers[HEADER], SESSION: second.headers[SESSION]}
    assert (await wire.ask(runtime_id, CALL, other)).headers[SESSION] == second.headers[SESSION]
    unknown = {HEADER: "f" * 32, SESSION: second.headers[SESSION]}
    answered = await wire.ask(runtime_id, CALL, unknown)
    assert answered.status_code == 404 and answered.headers[SESSION] == second.headers[SESSION]
    assert len(platform.driver.agents) == 2


async def test_boto3_keeps_its_mcp_session(platform: Any, wire: RuntimeWire, runtime_id: str) -> None:
    """EXE-1: with nothing but what the answer said, and a Runtime-Session-Id made up for every call."""
    stateful(platform)
    arn, client = platform.deployment.arn(f"runtime/{runtime_id}"), wire.client()

    def invoke(**named: str) -> Any:
        accept = "application/json, text/event-stream"
        return client.invoke_agent_runtime(agentRuntimeArn=arn, payload=CALL, accept=accept, **named)

    opened = await asyncio.to_thread(invoke)
    for _ in range(2):
        again = await asyncio.to_thread(invoke, mcpSessionId=opened["mcpSessionId"])
        assert again["runtimeSessionId"] == opened["runtimeSessionId"]
        assert again["mcpSessionId"] == opened["mcpSessionId"]
    assert len(platform.driver.agents) == 1
    with pytest.raises(ClientError, match="RuntimeClientError"):
        await asyncio.to_thread(invoke, mcpSessionId="unknown")


async def test_another_users_id_opens_nothing(platform: Any, wire: RuntimeWire, provider: Any) -> None:
    """IDN-3, EXE-3: whoever learns of an id has not got the session."""
    runtime_id = await platform.create("tokens", protocolConfiguration=MCP, authorizerConfiguration=provider.authorizer)
    for kind in ("stateless", "stateful"):
        if kind == "stateful":
            stateful(platform)
        alice, bob = provider.token("alice"), provider.token("bob")
        opened = await wire.ask(runtime_id, CALL, bearer=alice)
        stolen = await wire.ask(runtime_id, CALL, {HEADER: opened.headers[HEADER]}, bearer=bob)
        assert (stolen.status_code, stolen.json()["error"]["code"]) == (403, -32002)
        again = await wire.ask(runtime_id, CALL, {HEADER: opened.headers[HEADER]}, bearer=alice)
        assert again.status_code == 200
        live = platform.plane._parts.sessions.live(SessionRef(runtime_id, opened.headers[SESSION]))
        assert live.user == User("alice", provider.url)


@pytest.mark.parametrize("which", ["bound", "session"])
async def test_a_server_cannot_draw_others_clients_to_itself(
    platform: Any, wire: RuntimeWire, runtime_id: str, which: str
) -> None:
    """EXE-3: an id that means one session never comes to mean another, whatever a server answers."""
    stateful(platform)
    victim = await wire.ask(runtime_id, CALL)
    stolen = victim.headers[HEADER if which == "bound" else SESSION]
    stateful(platform, lambda: stolen)
    answered = await wire.ask(runtime_id, CALL)
    assert answered.json()["error"]["code"] == -32010 and HEADER not in answered.headers
    found = await platform.plane.invocations._mcp.session_of(runtime_id, None, stolen)
    assert found == (victim.headers[SESSION], False)


@pytest.mark.parametrize("given", ["with space", "caf\xe9", "x" * 1025])
async def test_an_id_that_is_none(platform: Any, wire: RuntimeWire, runtime_id: str, given: str) -> None:
    stateful(platform, lambda: given)
    answered = await wire.ask(runtime_id, CALL)
    assert answered.json()["error"]["code"] == -32010
    assert all(live.turns == 0 for live in platform.plane._parts.sessions.all_live())


async def test_ids_hold_on_every_replica_and_after_a_restart(platform: Any, wire: RuntimeWire, runtime_id: str) -> None:
    """EXE-6: what was returned was written."""
    stateful(platform)
    opened = await wire.ask(runtime_id, CALL)
    parts = platform.plane._parts
    elsewhere = McpSessions(platform.store, platform.clock, parts.sessions, parts.table)
    assert elsewhere.session_of_now(runtime_id, None, opened.headers[HEADER]) is None
    for _ in range(2):
        found = await elsewhere.session_of(runtime_id, None, opened.headers[HEADER])
        assert found == (opened.headers[SESSION], False)
    assert elsewhere.session_of_now(runtime_id, None, opened.headers[HEADER]) == opened.headers[SESSION]
    with pytest.raises(McpSessionNotFound):
        await elsewhere.session_of("other-0000000000", None, opened.headers[HEADER])


async def test_an_answer_waits_until_its_id_is_written(
    platform: Any, wire: RuntimeWire, runtime_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one, in pieces, whose connection is used again; and if it cannot be written there is no answer."""
    piece = b"x" * 60_000

    async def answer(agent: Any, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={HEADER: uuid.uuid4().hex, "content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(20):
            await response.write(piece)
        return response

    platform.driver.behaviour.answer = answer
    written = asyncio.Event()
    bind = McpSessions.bind

    async def slowly(self: McpSessions, ref: SessionRef, mcp_id: str) -> None:
        await written.wait()
        await bind(self, ref, mcp_id)

    monkeypatch.setattr(McpSessions, "bind", slowly)
    name = str(uuid.uuid4())
    asked = asyncio.create_task(wire.ask(runtime_id, CALL, {SESSION: name}))
    async with asyncio.timeout(10):
        while not (platform.driver.agents and platform.driver.agents[0].requests):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert not asked.done()
    written.set()
    assert (await asked).content == piece * 20

    async def fails(self: McpSessions, ref: SessionRef, mcp_id: str) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(McpSessions, "bind", fails)
    refused = await wire.ask(runtime_id, CALL, {SESSION: name})
    assert refused.json()["error"]["code"] == -32603 and HEADER not in refused.headers
    # A client that leaves meanwhile leaves nothing behind.
    written.clear()
    monkeypatch.setattr(McpSessions, "bind", slowly)
    leaving = asyncio.create_task(wire.ask(runtime_id, CALL, {SESSION: name}))
    await asyncio.sleep(0.2)
    leaving.cancel()
    await asyncio.wait([leaving])
    live = platform.plane._parts.sessions.live(SessionRef(runtime_id, name))
    async with asyncio.timeout(10):
        while live.turns:
            await asyncio.sleep(0.01)
    written.set()
    monkeypatch.setattr(McpSessions, "bind", bind)
    assert (await wire.ask(runtime_id, CALL, {SESSION: name})).content == piece * 20


async def test_bindings_are_told_of_conflicts_once(platform: Any, runtime_id: str) -> None:
    parts = platform.plane._parts
    mcp = McpSessions(platform.store, platform.clock, parts.sessions, parts.table)
    mine, other = (SessionRef(runtime_id, str(uuid.uuid4())) for _ in range(2))
    for _ in range(2):
        await mcp.bind(mine, "id-1")
    again = McpSessions(platform.store, platform.clock, parts.sessions, parts.table)
    await again.bind(mine, "id-1")
    for found in (mcp, again):
        with pytest.raises(RuntimeClientError, match="another session"):
            await found.bind(other, "id-1")
