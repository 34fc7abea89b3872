"""The front's strictness: each trap the prototype met, sent as bytes, since client libraries would not send them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from service_stack import Stack, invocation_path, status

from agentkeep.core.call import SessionRef

PATH = invocation_path()
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(params=["direct", "asgi"])
def head(request: pytest.FixtureRequest) -> bytes:
    """A head, to be completed, of a request for the pump or for the ASGI application."""
    return HEAD if request.param == "direct" else HEAD.replace(PATH.encode(), b"/open/x")


REFUSED = {
    "length and chunked": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
    "two equal lengths": b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": b"Content-Length: +3\r\n\r\nabc",
    "a negative length": b"Content-Length: -3\r\n\r\nabc",
    "a hexadecimal length": b"Content-Length: 0x3\r\n\r\nabc",
    "a length beyond 64 bits": b"Content-Length: 99999999999999999999\r\n\r\nabc",
    "a folded field": b"A: b\r\n c\r\nContent-Length: 3\r\n\r\nabc",
    "a space before the colon": b"Content-Length : 3\r\n\r\nabc",
    "bare line feeds": b"A: b\nContent-Length: 3\n\nabc",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, then another": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip, then chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "NUL in a value": b"A: b\0c\r\nContent-Length: 3\r\n\r\nabc",
    "two hosts": b"Host: y\r\nContent-Length: 3\r\n\r\nabc",
    "two authorizations": b"Authorization: a\r\nAuthorization: b\r\nContent-Length: 3\r\n\r\nabc",
    "a bad chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
    "too many fields": b"A: b\r\n" * 101 + b"Content-Length: 3\r\n\r\nabc",
    "a head too large": b"A: " + b"a" * 40_000 + b"\r\nContent-Length: 3\r\n\r\nabc",
    "another expectation": b"Expect: 200-ok\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("rest", REFUSED.values(), ids=REFUSED.keys())
async def test_ambiguous_requests_are_refused(stack: Stack, head: bytes, rest: bytes) -> None:
    """No two readers could understand such a request differently, because nobody gets to read it."""
    answer = await stack.raw(head + rest)
    if status(answer) == 403:
        assert rest is REFUSED["a bad chunk size"], "its head is good, and unsigned"
    else:
        assert status(answer) in (400, 417), answer
        assert b"x-amzn-errortype: ValidationException" in answer
    assert b"x-amzn-requestid: " in answer
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is not read as a request"
    assert not stack.agent.received


LINES = {
    "no host": b"POST %b HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "an empty host": b"POST %b HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n",
    "absolute form": b"POST http://x%b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "a fragment": b"POST %b#x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": b"POST %b x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a byte beyond ASCII": b"POST %b\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "chunked in HTTP/1.0": b"POST %b HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
async def test_malformed_heads_are_refused(stack: Stack, line: bytes) -> None:
    answer = await stack.raw(line.replace(b"%b", PATH.encode()))
    assert status(answer) in (400, 403), answer
    assert not stack.agent.received


async def test_an_offer_of_h2c_does_not_lose_the_body(stack: Stack) -> None:
    """As Java's HTTP client sends it by default; httptools alone would drop the body."""
    request = stack.signed(b"three")
    offer = b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    answer = await stack.raw(request.replace(b"\r\n", offer, 1))
    assert status(answer) == 200
    assert b'{"n":5}' in answer
    answer = await stack.raw(
        HEAD.replace(PATH.encode(), b"/open").replace(b"\r\n", offer, 1) + b"Content-Length: 2\r\n\r\nab"
    )
    assert b"2 None" in answer


async def test_chunked_bodies_and_trailers(stack: Stack) -> None:
    head = HEAD.replace(PATH.encode(), b"/open")
    body = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    assert b"5 None" in await stack.raw(head + body)


async def test_expect_100_continue(stack: Stack) -> None:
    """Answered once the head was found good, and not where it was refused."""
    request = stack.signed(b"x" * 10, headers={"Expect": "100-continue"})
    cut = request.index(b"\r\n\r\n") + 4
    answer = await stack.raw(request[:cut], request[cut:], wait=0.3, gap=0.1)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    refused = await stack.raw(HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert status(refused) == 403


async def test_byte_by_byte(stack: Stack) -> None:
    request = stack.signed(b"hi")
    answer = await stack.raw(*(request[i : i + 1] for i in range(len(request))), gap=0)
    assert b'{"n":2}' in answer


async def test_pipelining(stack: Stack) -> None:
    """Plain requests may be pipelined. Behind or before an invocation nothing is served twice or out of order: the
    first answer is whole, then the connection ends."""
    pings = await stack.raw((PING + b"\r\n") * 3)
    assert pings.count(b"HTTP/1.1 200") == 3
    one = stack.signed(b"first")
    answer = await stack.raw(one + stack.signed(b"second"))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.endswith(b'{"n":5}')
    assert len(stack.agent.received) == 1
    answer = await stack.raw(PING + b"\r\n" + one)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"Healthy" in answer
    assert len(stack.agent.received) == 1


async def test_keep_alive(stack: Stack) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    for body in (b"a", b"bb"):
        writer.write(stack.signed(body))
        answer = await reader.readuntil(b'{"n":%d}' % len(body))
        assert status(answer) == 200
    writer.write(PING + b"\r\n")
    assert status(await reader.readuntil(b"}")) == 200
    writer.close()


async def test_http_1_0(stack: Stack) -> None:
    """The answer is not chunked, which such clients do not know, and ends with the connection."""
    answer = await stack.raw(stack.signed(b"stream 3", version="1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_a_head_that_trickles_is_given_up(make_stack: Any) -> None:
    """Slow-loris: every byte in time does not make a head in time."""
    stack = await make_stack(head_seconds=0.3, sweep_seconds=0.05)
    began = time.monotonic()
    answer = await stack.raw(PING, *(b"A%d: b\r\n" % i for i in range(14)), gap=0.05)
    assert status(answer) == 408
    assert time.monotonic() - began < 3


async def test_a_body_that_trickles_is_given_up(make_stack: Any) -> None:
    stack = await make_stack(body_grace=0.3, body_rate=10_000, sweep_seconds=0.05)
    request = stack.signed(b"x" * 1000)
    cut = request.index(b"\r\n\r\n") + 4
    parts = (request[cut + i : cut + i + 1] for i in range(25))
    answer = await stack.raw(request[:cut], *parts, gap=0.03)
    assert status(answer) == 408
    assert not stack.agent.received
    parts = (b"x" for _ in range(25))
    answer = await stack.raw(b"POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", *parts, gap=0.03)
    assert status(answer) == 408


async def test_idle_connections_are_closed(make_stack: Any) -> None:
    stack = await make_stack(idle_seconds=0.2, sweep_seconds=0.05)
    assert await stack.raw(wait=3) == b""
    for request in (PING + b"\r\n", stack.signed(b"hi")):
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
        writer.write(request)
        async with asyncio.timeout(3):
            assert status(await reader.read()) == 200
        writer.close()


async def test_a_client_that_takes_nothing_is_cut(make_stack: Any) -> None:
    stack = await make_stack(stall_seconds=0.3, sweep_seconds=0.05)
    _, writer = await asyncio.open_connection("127.0.0.1", stack.port, limit=1)
    writer.write(stack.signed(b"flood 1000"))
    await asyncio.wait_for(stack.agent.left.wait(), 5)
    writer.transport.abort()


async def test_an_early_refusal_reaches_the_client(stack: Stack) -> None:
    """A client that is still sending gets the answer, not a reset."""
    head = HEAD + b"Content-Length: 50000000\r\n\r\n"
    answer = await stack.raw(head, *(b"x" * 100_000 for _ in range(100)), gap=0)
    assert status(answer) == 403
    assert answer.endswith(b"}"), "no reset"
    head = b"POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n"
    answer = await stack.raw(head, *(b"x" * 100_000 for _ in range(100)), gap=0)
    assert status(answer) == 400
    assert answer.endswith(b"}"), "no reset"


async def test_a_refused_client_that_goes_on_sending_is_cut(make_stack: Any) -> None:
    stack = await make_stack(linger_bytes=1_000_000, linger_seconds=0.3, sweep_seconds=0.05)
    head = HEAD + b"Content-Length: 50000000\r\n\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.write(head)

    async def go_on() -> None:
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(go_on(), 5)


async def test_too_many_connections(make_stack: Any) -> None:
    stack = await make_stack(connections=2)
    held = [await asyncio.open_connection("127.0.0.1", stack.port) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert (await stack.raw(PING + b"\r\n")).endswith((b"<reset>", b""))
    assert stack.server.front.refused_connections == 1
    for _, writer in held:
        writer.close()


async def test_stopping_does_not_wait_for_ever(stack: Stack) -> None:
    """A running invocation once made the graceful shutdown hang."""
    running = asyncio.create_task(stack.raw(stack.signed(b"hang")))
    short = asyncio.create_task(stack.raw(stack.signed(b"sleep 0.3", session_id="other-" + "0" * 32)))
    while len(stack.agent.received) < 2:
        await asyncio.sleep(0.01)
    began = time.monotonic()
    await stack.server.stop(drain=0.8)
    assert time.monotonic() - began < 1.5
    assert b'{"n":9}' in await short, "what can end in time does"
    assert b"data: 1" in await running
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", stack.port)


async def test_garbage_behind_a_good_request(stack: Stack) -> None:
    """The good one is answered; nonsense inside a body is not its end."""
    answer = await stack.raw(PING + b"\r\n\x00\x01garbage\r\n\r\n")
    assert status(answer) == 200
    chunked = b"POST /open HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    answer = await stack.raw(chunked, b"nonsense\r\n", gap=0.1)
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("tail", [b"a: b\r\n" * 2000, b"a" * 12_000], ids=["trailers", "one-trailer"])
@pytest.mark.parametrize("path", ["/open", "/healthz"])
async def test_framing_without_end_is_refused(stack: Stack, path: str, tail: bytes) -> None:
    """Chunk extensions and trailers are nobody's data; there is no end of them a parser would know."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n".encode()
    answer = await stack.raw(head + b"0\r\n", *[tail] * 8, gap=0.01)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert 400 <= status(answer) < 500
    extension = await stack.raw(head + b"1;", *[b"a" * 12_000] * 8, gap=0.01)
    assert 400 <= status(extension) < 500


async def test_a_session_has_its_share_of_connections(make_stack: Any) -> None:
    """One session's connections are not the public's, nor another session's."""
    stack = await make_stack(connections=4, session_connections=2)
    first = await stack.session_listener(SessionRef("demo-0123456789", "1" * 33))
    second = await stack.session_listener(SessionRef("demo-0123456789", "2" * 33))
    held = [await asyncio.open_connection("127.0.0.1", first) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert not status(await stack.raw(PING + b"\r\n", port=first))
    assert status(await stack.raw(PING + b"\r\n", port=second)) == 200
    assert status(await stack.raw(PING + b"\r\n")) == 200
    held[0][1].close()
    await asyncio.sleep(0.05)
    assert status(await stack.raw(PING + b"\r\n", port=first)) == 200
    held[1][1].close()
