"""What an agent asks of the platform is on its session's trace: every operation, by construction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from agentkeep.core.call import Call, SessionRef
from agentkeep.core.telemetry import Step, parent_in, step
from agentkeep.core.telemetry_content import capture

__all__ = ["operation_step"]

#: The members of requests that are told, and as what. Names and ids only: never a token, a key, or what anybody wrote.
#: AgentCore's own names where it has them.
_TOLD: Final = {
    "memoryId": "memory.id",
    "actorId": "actor.id",
    "sessionId": "memory.session.id",
    "eventId": "event.id",
    "memoryRecordId": "memory.record.id",
    "memoryStrategyId": "memory.strategy.id",
    "namespace": "namespace",
    "namespacePath": "namespace.path",
    "maxResults": "max.results",
    "modelId": "gen_ai.request.model",
    "guardrailIdentifier": "guardrail.id",
    "workloadName": "workload.name",
    "userId": "workload.user.id",
    "resourceCredentialProviderName": "credential.provider.name",
    "oauth2Flow": "oauth2.flow",
    "agentRuntimeArn": "agent.runtime.arn",
    "runtimeSessionId": "agent.runtime.session.id",
}
_LENGTH: Final = 256


def operation_step(plane: str, call: Call, session: SessionRef, request: Mapping[str, Any]) -> Step:
    """The span of an operation that a session calls, as a child of the agent's own span where the agent names one."""
    user = call.caller.user
    told: dict[str, AttributeValue] = {
        "rpc.system": "aws-api",
        "rpc.service": call.service,
        "rpc.method": call.operation,
        "aws.request_id": call.request_id,
    }
    for member, name in _TOLD.items():
        value = request.get(member)
        if isinstance(value, str):
            told[name] = value[:_LENGTH]
        elif isinstance(value, int):
            told[name] = value
    criteria = request.get("searchCriteria")
    if isinstance(criteria, Mapping) and isinstance(query := criteria.get("searchQuery"), str):
        sought = capture(query)
        if sought is not None:
            told["gen_ai.retrieval.query.text"] = sought
    return step(
        plane,
        call.operation,
        session,
        user.id if user is not None else None,
        told,
        kind=SpanKind.SERVER,
        parent=parent_in(call.headers),
    )
