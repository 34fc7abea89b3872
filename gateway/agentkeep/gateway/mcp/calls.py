"""One tool call, from a proved caller to its result. `ToolCalls._call` is the whole chain:

    resolve ▶ policies ▶ arguments ▶ limits ▶ audit: intent ▶ target ▶ audit: outcome

Whatever does not pass is a refusal, and is in the audit trail too. Fail closed: where the store cannot say, nothing is
called.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mcp import MCPError
from mcp.types import CallToolResult, TextContent
from opentelemetry.trace import Span, SpanKind, StatusCode

from agentkeep.core.clock import Clock
from agentkeep.core.errors import StoreUnavailable
from agentkeep.core.telemetry import ERROR_MESSAGE, ERROR_TYPE, MESSAGE_LIMIT, step
from agentkeep.core.telemetry_content import capture_json
from agentkeep.gateway.audit.records import Intent, Outcome, Status
from agentkeep.gateway.audit.trail import AuditTrail
from agentkeep.gateway.catalogue.entries import AuditLevel, Catalogue, CatalogueEntry, full_name, split_name
from agentkeep.gateway.limits.rate_limits import LimitReached, RateLimits
from agentkeep.gateway.mcp.inbound import Inbound
from agentkeep.gateway.mcp.refusals import limited, rate_limited, refusal, target_failure, unknown_tool
from agentkeep.gateway.policy.decisions import Decision, PolicyDecisions
from agentkeep.gateway.records import GatewayRecord, Resources, TargetRecord, Tool
from agentkeep.gateway.targets.arguments import ArgumentSchemas
from agentkeep.gateway.targets.errors import TargetError, TargetFailed, TargetRefused, TargetTimeout
from agentkeep.gateway.targets.targets import Targets

__all__ = ["ToolCalls"]

logger = logging.getLogger(__name__)

_LONGEST_NAME = 256


@dataclass(slots=True)
class _Attempt:
    """What is known of a call so far."""

    inbound: Inbound
    name: str
    arguments: Mapping[str, Any]
    call_id: str
    at: datetime
    began: float
    span: Span
    entry: CatalogueEntry | None = None
    decided: Decision | None = None
    intent: Intent | None = None

    @property
    def full(self) -> bool:
        return self.entry is not None and self.entry.audit_level is AuditLevel.FULL


class ToolCalls:
    def __init__(
        self,
        resources: Resources,
        policies: PolicyDecisions,
        schemas: ArgumentSchemas,
        limits: RateLimits,
        trail: AuditTrail,
        catalogue: Catalogue,
        targets: Targets,
        clock: Clock,
    ) -> None:
        self._resources = resources
        self._policies = policies
        self._schemas = schemas
        self._limits = limits
        self._trail = trail
        self._catalogue = catalogue
        self._targets = targets
        self._clock = clock
        self._ending: set[asyncio.Task[None]] = set()

    async def visible(self, inbound: Inbound) -> list[tuple[str, Tool]]:
        """The tools this caller may call in some way, by full name, in the targets' order. Raises StoreUnavailable."""
        targets = await self._resources.targets(inbound.gateway.id)
        tools = {full_name(target.name, tool.name): tool for target in targets for tool in target.tools}
        allowed = await self._policies.visible(inbound.gateway, inbound.caller, tools)
        return [(name, tool) for name, tool in tools.items() if name in allowed]

    async def call(self, inbound: Inbound, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
        """Raises MCPError for what AgentCore tells as an error of the protocol: an unknown tool, a rate limit."""
        caller = inbound.caller
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name[:_LONGEST_NAME],
            "tool.name": name[:_LONGEST_NAME],
            "gateway.id": inbound.gateway.id,
            "gateway.name": inbound.gateway.name,
            "aws.request_id": inbound.request_id,
        }
        user_id = caller.user.id if caller.user else None
        title = f"tools/call {name[:_LONGEST_NAME]}"
        with step(
            "gateway", title, caller.session, user_id, attributes, kind=SpanKind.SERVER, parent=inbound.parent
        ) as span:
            attempt = _Attempt(
                inbound, name, arguments, secrets.token_hex(8), self._clock.now(), self._clock.monotonic(), span
            )
            try:
                result = await self._call(attempt)
            except StoreUnavailable:
                logger.warning("request %s: %r was not called: the store does not answer", inbound.request_id, name)
                result = refusal(
                    "ServiceUnavailableException",
                    "ServiceUnavailableException - The tool was not called: whether it may be, and that it is, cannot "
                    "be written down now. Try again later.",
                )
            except MCPError as refused:
                span.set_attribute("jsonrpc.error.code", refused.error.code)
                raise
            if result.is_error:
                error = (result.structured_content or {}).get("error")
                code = str(error.get("code")) if isinstance(error, dict) else "tool_error"
                span.set_attribute(ERROR_TYPE, code)
                span.set_status(StatusCode.ERROR, code)
                if attempt.intent is None and isinstance(result.content[0], TextContent):
                    # The gateway's own words; a target's are the result's, and told as it is.
                    span.set_attribute(ERROR_MESSAGE, result.content[0].text[:MESSAGE_LIMIT])
            return result

    async def _call(self, attempt: _Attempt) -> CallToolResult:
        gateway, caller = attempt.inbound.gateway, attempt.inbound.caller
        found = await self._resolve(gateway, attempt.name)
        if found is None:
            await self._refused(attempt, "UnknownTool")
            raise unknown_tool(attempt.name)
        target, tool = found
        attempt.entry = await self._catalogue.entry(gateway.id, attempt.name, tool)

        decided = attempt.decided = await self._policies.decide(
            gateway, caller, target.name, tool.name, attempt.arguments, attempt.at
        )
        _show_decision(attempt.span, decided)
        if decided.blocks:
            await self._refused(attempt, "AuthorizeActionException")
            return refusal(
                "AuthorizeActionException",
                "AuthorizeActionException - Tool Execution Denied: Tool call not allowed due to policy enforcement "
                f"[{decided.reason}]",
            )

        if faults := self._schemas.faults(tool.input_schema, attempt.arguments):
            await self._refused(attempt, "ValidationException")
            lines = "".join(f"\n- {fault}" for fault in faults)
            return refusal(
                "ValidationException",
                f"ValidationException - Parameter validation failed: Invalid request parameters:{lines}",
            )

        limits = await self._resources.rate_limits(gateway.id)
        reached = await self._limits.take(limits, attempt.entry, caller, gateway.id, attempt.name)
        if reached is not None:
            return await self._limited(attempt, reached)

        attempt.intent = self._intent(attempt)
        await self._trail.begin(attempt.intent)
        _show(attempt, "gen_ai.tool.call.arguments", attempt.arguments)
        return await self._execute(attempt, attempt.intent, target, tool, attempt.entry)

    async def _resolve(self, gateway: GatewayRecord, name: str) -> tuple[TargetRecord, Tool] | None:
        target_name, tool_name = split_name(name)
        for target in await self._resources.targets(gateway.id):
            if target.name == target_name:
                return next(((target, tool) for tool in target.tools if tool.name == tool_name), None)
        return None

    async def _limited(self, attempt: _Attempt, reached: LimitReached) -> CallToolResult:
        attempt.span.set_attribute("aws.agentcore.gateway.throttle.customer.decision", "DENY")
        attempt.span.set_attribute("aws.agentcore.gateway.throttle.customer.limit_key", reached.key)
        await self._refused(attempt, "ThrottlingException")
        if reached.modelled:
            raise rate_limited(reached)
        return limited(reached, attempt.name)

    async def _execute(
        self, attempt: _Attempt, intent: Intent, target: TargetRecord, tool: Tool, entry: CatalogueEntry
    ) -> CallToolResult:
        error: str | None = None
        try:
            inbound = attempt.inbound
            result = await self._targets.call(
                target, tool, attempt.arguments, inbound.caller, inbound.token, entry.seconds
            )
            status = Status.TOOL_ERROR if result.is_error else Status.SUCCEEDED
        except TargetError as failure:
            error = f"{failure.code}: {failure}"
            status = Status.TIMED_OUT if isinstance(failure, TargetTimeout) else Status.FAILED
            result = self._failed(attempt, failure)
        except BaseException as failure:
            # The caller left, or a defect: the tool may have run. Nothing more can be awaited here.
            cancelled = isinstance(failure, asyncio.CancelledError)
            status = Status.CANCELLED if cancelled else Status.FAILED
            task = asyncio.ensure_future(self._ended(attempt, intent, Outcome(status, self._since(attempt), status)))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            raise
        shown = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        _show(attempt, "gen_ai.tool.call.result", shown)
        outcome = Outcome(status, self._since(attempt), error, shown, attempt.full)
        await self._ended(attempt, intent, outcome)
        return result

    def _failed(self, attempt: _Attempt, failure: TargetError) -> CallToolResult:
        logger.warning("request %s: %r failed: %r", attempt.inbound.request_id, attempt.name, failure)
        if isinstance(failure, TargetTimeout | TargetRefused):
            # What an agent, or whoever runs it, can do something about.
            return refusal(failure.code, f"{failure.code} - {failure}")
        debug = attempt.inbound.gateway.document.get("exceptionLevel") == "DEBUG"
        return target_failure(TargetFailed.code, str(failure), debug=debug)

    # The audit trail.

    async def _refused(self, attempt: _Attempt, error: str) -> None:
        await self._trail.refused(self._intent(attempt), Outcome(Status.REFUSED, self._since(attempt), error))

    async def _ended(self, attempt: _Attempt, intent: Intent, outcome: Outcome) -> None:
        """The tool has run; its result is the caller's even if this cannot be written. The trail then says what is
        true: that the outcome is unknown."""
        try:
            await self._trail.end(intent, outcome)
        except StoreUnavailable:
            logger.error(
                "request %s: the outcome of %r (%s) is not in the audit trail: the store does not answer",
                attempt.inbound.request_id, attempt.name, outcome.status,
            )  # fmt: skip

    def _intent(self, attempt: _Attempt) -> Intent:
        decided = attempt.decided
        context = attempt.span.get_span_context()
        return Intent(
            attempt.call_id,
            attempt.inbound.request_id,
            f"{context.trace_id:032x}" if context.is_valid else None,
            attempt.at,
            attempt.inbound.gateway.id,
            attempt.name[:_LONGEST_NAME],
            attempt.inbound.caller,
            attempt.arguments,
            attempt.entry,
            decided.allowed if decided else None,
            decided.reason if decided else "",
            decided.determining if decided else (),
        )

    def _since(self, attempt: _Attempt) -> float:
        return (self._clock.monotonic() - attempt.began) * 1000

    async def close(self) -> None:
        """Waits for what is still to be written of calls that were cut off."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=5)


def _show_decision(span: Span, decided: Decision) -> None:
    span.set_attribute("aws.agentcore.policy.authorization_decision", "ALLOW" if decided.allowed else "DENY")
    span.set_attribute("aws.agentcore.policy.authorization_reason", decided.reason)
    span.set_attribute("aws.agentcore.policy.determining_policies", list(decided.determining))


def _show(attempt: _Attempt, name: str, document: Any) -> None:
    """What was said is on the trace where it is in the trail."""
    if attempt.full and (text := capture_json(document)) is not None:
        attempt.span.set_attribute(name, text)
