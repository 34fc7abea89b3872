"""Whatever is sent, the wire answers with a modelled 4xx and nothing worse: no defect, no hang."""

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkeep.core.errors import UnauthorizedException, ValidationException
from agentkeep.testing.samples import sample
from agentkeep.wire import Operation, Router
from agentkeep.wire.eventstream import BadEventStream, EventDecoder, encode
from agentkeep.wire.signature import parse as parse_signature

ROUTER = Router()
OPERATIONS = {operation.name: operation for operation in ROUTER.operations}
FUZZ = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))

#: One of each kind of input: recursive shapes, unions, documents, blobs, maps, headers, raw bodies, query lists.
FUZZED = [
    "Converse",
    "CreateEvent",
    "CreateGatewayTarget",
    "CreateMemory",
    "CreateAgentRuntime",
    "ApplyGuardrail",
    "RetrieveMemoryRecords",
    "InvokeAgentRuntime",
    "InvokeAgentRuntimeCommand",
    "UntagResource",
    "ListAgentRuntimes",
    "GetWorkloadAccessTokenForJWT",
    "CreateHarness",
]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**64)
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["", "a" * 70000, "\x00", "😀", "2025-08-25T18:39:14Z", "AP8=", "NaN", "arn:aws:x", "-" * 300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
SEGMENTS = st.sampled_from(
    b"runtimes memories model tags actor sessions events create invocations . .. % %2F %ff %00 a%2 \xff\xfe".split(b" ")
) | st.binary(max_size=300)
TEXT = st.text(st.characters(max_codepoint=255), max_size=80)


def checked(operation: Operation, *arguments: Any) -> None:
    """Parses; a refusal must itself be a whole answer."""
    try:
        operation.parse(*arguments)
    except ValidationException as error:
        response = operation.serialize_error(error)
        assert 400 <= response.status < 500
        assert isinstance(response.body, bytes)
        assert len(response.body) < 100_000
        assert orjson.loads(response.body)["message"]


@FUZZ
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "", "get", "\x00"]),
    st.lists(SEGMENTS, max_size=12).map(lambda parts: b"/" + b"/".join(parts)) | st.binary(max_size=50),
)
def test_paths(method: str, path: bytes) -> None:
    try:
        ROUTER.find(method, path)
    except ValidationException:
        pass
    ROUTER.methods(path)


def mutations(value: Any) -> st.SearchStrategy[Any]:
    """`value` with something somewhere replaced, left out, renamed or added."""
    if isinstance(value, dict) and value:
        names = st.sampled_from(sorted(value))

        @st.composite
        def inside(draw: st.DrawFn) -> Any:
            name = draw(names)
            changed = dict(value)
            match draw(st.integers(0, 5)):
                case 0:
                    del changed[name]
                case 1:
                    changed[draw(st.text(max_size=10))] = changed.pop(name)
                case 2:
                    changed[draw(st.text(max_size=10))] = draw(JSON)
                case _:
                    changed[name] = draw(mutations(value[name]))
            return changed

        return inside() | JSON
    if isinstance(value, list) and value:
        return st.integers(0, 200).map(lambda n: value * n) | mutations(value[0]).map(lambda item: [item]) | JSON
    return JSON


def body_of(operation: Operation) -> Any:
    """A valid JSON body: the sample's members that travel in it, as JSON has them."""
    shape = operation.model.input
    assert shape is not None
    value = sample(shape, variant=0)
    if shape.payload is not None:
        value = value.get(shape.payload.name, {})
    else:
        value = {m.wire: value[m.name] for m in shape.members.values() if m.location is None and m.name in value}
    return orjson.loads(orjson.dumps(value, default=lambda item: "AP8="))


@pytest.mark.parametrize("name", FUZZED)
def test_bodies(name: str) -> None:
    operation = OPERATIONS[name]
    valid = body_of(operation)

    @FUZZ
    @given(mutations(valid), st.dictionaries(st.text(max_size=5), TEXT, max_size=2))
    def run(body: Any, labels: dict[str, str]) -> None:
        data = orjson.dumps(body, default=str) if not _too_large(body) else b'{"a":99999999999999999999999999}'
        checked(operation, labels, b"", {}, data)

    run()


def _too_large(value: Any) -> bool:
    """orjson writes no integers beyond 64 bits."""
    if isinstance(value, dict):
        return any(_too_large(item) for item in value.values())
    if isinstance(value, list):
        return any(_too_large(item) for item in value)
    return isinstance(value, int) and not -(2**63) <= value < 2**64


@pytest.mark.parametrize("name", FUZZED)
def test_labels_queries_headers_and_raw_bytes(name: str) -> None:
    operation = OPERATIONS[name]
    shape = operation.model.input
    assert shape is not None
    members = list(shape.members.values())
    wires = st.sampled_from([m.wire for m in members] + ["other"])
    pairs = st.tuples(wires.map(str.encode) | st.binary(max_size=9), st.binary(max_size=40))
    query = st.lists(pairs, max_size=5).map(lambda found: b"&".join(name + b"=" + value for name, value in found))

    @FUZZ
    @given(
        st.dictionaries(wires, TEXT),
        query | st.binary(max_size=60),
        st.dictionaries(wires.map(str.lower), TEXT),
        st.binary(max_size=60) | st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"{}", b"{", b"\xef\xbb\xbf{}"]),
    )
    def run(labels: dict[str, str], query: bytes, headers: dict[str, str], body: bytes) -> None:
        checked(operation, labels, query, headers, body)

    run()


SIGNATURE_PARTS = st.sampled_from(
    [
        b"AWS4-HMAC-SHA256 ",
        b"Credential=",
        b"AKID/20261122/us-east-1/bedrock-agentcore/aws4_request",
        b"SignedHeaders=",
        b"host;x-amz-date",
        b"Signature=",
        b"0" * 64,
        b", ",
        b"=",
        b"/",
        b";",
        b"\xff",
    ]
) | st.binary(max_size=12)
QUERY_PARTS = st.sampled_from(
    [
        b"X-Amz-Algorithm=AWS4-HMAC-SHA256",
        b"X-Amz-Credential=AKID%2F20261122%2Fus-east-1%2Fbedrock%2Faws4_request",
        b"X-Amz-Date=20261122T000000Z",
        b"X-Amz-Expires=300",
        b"X-Amz-SignedHeaders=host",
        b"X-Amz-Security-Token=%ff",
        b"X-Amz-Signature=" + b"0" * 64,
        b"X-Amz-",
        b"%",
    ]
) | st.binary(max_size=12)


@FUZZ
@given(
    st.binary(max_size=5),
    st.binary(max_size=40),
    st.lists(QUERY_PARTS, max_size=12).map(b"&".join),
    st.lists(SIGNATURE_PARTS, max_size=10).map(b"".join) | st.none(),
    st.lists(
        st.tuples(
            st.sampled_from([b"Host", b"x-amz-date", b"X-AMZ-CONTENT-SHA256", b"x-amz-security-token", b"x-amz-x"])
            | st.binary(max_size=9),
            st.sampled_from([b"20261122T000000Z", b"UNSIGNED-PAYLOAD", b"h"]) | st.binary(max_size=20),
        ),
        max_size=5,
    ),
    st.floats(0, 4e9),
)
def test_signatures(
    method: bytes,
    path: bytes,
    query: bytes,
    authorization: bytes | None,
    headers: list[tuple[bytes, bytes]],
    now: float,
) -> None:
    """Never accepted, never anything but a refusal."""
    if authorization is not None:
        headers = [*headers, (b"Authorization", authorization)]
    with pytest.raises(UnauthorizedException):
        parse_signature(method, path, query, headers, now).verify("secret", None, "0" * 64)


@FUZZ
@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 255))
def test_event_streams(noise: bytes, at: int, value: int) -> None:
    good = bytearray(encode({":event-type": "chunk", ":message-type": "event"}, b"{}"))
    good[at % len(good)] = value
    for data in (noise, bytes(good) + noise):
        decoder = EventDecoder()
        try:
            list(decoder.feed(data))
            decoder.finish()
        except BadEventStream:
            pass
