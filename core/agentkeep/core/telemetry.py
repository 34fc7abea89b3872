"""Spans of the platform's own steps: what a session's trace is made of.

Planes call `step`; whether and where spans go is decided by whoever composes the planes
(`telemetry_export`). Names
follow OpenTelemetry's GenAI conventions, and AgentCore's where it has them.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Tracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ServiceError

__all__ = [
    "ERROR_TYPE",
    "RUNTIME_ID",
    "SESSION_ID",
    "USER_ID",
    "parent_in",
    "record",
    "span_context",
    "step",
    "traceparent",
]

SESSION_ID: Final = "session.id"
RUNTIME_ID: Final = "aws.agent.id"
USER_ID: Final = "enduser.id"
ERROR_TYPE: Final = "error.type"

_UNSET: Final = Status(StatusCode.UNSET)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
#: W3C Trace Context, section 3.2.2. A version after 00 may have more behind the flags.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?"
)
_tracers: Final[dict[str, Tracer]] = {}


@contextmanager
def step(
    plane: str,
    name: str,
    session: SessionRef | None = None,
    user_id: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: SpanContext | None = None,
) -> Iterator[Span]:
    """A span of `plane` (`memory`) around one step. It belongs to `session`'s trace, if there is one; more attributes
    may be set on the span while it lasts. `parent`: of another process; default: the step this one is within.

    An error that leaves is on it by its code, without its message."""
    known = dict(attributes or {})
    if session is not None:
        known[SESSION_ID] = session.session_id
        known[RUNTIME_ID] = session.runtime_id
    if user_id is not None:
        known[USER_ID] = user_id
    tracer = trace.get_tracer(f"agentkeep.{plane}")
    with tracer.start_as_current_span(
        name,
        context=_within(parent),
        kind=kind,
        attributes=known,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except Exception as error:
            code = type(error).__name__
            span.set_status(Status(StatusCode.ERROR, code))
            span.set_attribute(ERROR_TYPE, code)
            if isinstance(error, ServiceError):
                span.set_attribute("http.response.status_code", error.status)
            raise


def _within(parent: SpanContext | None) -> Context | None:
    return trace.set_span_in_context(trace.NonRecordingSpan(parent)) if parent is not None else None


# Without a context manager, for the hot path: a tenth of a step's price.


def span_context(parent: SpanContext | None = None) -> SpanContext:
    """Ids for a span that will be recorded when it is over: in the parent's trace, or in a new one."""
    trace_id = parent.trace_id if parent is not None else random.getrandbits(128) or 1
    return SpanContext(trace_id, random.getrandbits(64) or 1, False, _SAMPLED)


def record(
    plane: str,
    name: str,
    context: SpanContext,
    parent: SpanContext | None,
    start_ns: int,
    attributes: Mapping[str, AttributeValue],
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    error: str | None = None,
) -> None:
    """A step that has just ended; `error` is the code of its failure. `attributes` are kept as they are: nothing of
    them is checked or cut."""
    tracer = _tracers.get(plane)
    if tracer is None:
        found = trace.get_tracer_provider().get_tracer(f"agentkeep.{plane}")
        if not isinstance(found, Tracer):
            return  # nobody has started telemetry
        tracer = _tracers[plane] = found
    tracer.span_processor.on_end(
        ReadableSpan(
            name,
            context,
            parent,
            tracer.resource,
            attributes,
            kind=kind,
            status=_UNSET if error is None else Status(StatusCode.ERROR, error),
            start_time=start_ns,
            end_time=time.time_ns(),
            instrumentation_scope=InstrumentationScope(f"agentkeep.{plane}"),
        )
    )


def parent_in(headers: Mapping[str, str]) -> SpanContext | None:
    """The caller's span, by W3C's `traceparent` header (lower-case names). It says what happened because of what, and
    proves nothing: whose trace a span is in is for the authenticated session to say."""
    sent = headers.get("traceparent")
    found = _TRACEPARENT.fullmatch(sent) if sent is not None else None
    if found is None:
        return None
    return SpanContext(int(found[1], 16), int(found[2], 16), True, _SAMPLED)


def traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
