"""Spans of the platform's own steps: what a session's trace is made of.

Planes call `step` (or `record`, on the hot path); whether and where spans go is decided by whoever composes the planes
(`telemetry_export`). Names follow OpenTelemetry's GenAI conventions, and AgentCore's where it has them.

A span says whose it is by `session.id` and `aws.agent.id`, which come from the authenticated caller, never from what an
agent says. No secret, token or key is ever an attribute; what people and models wrote goes through `capture`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Tracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ServiceError

__all__ = [
    "ERROR_MESSAGE",
    "ERROR_TYPE",
    "MESSAGE_LIMIT",
    "RUNTIME_ID",
    "SESSION_ID",
    "STATUS_CODE",
    "USER_ID",
    "Step",
    "current_span",
    "owned_by",
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
ERROR_MESSAGE: Final = "error.message"
STATUS_CODE: Final = "http.response.status_code"

_UNSET: Final = Status(StatusCode.UNSET)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
#: W3C Trace Context, section 3.2.2. A version after 00 may have more behind the flags.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?"
)
_tracers: Final[dict[str, Tracer]] = {}


class Step(NonRecordingSpan):
    """A span while it lasts, as a context manager; within it, other steps are its children. A fifth of the price of the
    SDK's own, which checks, copies and locks what here needs none of it."""

    def __init__(
        self,
        plane: str,
        name: str,
        attributes: dict[str, AttributeValue],
        kind: SpanKind,
        parent: SpanContext | None,
    ) -> None:
        self._parent = parent if parent is not None else current_span()
        super().__init__(span_context(self._parent))
        self._plane = plane
        self._name = name
        self._attributes = attributes
        self._kind = kind
        self._error: str | None = None

    def __enter__(self) -> Step:
        self._token = contexts.attach(trace.set_span_in_context(self))
        self._start_ns = time.time_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        contexts.detach(self._token)
        if error is not None:
            self.fail(error)
        record(
            self._plane,
            self._name,
            self.get_span_context(),
            self._parent,
            self._start_ns,
            self._attributes,
            kind=self._kind,
            error=self._error,
        )

    def fail(self, error: BaseException) -> None:
        """The step failed, though perhaps no exception leaves it. What the caller may see is on the span; of anything
        else only what it is."""
        code = self._error = error.code if isinstance(error, ServiceError) and error.code else type(error).__name__
        self._attributes[ERROR_TYPE] = code
        if isinstance(error, ServiceError):
            self._attributes[STATUS_CODE] = error.status
            self._attributes[ERROR_MESSAGE] = error.message[:MESSAGE_LIMIT]

    # OpenTelemetry's Span.

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self._attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._attributes.update(attributes)

    def update_name(self, name: str) -> None:
        self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        code = status.status_code if isinstance(status, Status) else status
        text = status.description if isinstance(status, Status) else description
        self._error = (text or "error") if code is StatusCode.ERROR else None


#: Characters of an error's message.
MESSAGE_LIMIT: Final = 1000


def step(
    plane: str,
    name: str,
    session: SessionRef | None = None,
    user_id: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: SpanContext | None = None,
) -> Step:
    """`with step("memory", "CreateEvent", session) as span:` a span of `plane` around one step.

    It belongs to `session`'s trace, if there is one; more attributes may be set on the span while it lasts. `parent`:
    in another process; default: the step this one is within. An error that leaves is on it: a ServiceError with its
    message, which the caller sees too, any other by its name alone.
    """
    known = owned_by(session, user_id)
    if attributes is not None:
        known.update(attributes)
    return Step(plane, name, known, kind, parent)


def owned_by(session: SessionRef | None, user_id: str | None = None) -> dict[str, AttributeValue]:
    """The attributes that say whose span it is."""
    known: dict[str, AttributeValue] = {}
    if session is not None:
        known[SESSION_ID] = session.session_id
        known[RUNTIME_ID] = session.runtime_id
    if user_id is not None:
        known[USER_ID] = user_id
    return known


def span_context(parent: SpanContext | None = None) -> SpanContext:
    """Ids for a span: in the parent's trace, or in a new one."""
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


def current_span() -> SpanContext | None:
    """The step this is within."""
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


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
