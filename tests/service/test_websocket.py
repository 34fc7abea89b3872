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
