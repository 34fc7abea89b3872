"""Bad input of every kind gives a modelled 4xx answer: never a 5xx, never a hang, never somebody's data."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import quote

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_stack import Stack, invocation_path, status

bounded = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "M-SEARCH"])
SEGMENTS = st.sampled_from(
    ["runtimes", "memories", "events", "actor", "sessions", "tags", "invocations", "ws", "model", "converse", "create",
     "%2F", "%00", "%FF", "..", ".", "", "%", "arn%3Aaws", "a" * 300, "{id}", "é"]
)  # fmt: skip
TEXT = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60)


@st.composite
def paths(draw: st.DrawFn) -> str:
    path = "/" + "/".join(draw(st.lists(st.one_of(SEGMENTS, TEXT.map(lambda t: quote(t, safe=""))), max_size=7)))
    return path + (("?" + draw(TEXT)) if draw(st.booleans()) else "")


def acceptable(answer: bytes) -> None:
    """One answer, 4xx with an error type and a request id; or health's."""
    assert answer, "closed without an answer"
    code = status(answer)
    assert 400 <= code < 500 or (code == 501 and b"UnsupportedOperationException" in answer), answer[:500]
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert re.search(rb"x-amzn-errortype: \w+exception", head), answer[:500]
    assert b"x-amzn-requestid: " in head
    assert b"Traceback" not in answer


@given(method=METHODS, path=paths(), headers=st.dictionaries(TEXT, TEXT, max_size=5), body=st.binary(max_size=200))
@bounded
async def test_unsigned_requests(stack: Stack, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    # An answer to HEAD ends where its head does.
    acceptable(await stack.raw(head.encode() + body, wait=0.3 if method == "HEAD" else 5))
    assert not stack.plane.calls
    assert not stack.sessions.requests


@given(data=st.binary(min_size=1, max_size=400))
@bounded
async def test_noise(stack: Stack, data: bytes) -> None:
    answer = await stack.raw(data + b"\r\n\r\n\r\n\r\n")
    if answer != b"<open>":
        acceptable(answer)


@given(at=st.integers(0, 2000), change=st.binary(min_size=1, max_size=3), direct=st.booleans())
@bounded
async def test_a_good_request_with_some_bytes_changed(stack: Stack, at: int, change: bytes, direct: bool) -> None:
    """Whatever they hit: nothing is done for a caller whose signature no longer fits."""
    stack.plane.calls.clear()
    path = invocation_path() if direct else "/memories/create"
    body = b'{"name":"a","eventExpiryDuration":7,"clientToken":"%s"}' % (b"t" * 36)
    good = stack.signed(body, path=path)
    at %= len(good)
    bad = good[:at] + change + good[at + len(change) :]
    # What is not signed may change and the request is still good; so may what means the same.
    answer = await stack.raw(bad, wait=0.3)
    done = answer != b"<open>" and status(answer) in (200, 202)
    if answer != b"<open>" and not done:
        acceptable(answer)
    if done:
        head, _, sent = bad.partition(b"\r\n\r\n")
        assert sent == body, "the body is covered"
        assert head.split(b" ")[:2] == good.split(b" ")[:2], "method and path are covered"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=15,
)
MEMBERS = ["name", "eventExpiryDuration", "memoryStrategies", "clientToken", "tags", "encryptionKeyArn", "actorId",
           "sessionId", "payload", "eventTimestamp", "messages", "inferenceConfig", "metadata", "branch"]  # fmt: skip


@given(
    path=st.sampled_from(["/memories/create", "/memories/m-0123456789/events"]),
    document=st.one_of(JSON, st.dictionaries(st.sampled_from(MEMBERS), JSON, min_size=1, max_size=5)),
    cut=st.integers(0, 3),
)
@bounded
async def test_signed_nonsense(stack: Stack, path: str, document: object, cut: int) -> None:
    """An operator may send nonsense; it is told what is wrong with it."""
    try:
        body = orjson.dumps(document)
    except TypeError:  # integers beyond 64 bits, lone surrogates
        body = repr(document).encode("utf-8", "replace")
    answer = await stack.raw(stack.signed(body[: len(body) - cut], path=path, session_id=None))
    acceptable(answer)
    assert b"ValidationException" in answer
    assert not stack.plane.calls


@given(
    session_id=st.text(
        st.characters(min_codepoint=0x20, max_codepoint=0xFF, blacklist_characters="\x7f"), max_size=300
    ),
    query=TEXT,
    runtime=st.text(min_size=1, max_size=60),
)
@bounded
async def test_signed_invocations(stack: Stack, session_id: str, query: str, runtime: str) -> None:
    """Whatever an invocation's head says, sessions are asked with valid names only, or not at all."""
    stack.sessions.requests.clear()
    path = (
        "/runtimes/" + quote(runtime.encode("utf-8", "replace"), safe="") + "/invocations?" + quote(query, safe="=&%+")
    )
    value = session_id.strip()
    request = stack.signed(b"{}", path=path, session_id=value or None)
    answer = await stack.raw(request)
    if status(answer) == 200:
        (asked,) = stack.sessions.requests
        assert asked.session_id is None or (33 <= len(asked.session_id) <= 256 and asked.session_id.isprintable())
    else:
        acceptable(answer)
        assert not stack.sessions.requests


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), lie=st.sampled_from([0, -1, 1, 16]))
@bounded
async def test_smuggling(stack: Stack, sizes: list[int], lie: int) -> None:
    """A second request hidden in, or behind, an invocation's body never reaches the agent by itself."""
    hidden = stack.signed(b"hidden")
    body = b"".join(b"%x\r\n%b\r\n" % (max(len(hidden) + lie, 0), hidden) for _ in sizes) + b"0\r\n\r\n"
    head = invocation_path().encode()
    for framing in (
        b"Content-Length: %d\r\nTransfer-Encoding : chunked\r\n" % len(body),
        b"Transfer-Encoding:\tchunked\r\nContent-Length: 4\r\n",
    ):
        answer = await stack.raw(b"POST " + head + b" HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n" + body)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert status(answer) == 400
    assert not stack.agent.received


async def test_many_at_once(stack: Stack) -> None:
    """A hundred bad clients do not keep a good one waiting."""
    bad = [
        asyncio.create_task(stack.raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n", wait=2))
        for _ in range(100)
    ]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(2):
        assert status(await stack.raw(stack.signed(b"hi"))) == 200
    for task in bad:
        task.cancel()
    await asyncio.gather(*bad, return_exceptions=True)
