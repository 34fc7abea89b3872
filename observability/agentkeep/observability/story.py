"""The ordered story of a session, told from its spans, what its model calls used, and the alerts it caused.

The platform's own spans are the story. Of what the agent says of itself, steps of its framework are told beside them,
marked as its word; but not what is the platform's step seen from the other side: a model call is told once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.core.ports import UsageRecord
from agentkeep.core.telemetry import ERROR_MESSAGE, ERROR_TYPE, STATUS_CODE, USER_ID
from agentkeep.observability.alerts import KeptAlert
from agentkeep.observability.prices import Cost, money
from agentkeep.observability.spans import Origin, Span
from agentkeep.observability.usage import UsageTotals

__all__ = ["Event", "Kind", "Status", "story"]


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_US = (datetime(9000, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


class Kind(StrEnum):
    SESSION = "session"
    INVOCATION = "invocation"
    MODEL = "model"
    TOOL = "tool"
    MEMORY = "memory"
    IDENTITY = "identity"
    BUDGET = "budget"
    ALERT = "alert"
    AGENT = "agent"  # what the agent says of itself
    OTHER = "other"


class Status(StrEnum):
    OK = "ok"
    REFUSED = "refused"  # the platform said no: policy, budget, limit, permission
    FAILED = "failed"


#: Statuses and codes with which the platform refuses, rather than fails.
REFUSALS = frozenset({401, 402, 403, 429})
REFUSAL_CODES = frozenset(
    {"AccessDeniedException", "UnauthorizedException", "ServiceQuotaExceededException", "ThrottlingException"}
)
OF_PLANE = {"agentkeep.memory": Kind.MEMORY, "agentkeep.identity": Kind.IDENTITY}
#: Attributes with what was put in and what came out, by the kind of step.
INPUTS = ("input.value", "gen_ai.input.messages", "gen_ai.tool.call.arguments", "gen_ai.retrieval.query.text")
OUTPUTS = ("output.value", "gen_ai.output.messages", "gen_ai.tool.call.result")
#: Told by members of their own.
APART = frozenset(
    {*INPUTS, *OUTPUTS, ERROR_TYPE, ERROR_MESSAGE, USER_ID, "session.id", "aws.agent.id", "latency_ms"}
    | {"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"}
)


@dataclass(slots=True)
class Event:
    """One step. `depth`: within how many others of the story; `ms`: how long it took, None for what takes no time.
    `reason`: of what was refused or failed. Tokens and cost are the gateway's count, never the agent's word; `cost` is
    None where the model has no price."""

    at: datetime
    kind: Kind
    name: str
    status: Status = Status.OK
    reason: str | None = None
    ms: float | None = None
    depth: int = 0
    origin: Origin = Origin.PLATFORM
    user_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: Decimal | None = None
    input: Any = None
    output: Any = None
    details: dict[str, Any] = field(default_factory=dict)


def story(
    session: SessionRef,
    spans: Sequence[Span],
    usage: Sequence[tuple[UsageRecord, Decimal | None]],
    alerts: Sequence[KeptAlert],
) -> dict[str, Any]:
    """The whole as a document: `events` in their order, `totals`, and what time it took."""
    kept, parents = _told(spans)
    used = {record.request_id: (record, cost) for record, cost in usage}
    events = [_event(span, _depth(span, parents), used) for span in kept]
    events += [_alert(alert) for alert in alerts]
    events.sort(key=lambda event: event.at)
    ours = [event for event in events if event.origin is Origin.PLATFORM]
    begun = min((event.at for event in ours), default=None)
    ended = max((event.at + timedelta(milliseconds=event.ms or 0) for event in ours), default=None)
    cost = Cost.of(cost for _, cost in usage)
    return {
        "session": asdict(session),
        "user": next((event.user_id for event in events if event.user_id is not None), None),
        "begun": begun,
        "ended": ended,
        "seconds": (ended - begun).total_seconds() if begun is not None and ended is not None else None,
        "totals": asdict(UsageTotals.of(record for record, _ in usage)) | cost.members(),
        "events": [_document(event) for event in events],
    }


def _told(spans: Sequence[Span]) -> tuple[list[Span], dict[str, Span]]:
    """The spans that are told, and each one's nearest ancestor among them, by span id."""
    by_id: dict[str, Span] = {}
    for span in spans:
        # An agent may use the platform's ids; they are the platform's.
        if span.span_id not in by_id or span.origin is Origin.PLATFORM:
            by_id[span.span_id] = span
    inner: set[str] = set()  # have a more exact step within
    twins: set[str] = set()  # are a step of the platform, as the agent saw it
    for span in by_id.values():
        if span.origin is not Origin.PLATFORM:
            continue
        kind = _kind(span)
        parent = by_id.get(span.parent_id)
        if kind in (Kind.MODEL, Kind.BUDGET) and parent is not None and _is_operation(parent):
            inner.add(parent.span_id)
        twins.update(twin.span_id for twin in _twins(span, kind, by_id))
    told = [
        span
        for span in by_id.values()
        if span.span_id not in inner
        and span.span_id not in twins
        and (span.origin is Origin.PLATFORM or "gen_ai.operation.name" in span.attributes)
    ]
    told.sort(key=lambda span: (span.start_ns, span.parent_id != ""))
    ids = {span.span_id for span in told}
    parents = {}
    for span in told:
        nearest = next((found for found in _ancestors(span, by_id) if found.span_id in ids), None)
        if nearest is not None:
            parents[span.span_id] = nearest
    return told, parents


def _twins(span: Span, kind: Kind, by_id: Mapping[str, Span]) -> Iterable[Span]:
    """What the agent's instrumentation says of the same call: the AWS SDK's, and the framework's around it. Their ids
    come with the call, as its trace context."""
    for ancestor in _ancestors(span, by_id):
        operation = ancestor.attributes.get("gen_ai.operation.name")
        if ancestor.origin is not Origin.AGENT or operation is None:
            continue
        model = kind is Kind.MODEL and operation in ("chat", "text_completion", "generate_content")
        tool = kind is Kind.TOOL and operation == "execute_tool" and _tool(ancestor) == _tool(span)
        if not (model or tool):
            return  # an agent or a tool of its own: this call is a part of it
        yield ancestor


def _tool(span: Span) -> str:
    """A gateway's tool goes by `target___tool`; frameworks may leave the target out."""
    return str(span.attributes.get("gen_ai.tool.name")).rpartition("___")[2]


def _ancestors(span: Span, by_id: Mapping[str, Span]) -> Iterable[Span]:
    """Nearest first. What agents say may go in circles."""
    seen = {span.span_id}
    while (parent := by_id.get(span.parent_id)) is not None and parent.span_id not in seen:
        yield parent
        seen.add(parent.span_id)
        span = parent


def _depth(span: Span, parents: Mapping[str, Span]) -> int:
    return sum(1 for _ in _ancestors_told(span, parents))


def _ancestors_told(span: Span, parents: Mapping[str, Span]) -> Iterable[Span]:
    seen = {span.span_id}
    while (parent := parents.get(span.span_id)) is not None and parent.span_id not in seen:
        yield parent
        seen.add(parent.span_id)
        span = parent


def _is_operation(span: Span) -> bool:
    return span.origin is Origin.PLATFORM and "rpc.method" in span.attributes


def _kind(span: Span) -> Kind:
    if span.origin is Origin.AGENT:
        return Kind.AGENT
    if span.name == "BudgetReached":
        return Kind.BUDGET
    if "aws.operation.name" in span.attributes:
        return Kind.INVOCATION
    match span.attributes.get("gen_ai.operation.name"):
        case "chat":
            return Kind.MODEL
        case "execute_tool":
            return Kind.TOOL
    if span.scope == "agentkeep.gateway" and "gen_ai.request.model" in span.attributes:
        return Kind.MODEL
    if span.scope == "agentkeep.runtime" and span.name in ("start session", "end session"):
        return Kind.SESSION
    return OF_PLANE.get(span.scope, Kind.OTHER)


def _event(span: Span, depth: int, used: Mapping[str, tuple[UsageRecord, Decimal | None]]) -> Event:
    kind = _kind(span)
    attributes = span.attributes
    status, reason = _outcome(span)
    event = Event(
        at=_time(span.start_ns),
        kind=kind,
        name=span.name,
        status=status,
        reason=reason,
        ms=max(span.end_ns - span.start_ns, 0) / 1e6,
        depth=depth,
        origin=span.origin,
        user_id=_text(attributes.get(USER_ID)) if span.origin is Origin.PLATFORM else None,
        input=_content(attributes, INPUTS),
        output=_content(attributes, OUTPUTS),
        details={name: value for name, value in attributes.items() if name not in APART},
    )
    if kind is Kind.MODEL:
        record, event.cost = used.get(str(attributes.get("aws.request_id")), (None, None))
        if record is not None:
            event.input_tokens = record.input_tokens + record.cache_read_tokens + record.cache_write_tokens
            event.output_tokens = record.output_tokens
    return event


def _outcome(span: Span) -> tuple[Status, str | None]:
    attributes = span.attributes
    code = _text(attributes.get(ERROR_TYPE))
    denied = attributes.get("aws.agentcore.policy.authorization_decision") == "DENY"
    if span.status != 2 and code is None and not denied:
        return Status.OK, None
    reason = (
        _text(attributes.get(ERROR_MESSAGE))
        or _text(attributes.get("aws.agentcore.policy.authorization_reason") if denied else None)
        or span.status_message
        or code
    )
    if code is not None and reason is not None and code not in reason:
        reason = f"{code}: {reason}"
    refused = denied or attributes.get(STATUS_CODE) in REFUSALS or code in REFUSAL_CODES or _limited(attributes)
    return Status.REFUSED if refused else Status.FAILED, reason


def _limited(attributes: Mapping[str, Any]) -> bool:
    return attributes.get("aws.agentcore.gateway.throttle.customer.decision") == "DENY"


def _alert(kept: KeptAlert) -> Event:
    alert = kept.alert
    return Event(
        at=alert.at,
        kind=Kind.ALERT,
        name=alert.kind,
        status=Status.REFUSED,
        reason=alert.summary,
        user_id=alert.user_id,
        details={"count": kept.count, "principal": alert.principal, **alert.details},
    )


def _content(attributes: Mapping[str, Any], names: Iterable[str]) -> Any:
    for name in names:
        value = attributes.get(name)
        if value is not None:
            try:
                return orjson.loads(value) if isinstance(value, str) else value
            except orjson.JSONDecodeError:
                return value
    return None


def _document(event: Event) -> dict[str, Any]:
    document = {name: getattr(event, name) for name in Event.__slots__}
    cost = event.cost
    document["cost_usd"] = money(cost) if cost is not None else None
    del document["cost"]
    return document


def _time(ns: int) -> datetime:
    # An agent may say any time.
    return EPOCH + timedelta(microseconds=min(ns // 1000, LATEST_US))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
