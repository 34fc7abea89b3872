"""An agent's WebSocket: signed upgrade, then bytes both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from service_stack import DEPLOYMENT, SESSION_ID, Stack, invocation_path, status
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

SESSION = {"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": SESSION_ID}


@pytest.fixture
async def talking(stack: Stack) -> AsyncIterator[Stack]:
    """A stack whose agent takes WebSockets and answers each message with its length."""

    async def talk(socket: ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.path == "/ws"
        async for message in socket:
            await socket.send(f"{len(message)}")

    def choose(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return offered[0] if offered else None

    async with serve(talk, "127.0.0.1", 0, max_size=None, select_subprotocol=choose) as server:
        stack.sessions.port = server.sockets[0].getsockname()[1]
        yield stack


def headers(stack: Stack) -> dict[str, str]:
    request = AWSRequest("GET", f"http://127.0.0.1:{stack.port}{invocation_path(tail='ws')}")
    SigV4Auth(stack.credentials, "bedrock-agentcore", DEPLOYMENT.region).add_auth(request)
    return {**dict(request.headers.items()), **SESSION}


def url(stack: Stack) -> str:
    return f"ws://127.0.0.1:{stack.port}{invocation_path(tail='ws')}"


async def test_signed(talking: Stack) -> None:
    async with connect(
        url(talking), additional_headers=headers(talking), subprotocols=[Subprotocol("chat")], max_size=None
    ) as ws:
        assert ws.subprotocol == "chat"
        for size in (5, 70_000, 3_000_000):
            await ws.send("x" * size)
            assert await ws.recv() == str(size)
    await asyncio.sleep(0.05)
    assert talking.sessions.requests[0].session_id == SESSION_ID
    assert [turn.ended for turn in talking.sessions.turns] == [1]


async def test_presigned(talking: Stack) -> None:
    """What headers say elsewhere is in the query here."""
    query = "&".join(f"{k}={v}" for k, v in SESSION.items())
    request = AWSRequest("GET", f"http://127.0.0.1:{talking.port}{invocation_path(tail='ws')}?{query}")
    SigV4QueryAuth(talking.credentials, "bedrock-agentcore", DEPLOYMENT.region, expires=60).add_auth(request)
    async with connect(request.url.replace("http:", "ws:")) as ws:
        await ws.send("hello")
        assert await ws.recv() == "5"
    assert talking.sessions.requests[0].session_id == SESSION_ID


CUSTOM = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-"


async def test_custom_headers_in_the_query(talking: Stack) -> None:
    """Developer guide, "runtime-get-started-websocket". Nothing else of a query becomes a header, and a header that was
    sent stands."""
    path = invocation_path(tail="ws") + f"?{CUSTOM}Color=dark%20blue&{CUSTOM}Size=1&X-Other=x&abc=pqr"
    request = AWSRequest("GET", f"http://127.0.0.1:{talking.port}{path}")
    SigV4Auth(talking.credentials, "bedrock-agentcore", DEPLOYMENT.region).add_auth(request)
    sent = {**dict(request.headers.items()), **SESSION, f"{CUSTOM}Size": "2"}
    async with connect(f"ws://127.0.0.1:{talking.port}{path}", additional_headers=sent):
        pass
    seen = talking.sessions.requests[0].headers
    custom = {name: value for name, value in seen.items() if "custom" in name}
    assert custom == {f"{CUSTOM}Color".lower(): "dark blue", f"{CUSTOM}Size".lower(): "2"}
    assert "abc" not in seen and "x-other" not in seen


@pytest.mark.parametrize(
    "query",
    [
        f"{CUSTOM}A=x%0D%0AAuthorization%3A%20Bearer%20forged",
        f"{CUSTOM}A=x%00",
        f"{CUSTOM}A=%C3%A9",
        f"{CUSTOM}A%0D%0AX-Forged%3A%20=1",
        f"{CUSTOM}A%20B=1",
        f"{CUSTOM}A=1&{CUSTOM.lower()}a=2",
        f"{next(iter(SESSION))}=short%0D%0AX-Forged%3A%20" + "x" * 40,
    ],
)
async def test_a_query_forges_no_header(talking: Stack, query: str) -> None:
    path = f"{invocation_path(tail='ws')}?{query}"
    request = AWSRequest("GET", f"http://127.0.0.1:{talking.port}{path}")
    SigV4Auth(talking.credentials, "bedrock-agentcore", DEPLOYMENT.region).add_auth(request)
    with pytest.raises(InvalidStatus) as error:
        await connect(f"ws://127.0.0.1:{talking.port}{path}", additional_headers=dict(request.headers.items()))
    assert error.value.response.status_code == 400
    assert not talking.sessions.requests


async def test_a_handshake_given_twice(talking: Stack) -> None:
    """The SDK's documentation hands `generate_ws_connection`'s headers to `websockets`, which sends its own as well."""
    given = {"Host": f"127.0.0.1:{talking.port}", "Upgrade": "websocket", "Connection": "Upgrade",
             "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "b3RoZXIgdGhhbiB3c3Mna2U="}  # fmt: skip
    async with connect(url(talking), additional_headers={**headers(talking), **given}) as ws:
        await ws.send("hello")
        assert await ws.recv() == "5"


@pytest.mark.parametrize("tail", ["ws", "invocations", "else"])
async def test_only_the_same_host_twice_and_only_for_a_websocket(talking: Stack, tail: str) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    head = f"GET {invocation_path(tail=tail)} HTTP/1.1\r\nHost: x\r\n".encode()
    other = await talking.raw(head + b"Host: y\r\n" + upgrade + b"\r\n")
    assert status(other) == 400
    same = await talking.raw(head + b"Host: x\r\n" + upgrade + b"\r\n")
    assert status(same) == (403 if tail == "ws" else 400)
    h2c = b"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n"
    assert status(await talking.raw(head + b"Host: x\r\n" + h2c + b"\r\n")) == 400
    assert not talking.sessions.requests


@pytest.mark.parametrize("fields", [{}, {"Connection": "Upgrade"}, {"Connection": "keep-alive"}])
async def test_a_header_makes_no_websocket(talking: Stack, stack: Stack, fields: dict[str, str]) -> None:
    """IDN-5: policies know WebSockets by an action of their own; a POST is not one because it says so."""
    answer = await stack.raw(stack.signed(b"{}", headers={"Upgrade": "websocket", **fields}))
    assert status(answer) in (200, 424)
    request = stack.sessions.requests[-1]
    assert "upgrade" not in request.headers and not request.operation
    async with connect(url(talking), additional_headers=headers(talking)):
        pass
    assert talking.sessions.requests[-1].operation == "InvokeAgentRuntimeWithWebSocketStream"


async def test_frames_pass_as_they_are(talking: Stack) -> None:
    """Text, binary, empty, larger than AgentCore's 64 KB, in fragments; close codes both ways."""
    async with connect(url(talking), additional_headers=headers(talking), max_size=None) as ws:
        for message in (b"\x00\xff" * 3, "", b"", "\N{SNOWMAN}" * 70_000):
            await ws.send(message)
            assert await ws.recv() == str(len(message))
        await ws.send(["a" * 40_000, "b" * 40_000, "c"])
        assert await ws.recv() == "80001"
        await (await ws.ping())
        await ws.close(4001, "enough")
    assert ws.close_code == 4001


async def test_unsigned_and_badly_signed(talking: Stack) -> None:
    bad = headers(talking)
    bad["Authorization"] = bad["Authorization"][:-4] + "0000"
    for given in ({}, bad):
        with pytest.raises(InvalidStatus) as error:
            await connect(url(talking), additional_headers=given)
        assert error.value.response.status_code == 403
    assert not talking.sessions.requests


async def test_an_agent_without_websockets(stack: Stack) -> None:
    with pytest.raises(InvalidStatus) as error:
        await connect(url(stack), additional_headers=headers(stack))
    assert error.value.response.status_code == 424


async def test_a_session_that_ends_ends_its_websocket(talking: Stack) -> None:
    async with connect(url(talking), additional_headers=headers(talking)) as ws:
        await ws.send("x")
        await ws.recv()
        (connection,) = talking.sessions.connections
        connection.socket.shutdown(2)
        await asyncio.wait_for(ws.wait_closed(), 3)


async def test_an_upgrade_with_a_body_is_refused(stack: Stack) -> None:
    head = f"GET {invocation_path(tail='ws')} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    answer = await stack.raw(head.encode() + b"Content-Length: 3\r\n\r\nabc")
    assert status(answer) == 400
    assert not stack.agent.received


async def test_life_is_limited(make_stack: Any) -> None:
    stack = await make_stack(tunnel=0.3, sweep_seconds=0.05)

    async def talk(socket: ServerConnection) -> None:
        await socket.wait_closed()

    async with serve(talk, "127.0.0.1", 0) as server:
        stack.sessions.port = server.sockets[0].getsockname()[1]
        async with connect(url(stack), additional_headers=headers(stack)) as ws:
            await asyncio.wait_for(ws.wait_closed(), 3)
