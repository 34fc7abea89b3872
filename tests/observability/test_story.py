"""The story of a session from spans as they come, also from agents that lie, loop, or see every call twice."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from agentkeep.core.call import SessionRef
from agentkeep.core.ports import Alert, UsageRecord
from agentkeep.observability.alerts import KeptAlert
from agentkeep.observability.spans import Origin, Span
from agentkeep.observability.story import story

SESSION = SessionRef("runtime-1", "session-1")
BEGUN = 1_800_000_000_000_000_000
MS = 1_000_000


def span(
    number: int, name: str, start: int, parent: int | None = None, ms: int = 10, *, agent: bool = False, **members: Any
) -> Span:
    return Span(
        trace_id="aa" * 16,
        span_id=f"{number:016x}",
        parent_id="" if parent is None else f"{parent:016x}",
        name=name,
        kind=1,
        start_ns=BEGUN + start * MS,
        end_ns=BEGUN + (start + ms) * MS,
        origin=Origin.AGENT if agent else Origin.PLATFORM,
        **members,
    )


def operation(
    number: int, name: str, start: int, parent: int | None = None, plane: str = "memory", **extra: Any
) -> Span:
    return span(number, name, start, parent, scope=f"agentkeep.{plane}", attributes={"rpc.method": name, **extra})


def model(number: int, start: int, parent: int, request: str = "r-1", **extra: Any) -> Span:
    attributes = {
        "gen_ai.operation.name": "chat",
        "aws.request_id": request,
        "gen_ai.usage.input_tokens": 100,
        **extra,
    }
    return span(number, "chat claude", start, parent, scope="agentkeep.gateway", attributes=attributes)


def chat(number: int, start: int, parent: int, scope: str) -> Span:
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 100}
    return span(number, "chat claude", start, parent, agent=True, scope=scope, attributes=attributes)


INVOCATION = span(
    1, "InvokeAgentRuntime", 0, ms=1000, attributes={"aws.operation.name": "InvokeAgentRuntime", "enduser.id": "alice"}
)
USED = UsageRecord(SESSION, "alice", "claude", "bedrock", 100, 20, 0, 0, 5.0, datetime(2027, 1, 15, tzinfo=UTC), "r-1")


def told(*spans: Span, usage: list[tuple[UsageRecord, Decimal | None]] | None = None) -> dict[str, Any]:
    return story(SESSION, spans, usage or [], [])


def lines(document: dict[str, Any]) -> list[tuple[int, str, str]]:
    return [(event["depth"], event["kind"], event["name"]) for event in document["events"]]


def test_one_model_call_seen_three_times_is_told_once() -> None:
    """OBS-1, OBS-2: by the framework's instrumentation, the AWS SDK's, and the gateway, which alone counts."""
    document = told(
        INVOCATION,
        span(2, "invoke_agent support", 10, 1, agent=True, attributes={"gen_ai.operation.name": "invoke_agent"}),
        chat(3, 20, 2, "opentelemetry.instrumentation.aws_langchain"),
        chat(4, 21, 3, "opentelemetry.instrumentation.botocore.bedrock-runtime"),
        operation(5, "Converse", 22, 4, "gateway"),
        model(6, 23, 5),
        usage=[(USED, Decimal("0.01"))],
    )
    assert lines(document) == [
        (0, "invocation", "InvokeAgentRuntime"),
        (1, "agent", "invoke_agent support"),
        (2, "model", "chat claude"),
    ]
    assert document["totals"]["input_tokens"] == 100
    assert document["totals"]["cost_usd"] == "0.01"
    call = document["events"][2]
    assert (call["origin"], call["input_tokens"], call["cost_usd"]) == ("platform", 100, "0.01")


def test_an_agent_that_calls_a_model_within_a_tool_keeps_both() -> None:
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "research"}
    document = told(
        INVOCATION,
        chat(2, 10, 1, "x"),
        span(3, "execute_tool research", 20, 2, agent=True, attributes=tool),
        operation(4, "Converse", 21, 3, "gateway"),
        model(5, 22, 4),
    )
    assert [name for _, _, name in lines(document)] == [
        "InvokeAgentRuntime",
        "chat claude",  # the agent's word: no call of the platform's answers to it
        "execute_tool research",
        "chat claude",
    ]
    assert document["totals"]["input_tokens"] == 0  # usage counts, not spans


def test_a_tools_call_is_told_once_and_by_its_governor() -> None:
    ours = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "shop___status"}
    denied = {
        **ours,
        "gen_ai.tool.name": "shop___refund",
        "aws.agentcore.policy.authorization_decision": "DENY",
        "aws.agentcore.policy.authorization_reason": "no policy permits it",
    }
    document = told(
        INVOCATION,
        span(2, "execute_tool status", 10, 1, agent=True, attributes={**ours, "gen_ai.tool.name": "status"}),
        span(3, "tools/call shop___status", 11, 2, attributes={**ours, "gen_ai.tool.call.arguments": '{"order": 1}'}),
        span(4, "tools/call shop___refund", 12, 1, attributes=denied),
    )
    assert [name for _, _, name in lines(document)] == [
        "InvokeAgentRuntime",
        "tools/call shop___status",
        "tools/call shop___refund",
    ]
    [_, status, refund] = document["events"]
    assert status["input"] == {"order": 1}
    assert (refund["status"], refund["reason"]) == ("refused", "no policy permits it")


def test_refused_and_failed_are_told_apart() -> None:
    def failed(number: int, **attributes: Any) -> Span:
        return span(number, "step", number, status=2, scope="agentkeep.memory", attributes=attributes)

    document = told(
        failed(1, **{"error.type": "AccessDeniedException", "error.message": "no", "http.response.status_code": 403}),
        failed(2, **{"error.type": "ServiceQuotaExceededException", "error.message": "budget reached"}),
        failed(3, **{"error.type": "InternalServerException", "http.response.status_code": 500}),
        failed(4, **{"error.type": "KeyError"}),
    )
    assert [(event["status"], event["reason"]) for event in document["events"]] == [
        ("refused", "AccessDeniedException: no"),
        ("refused", "ServiceQuotaExceededException: budget reached"),
        ("failed", "InternalServerException"),
        ("failed", "KeyError"),
    ]


def test_a_budget_stop_is_one_step() -> None:
    """OBS-3."""
    stop = span(
        3, "BudgetReached", 2, 2, status=2, scope="agentkeep.gateway", attributes={"http.response.status_code": 402}
    )
    document = told(INVOCATION, operation(2, "Converse", 1, 1, "gateway"), stop)
    assert lines(document)[1:] == [(1, "budget", "BudgetReached")]
    assert document["events"][1]["status"] == "refused"


def test_a_model_call_refused_before_any_model_is_told() -> None:
    refused = operation(
        2, "Converse", 1, 1, "gateway", **{"gen_ai.request.model": "none", "error.type": "ValidationException"}
    )
    assert lines(told(INVOCATION, refused))[1:] == [(1, "model", "Converse")]


def test_a_model_without_a_price_has_an_unknown_cost() -> None:
    document = told(model(1, 0, 0), usage=[(USED, None)])
    assert document["events"][0]["cost_usd"] is None
    assert document["totals"]["calls_without_price"] == 1


def test_agents_may_say_anything() -> None:
    """Circles, times of no calendar, the platform's own ids, attributes of the platform's: nothing of it breaks the
    story, moves its clock, or speaks for the platform."""
    lying = {"aws.operation.name": "InvokeAgentRuntime", "gen_ai.operation.name": "chat", "enduser.id": "bob"}
    document = told(
        INVOCATION,
        span(1, "never happened", 0, agent=True, attributes=lying),
        span(7, "circle", 5, 8, agent=True, attributes=lying),
        span(8, "circle", 6, 7, agent=True, attributes=lying),
        Span("bb" * 16, "ff" * 8, "", "late", 1, 2**63 - 1, 2**63 - 1, attributes=lying),
        Span(
            "bb" * 16, "fe" * 8, "", "early", 1, 0, 2**63 - 1, attributes=lying | {"error.type": 7, "input.value": [1]}
        ),
    )
    assert document["user"] == "alice"
    assert document["seconds"] == 1.0
    assert [event["name"] for event in document["events"] if event["origin"] == "platform"] == ["InvokeAgentRuntime"]
    assert {event["kind"] for event in document["events"] if event["origin"] == "agent"} == {"agent"}


def test_alerts_stand_where_they_happened() -> None:
    at = datetime.fromtimestamp(BEGUN / 1e9, UTC)
    alert = Alert(
        "cross-user-access", "tried", "arn", SESSION, "alice", at.replace(microsecond=5000), {"operation": "x"}
    )
    document = story(SESSION, [INVOCATION, operation(2, "CreateEvent", 900, 1)], [], [KeptAlert(alert, 3, at)])
    assert [kind for _, kind, _ in lines(document)] == ["invocation", "alert", "memory"]
    assert document["events"][1]["details"]["count"] == 3


def test_no_story() -> None:
    document = told()
    assert (document["events"], document["seconds"], document["begun"]) == ([], None, None)
