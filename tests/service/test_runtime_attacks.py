"""Requests that mean to be taken for another: for another runtime's, another operation's, another path's."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from service_stack import SESSION_ID, Stack, invocation_path, status

from agentkeep.runtime.pump import target

UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "eA=="}

#: Nothing serves these, whatever a reader before or behind us might make of them.
NOWHERE = [
    "//runtimes/r/invocations",
    "/runtimes//invocations",
    "/runtimes//r/invocations",
    "/runtimes/r//invocations",
    "/runtimes/r/./invocations",
    "/runtimes/r/../r/invocations",
    "/runtimes/r/invocations/../invocations",
    "/./runtimes/r/invocations",
    "/x/../runtimes/r/invocations",
    "/Runtimes/r/invocations",
    "/runtimes/r/Invocations",
    "/runtimes/r/%69nvocations",
    "/%72untimes/r/invocations",
    "/runtimes%2Fr%2Finvocations",
    "/runtimes/r/invocations;x",
    "/runtimes/r/invocations%2F",
    "/runtimes/r/invocations%00",
    "/runtimes/r/invocations%3Fqualifier=x",
    "/runtimes/r/ws/shells",
    "/runtimes/r/ws/invocations",
    "/runtimes/arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/r/invocations",
    "/runtimes/r/invocations/.well-known/../agent-card.json",
    "/runtimes/r/invocations/.well-known%2Fagent-card.json",
]

#: These name a runtime of an odd name, and that one only.
LABELS = ["..", "%2E%2E", "r%2F..%2Fs", "r%00", "r;x", "r%3Fqualifier=x", "arn%253Aaws", "%20r", "R", "r%0D%0AX:%20y"]


@pytest.mark.parametrize("websocket", [False, True])
async def test_paths_that_lead_nowhere(stack: Stack, websocket: bool) -> None:
    """IDN-5: signed, and well signed: the path alone is what is wrong."""
    method, headers = ("GET", UPGRADE) if websocket else ("POST", {})
    for path in NOWHERE:
        path = path.replace("invocations", "ws") if websocket else path
        answer = await stack.raw(stack.signed(b"", path, method, headers))
        assert 400 <= status(answer) < 500, (path, answer[:200])
        assert not stack.sessions.requests, path
    assert not stack.agent.received


async def test_a_label_is_one_runtimes_name(stack: Stack) -> None:
    for label in LABELS:
        await stack.raw(stack.signed(b"{}", f"/runtimes/{label}/invocations"))
    assert [request.runtime for request in stack.sessions.requests] == [unquote(label) for label in LABELS]


async def test_absolute_form_is_refused(stack: Stack) -> None:
    signed = stack.signed(b"{}")
    for host in (b"http://127.0.0.1", b"https://bedrock-agentcore.us-west-2.amazonaws.com", b"ws://x"):
        for tail in ("invocations", "ws"):
            path = invocation_path(tail=tail).encode()
            answer = await stack.raw(signed.replace(invocation_path().encode(), host + path, 1))
            assert status(answer) == 400
    assert not stack.sessions.requests


@pytest.mark.parametrize("name", ["qualifier", "accountId", "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"])
async def test_a_parameter_has_one_value(stack: Stack, name: str) -> None:
    """What is authorised is what is done: no reader takes the first, another the last."""
    value = "1" * 12 if name == "accountId" else "x" * 40
    for path, method, headers in (
        (invocation_path(), "POST", {}),
        (invocation_path(tail="ws"), "GET", UPGRADE),
    ):
        signed = stack.signed(b"", f"{path}?{name}={value}&{name}={value[::-1]}y", method, headers)
        assert status(await stack.raw(signed)) == 400
    assert not stack.sessions.requests


@pytest.mark.parametrize("name", ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Origin", "Mcp-Session-Id"])
async def test_a_field_ends_where_it_ends(stack: Stack, name: str) -> None:
    """These go on to the agent: no folded, broken or cut field may become another there."""
    head = stack.signed(b"", invocation_path(tail="ws"), "GET", UPGRADE)
    for value in (b"a\r\n b", b"a\nX-Forged: 1", b"a\rX-Forged: 1", b"a\x00b", b"a\r\nX-Forged : 1"):
        forged = head.replace(b"\r\n\r\n", b"\r\n" + name.encode() + b": " + value + b"\r\n\r\n", 1)
        assert status(await stack.raw(forged)) == 400, value
    assert not stack.sessions.requests


async def test_methods_that_are_no_operation(stack: Stack) -> None:
    override = {"X-HTTP-Method-Override": "POST", "X-Original-URL": invocation_path(), **UPGRADE}
    for method in ("PUT", "PATCH", "OPTIONS", "TRACE"):
        for tail in ("invocations", "ws"):
            for headers in ({}, override):
                answer = await stack.raw(stack.signed(b"", invocation_path(tail=tail), method, headers))
                assert 400 <= status(answer) < 500, (method, tail)
    assert not stack.sessions.requests


async def test_a_session_named_twice_is_neither(stack: Stack) -> None:
    """Joined, as repeated fields are: no reader takes the one, another the other."""
    header = b"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id: " + b"y" * 40
    answer = await stack.raw(stack.signed(b"{}").replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n\r\n", 1))
    assert status(answer) in (200, 403)
    assert {request.session_id for request in stack.sessions.requests} <= {f"{SESSION_ID},{'y' * 40}"}


async def test_strangers_leave_nothing_large_behind(stack: Stack) -> None:
    """What is remembered of targets is remembered before anybody is proved to be anybody."""
    target._short_target.cache_clear()
    for number in range(20):
        head = f"GET /runtimes/{number}{'r' * 20_000}/ws HTTP/1.1\r\nHost: x\r\n"
        await stack.raw(head.encode() + b"".join(f"{k}: {v}\r\n".encode() for k, v in UPGRADE.items()) + b"\r\n")
    assert target._short_target.cache_info().currsize == 0
