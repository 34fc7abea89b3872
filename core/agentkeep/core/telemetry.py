"""Spans of the platform's own steps: what a session's trace is made of.

Planes call `step`; whether and where spans go is decided by whoever composes the planes (embedded mode, a service).
Names follow OpenTelemetry's GenAI conventions, and AgentCore's where it has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ServiceError

__all__ = ["RUNTIME_ID", "SESSION_ID", "USER_ID", "step"]

SESSION_ID = "session.id"
RUNTIME_ID = "aws.agent.id"
USER_ID = "enduser.id"


@contextmanager
def step(
    plane: str,
    name: str,
    session: SessionRef | None = None,
    user_id: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[Span]:
    """A span of `plane` (`memory`) around one step. It belongs to `session`'s trace, if there is one; more attributes
    may be set on the span while it lasts. An error that leaves is on it by its code, without its message."""
    known = dict(attributes or {})
    if session is not None:
        known[SESSION_ID] = session.session_id
        known[RUNTIME_ID] = session.runtime_id
    if user_id is not None:
        known[USER_ID] = user_id
    tracer = trace.get_tracer(f"agentkeep.{plane}")
    with tracer.start_as_current_span(
        name, kind=kind, attributes=known, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except Exception as error:
            code = type(error).__name__
            span.set_status(Status(StatusCode.ERROR, code))
            span.set_attribute("error.type", code)
            if isinstance(error, ServiceError):
                span.set_attribute("http.response.status_code", error.status)
            raise
