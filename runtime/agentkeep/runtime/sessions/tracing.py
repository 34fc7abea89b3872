"""The runtime plane's part of a session's trace: its start, its invocations, its end.

An invocation's span is made when it is over, from what was noted meanwhile: the path of a warm call is short, and a
span that lasts would be a good part of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.util.types import AttributeValue

from agentkeep.core.errors import ServiceError
from agentkeep.core.telemetry import (
    ERROR_MESSAGE,
    ERROR_TYPE,
    MESSAGE_LIMIT,
    STATUS_CODE,
    owned_by,
    parent_in,
    record,
    span_context,
    traceparent,
)
from agentkeep.core.telemetry_content import capture, captured_bytes

if TYPE_CHECKING:
    from agentkeep.runtime.sessions.session import Session

__all__ = [
    "InvocationSpan",
    "about_session",
    "refused_invocation",
    "session_ended",
    "session_owner",
    "session_started",
]

PLANE: Final = "runtime"
#: What an invocation was given and what came of it; OpenInference's names, which viewers of traces know.
INPUT: Final = "input.value"
OUTPUT: Final = "output.value"

#: AWS X-Ray's tracing header: Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1
_XRAY_ROOT: Final = re.compile(r"(?:^|;)\s*Root=1-([0-9a-f]{8})-([0-9a-f]{24})(?:;|$)")
_XRAY_PARENT: Final = re.compile(r"(?:^|;)\s*Parent=([0-9a-f]{16})(?:;|$)")


class InvocationSpan:
    """Of one turn of a session. `owner` says whose trace it is on, `about` what else is known of it. `headers` are the
    caller's: the trace it names goes on here and in the agent."""

    __slots__ = (
        "_about",
        "_begun_ns",
        "_context",
        "_noted",
        "_operation",
        "_owner",
        "_parent",
        "_received",
        "_request_id",
        "_room_received",
        "_room_sent",
        "_sent",
        "_size_received",
        "_size_sent",
        "_status",
        "headers",
    )

    def __init__(
        self,
        operation: str,
        request_id: str,
        headers: Mapping[str, str],
        owner: Mapping[str, AttributeValue],
        about: Mapping[str, AttributeValue],
        begun_ns: int | None = None,
    ) -> None:
        self._owner = owner
        self._about = about
        self._operation = operation
        self._request_id = request_id
        self._parent = parent_in(headers) or _xray_parent(headers)
        self._context = span_context(self._parent)
        self._begun_ns = begun_ns or time.time_ns()
        self._status = 0
        self._noted: dict[str, AttributeValue] = {}
        self._sent: list[bytes] = []
        self._received: list[bytes] = []
        self._size_sent = self._size_received = 0
        self._room_sent = self._room_received = captured_bytes()
        #: For the agent: its spans are children of this one.
        self.headers = [(b"traceparent", traceparent(self._context).encode())]
        # The caller's vendor data goes with the caller's trace, and with no other.
        if self._parent is not None and (state := headers.get("tracestate")) is not None:
            self.headers.append((b"tracestate", state.encode("latin-1")))

    def sent(self, data: bytes) -> None:
        """A piece of the request's body."""
        self._size_sent += len(data)
        if self._room_sent > 0:
            self._room_sent -= len(data)
            self._sent.append(data)

    def answered(self, status: int) -> None:
        """The agent's answer began."""
        self._status = status

    def received(self, data: bytes) -> None:
        """A piece of its body."""
        self._size_received += len(data)
        if self._room_received > 0:
            self._room_received -= len(data)
            self._received.append(data)

    def note(self, attributes: Mapping[str, AttributeValue]) -> None:
        """What else is known of it by its end."""
        self._noted.update(attributes)

    def end(self, error: ServiceError | None, proved: bool) -> None:
        """`proved`: the caller was. Of anybody else nothing goes to the session's trace, least of all what they sent;
        that somebody tried is in the platform's own."""
        attributes: dict[str, AttributeValue] = {
            "aws.operation.name": self._operation,
            "aws.request_id": self._request_id,
            "latency_ms": (time.time_ns() - self._begun_ns) / 1e6,
            "http.request.body.size": self._size_sent,
            "http.response.body.size": self._size_received,
        }
        if self._status:
            attributes[STATUS_CODE] = self._status
        if proved:
            attributes.update(self._owner)
            attributes.update(self._about)
            attributes.update(self._noted)
            if self._sent and (text := capture(b"".join(self._sent))) is not None:
                attributes[INPUT] = text
            if self._received and (text := capture(b"".join(self._received))) is not None:
                attributes[OUTPUT] = text
        if error is not None:
            attributes.update(_failure(error))
        code = None if error is None else error.code or str(error.status)
        record(
            PLANE,
            self._operation,
            self._context,
            self._parent,
            self._begun_ns,
            attributes,
            kind=SpanKind.SERVER,
            error=code,
        )


def refused_invocation(
    operation: str,
    request_id: str,
    begun_ns: int,
    headers: Mapping[str, str],
    error: ServiceError,
    owner: Mapping[str, AttributeValue],
) -> None:
    """An invocation that got no turn. `owner`: the session it was for, where it was this caller's."""
    parent = parent_in(headers) or _xray_parent(headers)
    attributes: dict[str, AttributeValue] = {
        "aws.operation.name": operation,
        "aws.request_id": request_id,
        **owner,
        **_failure(error),
    }
    code = error.code or str(error.status)
    context = span_context(parent)
    record(PLANE, operation, context, parent, begun_ns, attributes, kind=SpanKind.SERVER, error=code)


def session_owner(session: Session) -> dict[str, AttributeValue]:
    """Whose trace what happens in this session is on."""
    return owned_by(session.ref, session.user.id if session.user is not None else None)


def about_session(session: Session) -> dict[str, AttributeValue]:
    return {"aws.agent.version": session.version, "aws.endpoint.name": session.endpoint}


def session_started(session: Session, begun_ns: int, failure: str | None = None) -> None:
    """The session's environment is there and answers, or `failure` says why not."""
    attributes = session_owner(session) | about_session(session)
    attributes["agentkeep.session.warm"] = session.pooled is not None
    if failure is not None:
        attributes[ERROR_MESSAGE] = failure[:MESSAGE_LIMIT]
    error = None if failure is None else "SessionStartFailed"
    record(PLANE, "start session", span_context(), None, begun_ns, attributes, error=error)


def session_ended(session: Session, begun_ns: int) -> None:
    """Nothing is left of it."""
    attributes = session_owner(session) | about_session(session)
    if session.end_reason is not None:
        attributes["agentkeep.session.end_reason"] = session.end_reason.value
    record(PLANE, "end session", span_context(), None, begun_ns, attributes)


def _failure(error: ServiceError) -> dict[str, AttributeValue]:
    return {
        ERROR_TYPE: error.code or str(error.status),
        ERROR_MESSAGE: error.message[:MESSAGE_LIMIT],
        STATUS_CODE: error.status,
    }


def _xray_parent(headers: Mapping[str, str]) -> SpanContext | None:
    sent = headers.get("x-amzn-trace-id")
    if sent is None or (root := _XRAY_ROOT.search(sent)) is None or (parent := _XRAY_PARENT.search(sent)) is None:
        return None
    context = SpanContext(int(root[1] + root[2], 16), int(parent[1], 16), True, TraceFlags(TraceFlags.SAMPLED))
    return context if context.is_valid else None
