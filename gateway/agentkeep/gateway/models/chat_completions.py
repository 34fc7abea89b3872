"""Converse, said in OpenAI's chat completions, and back.

Sources: the bedrock-runtime service model; the OpenAI API reference, Chat Completions. What has no counterpart there
is refused by name, never dropped, except what changes no answer: cache points, metadata, latency and service tiers,
and the reasoning of earlier turns.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentkeep.core.errors import ModelErrorException, ModelStreamErrorException, ValidationException
from agentkeep.gateway.models.provider import Document, Request, TokenCounts

__all__ = ["Dialect", "request_body", "response_document", "stream_events", "tokens_of"]

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "content_filtered",
}

#: Members of a body that are the translation's own; additionalModelRequestFields may not replace them.
OWN_MEMBERS = frozenset({"model", "messages", "stream", "stream_options", "tools", "tool_choice", "n", "best_of"})

#: Blocks that change no answer and have no counterpart.
SILENT_BLOCKS = frozenset({"cachePoint", "reasoningContent"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """In what servers of the same API differ."""

    provider: str
    images: bool = False
    tools: bool = True
    max_tokens_member: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


def request_body(model: str, request: Request, dialect: Dialect, *, stream: bool) -> Document:
    """The chat-completions body of a Converse request. Raises ValidationException for what cannot be said."""
    if request.get("promptVariables"):
        raise ValidationException(f"promptVariables: provider {dialect.provider!r} has no prompt management")
    extra = request.get("additionalModelRequestFields") or {}
    if not isinstance(extra, Mapping) or OWN_MEMBERS & extra.keys():
        raise ValidationException(
            "additionalModelRequestFields: an object without " + ", ".join(sorted(OWN_MEMBERS)) + " is wanted"
        )
    body: Document = {**extra, "model": model, "messages": list(_messages(request, dialect))}
    inference = request.get("inferenceConfig") or {}
    names = {
        "maxTokens": dialect.max_tokens_member,
        "temperature": "temperature",
        "topP": "top_p",
        "stopSequences": "stop",
    }
    body |= {names[name]: value for name, value in inference.items() if value not in (None, [])}
    if tools := request.get("toolConfig"):
        body |= _tools(tools, dialect)
    if text_format := (request.get("outputConfig") or {}).get("textFormat"):
        body["response_format"] = _response_format(text_format)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def response_document(completion: Mapping[str, Any], latency_ms: float) -> Document:
    """Converse's response to a completion."""
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        stop_reason = STOP_REASONS.get(choice.get("finish_reason") or "stop", "end_turn")
        content: list[Document] = []
        if reasoning := message.get("reasoning_content"):
            content.append({"reasoningContent": {"reasoningText": {"text": reasoning}}})
        if text := message.get("content") or message.get("refusal"):
            content.append({"text": text})
        for tool_call in message.get("tool_calls") or ():
            function = tool_call["function"]
            try:
                arguments = json.loads(function.get("arguments") or "{}")
            except ValueError:
                # The model's own word for it; a call with other arguments than it meant is never passed on.
                stop_reason = "malformed_tool_use"
                continue
            content.append(
                {
                    "toolUse": {
                        "toolUseId": tool_call.get("id") or _tool_use_id(),
                        "name": function["name"],
                        "input": arguments,
                    }
                }
            )
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModelErrorException("The model provider's answer is not a chat completion.") from None
    if stop_reason == "end_turn" and any("toolUse" in block for block in content):
        stop_reason = "tool_use"  # some servers say `stop` after a tool call
    tokens = tokens_of(completion) or TokenCounts(0, 0)
    return {
        "output": {"message": {"role": "assistant", "content": content or [{"text": ""}]}},
        "stopReason": stop_reason,
        "usage": tokens.usage(),
        "metrics": {"latencyMs": round(latency_ms)},
    }


def tokens_of(completion: Mapping[str, Any]) -> TokenCounts | None:
    """The counts of a completion or of a stream's last chunk. OpenAI's prompt_tokens include cached ones."""
    usage = completion.get("usage")
    if not isinstance(usage, Mapping) or "prompt_tokens" not in usage:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return TokenCounts(usage["prompt_tokens"] - cached, usage.get("completion_tokens") or 0, cache_read=cached)


async def stream_events(chunks: AsyncIterable[Mapping[str, Any]], latency_ms: Any) -> AsyncGenerator[Document, None]:
    """ConverseStream's events for chat-completion chunks. `latency_ms()`: milliseconds since the call began.

    Without counts from the server there is no `metadata` event with made-up ones: the stream ends without it.
    """
    stream = _Stream()
    yield {"messageStart": {"role": "assistant"}}
    async for chunk in chunks:
        try:
            events = list(stream.take(chunk))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ModelStreamErrorException("The model provider sent a chunk that is none.") from None
        for event in events:
            yield event
    if stream.stop_reason is None:
        raise ModelStreamErrorException("The model provider ended its answer before it was complete.")
    for event in stream.close_block():
        yield event
    yield {"messageStop": {"stopReason": stream.stop_reason}}
    if stream.tokens is not None:
        yield {"metadata": {"usage": stream.tokens.usage(), "metrics": {"latencyMs": round(latency_ms())}}}


@dataclass(slots=True)
class _Stream:
    """Which content block is open. Chat completions number only tool calls; Converse numbers every block."""

    index: int = -1
    open: str | None = None
    tools_seen: bool = False
    stop_reason: str | None = None
    tokens: TokenCounts | None = None
    tool_numbers: dict[int, str] = field(default_factory=dict)

    def take(self, chunk: Mapping[str, Any]) -> Iterator[Document]:
        if error := chunk.get("error"):
            message = error.get("message") if isinstance(error, Mapping) else error
            raise ModelStreamErrorException(f"The model provider failed midway: {message}")
        self.tokens = tokens_of(chunk) or self.tokens
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if reasoning := delta.get("reasoning_content"):
                yield from self._delta("reasoning", {"reasoningContent": {"text": reasoning}})
            if text := delta.get("content") or delta.get("refusal"):
                yield from self._delta("text", {"text": text})
            for tool_call in delta.get("tool_calls") or ():
                yield from self._tool_call(tool_call)
            if reason := choice.get("finish_reason"):
                self.stop_reason = STOP_REASONS.get(reason, "end_turn")
                if self.tools_seen and self.stop_reason == "end_turn":
                    self.stop_reason = "tool_use"

    def _tool_call(self, tool_call: Mapping[str, Any]) -> Iterator[Document]:
        block = f"tool {tool_call.get('index', 0)}"
        function = tool_call.get("function") or {}
        if self.open != block:
            self.tools_seen = True
            yield from self.close_block()
            self.index += 1
            self.open = block
            start = {"toolUseId": tool_call.get("id") or _tool_use_id(), "name": function["name"]}
            yield {"contentBlockStart": {"start": {"toolUse": start}, "contentBlockIndex": self.index}}
        if arguments := function.get("arguments"):
            yield from self._delta(block, {"toolUse": {"input": arguments}})

    def _delta(self, block: str, delta: Document) -> Iterator[Document]:
        if self.open != block:
            yield from self.close_block()
            self.index += 1
            self.open = block
        yield {"contentBlockDelta": {"delta": delta, "contentBlockIndex": self.index}}

    def close_block(self) -> Iterator[Document]:
        if self.open is not None:
            self.open = None
            yield {"contentBlockStop": {"contentBlockIndex": self.index}}


def _messages(request: Request, dialect: Dialect) -> Iterator[Document]:
    system = "\n\n".join(_plain_text(request.get("system") or (), "system", dialect))
    if system:
        yield {"role": "system", "content": system}
    for number, message in enumerate(request.get("messages") or (), 1):
        where = f"messages.{number}.content"
        if message["role"] == "assistant":
            yield _assistant(message["content"], where, dialect)
        elif message["role"] == "system":
            yield {"role": "system", "content": "\n\n".join(_plain_text(message["content"], where, dialect))}
        else:
            yield from _user(message["content"], where, dialect)


def _assistant(content: Sequence[Document], where: str, dialect: Dialect) -> Document:
    calls = [
        {
            "id": use["toolUseId"],
            "type": "function",
            "function": {"name": use["name"], "arguments": json.dumps(use["input"])},
        }
        for block in content
        if (use := block.get("toolUse"))
    ]
    text = "".join(_plain_text([block for block in content if "toolUse" not in block], where, dialect))
    if calls and dialect.tools:
        return {"role": "assistant", "content": text or None, "tool_calls": calls}
    for call in calls:
        text += f"\n[called {call['function']['name']} with {call['function']['arguments']}]"
    return {"role": "assistant", "content": text}


def _user(content: Sequence[Document], where: str, dialect: Dialect) -> Iterator[Document]:
    """Tool results are messages of their own there, and come first: they must follow the calls they answer."""
    parts: list[Document] = []
    for block in content:
        if result := block.get("toolResult"):
            text = "\n".join(_result_text(result["content"], where, dialect))
            if result.get("status") == "error":
                text = f"Error: {text}"
            if dialect.tools:
                yield {"role": "tool", "tool_call_id": result["toolUseId"], "content": text}
            else:
                parts.append({"type": "text", "text": f"[tool result: {text}]"})
        elif "image" in block:
            parts.append(_image(block["image"], where, dialect))
        else:
            parts += ({"type": "text", "text": text} for text in _plain_text([block], where, dialect))
    if not parts:
        return
    if all(part["type"] == "text" for part in parts):  # the form every server understands
        yield {"role": "user", "content": "\n".join(part["text"] for part in parts)}
    else:
        yield {"role": "user", "content": parts}


def _plain_text(content: Sequence[Document], where: str, dialect: Dialect) -> Iterator[str]:
    for block in content:
        if "text" in block:
            yield block["text"]
        elif text := (block.get("guardContent") or {}).get("text"):
            yield text["text"]
        elif not SILENT_BLOCKS & block.keys():
            raise _unsupported(block, where, dialect)


def _result_text(content: Sequence[Document], where: str, dialect: Dialect) -> Iterator[str]:
    for block in content:
        if "text" in block:
            yield block["text"]
        elif "json" in block:
            yield json.dumps(block["json"])
        else:
            raise _unsupported(block, f"{where}.toolResult", dialect)


def _image(image: Document, where: str, dialect: Dialect) -> Document:
    data = image["source"].get("bytes")
    if not dialect.images or data is None:
        raise _unsupported(
            {"image": image} if dialect.images is False else {"image.source.s3Location": 0}, where, dialect
        )
    url = f"data:image/{image['format']};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _unsupported(block: Document, where: str, dialect: Dialect) -> ValidationException:
    kind = next(iter(block), "an empty block")
    return ValidationException(f"{where}: provider {dialect.provider!r} does not take {kind} blocks")


def _tools(config: Document, dialect: Dialect) -> Document:
    choice = config.get("toolChoice") or {"auto": {}}
    if not dialect.tools:
        if "auto" in choice:
            return {}
        raise ValidationException(f"toolConfig.toolChoice: the model of provider {dialect.provider!r} cannot use tools")
    tools = []
    for tool in config.get("tools") or ():
        if spec := tool.get("toolSpec"):
            function = {"name": spec["name"], "parameters": spec["inputSchema"].get("json") or {}}
            function |= {member: spec[member] for member in ("description", "strict") if member in spec}
            tools.append({"type": "function", "function": function})
        elif "cachePoint" not in tool:
            raise _unsupported(tool, "toolConfig.tools", dialect)
    if "tool" in choice:
        chosen: object = {"type": "function", "function": {"name": choice["tool"]["name"]}}
    else:
        chosen = "required" if "any" in choice else "auto"
    return {"tools": tools, "tool_choice": chosen}


def _response_format(text_format: Document) -> Document:
    schema = text_format["structure"]["jsonSchema"]
    try:
        parsed = json.loads(schema["schema"])
    except ValueError:
        raise ValidationException("outputConfig.textFormat.structure.jsonSchema.schema: not JSON") from None
    described = {member: schema[member] for member in ("description",) if member in schema}
    return {
        "type": "json_schema",
        "json_schema": {"name": schema.get("name", "answer"), "schema": parsed, "strict": True, **described},
    }


def _tool_use_id() -> str:
    return f"tooluse_{secrets.token_urlsafe(16)}"
