"""OTLP as exporters send it (their messages, protobuf and JSON), and as nobody should."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from agentkeep.core.call import SessionRef
from agentkeep.observability.otlp import OtlpApp
from agentkeep.observability.settings import ObservabilitySettings
from agentkeep.observability.spans import Origin, Span, SpanLimits
from agentkeep.observability.spans_sqlite import SqliteSpanStore

SESSION = SessionRef("runtime-1", "session-1")
OTHER = SessionRef("runtime-1", "session-2")
PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}


class Listener:
    """What a session's listener does: it knows the session from its socket."""

    def __init__(self, application: OtlpApp) -> None:
        self.application = application
        self.session: SessionRef | None = SESSION

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await self.application({**scope, "agentkeep.session": self.session}, receive, send)


@pytest.fixture
async def spans(tmp_path: Path) -> AsyncIterator[SqliteSpanStore]:
    store = SqliteSpanStore(tmp_path / "spans.db", SpanLimits(of_agent=5))
    yield store
    await store.close()


@pytest.fixture
def listener(spans: SqliteSpanStore) -> Listener:
    return Listener(OtlpApp(spans, ObservabilitySettings(body_bytes=20_000, decoded_bytes=50_000)))


@pytest.fixture
async def url(listener: Listener, serving: Any) -> AsyncIterator[str]:
    async with serving(listener) as url:
        yield url


async def post(url: str, data: bytes, headers: dict[str, str], path: str = "/v1/traces") -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as client, client.post(url + path, data=data, headers=headers) as response:
        return response.status, await response.read()


def trace(*span_ids: bytes, name: str = "chat claude") -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "support"
    scope = resource.scope_spans.add()
    scope.scope.name = "opentelemetry.instrumentation.botocore.bedrock-runtime"
    for number, span_id in enumerate(span_ids):
        span = scope.spans.add(
            trace_id=b"\xaa" * 16, span_id=span_id, parent_span_id=b"\x00" * 7 + b"\x09", name=name, kind=3
        )
        span.start_time_unix_nano, span.end_time_unix_nano = 1000 + number, 2**64 - 1
        span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = 11
        span.attributes.add(key="session.id").value.string_value = "session-2"  # what an agent says of itself
        tags = span.attributes.add(key="tags").value.array_value.values
        tags.add().string_value = "a"
        tags.add().bytes_value = b"\xff"
        event = span.events.add(name="choice", time_unix_nano=5)
        event.attributes.add(key="k").value.bool_value = True
        span.status.code = 2
    return request


def ids(*numbers: int) -> list[bytes]:
    return [number.to_bytes(8, "big") for number in numbers]


@pytest.mark.parametrize("compressed", [False, True])
async def test_keeps_spans_under_the_session_they_came_from(url: str, spans: SqliteSpanStore, compressed: bool) -> None:
    """OBS-1: without trust in what the payload says of its session."""
    data = trace(*ids(1)).SerializeToString()
    headers = {**PROTOBUF, "content-encoding": "gzip"} if compressed else PROTOBUF
    status, body = await post(url, gzip.compress(data) if compressed else data, headers)
    assert status == 200
    assert not ExportTraceServiceResponse.FromString(body).HasField("partial_success")
    assert await spans.of_session(SESSION) == [
        Span(
            trace_id="aa" * 16,
            span_id="0000000000000001",
            parent_id="0000000000000009",
            name="chat claude",
            kind=3,
            start_ns=1000,
            end_ns=2**63 - 1,
            status=2,
            scope="opentelemetry.instrumentation.botocore.bedrock-runtime",
            attributes={"gen_ai.usage.input_tokens": 11, "session.id": "session-2", "tags": ["a", "/w=="]},
            events=[{"name": "choice", "time_ns": 5, "attributes": {"k": True}}],
            resource={"service.name": "support"},
        )
    ]
    assert await spans.of_session(OTHER) == []


async def test_json_has_its_ids_in_hex(url: str, spans: SqliteSpanStore) -> None:
    span = {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
        "name": "I'm a span",
        "startTimeUnixNano": "1544712660000000000",
        "kind": 2,
        "attributes": [{"key": "my.attribute", "value": {"intValue": "7"}}],
        "someFutureField": 1,
    }
    document = {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "x"}, "spans": [span]}]}]}
    status, body = await post(url, json.dumps(document).encode(), JSON)
    assert (status, json.loads(body)) == (200, {})
    [kept] = await spans.of_session(SESSION)
    assert (kept.trace_id, kept.span_id, kept.kind) == (span["traceId"], span["spanId"], 2)
    assert kept.attributes == {"my.attribute": 7}


async def test_a_batch_sent_again_is_kept_once(url: str, spans: SqliteSpanStore) -> None:
    for _ in range(2):
        assert (await post(url, trace(*ids(1, 2)).SerializeToString(), PROTOBUF))[0] == 200
    assert len(await spans.of_session(SESSION)) == 2


async def test_a_session_keeps_so_many_spans_and_no_more(url: str, spans: SqliteSpanStore) -> None:
    _, body = await post(url, trace(*ids(*range(1, 9))).SerializeToString(), PROTOBUF)
    answer = ExportTraceServiceResponse.FromString(body)
    assert answer.partial_success.rejected_spans == 3
    assert len(await spans.of_session(SESSION)) == 5


async def test_old_spans_go(tmp_path: Path) -> None:
    class Later:
        at = datetime.now(UTC)

        def now(self) -> datetime:
            return self.at

        def monotonic(self) -> float:
            return self.at.timestamp()

        async def sleep(self, seconds: float) -> None: ...

    clock = Later()
    store = SqliteSpanStore(tmp_path / "spans.db", SpanLimits(days=1), clock)
    await store.add(SESSION, [Span("t", "s", "", "old", 1, 1, 2)])
    clock.at += timedelta(days=2)
    assert await store.of_session(SESSION) == []
    await store.add(OTHER, [Span("t", "s", "", "new", 1, 1, 2)])
    clock.at -= timedelta(days=2)
    assert await store.of_session(SESSION) == []
    await store.close()


async def test_logs_and_metrics_are_declined_without_failing_the_agent(url: str) -> None:
    logs = ExportLogsServiceRequest()
    logs.resource_logs.add().scope_logs.add().log_records.add()
    status, body = await post(url, logs.SerializeToString(), PROTOBUF, "/v1/logs")
    answer = ExportLogsServiceResponse.FromString(body)
    assert (status, answer.partial_success.rejected_log_records) == (200, 1)
    assert "not kept" in answer.partial_success.error_message
    points = {"gauge": {"dataPoints": [{"asInt": "1"}, {"asInt": "2"}]}, "name": "m"}
    document = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [points]}]}]}
    status, body = await post(url, json.dumps(document).encode(), JSON, "/v1/metrics")
    assert (status, json.loads(body)["partialSuccess"]["rejectedDataPoints"]) == (200, "2")


@pytest.mark.parametrize(
    ("data", "headers", "path", "status"),
    [
        (b"\xff\xff\xff", PROTOBUF, "/v1/traces", 400),
        (b"{", JSON, "/v1/traces", 400),
        (b'"text"', JSON, "/v1/traces", 400),
        (b"[" * 5000, JSON, "/v1/traces", 400),
        (b'{"a":' * 900 + b"1" + b"}" * 900, JSON, "/v1/traces", 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', JSON, "/v1/traces", 400),
        (b"x", {"content-type": "text/plain"}, "/v1/traces", 415),
        (b"x", {**PROTOBUF, "content-encoding": "br"}, "/v1/traces", 415),
        (b"x", {**PROTOBUF, "content-encoding": "gzip"}, "/v1/traces", 400),
        (gzip.compress(b"x" * 9)[:-4], {**PROTOBUF, "content-encoding": "gzip"}, "/v1/traces", 400),
        (gzip.compress(b"\x00" * 10_000_000), {**PROTOBUF, "content-encoding": "gzip"}, "/v1/traces", 413),
        (b"x" * 20_001, PROTOBUF, "/v1/traces", 413),
        (b"", PROTOBUF, "/v1/unknown", 404),
    ],
    ids=[
        *("no-protobuf", "no-json", "a-string", "deep-lists", "deep-objects", "no-hex", "text", "brotli", "no-gzip"),
        *("cut-gzip", "gzip-bomb", "too-large", "unknown-path"),
    ],
)
async def test_bad_input_is_a_clear_refusal(
    url: str, data: bytes, headers: dict[str, str], path: str, status: int
) -> None:
    answered, body = await post(url, data, headers, path)
    assert answered == status
    assert json.loads(body)["message"]


async def test_nobody_but_a_session_may_send(url: str, listener: Listener) -> None:
    listener.session = None
    status, _ = await post(url, trace(*ids(1)).SerializeToString(), PROTOBUF)
    assert status == 403


async def test_an_agent_that_ends_while_sending(listener: Listener) -> None:
    sent: list[object] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/traces",
        "headers": [(b"content-type", b"application/json")],
    }
    await asyncio.wait_for(listener(scope, receive, send), 5)
    assert sent == []


async def test_one_session_keeps_the_reader_no_busier_than_another(spans: SqliteSpanStore, serving: Any) -> None:
    """EXE-6: JSON has a smaller limit, and a session a few requests at one time."""
    async with serving(Listener(OtlpApp(spans))) as url:
        bomb = gzip.compress(b'{"x":[' + b"{}," * 1_000_000 + b"{}]}")
        assert (await post(url, bomb, {**JSON, "content-encoding": "gzip"}))[0] == 413
        data = trace(b"\x01" * 8, name="x" * 1_000_000).SerializeToString()
        statuses = [status for status, _ in await asyncio.gather(*(post(url, data, PROTOBUF) for _ in range(24)))]
        assert set(statuses) == {200, 429}
        assert (await post(url, data, PROTOBUF))[0] == 200


async def test_trusted_senders_say_whose_spans_they_are(spans: SqliteSpanStore, serving: Any) -> None:
    """The platform's services and a Collector: by attributes, and to no session where they name none."""
    request = trace(*ids(1, 2, 3))
    first, second, third = request.resource_spans[0].scope_spans[0].spans
    first.attributes.add(key="aws.agent.id").value.string_value = "runtime-1"  # `trace` says session-2
    del second.attributes[:]
    third.attributes.add(key="aws.agent.id").value.int_value = 7
    application = OtlpApp(spans, trusted=True)
    async with serving(application) as url:
        status, _ = await post(url, request.SerializeToString(), PROTOBUF)
    application.close()
    assert status == 200
    [owned] = await spans.of_session(OTHER)
    assert (owned.span_id, owned.origin) == (f"{1:016x}", Origin.PLATFORM)
    assert await spans.of_session(SESSION) == []
    assert sorted(span.span_id for span in await spans.unowned()) == [f"{2:016x}", f"{3:016x}"]
