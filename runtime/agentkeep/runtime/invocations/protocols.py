"""What the protocols ask of a request before it may reach an agent."""

from __future__ import annotations

from typing import Final

from agentkeep.core.errors import ValidationException
from agentkeep.runtime.invocations.refusals import MethodNotAllowedException, NotAcceptableException
from agentkeep.runtime.sessions.turn import InvocationRequest

__all__ = ["CARD", "INVOKE", "MCP", "WEB_SOCKET", "action", "admit", "is_message"]

INVOKE: Final = "InvokeAgentRuntime"
WEB_SOCKET: Final = "InvokeAgentRuntimeWithWebSocketStream"
CARD: Final = "GetAgentCard"
MCP: Final = "MCP"
_ACCEPTS_JSON: Final = ("application/json", "application/*", "*/*")
_ACCEPTS_EVENTS: Final = ("text/event-stream", "text/*", "*/*")


def action(request: InvocationRequest) -> str:
    """The action that policies name. No header of the client's has a say in it."""
    return request.operation or INVOKE


def is_message(protocol: str, request: InvocationRequest) -> bool:
    """Whether the request is the MCP protocol's own."""
    return protocol == MCP and action(request) == INVOKE


def admit(protocol: str, request: InvocationRequest) -> None:
    """Raises what is to be said to a request that is not its runtime's protocol's."""
    asked = action(request)
    if asked == CARD and protocol != "A2A":
        raise ValidationException(
            f"The agent runtime's protocol is {protocol}; only those with serverProtocol A2A have agent cards."
        )
    if asked != INVOKE:
        return
    if request.method != "POST":
        if protocol != MCP:
            raise MethodNotAllowedException("An agent runtime is invoked with POST")
    elif protocol == MCP:
        accepted = request.headers.get("accept", "").lower()
        for kinds in (_ACCEPTS_JSON, _ACCEPTS_EVENTS):
            if not any(kind in accepted for kind in kinds):
                raise NotAcceptableException(
                    "Not Acceptable: the Accept header must name both application/json and text/event-stream"
                )
