"""OTLP over HTTP: an agent's spans are kept under the session they came from, the platform's under the one they name.

Source: the OpenTelemetry protocol specification 1.x, OTLP/HTTP (protobuf and JSON, gzip). Logs and metrics are not kept
yet: they are answered with the protocol's partial success, which says so and fails no agent.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson
from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import StoreUnavailable
from agentkeep.observability.settings import ObservabilitySettings
from agentkeep.observability.spans import Origin, Span, SpanStore, owner
from agentkeep.service.asgi import ClientLeft, Receive, Scope, Send, header, pieces, respond

__all__ = ["OtlpApp"]

logger = logging.getLogger(__name__)

PROTOBUF, JSON = b"application/x-protobuf", b"application/json"

Result = TypeVar("Result")

#: Of one session's requests being read at one time. Exporters send one after the other.
MAX_AT_ONCE = 4
MAX_AT_ONCE_TRUSTED = 64
#: JSON takes a hundred times its size while it is read, and the interpreter for itself: less of it is taken, bytes.
MAX_JSON = 2 << 20
#: Nesting of JSON and of attribute values beyond this is refused.
MAX_DEPTH = 32


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class OtlpApp:
    """An ASGI application for session listeners: `scope["agentkeep.session"]` is the session whose listener accepted
    the connection, and what is sent counts as that session's.

    `trusted`: for the platform's own services instead, and a Collector between. A span belongs to the session that its
    attributes name (`session.id` and `aws.agent.id`), or to none. It checks no sender: mount it behind what does.
    """

    def __init__(
        self, spans: SpanStore, settings: ObservabilitySettings | None = None, *, trusted: bool = False
    ) -> None:
        self._spans = spans
        self._trusted = trusted
        self._settings = settings or ObservabilitySettings()
        # One thread of its own: what agents send to be read keeps nothing else of the platform waiting.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="otlp")
        self._reading: Counter[SessionRef | None] = Counter()

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content_type = header(scope, b"content-type").partition(b";")[0].strip().lower()
        as_json = content_type != PROTOBUF
        try:
            answer = await self._answer(scope, receive, content_type)
        except _Refused as refusal:
            await respond(send, refusal.status, {"message": str(refusal)})
        except StoreUnavailable:
            logger.exception("spans were not kept")
            await respond(send, 503, {"message": "spans cannot be kept now; try again"})
        except ClientLeft:
            pass  # the agent ended while it was sending
        else:
            content = json_format.MessageToJson(answer).encode() if as_json else answer.SerializeToString()
            await respond(send, 200, content, content_type=JSON if as_json else PROTOBUF)

    async def _answer(self, scope: Scope, receive: Receive, content_type: bytes) -> Message:
        requests: dict[str, type[Message]] = {
            "/v1/traces": ExportTraceServiceRequest,
            "/v1/logs": ExportLogsServiceRequest,
            "/v1/metrics": ExportMetricsServiceRequest,
        }
        wanted = requests.get(scope["path"])
        if wanted is None:
            raise _Refused(404, "OTLP is served at /v1/traces, /v1/logs and /v1/metrics")
        if scope["method"] != "POST":
            raise _Refused(405, "OTLP is sent by POST")
        if content_type not in (PROTOBUF, JSON):
            raise _Refused(415, "OTLP comes as application/x-protobuf or application/json")
        session: SessionRef | None = None if self._trusted else scope.get("agentkeep.session")
        if session is None and not self._trusted:
            raise _Refused(403, "OTLP is taken from a session, through its session endpoint")
        if self._reading[session] >= (MAX_AT_ONCE if session is not None else MAX_AT_ONCE_TRUSTED):
            raise _Refused(429, "as many requests of this sender are being read as may be; send one after the other")
        self._reading[session] += 1
        try:
            data = await self._body(receive)
            encoding = header(scope, b"content-encoding").strip().lower()
            request = await self._read(lambda: self._decode(wanted, data, content_type, encoding))
            return await self._take(session, request)
        finally:
            self._reading[session] -= 1
            if not self._reading[session]:
                del self._reading[session]

    async def _read(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)

    async def _body(self, receive: Receive) -> bytes:
        data = bytearray()
        async for piece in pieces(receive):
            data += piece
            if len(data) > self._settings.body_bytes:
                raise _Refused(413, f"more than {self._settings.body_bytes} bytes: send smaller batches")
        return bytes(data)

    async def _take(self, session: SessionRef | None, request: Message) -> Message:
        match request:
            case ExportTraceServiceRequest():
                origin = Origin.PLATFORM if self._trusted else Origin.AGENT
                spans = await self._read(lambda: list(_spans(request, origin)))
                by_owner = _by_owner(spans) if self._trusted else {session: spans}
                traces = ExportTraceServiceResponse()
                rejected = 0
                for owned, theirs in by_owner.items():
                    rejected += await self._spans.add(owned, theirs)
                if rejected:
                    traces.partial_success.rejected_spans = rejected
                    traces.partial_success.error_message = "the session has as many spans as are kept of one"
                return traces
            case ExportLogsServiceRequest():
                logs = ExportLogsServiceResponse()
                records = [scope.log_records for resource in request.resource_logs for scope in resource.scope_logs]
                logs.partial_success.rejected_log_records = sum(map(len, records))
                logs.partial_success.error_message = "log records are not kept; what the agent writes to its output is"
                return logs
            case ExportMetricsServiceRequest():
                metrics = ExportMetricsServiceResponse()
                metrics.partial_success.rejected_data_points = sum(
                    len(getattr(metric, metric.WhichOneof("data") or "gauge").data_points)
                    for resource in request.resource_metrics
                    for scope in resource.scope_metrics
                    for metric in scope.metrics
                )
                metrics.partial_success.error_message = "metrics are not kept"
                return metrics
        raise _Refused(404, "not an OTLP request")

    def _decode(self, wanted: type[Message], data: bytes, content_type: bytes, encoding: bytes) -> Message:
        most = self._settings.decoded_bytes if content_type == PROTOBUF else min(self._settings.decoded_bytes, MAX_JSON)
        if encoding == b"gzip":
            data = _unzipped(data, most)
        elif encoding not in (b"", b"identity"):
            raise _Refused(415, "the only content encoding taken is gzip")
        if len(data) > most:
            raise _Refused(413, f"more than {most} bytes: send smaller batches, or protobuf")
        request = wanted()
        try:
            if content_type == PROTOBUF:
                request.ParseFromString(data)
            else:
                document = _ids_in_base64(orjson.loads(data))
                if not isinstance(document, dict):
                    raise ValueError("not an object")
                json_format.ParseDict(document, request, ignore_unknown_fields=True, max_recursion_depth=MAX_DEPTH * 3)
        except (DecodeError, json_format.ParseError, ValueError, RecursionError) as error:
            raise _Refused(400, f"not an OTLP message: {type(error).__name__}") from None
        return request


def _unzipped(data: bytes, limit: int) -> bytes:
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        whole = inflate.decompress(data, limit)
    except zlib.error:
        raise _Refused(400, "the body is not gzip") from None
    if inflate.unconsumed_tail:
        raise _Refused(413, f"more than {limit} bytes after decompression: send smaller batches")
    if not inflate.eof:
        raise _Refused(400, "the body is not whole")
    return whole


def _ids_in_base64(value: Any, depth: int = 0) -> Any:
    """OTLP's JSON has ids in hex, where protobuf's own JSON has base64."""
    if depth > MAX_DEPTH * 3:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_ids_in_base64(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode()
        if key in ("traceId", "spanId", "parentSpanId") and isinstance(item, str)
        else _ids_in_base64(item, depth + 1)
        for key, item in value.items()
    }


def _by_owner(spans: Iterable[Span]) -> dict[SessionRef | None, list[Span]]:
    found: dict[SessionRef | None, list[Span]] = {}
    for span in spans:
        found.setdefault(owner(span), []).append(span)
    return found


def _spans(request: ExportTraceServiceRequest, origin: Origin) -> Iterator[Span]:
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _span(span, scope_spans.scope.name, resource, origin)


def _span(span: WireSpan, scope: str, resource: dict[str, Any], origin: Origin) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=span.kind,
        # SQLite's integers are signed: a time past the year 2262 is no time.
        start_ns=min(span.start_time_unix_nano, 2**63 - 1),
        end_ns=min(span.end_time_unix_nano, 2**63 - 1),
        status=span.status.code,
        status_message=span.status.message,
        scope=scope,
        attributes=_attributes(span.attributes),
        events=[
            {"name": event.name, "time_ns": event.time_unix_nano, "attributes": _attributes(event.attributes)}
            for event in span.events
        ],
        resource=resource,
        origin=origin,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        return None
    match value.WhichOneof("value"):
        case "array_value":
            return [_value(item, depth + 1) for item in value.array_value.values]
        case "kvlist_value":
            return {pair.key: _value(pair.value, depth + 1) for pair in value.kvlist_value.values}
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case str() as kind:
            return getattr(value, kind)
    return None
