"""A model call on its session's trace: what it was asked, what it thought and said, what it used.

Attributes are those of OpenTelemetry's GenAI conventions; messages are told in their shape (role and parts), cut where
they are long. The span is made when the call is over, streams included.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from agentkeep.core.call import Call
from agentkeep.core.errors import ServiceError
from agentkeep.core.ports import UsageRecord
from agentkeep.core.telemetry import (
    ERROR_MESSAGE,
    ERROR_TYPE,
    MESSAGE_LIMIT,
    STATUS_CODE,
    current_span,
    owned_by,
    record,
    span_context,
)
from agentkeep.core.telemetry_content import capture, capture_json, captured_bytes

__all__ = ["ModelSpan"]

PROVIDERS: Final = {"bedrock": "aws.bedrock"}


class ModelSpan:
    """Made when the call begins; ends once, by `used` or `failed`."""

    def __init__(self, call: Call, provider: str, request: Mapping[str, Any]) -> None:
        self._call = call
        self._request = request
        self._parent = current_span()
        self._begun_ns = time.time_ns()
        self._attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDERS.get(provider, provider),
            "gen_ai.request.model": request["modelId"],
            "aws.request_id": call.request_id,
        }
        self._error: str | None = None
        self._output = _Output()

    def event(self, event: Mapping[str, Any]) -> None:
        """One of a stream."""
        self._output.event(event)

    def answered(self, document: Mapping[str, Any]) -> None:
        self._output.document(document)

    def fail(self, error: BaseException) -> None:
        """It did, or was given up; what it used may still come."""
        code = self._error = error.code if isinstance(error, ServiceError) and error.code else type(error).__name__
        self._attributes[ERROR_TYPE] = code
        if isinstance(error, ServiceError):
            self._attributes[STATUS_CODE] = error.status
            self._attributes[ERROR_MESSAGE] = error.message[:MESSAGE_LIMIT]

    def failed(self, error: ServiceError) -> None:
        """It failed, and used nothing."""
        self.fail(error)
        self._record()

    def used(self, usage: UsageRecord) -> None:
        """It is over, and used this. `gen_ai.usage.input_tokens` includes cached ones, as the conventions have it."""
        self._attributes |= {
            "gen_ai.response.model": usage.model_id,
            "gen_ai.usage.input_tokens": usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
        }
        if usage.cache_read_tokens or usage.cache_write_tokens:
            self._attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cache_read_tokens
            self._attributes["gen_ai.usage.cache_creation.input_tokens"] = usage.cache_write_tokens
        if usage.estimated:
            self._attributes["agentkeep.usage.estimated"] = True
        self._record()

    def _record(self) -> None:
        caller = self._call.caller
        attributes = owned_by(caller.session, caller.user.id if caller.user is not None else None)
        attributes |= self._attributes
        if self._output.stop_reason is not None:
            attributes["gen_ai.response.finish_reasons"] = [self._output.stop_reason]
        if captured_bytes():
            attributes |= _input(self._request)
            attributes |= self._output.attributes()
        record(
            "gateway",
            f"chat {self._request['modelId']}",
            span_context(self._parent),
            self._parent,
            self._begun_ns,
            attributes,
            kind=SpanKind.CLIENT,
            error=self._error,
        )


def _input(request: Mapping[str, Any]) -> dict[str, AttributeValue]:
    if "body" in request:
        body = capture(request["body"])
        return {} if body is None else {"input.value": body}
    found: dict[str, AttributeValue] = {}
    if system := request.get("system"):
        found["gen_ai.system_instructions"] = capture_json(_parts(system)) or ""
    messages = request.get("messages") or []
    latest = _latest(messages)
    found["gen_ai.input.messages"] = (
        capture_json([{"role": message["role"], "parts": _parts(message["content"])} for message in latest]) or ""
    )
    if len(latest) < len(messages):
        # They are the earlier calls' input.
        found["agentkeep.input.messages.omitted"] = len(messages) - len(latest)
    return found


def _latest(messages: list[Any]) -> list[Any]:
    """The last ones, as many as there is room for; one at least. A call repeats all that was said before it."""
    room = captured_bytes()
    for number in range(len(messages) - 1, -1, -1):
        room -= _size(messages[number]["content"])
        if room < 0:
            return messages[min(number + 1, len(messages) - 1) :]
    return messages


def _size(content: object) -> int:
    match content:
        case str():
            return len(content)
        case Mapping():
            return sum(map(_size, content.values())) + 20
        case list() | tuple():
            return sum(map(_size, content))
    return 8


def _parts(content: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [_part(block) for block in content]


def _part(block: Mapping[str, Any]) -> dict[str, Any]:
    """One of Converse's content blocks in the conventions' shape."""
    match block:
        case {"text": text}:
            return {"type": "text", "content": text}
        case {"reasoningContent": reasoning}:
            return {"type": "reasoning", "content": (reasoning.get("reasoningText") or {}).get("text", "(redacted)")}
        case {"toolUse": use}:
            return {
                "type": "tool_call",
                "id": use.get("toolUseId"),
                "name": use.get("name"),
                "arguments": use.get("input"),
            }
        case {"toolResult": result}:
            return {
                "type": "tool_call_response",
                "id": result.get("toolUseId"),
                "response": result.get("content"),
                **({"status": result["status"]} if "status" in result else {}),
            }
    return {"type": next(iter(block), "unknown")}


class _Output:
    """What came back, whole or in events; of long texts no more is held than is kept."""

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self._room = captured_bytes()
        self._blocks: dict[int, dict[str, Any]] = {}
        self._body: str | None = None

    def document(self, document: Mapping[str, Any]) -> None:
        if "body" in document:
            body = document["body"]
            self._body = capture(body) if isinstance(body, bytes | str) else None
            return
        self.stop_reason = document.get("stopReason")
        content = ((document.get("output") or {}).get("message") or {}).get("content") or []
        self._blocks = dict(enumerate(_parts(content)))

    def event(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"contentBlockStart": {"contentBlockIndex": index, "start": {"toolUse": use}}}:
                self._blocks[index] = {"type": "tool_call", "id": use.get("toolUseId"), "name": use.get("name")}
            case {"contentBlockDelta": {"contentBlockIndex": index, "delta": delta}}:
                self._delta(index, delta)
            case {"messageStop": {"stopReason": reason}}:
                self.stop_reason = reason

    def _delta(self, index: int, delta: Mapping[str, Any]) -> None:
        match delta:
            case {"text": text}:
                kind, member = "text", "content"
            case {"reasoningContent": {"text": text}}:
                kind, member = "reasoning", "content"
            case {"toolUse": {"input": text}}:
                kind, member = "tool_call", "arguments"
            case _:
                return
        block = self._blocks.setdefault(index, {"type": kind})
        if self._room > 0:
            self._room -= len(text)
            block[member] = block.get(member, "") + text

    def attributes(self) -> dict[str, AttributeValue]:
        if self._body is not None:
            return {"output.value": self._body}
        if not self._blocks:
            return {}
        parts = [_whole(self._blocks[index]) for index in sorted(self._blocks)]
        said = {"role": "assistant", "parts": parts, "finish_reason": self.stop_reason}
        return {"gen_ai.output.messages": capture_json([said]) or ""}


def _whole(part: dict[str, Any]) -> dict[str, Any]:
    """A streamed tool call's arguments came as text."""
    if part["type"] == "tool_call" and isinstance(part.get("arguments"), str):
        try:
            return part | {"arguments": json.loads(part["arguments"])}
        except ValueError:
            return part
    return part
