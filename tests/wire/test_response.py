"""Answers: headers, bodies, streams, and errors in each operation's own terms."""

import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID
from zlib import crc32

import orjson
import pytest

from agentkeep.core.errors import (
    AccessDeniedException,
    ConflictException,
    FieldError,
    InternalServerException,
    ModelStreamErrorException,
    RuntimeClientError,
    ServiceError,
    ServiceQuotaExceededException,
    ThrottlingException,
    UnauthorizedException,
    UnsupportedOperationException,
    ValidationException,
)
from agentkeep.wire import Response, Router, error_response
from agentkeep.wire.eventstream import BadEventStream, EventDecoder, HeaderValue, Message, encode

OPERATIONS = {operation.name: operation for operation in Router().operations}
MOMENT = datetime(2025, 8, 25, 18, 39, 14, 123456, tzinfo=UTC)


def body(response: Response) -> Any:
    assert isinstance(response.body, bytes)
    return orjson.loads(response.body)


def header(response: Response, name: bytes) -> bytes | None:
    return dict(response.headers).get(name)


def event(**more: Any) -> dict[str, Any]:
    return {"memoryId": "m", "actorId": "a", "sessionId": "s", "eventId": "1#a", "eventTimestamp": MOMENT, **more}


def test_memory_writes_timestamps_as_numbers_with_their_fraction() -> None:
    written = body(OPERATIONS["CreateEvent"].serialize({"event": event(payload=[])}))
    assert written["event"]["eventTimestamp"] == 1756147154.123456


def test_runtimes_write_timestamps_as_text() -> None:
    written = body(OPERATIONS["CreateAgentRuntime"].serialize({"createdAt": MOMENT, "status": "CREATING"}))
    assert written["createdAt"] == "2025-08-25T18:39:14.123456Z"


@pytest.mark.parametrize(
    "same", [MOMENT.replace(tzinfo=None), MOMENT.astimezone(timezone(timedelta(hours=5)))], ids=["naive", "elsewhere"]
)
@pytest.mark.parametrize("name", ["CreateEvent", "CreateAgentRuntime"])
def test_times_without_a_zone_are_utc(name: str, same: datetime) -> None:
    def output(moment: datetime) -> dict[str, Any]:
        return {"event": event(eventTimestamp=moment)} if name == "CreateEvent" else {"createdAt": moment}

    assert OPERATIONS[name].serialize(output(same)) == OPERATIONS[name].serialize(output(MOMENT))


def test_nulls_are_left_out_but_not_of_documents() -> None:
    output = {"event": event(branch=None, payload=[{"blob": {"a": None, "b": MOMENT.isoformat()}}])}
    written = body(OPERATIONS["CreateEvent"].serialize(output))
    assert "branch" not in written["event"]
    assert written["event"]["payload"] == [{"blob": {"a": None, "b": MOMENT.isoformat()}}]
    assert written["event"]["eventTimestamp"] == 1756147154.123456


@pytest.mark.parametrize("document", ["text", 1, [1, {"a": []}], {"a": ":null"}, '{"a":null}', None, "", False])
def test_documents_are_written_as_they_are(document: Any) -> None:
    payload = [{"json": {"content": document}}]
    written = body(OPERATIONS["CreateEvent"].serialize({"event": event(payload=payload)}))
    assert written["event"]["payload"] == (payload if document is not None else [{"json": {}}])


def test_a_member_renamed_on_the_wire() -> None:
    gateway = {"gatewayId": "g", "domainOverride": {"defaultDomain": "example.com"}, "createdAt": MOMENT}
    written = body(OPERATIONS["GetGateway"].serialize(gateway))
    assert written["domainOverride"] == {"default": "example.com"}
    assert written["createdAt"] == "2025-08-25T18:39:14.123456Z"


def test_status_and_headers_are_the_models() -> None:
    response = OPERATIONS["StopRuntimeSession"].serialize({"runtimeSessionId": "s" * 33})
    assert response.status == 200
    assert header(response, b"x-amzn-bedrock-agentcore-runtime-session-id") == b"s" * 33
    assert body(response) == {}
    assert OPERATIONS["CreateEvent"].serialize({}).status == 201
    assert OPERATIONS["CreateMemory"].serialize({}).status == 202
    deleted = OPERATIONS["DeleteWorkloadIdentity"].serialize({})
    assert (deleted.status, deleted.headers, deleted.body) == (204, [], b"")
    assert OPERATIONS["TagResource"].serialize(None).body == b""


def test_an_answer_cannot_be_split_by_what_a_header_holds() -> None:
    evil = "a=1\r\nset-cookie: b\x00\x7f\u2028"
    response = OPERATIONS["InvokeAgentRuntime"].serialize(
        {"contentType": "text/plain", "baggage": evil, "response": b""}
    )
    value = header(response, b"baggage")
    assert value is not None
    assert not any(code < 32 or code == 127 for code in value)


async def pieces() -> AsyncIterator[bytes]:
    yield b"data: 1\n\n"
    yield b"data: 2\n\n"


async def test_a_raw_body_is_passed_on_whole_or_in_pieces() -> None:
    invoke = OPERATIONS["InvokeAgentRuntime"]
    whole = invoke.serialize({"contentType": "text/plain", "response": b"\x00"})
    assert whole.body == b"\x00"
    assert header(whole, b"content-type") == b"text/plain"
    stream = invoke.serialize({"contentType": "text/event-stream", "response": pieces(), "statusCode": 200})
    assert not isinstance(stream.body, bytes)
    assert [piece async for piece in stream.body] == [b"data: 1\n\n", b"data: 2\n\n"]
    assert header(OPERATIONS["InvokeModel"].serialize({"body": b"{}"}), b"content-type") == b"application/octet-stream"


def test_a_document_as_the_body() -> None:
    response = OPERATIONS["GetAgentCard"].serialize({"agentCard": {"name": "a", "x": None}, "runtimeSessionId": "s"})
    assert body(response) == {"name": "a", "x": None}
    assert header(response, b"content-type") == b"application/json"


# Event streams.


async def messages(response: Response) -> list[Message]:
    decoder = EventDecoder()
    assert not isinstance(response.body, bytes)
    found = [message async for piece in response.body for message in decoder.feed(piece)]
    decoder.finish()
    return found


class Source:
    """An event stream that ends as told, and remembers that it was closed."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)
        self.closed = False

    def __aiter__(self) -> "Source":
        return self

    async def __anext__(self) -> Any:
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self) -> None:
        self.closed = True


async def test_events() -> None:
    source = Source({"messageStart": {"role": "assistant"}}, {"messageStop": {"stopReason": "end_turn"}})
    response = OPERATIONS["ConverseStream"].serialize({"stream": source})
    assert header(response, b"content-type") == b"application/vnd.amazon.eventstream"
    found = await messages(response)
    assert [(m.headers[":event-type"], orjson.loads(m.payload)) for m in found] == [
        ("messageStart", {"role": "assistant"}),
        ("messageStop", {"stopReason": "end_turn"}),
    ]
    assert all(m.headers[":message-type"] == "event" for m in found)
    assert source.closed


@pytest.mark.parametrize(
    ("operation", "error", "expected"),
    [
        ("ConverseStream", ThrottlingException("slow down"), "throttlingException"),
        ("ConverseStream", ModelStreamErrorException("broke"), "modelStreamErrorException"),
        ("InvokeHarness", RuntimeClientError("agent broke"), "runtimeClientError"),
        ("InvokeAgentRuntimeCommand", AccessDeniedException("no"), "accessDeniedException"),
        ("ConverseStream", ValidationException("bad"), "validationException"),
        ("ConverseStream", InternalServerException("oops"), "internalServerException"),
        ("ConverseStream", RuntimeError("a secret of the implementation"), "internalServerException"),
        ("ConverseStream", {"noSuchEvent": {}}, "internalServerException"),
    ],
)
async def test_errors_in_a_stream_are_its_last_message(operation: str, error: Any, expected: str) -> None:
    model = OPERATIONS[operation].model.output
    assert model is not None
    source = Source(error)
    found = await messages(OPERATIONS[operation].serialize({"stream": source}))
    assert [m.headers[":exception-type"] for m in found] == [expected]
    assert found[0].headers[":message-type"] == "exception"
    assert "secret" not in orjson.loads(found[0].payload)["message"]
    assert source.closed


async def test_an_error_a_stream_does_not_model_is_told_unmodelled() -> None:
    found = await messages(OPERATIONS["InvokeHarness"].serialize({"stream": Source(ConflictException("busy"))}))
    assert found[0].headers == {":error-code": "ConflictException", ":error-message": "busy", ":message-type": "error"}


@pytest.mark.parametrize("begun", [True, False])
async def test_closing_a_stream_closes_its_source(begun: bool) -> None:
    """The client left, perhaps before anything was sent: the model's or agent's stream must not go on."""
    source = Source(*[{"messageStart": {"role": "assistant"}}] * 3)
    stream: Any = OPERATIONS["ConverseStream"].serialize({"stream": source}).body
    if begun:
        await anext(stream)
    await stream.aclose()
    assert source.closed
    assert [piece async for piece in stream] == []


def test_the_decoder_takes_any_pieces_and_types() -> None:
    data = encode({":event-type": "a"}, b"1") + encode({}, b"")
    decoder = EventDecoder()
    found = [message for i in range(len(data)) for message in decoder.feed(data[i : i + 1])]
    assert found == [Message({":event-type": "a"}, b"1"), Message({}, b"")]
    decoder.feed(data[:5])
    assert list(decoder.feed(data[:5])) == []
    with pytest.raises(BadEventStream):
        decoder.finish()


@pytest.mark.parametrize("at", range(0, 36, 3))
def test_the_decoder_notices_damage(at: int) -> None:
    data = bytearray(encode({":event-type": "a"}, b"payload"))
    data[at] ^= 0x10
    with pytest.raises(BadEventStream):
        list(EventDecoder().feed(bytes(data)))


# Errors.


@pytest.mark.parametrize(
    ("operation", "error", "code", "status"),
    [
        ("CreateEvent", ThrottlingException("m"), "ThrottledException", 429),
        ("CreateEvent", InternalServerException("m"), "ServiceException", 500),
        ("CreateAgentRuntime", ThrottlingException("m"), "ThrottlingException", 429),
        ("CreateAgentRuntime", ServiceQuotaExceededException("m"), "ServiceQuotaExceededException", 402),
        ("InvokeModel", ServiceQuotaExceededException("m"), "ServiceQuotaExceededException", 400),
        ("Converse", ServiceQuotaExceededException("m"), "ServiceQuotaExceededException", 400),  # its service's
        ("StopRuntimeSession", UnauthorizedException("m"), "UnauthorizedException", 401),
        ("CreateEvent", UnauthorizedException("m"), "AccessDeniedException", 403),
        ("InvokeAgentRuntime", RuntimeClientError("m"), "RuntimeClientError", 424),
        ("Converse", ModelStreamErrorException("m"), "ModelErrorException", 424),
        ("CreateEvent", UnsupportedOperationException("m"), "UnsupportedOperationException", 501),
    ],
)
def test_errors_are_called_as_the_operation_calls_them(
    operation: str, error: ServiceError, code: str, status: int
) -> None:
    response = OPERATIONS[operation].serialize_error(error)
    assert (response.status, header(response, b"x-amzn-errortype")) == (status, code.encode())
    assert body(response) == {"message": "m"}


def test_validation_names_reason_and_fields_where_they_are_modelled() -> None:
    error = ValidationException("m", "FieldValidationFailed", [FieldError("a.b", "Member must not be null")])
    assert body(OPERATIONS["CreateEvent"].serialize_error(error)) == {
        "message": "m",
        "reason": "FieldValidationFailed",
        "fieldList": [{"name": "a.b", "message": "Member must not be null"}],
    }
    assert body(OPERATIONS["Converse"].serialize_error(error)) == {"message": "m"}


def test_a_challenge_keeps_its_status() -> None:
    """A missing bearer token is 401 with a challenge, though InvokeAgentRuntime models no such error."""
    error = UnauthorizedException("m", 'Bearer resource_metadata="http://h"')
    response = OPERATIONS["InvokeAgentRuntime"].serialize_error(error)
    assert response.status == 401
    assert header(response, b"www-authenticate") == b'Bearer resource_metadata="http://h"'


def test_errors_before_an_operation_is_known() -> None:
    response = error_response(ValidationException("m", "CannotParse"))
    assert response.status == 400
    assert body(response) == {"message": "m", "reason": "CannotParse"}


def test_the_decoder_reads_every_type_of_header() -> None:
    """Other servers send them; ours sends text only."""
    fields: list[tuple[str, bytes, HeaderValue]] = [
        ("yes", b"\x00", True),
        ("no", b"\x01", False),
        ("byte", b"\x02\xff", -1),
        ("short", b"\x03\x01\x00", 256),
        ("int", b"\x04\x00\x00\x00\x05", 5),
        ("long", b"\x05" + (2**40).to_bytes(8, "big"), 2**40),
        ("bytes", b"\x06\x00\x02\x00\xff", b"\x00\xff"),
        ("text", b"\x07\x00\x02hi", "hi"),
        ("moment", b"\x08" + (1_756_147_154_123).to_bytes(8, "big"), MOMENT.replace(microsecond=123000)),
        ("uuid", b"\x09" + bytes(range(16)), UUID(bytes=bytes(range(16)))),
    ]
    headers = b"".join(bytes([len(name)]) + name.encode() + value for name, value, _ in fields)
    assert list(EventDecoder().feed(message(headers))) == [Message({name: value for name, _, value in fields}, b"")]


@pytest.mark.parametrize("headers", [b"\x01a", b"\x01a\x63", b"\x01a\x04\x00", b"\x01a\x07\x00\x09hi", b"\x01\xff\x00"])
def test_malformed_headers_are_damage(headers: bytes) -> None:
    with pytest.raises(BadEventStream):
        list(EventDecoder().feed(message(headers)))


def test_impossible_lengths_are_damage_before_anything_is_kept() -> None:
    for total, length in ((2**32 - 1, 0), (16, 1), (0, 0), (200_000, 180_000)):
        prelude = struct.pack("!II", total, length)
        with pytest.raises(BadEventStream):
            list(EventDecoder().feed(prelude + struct.pack("!I", crc32(prelude))))


def message(headers: bytes) -> bytes:
    prelude = struct.pack("!II", 16 + len(headers), len(headers))
    data = prelude + struct.pack("!I", crc32(prelude)) + headers
    return data + struct.pack("!I", crc32(data))
