"""How a call that was not made, or failed, is told: as a result an agent can reason about, never as a crash (GOV-3).

AgentCore's words where it has them (its developer guide, and captures of the live service); besides them a structured
`error`: code, message, and what the agent needs to decide what to do next (limit, retryAfterSeconds).
"""

from __future__ import annotations

from typing import Any, Final

from mcp import MCPError
from mcp.types import INVALID_PARAMS, CallToolResult, TextContent

from agentkeep.gateway.limits.rate_limits import LimitReached

__all__ = ["RATE_LIMITED", "limited", "rate_limited", "refusal", "target_failure", "unknown_tool"]

RATE_LIMITED: Final = -32003
_INTERNAL: Final = "An internal error occurred. Please retry later."


def refusal(code: str, text: str, **details: Any) -> CallToolResult:
    """`text` is what a model reads; `details` go beside it in the structured error."""
    return CallToolResult(
        is_error=True,
        content=[TextContent(type="text", text=text)],
        structured_content={"error": {"code": code, "message": text, **details}},
    )


def unknown_tool(name: str) -> MCPError:
    return MCPError(code=INVALID_PARAMS, message=f"Unknown tool: {name[:256]}")


def limited(reached: LimitReached, name: str) -> CallToolResult:
    """A limit of the catalogue."""
    if reached.retry_after is not None:
        advice = f"Try again in {reached.retry_after} seconds, and not before."
    else:
        advice = "It cannot be called again in this session: go on without it."
    text = f"ThrottlingException - {name} was not called: its limit of {reached.limit} is reached. {advice}"
    wait = {} if reached.retry_after is None else {"retryAfterSeconds": reached.retry_after}
    return refusal("ThrottlingException", text, limitKey=reached.key, limit=reached.limit, **wait)


def rate_limited(reached: LimitReached) -> MCPError:
    """A rate limit of the gateway, as AgentCore tells it."""
    return MCPError(
        code=RATE_LIMITED,
        message="Rate limit exceeded",
        data={
            "limitKey": reached.key,
            "metric": "requests",
            "limit": reached.limit,
            "retryAfter": reached.retry_after,
        },
    )


def target_failure(code: str, cause: str, *, debug: bool) -> CallToolResult:
    """`debug`: the gateway's exceptionLevel; without it the cause stays in the log and the audit trail."""
    result = refusal(code, cause if debug else _INTERNAL)
    if debug:
        result.meta = {"debug": {"type": code, "text": cause}}
    return result
