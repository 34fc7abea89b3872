"""Every operation of every model, against botocore itself: what its serializer sends, our parser understands; what our
serializer answers, its parser understands. Values are made from the shapes (agentkeep.testing.samples)."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest
from botocore.awsrequest import HeadersDict, create_request_object, prepare_request_dict
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator

from agentkeep.core.errors import ServiceError
from agentkeep.testing.samples import sample, variants
from agentkeep.wire import Operation, Response, Router
from agentkeep.wire.eventstream import CONTENT_TYPE
from agentkeep.wire.model import SERVICES, service

ROUTER = Router()
OPERATIONS = [pytest.param(operation, id=f"{operation.service}-{operation.name}") for operation in ROUTER.operations]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    session = botocore.session.Session()
    return {name: session.get_service_model(name) for name in SERVICES}


class Raw:
    """What botocore reads an event stream from."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def stream(self) -> Iterator[bytes]:
        yield from self.pieces

    def close(self) -> None:
        pass


class Streaming:
    """Stands for botocore's StreamingBody, which its parser passes on."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def headers_for_botocore(response: Response) -> HeadersDict:
    return HeadersDict({name.decode(): value.decode() for name, value in response.headers})


def sent_by_botocore(model: Any, request: dict[str, Any]) -> tuple[str, bytes, bytes, dict[str, str], bytes]:
    """Method, raw path, query, headers and body, as botocore sends them."""
    shape = model.input_shape
    if shape is not None:
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()
    serialized = create_serializer("rest-json").serialize_to_request(request, model)
    prepare_request_dict(serialized, "http://localhost:4780")
    prepared = create_request_object(serialized).prepare()
    url = urlsplit(prepared.url)
    body = prepared.body or b""
    headers = {k.lower(): v.decode() if isinstance(v, bytes) else v for k, v in prepared.headers.items()}
    return (
        prepared.method,
        url.path.encode(),
        url.query.encode(),
        headers,
        body.encode() if isinstance(body, str) else bytes(body),
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_botocore_sends_is_parsed_to_the_same(operation: Operation, models: dict[str, Any]) -> None:
    model = models[operation.service].operation_model(operation.name)
    shape = service(operation.service).operation(operation.name).input
    assert shape is not None
    for request in variants(shape):
        method, path, query, headers, body = sent_by_botocore(model, request)
        match = ROUTER.find(method, path)
        assert match is not None, path
        assert match.operation is operation
        parsed = match.operation.parse(match.labels, query, headers, body)
        if "contentType" not in request:
            parsed.pop("contentType", None)  # botocore sends one for bodies it makes
        assert parsed == request


def utc(value: Any) -> Any:
    """botocore's datetimes are local."""
    if isinstance(value, dict):
        return {key: utc(item) for key, item in value.items()}
    if isinstance(value, list):
        return [utc(item) for item in value]
    return value.astimezone(UTC) if isinstance(value, datetime) else value


async def events(items: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for item in items:
        yield item


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_we_answer_is_parsed_to_the_same(operation: Operation, models: dict[str, Any]) -> None:
    model = models[operation.service].operation_model(operation.name)
    shape = operation.model.output
    assert shape is not None
    for output in variants(shape):
        expected = dict(output)
        stream = next((m for m in shape.members.values() if m.shape.event_stream), None)
        if stream is not None:
            # An output holds one event; a stream holds them all.
            expected.pop(stream.name, None)
            sent = [
                {member.name: sample(member.shape, variant=1)}
                for member in stream.shape.members.values()
                if not member.shape.error
            ]
            output = {**expected, stream.name: events(sent)}
        status = next((m.name for m in shape.members.values() if m.location == "statusCode"), None)
        if status is not None:
            output = {**output, status: 207}
        response = operation.serialize(output)
        if status is not None:
            expected[status] = response.status
        body: Any = response.body
        if stream is not None:
            assert dict(response.headers)[b"content-type"] in (CONTENT_TYPE, output.get("contentType", "").encode())
            body = Raw([piece async for piece in body])
        raw = shape.payload is not None and shape.payload.shape.kind == "blob"
        if raw:
            body = Streaming(body)
        parsed = create_parser("rest-json").parse(
            {
                "status_code": response.status,
                "headers": headers_for_botocore(response),
                "body": body,
                "context": {"operation_name": operation.name},
            },
            model.output_shape,
        )
        assert parsed.pop("ResponseMetadata")["HTTPStatusCode"] == response.status
        if stream is not None:
            assert [utc(event) for event in parsed.pop(stream.name)] == sent
        payload = shape.payload
        if raw and payload is not None:
            assert parsed.pop(payload.name).data == expected.pop(payload.name, b"")
        elif payload is not None and payload.name not in expected:
            parsed.pop(payload.name, None)
        assert utc(parsed) == expected
        assert response.status == (operation.status if status is None else 207)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nulls_in_answers_are_left_out(operation: Operation) -> None:
    shape = operation.model.output
    assert shape is not None
    if shape.payload is not None:
        return
    output = sample(shape, variant=0)
    nulled = {**output, **{name: None for name, member in shape.members.items() if not member.required}}
    assert (
        operation.serialize(nulled).body
        == operation.serialize({name: value for name, value in output.items() if shape.members[name].required}).body
    )


def test_every_modelled_error_is_raised_by_botocore_as_modelled(models: dict[str, Any]) -> None:
    """The status of each error belongs to the model; the class is chosen by the header."""
    for operation in ROUTER.operations:
        for code, error in operation.model.errors.items():
            raised = type(code, (ServiceError,), {})("what happened")
            response = operation.serialize_error(raised)
            assert response.status == error.status
            shape = models[operation.service].shape_for(code)
            assert shape.metadata["error"]["httpStatusCode"] == response.status
            parsed = create_parser("rest-json").parse(
                {
                    "status_code": response.status,
                    "headers": headers_for_botocore(response),
                    "body": response.body,
                },
                models[operation.service].operation_model(operation.name).output_shape,
            )
            assert parsed["Error"]["Code"] == code
            assert parsed["Error"]["Message"] == "what happened"
