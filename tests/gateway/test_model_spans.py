"""A model call on its session's trace, in OpenTelemetry's GenAI conventions; whatever becomes of the call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import pytest
from model_stand_ins import SESSION, StandIn, call, event, says
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from agentkeep.core import telemetry_export
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import ModelTimeoutException, ThrottlingException
from agentkeep.core.telemetry import step
from agentkeep.core.telemetry_settings import TelemetrySettings
from agentkeep.gateway.models.bedrock import BedrockProvider
from agentkeep.gateway.models.calls import ModelCalls
from agentkeep.gateway.models.openai import OpenAIProvider
from agentkeep.gateway.models.provider import Provider
from agentkeep.gateway.models.routing import ModelRoutes, Rule
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.storage.valkey import ValkeyKeyValueStore

STREAM = "application/vnd.amazon.eventstream"
COMPLETION = {
    "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 2},
}


class Ended(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)

    def of_model(self) -> ReadableSpan:
        [span] = [span for span in self.spans if span.name.startswith("chat ")]
        return span


@pytest.fixture
async def ended() -> AsyncIterator[Ended]:
    ended = Ended()
    telemetry = telemetry_export.start("gateway", ended)
    yield ended
    await telemetry.stop()


@pytest.fixture
def calls_of(store: ValkeyKeyValueStore) -> Any:
    def make(provider: Provider) -> ModelCalls:
        routes = ModelRoutes([Rule("*", provider.name)], {provider.name: provider})
        budget = SessionBudgets(store, SystemClock(), default=None)
        usage = KeyValueUsage(store)
        return ModelCalls(routes, usage, budget, SystemClock(), answer_seconds=0.5, gap_seconds=0.5, answer_tokens=1000)

    return make


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_an_answer(calls_of: Any, openai: OpenAIProvider, stand_in: StandIn, ended: Ended) -> None:
    """OBS-1: within the operation that asked for it, with what was said and what it used."""
    stand_in.answers(COMPLETION)
    request = {"modelId": "gpt", "system": [{"text": "Be kind."}], "messages": [says("Hi")]}
    with step("gateway", "Converse", SESSION) as outer:
        await calls_of(openai).converse(call(), request)
    span = ended.of_model()
    told = attributes(span)
    assert span.name == "chat gpt"
    assert span.parent is not None and span.parent.span_id == outer.get_span_context().span_id
    assert told["session.id"] == SESSION.session_id
    assert told["aws.agent.id"] == SESSION.runtime_id
    assert told["enduser.id"] == "alice"
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "openai"
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("gpt", "gpt")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (8, 2)
    assert told["gen_ai.response.finish_reasons"] == ["end_turn"]
    assert json.loads(told["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be kind."}]
    assert json.loads(told["gen_ai.input.messages"]) == [{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}]
    assert json.loads(told["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Hello"}], "finish_reason": "end_turn"}
    ]
    assert "key-1" not in str(told)  # the provider's


async def test_a_stream_with_reasoning_and_a_tool(
    calls_of: Any, bedrock: BedrockProvider, stand_in: StandIn, ended: Ended
) -> None:
    """OBS-1, OBS-5: what the model thought, and what it then did."""

    def delta(index: int, **what: Any) -> bytes:
        return event("contentBlockDelta", json.dumps({"contentBlockIndex": index, "delta": what}).encode())

    tool = {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": "t-1", "name": "status"}}}
    usage = {"inputTokens": 5, "outputTokens": 7, "totalTokens": 22, "cacheReadInputTokens": 10}
    stand_in.streams(
        event("messageStart", b'{"role": "assistant"}'),
        delta(0, reasoningContent={"text": "They ask "}),
        delta(0, reasoningContent={"text": "for an order."}),
        event("contentBlockStart", json.dumps(tool).encode()),
        delta(1, toolUse={"input": '{"order"'}),
        delta(1, toolUse={"input": ": 17}"}),
        event("messageStop", b'{"stopReason": "tool_use"}'),
        event("metadata", json.dumps({"usage": usage, "metrics": {"latencyMs": 1}}).encode()),
        content_type=STREAM,
    )
    stream = await calls_of(bedrock).converse_stream(call("ConverseStream"), {"modelId": "m", "messages": [says("Hi")]})
    async for _ in stream:
        assert not ended.spans  # it lasts as long as the stream
    await stream.aclose()
    told = attributes(ended.of_model())
    [said] = json.loads(told["gen_ai.output.messages"])
    assert said["parts"] == [
        {"type": "reasoning", "content": "They ask for an order."},
        {"type": "tool_call", "id": "t-1", "name": "status", "arguments": {"order": 17}},
    ]
    assert told["gen_ai.provider.name"] == "aws.bedrock"
    assert told["gen_ai.response.finish_reasons"] == ["tool_use"]
    # The conventions' input includes what came from a cache.
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.cache_read.input_tokens"]) == (15, 10)


async def test_a_refusal_is_told_with_its_reason(
    calls_of: Any, openai: OpenAIProvider, stand_in: StandIn, ended: Ended
) -> None:
    stand_in.answers({"error": {"message": "slow down"}}, status=429)
    with pytest.raises(ThrottlingException):
        await calls_of(openai).converse(call(), {"modelId": "gpt", "messages": [says("Hi")]})
    span = ended.of_model()
    assert span.status.description == "ThrottlingException"
    assert attributes(span)["http.response.status_code"] == 429
    assert "gen_ai.usage.input_tokens" not in attributes(span)


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_stream_that_stops_midway(
    calls_of: Any, openai: OpenAIProvider, stand_in: StandIn, ended: Ended, leaves: bool
) -> None:
    """The caller leaves, or the model falls silent: what was said until then is told, its tokens as an estimate."""
    piece = b'data: {"choices": [{"delta": {"content": "Hello there"}}]}\n\n'
    stand_in.streams(piece, content_type="text/event-stream", hold=1)
    stream = await calls_of(openai).converse_stream(call(), {"modelId": "gpt", "messages": [says("Hi")]})
    with nullcontext() if leaves else pytest.raises(ModelTimeoutException):
        async for found in stream:
            if leaves and "contentBlockDelta" in found:
                break
    await stream.aclose()
    span = ended.of_model()
    told = attributes(span)
    assert told["agentkeep.usage.estimated"]
    assert "Hello there" in told["gen_ai.output.messages"]
    assert told.get("error.type") == (None if leaves else "ModelTimeoutException")


async def test_a_call_given_up_is_told(calls_of: Any, openai: OpenAIProvider, stand_in: StandIn, ended: Ended) -> None:
    stand_in.streams(content_type="application/json", hold=1)
    asking = asyncio.ensure_future(calls_of(openai).converse(call(), {"modelId": "gpt", "messages": [says("Hi")]}))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.wait([asking])
    assert attributes(ended.of_model())["error.type"] == "CancelledError"


async def test_a_long_conversation_keeps_its_end(
    calls_of: Any, openai: OpenAIProvider, stand_in: StandIn, ended: Ended
) -> None:
    """Each call repeats what was said before; the newest is what this one adds."""
    stand_in.answers(COMPLETION)
    messages = [says(f"{number} " + "x" * 3000) for number in range(9)]
    await calls_of(openai).converse(call(), {"modelId": "gpt", "messages": messages})
    told = attributes(ended.of_model())
    kept = json.loads(told["gen_ai.input.messages"])
    assert kept[-1]["parts"][0]["content"].startswith("8 ")
    assert len(kept) + told["agentkeep.input.messages.omitted"] == 9
    assert len(told["gen_ai.input.messages"]) < 10_000


async def test_messages_can_be_left_out(calls_of: Any, openai: OpenAIProvider, stand_in: StandIn, ended: Ended) -> None:
    stand_in.answers(COMPLETION)
    telemetry_export.start("gateway", ended, TelemetrySettings(content=False))
    try:
        await calls_of(openai).converse(call(), {"modelId": "gpt", "messages": [says("private")]})
    finally:
        telemetry_export.start("gateway", ended, TelemetrySettings())
    told = attributes(ended.of_model())
    assert "private" not in str(told) and "Hello" not in str(told)
    assert told["gen_ai.usage.input_tokens"] == 8
