"""InvokeAgentRuntime through front and pump, with unmodified boto3 where it can say what is to be said (EXE-2)."""

from __future__ import annotations

import asyncio
import io
import resource
import time
from typing import Any

import pytest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, ResponseStreamingError
from service_stack import RUNTIME, SESSION_ID, Stack, invocation_path, status

from agentkeep.core.errors import ResourceNotFoundException, UnauthorizedException

LIVE = "live-" + "0" * 32


def invoke(client: Any, payload: Any, **options: Any) -> tuple[dict[str, Any], bytes]:
    answer = client.invoke_agent_runtime(agentRuntimeArn=RUNTIME, payload=payload, **options)
    return answer, answer["response"].read()


async def refusal(client: Any, payload: Any, **options: Any) -> ClientError:
    with pytest.raises(ClientError) as error:
        await asyncio.to_thread(invoke, client, payload, **options)
    return error.value


async def test_boto3_invokes(stack: Stack) -> None:
    answer, body = await asyncio.to_thread(invoke, stack.client(), b'{"prompt":"hi"}')
    assert body == b'{"n":15}'
    assert answer["statusCode"] == 200
    assert answer["contentType"] == "application/json"
    request = stack.sessions.requests[0]
    assert answer["runtimeSessionId"] == request.session_id
    assert answer["traceParent"].startswith("00-"), "the trace the turn is on"
    assert answer["ResponseMetadata"]["RequestId"] == request.request_id
    assert request.runtime == RUNTIME
    assert request.qualifier == "DEFAULT"
    assert request.caller is not None
    assert request.caller.principal.endswith("user/admin")


async def test_the_answer_is_on_the_callers_trace(stack: Stack) -> None:
    """OBS-1"""
    trace = "ab" * 16
    sent = {"traceparent": f"00-{trace}-{'cd' * 8}-01", "tracestate": "vendor=1"}
    head = (await stack.raw(stack.signed(b"hi", headers=sent))).partition(b"\r\n\r\n")[0].decode().lower()
    assert head.count("\r\ntraceparent: ") == head.count("\r\ntracestate: vendor=1") == 1
    assert f"traceparent: 00-{trace}-" in head and "cd" * 8 not in head


async def test_qualifier_account_and_user_reach_sessions(stack: Stack) -> None:
    def call() -> Any:
        client = stack.client()
        return client.invoke_agent_runtime(
            agentRuntimeArn="demo-0123456789",
            qualifier="canary",
            accountId="123456789012",
            runtimeUserId="alice",
            payload=b"{}",
        )["response"].read()

    await asyncio.to_thread(call)
    request = stack.sessions.requests[0]
    assert (request.runtime, request.qualifier, request.account_id, request.user_id) == (
        "demo-0123456789",
        "canary",
        "123456789012",
        "alice",
    )


async def test_boto3_streams(stack: Stack) -> None:
    """Events reach the client one by one, as the agent writes them."""

    def call() -> list[float]:
        answer = stack.client().invoke_agent_runtime(agentRuntimeArn=RUNTIME, payload=b"stream 20")
        assert answer["contentType"] == "text/event-stream"
        return [time.monotonic() for line in answer["response"].iter_lines(chunk_size=1) if line]

    moments = await asyncio.to_thread(call)
    assert len(moments) == 20
    assert moments[-1] - moments[0] > 0.15


async def test_boto3_sends_100_mb(stack: Stack) -> None:
    """Into a session that lives the body streams; into a new one it waits on disk until it is proved."""
    payload = b"x" * 100_000_000
    for _ in range(2):
        _, body = await asyncio.to_thread(invoke, stack.client(), payload, runtimeSessionId=LIVE)
        assert body == b'{"n":100000000}'
    assert stack.route.pump.spools.used == 0
    _, body = await asyncio.to_thread(invoke, stack.client(), io.BytesIO(b"f" * 1_000_000))
    assert body == b'{"n":1000000}'
    error = await refusal(stack.client(), payload + b"x")
    assert error.response["Error"]["Code"] == "ValidationException"
    assert len(stack.agent.received) == 3


@pytest.mark.parametrize("size", [10, 300_000, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_wrong_signature(stack: Stack, size: int, chunked: bool) -> None:
    """No session is made for it, and the agent never gets its last piece."""
    good = stack.signed(b"x" * size, session_id=LIVE, headers={"Transfer-Encoding": "chunked"} if chunked else None)
    head, _, body = good.partition(b"\r\n\r\n")
    body = body[:-1] + b"y"
    if chunked:
        body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[: size // 2], body[size // 2 :])) + b"0\r\n\r\n"
    bad = head + b"\r\n\r\n" + body
    assert status(await stack.raw(bad)) == 403
    assert not stack.sessions.live
    assert not stack.agent.received
    stack.sessions.live.add(LIVE)
    assert status(await stack.raw(bad)) == 403
    await asyncio.sleep(0.1)
    assert all(not request.complete for request in stack.agent.received)
    assert len(stack.agent.received) <= (0 if size == 10 else 1), "large bodies stream into sessions that live"
    assert stack.route.pump.spools.used == 0


async def test_a_good_signature_in_pieces(stack: Stack) -> None:
    """The same bodies, rightly signed: whole, at any size and in either framing, into sessions old and new."""
    for size in (0, 10, 262_144, 262_145, 3_000_000):
        for session_id in (LIVE, f"new-{size}-" + "0" * 32):
            for chunked in (False, True):
                headers = {"Transfer-Encoding": "chunked"} if chunked else None
                request = stack.signed(b"x" * size, session_id=session_id, headers=headers)
                head, _, body = request.partition(b"\r\n\r\n")
                if chunked:
                    body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:1], body[1:]) if p) + b"0\r\n\r\n"
                answer = await stack.raw(head + b"\r\n\r\n", body, gap=0.01)
                assert b'{"n":%d}' % size in answer, (size, session_id, chunked)


async def test_unauthenticated(stack: Stack) -> None:
    head = f"POST {invocation_path()} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n".encode()
    for authorization in (b"", b"Authorization: AWS4-HMAC-SHA256 x\r\n", b"Authorization: Basic YTpi\r\n"):
        answer = await stack.raw(head + authorization + b"\r\nhi")
        assert status(answer) == 403
        assert b"x-amzn-errortype: AccessDeniedException" in answer

    error = await refusal(stack.client(credentials=Credentials("AKIAAAAAAAAAAAAAAAAA", "secret")), b"hi")
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert not stack.sessions.requests


async def test_unknown_keys_are_looked_up_while_the_body_waits(stack: Stack) -> None:
    """The first request with a key asks the store for it; its body may be any size."""
    for size in (10, 1_000_000):
        stack.keys._cache.clear()
        answer = await stack.raw(stack.signed(b"x" * size))
        assert b'{"n":%d}' % size in answer


async def test_bearer_tokens_go_to_the_session(stack: Stack) -> None:
    """Only the runtime's authorizer can tell what a token is worth; the pump hands it over."""
    head = f"POST {invocation_path()} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\n".encode()
    for size in (2, 1_000_000):
        answer = await stack.raw(head + b"Content-Length: %d\r\n\r\n" % size, b"x" * size)
        assert b'{"n":%d}' % size in answer
    assert {(r.caller, r.bearer) for r in stack.sessions.requests} == {(None, "a.b.c")}
    assert b"made-" in answer, "a session id is made for callers that name none"
    stack.sessions.live.add(LIVE)
    stack.sessions.refusal = UnauthorizedException("expired", 'Bearer resource_metadata="x"')
    session = f"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id: {LIVE}\r\n".encode()
    for size in (2, 1_000_000):
        answer = await stack.raw(head + session + b"Content-Length: %d\r\n\r\n" % size, b"x" * size)
        assert status(answer) == 401
        assert b'www-authenticate: Bearer resource_metadata="x"' in answer


async def test_refusals_of_sessions(stack: Stack) -> None:
    stack.sessions.refusal = ResourceNotFoundException("No such runtime")
    for size in (2, 1_000_000):
        error = await refusal(stack.client(), b"x" * size)
        assert error.response["Error"] == {"Code": "ResourceNotFoundException", "Message": "No such runtime"}


@pytest.mark.parametrize("word", ["error", "error 404", "error 999", "cut-head", "garbage"])
async def test_a_failing_agent(stack: Stack, word: str) -> None:
    error = await refusal(stack.client(retries={"total_max_attempts": 3}), word.encode())
    assert error.response["Error"]["Code"] == "RuntimeClientError"
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 424
    if word == "error 404":
        assert error.response["Error"]["Message"] == (
            "Received error (404) from runtime. Please check your CloudWatch logs for more information"
        )
    assert len(stack.agent.received) == 1, "boto3 does not retry it, and neither do we"


@pytest.mark.parametrize("word", ["cut-body", "short"])
async def test_an_answer_cut_short_never_ends_clean(stack: Stack, word: str) -> None:
    with pytest.raises((ResponseStreamingError, ConnectionError, Exception)) as error:
        await asyncio.to_thread(invoke, stack.client(), word.encode())
    assert "Connection" in repr(error.value) or "Incomplete" in repr(error.value)
    answer = await stack.raw(stack.signed(word.encode()))
    assert not answer.endswith(b"0\r\n\r\n")


async def test_answers_are_framed_anew(stack: Stack) -> None:
    answer = await stack.raw(stack.signed(b"split"))
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head
    assert b"x-evil" not in head
    assert b"connection" not in head
    assert head.count(b"content-length") == 1
    answer = await stack.raw(stack.signed(b"twice"))
    assert answer.endswith(b"\r\n\r\na<open>"), "a second answer is nobody's"
    answer = await stack.raw(stack.signed(b"hi"))
    assert answer.endswith(b'{"n":2}<open>')


async def test_answers_that_end_with_the_connection(stack: Stack) -> None:
    answer = await stack.raw(stack.signed(b"eof"))
    assert answer.endswith(b"2\r\nto\r\n0\r\n\r\n<open>") or b"to the end" in answer
    assert answer.endswith(b"0\r\n\r\n<open>")


async def test_answers_without_a_body(stack: Stack) -> None:
    """204 and 304 have none, so no framing either; the connection goes on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    for code in (b"204", b"304"):
        writer.write(stack.signed(b"status " + code))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + code)
        assert b"transfer-encoding" not in head
        assert b"content-length" not in head
        assert b"x-private" not in head
    writer.write(stack.signed(b"interim"))
    assert (await reader.readuntil(b'{"n":7}')).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_agent_connections_are_kept(stack: Stack) -> None:
    for _ in range(5):
        assert b"200" in await stack.raw(stack.signed(b"hi"))
    assert stack.agent.connections == 1
    for _ in range(3):
        answer = await stack.raw(stack.signed(b"close-after"))
        assert b'{"n":11}' in answer, "a connection the agent closed is not used again"
    assert len(stack.agent.received) == 8


async def test_agent_connections_do_not_idle_for_long(make_stack: Any) -> None:
    stack = await make_stack(agent_idle=0.2, sweep_seconds=0.05)
    await stack.raw(stack.signed(b"hi"), wait=0.1)
    await asyncio.sleep(0.4)
    assert all(connection.released for connection in stack.sessions.connections)
    await stack.raw(stack.signed(b"hi"), wait=0.1)
    assert stack.agent.connections == 2


async def test_the_agent_sees_its_client_leave(stack: Stack) -> None:
    """While it works, while it answers, and in the middle of a body."""
    await stack.raw(stack.signed(b"sleep 30"), wait=0.1)
    await asyncio.wait_for(stack.agent.left.wait(), 2)
    stack.agent.left.clear()
    await stack.raw(stack.signed(b"hang"), wait=0.1)
    await asyncio.wait_for(stack.agent.left.wait(), 2)
    stack.agent.left.clear()
    await stack.raw(stack.signed(b"x" * 3_000_000)[:1_000_000], wait=0.1)
    await asyncio.wait_for(stack.agent.left.wait(), 2)
    assert not stack.agent.received[-1].complete


async def test_a_client_that_leaves_while_its_session_is_made(stack: Stack) -> None:
    """The session is made all the same, and its turn ends."""
    stack.sessions.start_seconds = 0.2
    await stack.raw(stack.signed(b"hi"), wait=0.05)
    await asyncio.sleep(0.3)
    assert stack.sessions.live == {SESSION_ID}
    assert not stack.agent.received


async def test_a_slow_agent_is_a_504(make_stack: Any) -> None:
    stack = await make_stack(first_byte=0.3, gap=0.3, sweep_seconds=0.05)
    error = await refusal(stack.client(), b"sleep 30")
    assert error.response["Error"]["Code"] == "504"
    await asyncio.wait_for(stack.agent.left.wait(), 2)
    answer = await stack.raw(stack.signed(b"hang"))
    assert b"data: 1" in answer
    assert not answer.endswith(b"0\r\n\r\n")


async def test_headers_are_checked(stack: Stack) -> None:
    """All failing members at once, as the model says."""
    answer = await stack.raw(
        stack.signed(b"{}", session_id="short", headers={"X-Amzn-Trace-Id": "x" * 200, "Mcp-Name": "y" * 2000})
    )
    assert status(answer) == 400
    for member in (b"runtimeSessionId", b"traceId", b"mcpName"):
        assert member in answer
    for path in ("/runtimes/%FF/invocations", invocation_path() + "?accountId=1"):
        assert status(await stack.raw(stack.signed(b"{}", path=path))) == 400


async def test_early_answers_wait_for_the_proof(stack: Stack) -> None:
    """An agent that answers before it read the body: whoever has not proved himself gets none of it."""
    stack.sessions.live.add(LIVE)
    early = {"x-test": "early"}
    request = stack.signed(b"x" * 3_000_000, session_id=LIVE, headers=early)
    answer = await stack.raw(request[:1_000_000], wait=0.3)
    assert answer == b"<open>"
    assert (await stack.raw(request)).endswith(b"early<open>")
    answer = await stack.raw(request[:-1] + b"y")
    assert status(answer) == 403
    assert b"early" not in answer


def memory() -> int:
    """Resident, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def test_memory_does_not_grow_with_slow_clients(stack: Stack) -> None:
    """20 clients that do not read their 6 MB each; and all are whole in the end."""
    before = memory()
    clients = [await asyncio.open_connection("127.0.0.1", stack.port, limit=4096) for _ in range(20)]
    for number, (_, writer) in enumerate(clients):
        writer.write(stack.signed(b"flood 100", session_id=f"slow-{number}-" + "0" * 32))
    await asyncio.sleep(1)
    assert memory() - before < 40 << 20, "of 131 MB"

    async def size(reader: asyncio.StreamReader) -> int:
        total = 0
        await reader.readuntil(b"\r\n\r\n")
        while length := int(await reader.readuntil(b"\r\n"), 16):
            total += length
            left = length + 2
            while left:
                left -= len(await reader.read(left))
        return total

    assert await asyncio.gather(*(size(reader) for reader, _ in clients)) == [100 * 65536] * 20
    for _, writer in clients:
        writer.close()


async def test_memory_does_not_grow_with_slow_agents(stack: Stack) -> None:
    """An agent that reads nothing stops its client."""
    stack.sessions.live.add(LIVE)
    before = memory()
    body = b"x" * 60_000_000
    request = stack.signed(body, session_id=LIVE, headers={"x-test": "unread"})
    before = memory()
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    sent = 0
    try:
        async with asyncio.timeout(1):
            while sent < len(request):
                writer.write(request[sent : sent + 65536])
                sent += 65536
                await writer.drain()
    except TimeoutError:
        pass
    assert sent < 30_000_000
    assert memory() - before < 40 << 20
    stack.agent.go_on.set()
    while sent < len(request):
        writer.write(request[sent : sent + 65536])
        sent += 65536
        await writer.drain()
    assert b"200" in await reader.readuntil(b'{"n":60000000}')
    writer.close()


async def test_concurrency(stack: Stack) -> None:
    """50 invocations at once over ten sessions: every answer to its own request."""

    async def one(number: int) -> None:
        for turn in range(5):
            size = 10 + number * 7 + turn
            answer = await stack.raw(stack.signed(b"z" * size, session_id=f"many-{number % 10}-" + "0" * 32))
            assert b'{"n":%d}' % size in answer

    await asyncio.gather(*(one(number) for number in range(50)))
    assert len(stack.agent.received) == 250


@pytest.mark.parametrize("word", [b"sleep 0.01", b"close-after"])
async def test_more_invocations_than_an_agent_takes_connections(make_stack: Any, word: bytes) -> None:
    """A connection that becomes idle is for those who wait for one: kept as idle, none of them would ever have it."""
    stack = await make_stack(agent_idle=1000.0)
    stack.sessions.room = asyncio.Semaphore(3)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(stack.raw(stack.signed(word)) for _ in range(20)))
    assert all(b" 200 " in answer for answer in answers)
    assert len([one for one in stack.sessions.connections if not one.released]) <= 3
    assert not stack.route.pump.pool._waiting
