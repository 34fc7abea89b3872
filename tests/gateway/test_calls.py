"""Every model call's way: metered whatever becomes of it, limited in time, never without a guardrail asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from model_stand_ins import SESSION, StandIn, call, chunk, event, says

from agentkeep.core.call import CallerKind, allowed_callers
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import (
    ModelStreamErrorException,
    ModelTimeoutException,
    ResourceNotFoundException,
    StoreUnavailable,
    ThrottlingException,
    ValidationException,
)
from agentkeep.core.ports import UsageRecord
from agentkeep.gateway.models.bedrock import BedrockProvider
from agentkeep.gateway.models.calls import ModelCalls
from agentkeep.gateway.models.openai import OpenAIProvider
from agentkeep.gateway.models.provider import Provider
from agentkeep.gateway.models.routing import ModelRoutes, Rule
from agentkeep.gateway.operations import GatewayPlane
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.valkey import ValkeyKeyValueStore

REQUEST = {"modelId": "gpt", "messages": [says("Hi" * 20)]}
COMPLETION = {
    "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 2},
}
SSE = "text/event-stream"
PIECES = [
    b'data: {"choices": [{"delta": {"content": "Hello there"}}]}\n\n',
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 2}}\n\ndata: [DONE]\n\n',
]
STREAM = "application/vnd.amazon.eventstream"


@pytest.fixture
def usage(store: KeyValueStore) -> KeyValueUsage:
    return KeyValueUsage(store)


@pytest.fixture
def budget(store: ValkeyKeyValueStore) -> SessionBudgets:
    return SessionBudgets(store, SystemClock(), default=None)


Making = Callable[..., GatewayPlane]


@pytest.fixture
def plane_with(usage: KeyValueUsage, budget: SessionBudgets) -> Making:
    def make(
        *providers: Provider,
        answer_seconds: float = 5,
        gap_seconds: float = 5,
        usage: Any = usage,
        budget: Any = budget,
    ) -> GatewayPlane:
        routes = ModelRoutes([Rule("*", providers[0].name)], {provider.name: provider for provider in providers})
        calls = ModelCalls(
            routes,
            usage,
            budget,
            SystemClock(),
            answer_seconds=answer_seconds,
            gap_seconds=gap_seconds,
            answer_tokens=1000,
        )
        return GatewayPlane(calls)

    return make


async def recorded(usage: KeyValueUsage, count: int = 1) -> list[UsageRecord]:
    records = await usage.of_session(SESSION)
    assert len(records) == count
    return records


async def test_an_answer_is_metered(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    """OBS-2: by session and user, known from the caller and not from the request."""
    stand_in.answers(COMPLETION)
    response = await plane_with(openai).converse(call(), REQUEST)
    assert response["usage"] == {"inputTokens": 8, "outputTokens": 2, "totalTokens": 10}
    [record] = await recorded(usage)
    assert (record.session, record.user_id, record.provider, record.model_id) == (SESSION, "alice", "openai", "gpt")
    assert (record.input_tokens, record.output_tokens, record.estimated) == (8, 2, False)
    assert record.latency_ms > 0
    assert record.request_id == "request-Converse"


async def test_an_operators_call_counts_for_no_session(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    stand_in.answers(COMPLETION)
    await plane_with(openai).converse(call(kind=CallerKind.OPERATOR), REQUEST)
    await recorded(usage, 0)


async def test_an_answer_without_counts_is_reckoned_and_marked(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    stand_in.answers({"choices": COMPLETION["choices"]})
    response = await plane_with(openai).converse(call(), REQUEST)
    [record] = await recorded(usage)
    assert record.estimated
    assert (record.input_tokens, record.output_tokens) == (11, 4)
    assert response["usage"]["totalTokens"] == 15


async def test_a_stream_is_metered_at_its_end(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    stand_in.streams(*PIECES, content_type=SSE)
    stream = (await plane_with(openai).converse_stream(call(), REQUEST))["stream"]
    received = [event async for event in stream]
    await stream.aclose()
    assert [next(iter(event)) for event in received][-2:] == ["messageStop", "metadata"]
    [record] = await recorded(usage)
    assert (record.input_tokens, record.output_tokens, record.estimated) == (8, 2, False)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_client_that_leaves_pays_all_the_same(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage, begun: bool
) -> None:
    """OBS-3: what was used is counted, as well as can be told, and marked."""
    stand_in.streams(PIECES[0], content_type=SSE, hold=3)
    stream = (await plane_with(openai).converse_stream(call(), REQUEST))["stream"]
    if begun:
        await anext(stream)
        await anext(stream)
    await stream.aclose()
    [record] = await recorded(usage)
    assert record.estimated
    assert (record.input_tokens, record.output_tokens) == (11, 3 if begun else 0)


async def test_a_reader_that_is_cancelled_pays_all_the_same(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    stand_in.streams(PIECES[0], content_type=SSE, hold=3)
    stream = (await plane_with(openai).converse_stream(call(), REQUEST))["stream"]

    async def read() -> None:
        async for _ in stream:
            pass

    reading = asyncio.create_task(read())
    while not stream._produced:
        await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    [record] = await recorded(usage)
    assert (record.output_tokens, record.estimated) == (3, True)


async def test_a_call_given_up_before_its_answer_counts_its_input(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3)
        return web.json_response(COMPLETION)

    stand_in.answer = answer
    for streaming in (False, True):
        plane = plane_with(openai)
        calling = asyncio.create_task(
            plane.converse_stream(call("ConverseStream"), REQUEST) if streaming else plane.converse(call(), REQUEST)
        )
        while len(stand_in.requests) <= streaming:
            await asyncio.sleep(0.01)
        calling.cancel()
        await asyncio.wait([calling])
    for record in await recorded(usage, 2):
        assert (record.input_tokens, record.output_tokens, record.estimated) == (11, 0, True)


async def test_a_broken_stream_is_metered(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    stand_in.streams(PIECES[0], content_type=SSE, cut=True)
    stream = (await plane_with(openai).converse_stream(call(), REQUEST))["stream"]
    with pytest.raises(ModelStreamErrorException):
        _ = [event async for event in stream]
    [record] = await recorded(usage)
    assert (record.output_tokens, record.estimated) == (3, True)


async def test_a_refused_call_costs_nothing(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    stand_in.answers({}, 429)
    plane = plane_with(openai)
    with pytest.raises(ThrottlingException):
        await plane.converse(call(), REQUEST)
    with pytest.raises(ThrottlingException):
        await plane.converse_stream(call(), REQUEST)
    await recorded(usage, 0)


async def test_an_answer_is_not_withheld_when_it_cannot_be_counted(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    class Unreachable:
        async def record(self, record: UsageRecord) -> None:
            raise StoreUnavailable("no store")

    stand_in.answers(COMPLETION)
    response = await plane_with(openai, usage=Unreachable()).converse(call(), REQUEST)
    assert response["stopReason"] == "end_turn"
    assert "was not recorded" in caplog.text


async def test_answers_and_silences_have_limits(
    plane_with: Making, openai: OpenAIProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.8)
        return web.json_response(COMPLETION)

    stand_in.answer = answer
    with pytest.raises(ModelTimeoutException, match=r"0\.1 s"):
        await plane_with(openai, answer_seconds=0.1).converse(call("Late"), REQUEST)
    stand_in.streams(PIECES[0], content_type=SSE, hold=0.8)
    stream = (await plane_with(openai, gap_seconds=0.1).converse_stream(call(), REQUEST))["stream"]
    with pytest.raises(ModelTimeoutException, match=r"nothing for 0\.1 s"):
        _ = [event async for event in stream]
    assert [record.estimated for record in await recorded(usage, 2)] == [True, True]


async def test_bedrocks_native_streams_are_metered(
    plane_with: Making, bedrock: BedrockProvider, stand_in: StandIn, usage: KeyValueUsage
) -> None:
    metrics = {"inputTokenCount": 9, "outputTokenCount": 4, "cacheReadInputTokenCount": 1}
    last = {"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics}
    stand_in.streams(chunk({"delta": "Hello"}), chunk(last), content_type=STREAM)
    request = {"modelId": "m", "body": b"{}"}
    response = await plane_with(bedrock).invoke_model_with_response_stream(call(), request)
    received = [json.loads(event["chunk"]["bytes"]) async for event in response["body"]]
    assert received == [{"delta": "Hello"}, last]
    [record] = await recorded(usage)
    assert (record.input_tokens, record.output_tokens, record.cache_read_tokens, record.estimated) == (9, 4, 1, False)


async def test_native_bodies_need_a_provider_that_takes_them(plane_with: Making, openai: OpenAIProvider) -> None:
    plane = plane_with(openai)
    request = {"modelId": "gpt", "body": b"{}"}
    for operation in (plane.invoke_model, plane.invoke_model_with_response_stream):
        with pytest.raises(ValidationException, match="Converse"):
            await operation(call(), request)


async def test_a_guardrail_is_never_left_out(
    plane_with: Making, openai: OpenAIProvider, bedrock: BedrockProvider, stand_in: StandIn
) -> None:
    """GRD-1: a provider that cannot apply the guardrail asked for is not asked at all."""
    guarded = {**REQUEST, "guardrailConfig": {"guardrailIdentifier": "g1", "guardrailVersion": "1"}}
    native = {"modelId": "gpt", "body": b"{}", "guardrailIdentifier": "g1", "guardrailVersion": "1"}
    plane = plane_with(openai)
    for operation, request in (
        (plane.converse, guarded),
        (plane.converse_stream, guarded),
        (plane.invoke_model, native),
        (plane.invoke_model_with_response_stream, native),
    ):
        with pytest.raises(ValidationException, match="guardrail"):
            await operation(call(), request)
    apply = {"guardrailIdentifier": "g1", "guardrailVersion": "1", "source": "INPUT", "content": []}
    with pytest.raises(ResourceNotFoundException, match="guardrail"):
        await plane.apply_guardrail(call(), apply)
    assert stand_in.requests == []
    frames = event("messageStart", b'{"role": "assistant"}')
    stand_in.streams(frames, content_type=STREAM)
    stream = (await plane_with(bedrock).converse_stream(call(), guarded))["stream"]
    _ = [event async for event in stream]
    assert stand_in.asked[-1]["guardrailConfig"] == guarded["guardrailConfig"]


async def test_counting_needs_a_provider_that_can(plane_with: Making, openai: OpenAIProvider) -> None:
    with pytest.raises(ValidationException, match="doesn't support counting tokens"):
        await plane_with(openai).count_tokens(call(), {"modelId": "gpt", "input": {"converse": {}}})


def test_open_to_operators_and_sessions_only() -> None:
    for operation in (
        *("converse", "converse_stream", "invoke_model", "invoke_model_with_response_stream"),
        *("count_tokens", "apply_guardrail"),
    ):
        allowed = allowed_callers(getattr(GatewayPlane, operation))
        assert allowed == {CallerKind.OPERATOR, CallerKind.SESSION}
