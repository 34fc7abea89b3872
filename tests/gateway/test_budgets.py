"""Sessions stay within their token budget, whatever becomes of their model calls.

Unmodified boto3 in front, a stand-in with a wire for the provider behind, real counters on Valkey between.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import boto3
import pytest
from aiohttp import web
from botocore.config import Config
from botocore.exceptions import ClientError
from model_stand_ins import SESSION, StandIn, call, says
from session_stack import DEPLOYMENT, SessionStack, session_stack

from agentkeep.core.call import CallerKind, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import (
    ModelStreamErrorException,
    ModelTimeoutException,
    ServiceQuotaExceededException,
    StoreUnavailable,
    ThrottlingException,
)
from agentkeep.core.ports import Reservation
from agentkeep.gateway.models.bedrock import BedrockProvider
from agentkeep.gateway.models.calls import ModelCalls
from agentkeep.gateway.models.chat_completions import Dialect
from agentkeep.gateway.models.openai import OpenAIProvider
from agentkeep.gateway.models.provider import Provider
from agentkeep.gateway.models.routing import ModelRoutes, Target, parse_rules
from agentkeep.gateway.models.spending import bounds_of
from agentkeep.gateway.operations import GatewayPlane
from agentkeep.observability.budget import SessionBudgets, Standing
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.storage.valkey import ValkeyKeyValueStore

Result = TypeVar("Result")
LIMITED = {"modelId": "gpt", "messages": [says("Hi")], "inferenceConfig": {"maxTokens": 50}}
UNLIMITED = {"modelId": "gpt", "messages": [says("Hi")]}
ANSWER_TOKENS = 300
#: What the stand-in says it used: 10 of input, 20 of output.
COMPLETION = {
    "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 20},
}
USED = 30
SSE = "text/event-stream"
PIECES = [
    b'data: {"choices": [{"delta": {"content": "Hello there"}}]}\n\n',
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}\n\ndata: [DONE]\n\n',
]


@dataclass
class Metered:
    """The gateway plane with one session's budget."""

    plane: GatewayPlane
    budgets: SessionBudgets
    usage: KeyValueUsage
    stack: SessionStack
    url: str

    async def standing(self) -> Standing:
        return await self.budgets.standing(SESSION)

    async def settled(self, used: int) -> None:
        """Waits until what is used is this, for what happens after the client left."""
        async with asyncio.timeout(5):
            while (await self.standing()).used != used:
                await asyncio.sleep(0.02)

    async def client(self, **options: Any) -> Any:
        """boto3 as it comes, with its own retries."""
        return boto3.client(
            "bedrock-runtime",
            endpoint_url=self.url,
            region_name=DEPLOYMENT.region,
            config=Config(max_pool_connections=64, **options),
            **await self.stack.credentials(SESSION, User("alice")),
        )


@pytest.fixture
async def openai(stand_in: StandIn) -> AsyncIterator[OpenAIProvider]:
    """More patient than the other tests': here the stand-in answers when many calls have arrived."""
    provider = OpenAIProvider(f"{stand_in.url}/v1", dialect=Dialect("openai"), answer_seconds=30)
    yield provider
    await provider.close()


@pytest.fixture
async def metered(
    store: ValkeyKeyValueStore, openai: OpenAIProvider, bedrock: BedrockProvider
) -> AsyncIterator[Metered]:
    budgets, usage = SessionBudgets(store, SystemClock(), default=None), KeyValueUsage(store)
    routes = ModelRoutes(parse_rules("gpt*=openai claude*=bedrock"), {"openai": openai, "bedrock": bedrock})
    plane = GatewayPlane(calls(routes, budgets, usage))
    async with session_stack(store, [plane]) as stack:
        yield Metered(plane, budgets, usage, stack, await stack.listen(SESSION))


def calls(
    routes: ModelRoutes, budget: Any, usage: Any, answer_seconds: float = 5, gap_seconds: float = 5
) -> ModelCalls:
    return ModelCalls(
        routes,
        usage,
        budget,
        SystemClock(),
        answer_seconds=answer_seconds,
        gap_seconds=gap_seconds,
        answer_tokens=ANSWER_TOKENS,
    )


def most(request: dict[str, Any], provider: Provider) -> int:
    """What a call sets aside."""
    bounds = bounds_of(Target(provider, "gpt"), request, ANSWER_TOKENS)
    return bounds.input + bounds.output


THREADS = ThreadPoolExecutor(64)


async def blocking(work: Callable[..., Result], **members: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(THREADS, partial(work, **members))


def model_calls(stand_in: StandIn) -> int:
    """Calls of a model that reached the provider (counting is none)."""
    return sum(not request.path.endswith("/count-tokens") for request in stand_in.requests)


# --- the budget is reached


@pytest.mark.parametrize("operation", ["converse", "converse_stream"])
async def test_boto3_is_refused_once_and_the_provider_never_called(
    metered: Metered, stand_in: StandIn, operation: str
) -> None:
    """OBS-3: a structured error; boto3 with its default retries sends one request, and the provider sees none."""
    await metered.budgets.open(SESSION, 100)
    client = await metered.client()
    sent: list[Any] = []
    client.meta.events.register("before-send.bedrock-runtime.*", lambda request, **_: sent.append(request.url))
    with pytest.raises(ClientError) as refused:
        await blocking(getattr(client, operation), **LIMITED)
    error = refused.value.response
    assert error["Error"]["Code"] == "ServiceQuotaExceededException"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert error["ResponseMetadata"]["RetryAttempts"] == 0
    assert len(sent) == 1
    for told in ("0 of 100", "50 of output", "not called"):
        assert told in error["Error"]["Message"]
    assert stand_in.requests == []
    assert await metered.standing() == Standing(100, 0)
    assert await metered.usage.of_session(SESSION) == []


@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
async def test_no_retry_mode_of_boto3_asks_again(metered: Metered, stand_in: StandIn, mode: str) -> None:
    await metered.budgets.open(SESSION, 0)
    client = await metered.client(retries={"mode": mode, "total_max_attempts": 5})
    with pytest.raises(client.exceptions.ServiceQuotaExceededException) as refused:
        await blocking(client.converse, **LIMITED)
    assert refused.value.response["ResponseMetadata"]["RetryAttempts"] == 0
    assert stand_in.requests == []


async def test_sixty_four_calls_at_once_against_a_budget_for_ten(
    metered: Metered, stand_in: StandIn, openai: OpenAIProvider
) -> None:
    """OBS-3: never over the budget, at no moment; exactly as many run as fit."""
    reserved = most(LIMITED, openai)
    budget = 10 * reserved + reserved // 2
    await metered.budgets.open(SESSION, budget)
    under_way = peak = 0
    highest = 0
    arrived = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal under_way, peak, highest
        under_way += 1
        peak = max(peak, under_way)
        highest = max(highest, (await metered.standing()).used)
        if under_way == 10:
            arrived.set()
        await arrived.wait()  # all that fit are under way together
        await asyncio.sleep(0.3)
        under_way -= 1
        return web.json_response(COMPLETION)

    stand_in.answer = answer
    client = await metered.client()
    answers = await asyncio.gather(*(blocking(client.converse, **LIMITED) for _ in range(64)), return_exceptions=True)
    outcomes = Counter(
        error.response["Error"]["Code"] if isinstance(error, ClientError) else "ran" for error in answers
    )
    standing = await metered.standing()
    print(f"64 at once, budget for 10: {dict(outcomes)}, highest {highest} of {budget}, used {standing.used}")
    assert outcomes == {"ran": 10, "ServiceQuotaExceededException": 54}
    assert (peak, model_calls(stand_in)) == (10, 10)
    assert highest <= budget
    assert standing == Standing(budget, 10 * USED)
    # What was not used is free again: more calls fit.
    assert (await blocking(client.converse, **LIMITED))["stopReason"] == "end_turn"


async def test_a_refusal_is_on_the_sessions_trace(metered: Metered, monkeypatch: pytest.MonkeyPatch) -> None:
    """OBS-1"""
    steps: list[tuple[Any, ...]] = []
    monkeypatch.setattr("agentkeep.core.telemetry.record", lambda *given, **more: steps.append((given, more)))
    await metered.budgets.open(SESSION, 1)
    with pytest.raises(ServiceQuotaExceededException):
        await metered.plane.converse(call(), LIMITED)
    given, more = next(step for step in steps if step[0][1] == "BudgetReached")
    attributes = given[5]
    assert attributes["session.id"] == SESSION.session_id
    assert attributes["enduser.id"] == "alice"
    assert "budget" in attributes["error.message"]
    assert more["error"] == "ServiceQuotaExceededException"


async def test_an_operators_call_needs_no_budget(metered: Metered, stand_in: StandIn) -> None:
    stand_in.answers(COMPLETION)
    await metered.plane.converse(call(kind=CallerKind.OPERATOR), UNLIMITED)
    assert "max_tokens" not in stand_in.asked[0]


async def test_without_the_store_no_model_is_called(openai: OpenAIProvider, stand_in: StandIn) -> None:
    """Fails closed: what cannot be set aside is not spent."""
    store = ValkeyKeyValueStore("unix:///nowhere/valkey.sock", time_limit=0.2)
    routes = ModelRoutes(parse_rules("*=openai"), {"openai": openai})
    plane = GatewayPlane(calls(routes, SessionBudgets(store, SystemClock(), default=1000), KeyValueUsage(store)))
    for operation in (plane.converse, plane.converse_stream):
        with pytest.raises(StoreUnavailable):
            await operation(call(), LIMITED)
    assert stand_in.requests == []
    await store.close()


# --- what is set aside


async def test_an_answer_without_a_limit_is_given_one(metered: Metered, stand_in: StandIn) -> None:
    """So that no answer passes the budget. Without a budget the request stays as it is."""
    stand_in.answers(COMPLETION)
    await metered.plane.converse(call(), UNLIMITED)
    await metered.budgets.open(SESSION, 10_000)
    await metered.plane.converse(call(), UNLIMITED)
    await metered.plane.converse(call(), LIMITED)
    assert [asked.get("max_tokens") for asked in stand_in.asked] == [None, ANSWER_TOKENS, 50]


async def test_a_model_with_a_lower_limit_keeps_its_own(metered: Metered, stand_in: StandIn) -> None:
    """Llama on Bedrock refuses more than 2,048: an agent that names no limit is not refused for ours."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "max_tokens" in stand_in.asked[-1]:
            return web.json_response({"error": {"message": "max_tokens is too large"}}, status=400)
        return web.json_response(COMPLETION)

    stand_in.answer = answer
    await metered.budgets.open(SESSION, 10_000)
    assert (await metered.plane.converse(call(), UNLIMITED))["stopReason"] == "end_turn"
    assert [asked.get("max_tokens") for asked in stand_in.asked] == [ANSWER_TOKENS, None]
    assert (await metered.standing()).used == USED


async def test_a_large_text_is_counted_where_its_size_does_not_fit(metered: Metered, stand_in: StandIn) -> None:
    """A bound by bytes is generous: before a call is refused for it, a provider that counts is asked."""
    request = {**LIMITED, "modelId": "claude", "messages": [says("word " * 400)]}
    usage = {"inputTokens": 402, "outputTokens": 20, "totalTokens": 422}
    content = {"message": {"role": "assistant", "content": [{"text": "ok"}]}}
    converse = {"output": content, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 1}}

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"inputTokens": 402} if request.path.endswith("/count-tokens") else converse)

    stand_in.answer = answer
    await metered.budgets.open(SESSION, 500)
    await metered.plane.converse(call(), request)
    assert (await metered.standing()).used == 422
    with pytest.raises(ServiceQuotaExceededException, match="402 of input"):
        await metered.plane.converse(call(), request)
    assert model_calls(stand_in) == 1


@pytest.mark.parametrize(
    ("members", "output"),
    [
        ({"inferenceConfig": {"maxTokens": 7}}, 7),
        ({"inferenceConfig": {"temperature": 0}}, ANSWER_TOKENS),
        ({"inferenceConfig": {"maxTokens": 7}, "additionalModelRequestFields": {"max_tokens": 900}}, 900),
        ({"additionalModelRequestFields": {"max_tokens": 900}}, 900),
        ({"body": json.dumps({"max_tokens": 5}).encode()}, 5),
        ({"body": json.dumps({"textGenerationConfig": {"maxTokenCount": 6}}).encode()}, 6),
        ({"body": json.dumps({"inferenceConfig": {"max_new_tokens": 8}}).encode()}, 8),
        ({"body": json.dumps({"max_tokens": True, "max_gen_len": -3}).encode()}, ANSWER_TOKENS),
        ({"body": b"not JSON"}, ANSWER_TOKENS),
        ({"body": b"[1]"}, ANSWER_TOKENS),
    ],
)
async def test_limits_of_answers(openai: OpenAIProvider, members: dict[str, Any], output: int) -> None:
    assert bounds_of(Target(openai, "m"), members, ANSWER_TOKENS).output == output


TEXTS = {
    "ascii": "a" * 5000,
    "cyrillic": "ж" * 2000,
    "chinese": "中文" * 1000,
    "escaped": '"\\\n' * 500,
    "control": "\x00" * 100,
    "surrogates": "\udcff" * 10,
    "emoji": "🙂" * 300,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_no_text_has_more_tokens_than_is_set_aside(openai: OpenAIProvider, text: str) -> None:
    """A token is a byte or more, of the text or of the text as JSON."""
    for request in (
        {"messages": [says(text)]},
        {"system": [{"text": text}]},
        {"messages": [{"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"text": text}]}}]}]},
        {"toolConfig": {"tools": [{"toolSpec": {"name": "t", "inputSchema": {"json": {text: {"type": "string"}}}}}]}},
        {"body": text.encode("utf-8", "surrogatepass")},
    ):
        bounds = bounds_of(Target(openai, "m"), request, ANSWER_TOKENS)
        assert bounds.input >= len(text.encode("utf-8", "surrogatepass"))


async def test_pictures_count_by_the_piece(openai: OpenAIProvider) -> None:
    image = {"image": {"format": "png", "source": {"bytes": b"\0" * 3_000_000}}}
    request = {"messages": [{"role": "user", "content": [image, {"text": "What is it?"}]}]}
    assert 5000 < bounds_of(Target(openai, "m"), request, ANSWER_TOKENS).input < 6000


# --- what is settled


async def test_a_stream_is_settled_at_its_end(metered: Metered, stand_in: StandIn, openai: OpenAIProvider) -> None:
    stand_in.streams(*PIECES, content_type=SSE)
    await metered.budgets.open(SESSION, 1000)
    stream = (await metered.plane.converse_stream(call(), LIMITED))["stream"]
    assert (await metered.standing()).used == most(LIMITED, openai)
    _ = [event async for event in stream]
    assert (await metered.standing()).used == USED


async def test_counts_include_what_the_cache_gave(metered: Metered, stand_in: StandIn) -> None:
    cached = {"prompt_tokens": 10, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 8}}
    stand_in.answers({**COMPLETION, "usage": cached})
    await metered.budgets.open(SESSION, 1000)
    await metered.plane.converse(call(), LIMITED)
    assert (await metered.standing()).used == USED


async def test_a_refused_call_uses_nothing(metered: Metered, stand_in: StandIn) -> None:
    await metered.budgets.open(SESSION, 1000)
    stand_in.answers({}, 429)
    for operation in (metered.plane.converse, metered.plane.converse_stream):
        with pytest.raises(ThrottlingException):
            await operation(call(), LIMITED)
    assert (await metered.standing()).used == 0


async def test_what_nobody_counted_is_settled_by_its_bound(
    metered: Metered, stand_in: StandIn, openai: OpenAIProvider
) -> None:
    """A whole answer without counts; a stream that breaks; one whose reader leaves; one nobody began to read."""
    await metered.budgets.open(SESSION, 10_000)
    sent = bounds_of(Target(openai, "m"), LIMITED, ANSWER_TOKENS).input
    stand_in.answers({"choices": COMPLETION["choices"]})
    await metered.plane.converse(call(), LIMITED)
    used = (await metered.standing()).used
    assert sent + len("Hello") <= used <= sent + 50

    stand_in.streams(PIECES[0], content_type=SSE, cut=True)
    stream = (await metered.plane.converse_stream(call("Broken"), LIMITED))["stream"]
    with pytest.raises(ModelStreamErrorException):
        _ = [event async for event in stream]
    used += sent + len("Hello there")
    assert (await metered.standing()).used == used

    stand_in.streams(PIECES[0], content_type=SSE, hold=1)
    for read in (2, 0):
        stream = (await metered.plane.converse_stream(call(f"Left{read}"), LIMITED))["stream"]
        for _ in range(read):
            await anext(stream)
        await stream.aclose()
        used += sent + (len("Hello there") if read else 0)
        assert (await metered.standing()).used == used


async def test_a_call_given_up_keeps_what_was_set_aside(
    metered: Metered, stand_in: StandIn, openai: OpenAIProvider
) -> None:
    """Nobody knows what it used: a client that times out and asks again for ever is stopped by the budget."""
    reserved = most(LIMITED, openai)
    await metered.budgets.open(SESSION, 10 * reserved)

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(2)
        return web.json_response(COMPLETION)

    stand_in.answer = answer
    calling = asyncio.create_task(metered.plane.converse(call(), LIMITED))
    while not stand_in.requests:
        await asyncio.sleep(0.01)
    calling.cancel()
    await asyncio.wait([calling])
    await metered.settled(reserved)

    routes = ModelRoutes(parse_rules("*=openai"), {"openai": openai})
    plane = GatewayPlane(calls(routes, metered.budgets, metered.usage, answer_seconds=0.1))
    with pytest.raises(ModelTimeoutException):
        await plane.converse(call("Late"), LIMITED)
    assert (await metered.standing()).used == 2 * reserved
    assert len(await metered.usage.of_session(SESSION)) == 2


async def test_a_caller_that_leaves_before_the_call_gets_all_back(
    metered: Metered, stand_in: StandIn, openai: OpenAIProvider
) -> None:
    class Slow(SessionBudgets):
        async def reserve(self, *given: Any) -> Reservation | None:
            reservation = await super().reserve(*given)
            reserved.set()
            await asyncio.sleep(0.1)
            return reservation

    reserved = asyncio.Event()
    slow = Slow(metered.budgets._store, SystemClock(), default=1000)
    plane = GatewayPlane(calls(ModelRoutes(parse_rules("*=openai"), {"openai": openai}), slow, metered.usage))
    calling = asyncio.create_task(plane.converse(call(), LIMITED))
    await reserved.wait()
    assert (await slow.standing(SESSION)).used > 0
    calling.cancel()
    await asyncio.wait([calling])
    assert calling.cancelled()
    assert (await slow.standing(SESSION)).used == 0
    assert stand_in.requests == []


async def test_a_client_that_leaves_before_the_answer_begins_is_counted(metered: Metered, stand_in: StandIn) -> None:
    """The connection is gone before the first step of the stream is sent: its source is closed, the call metered."""
    accepted = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        accepted.set()
        await asyncio.sleep(0.3)
        response = web.StreamResponse(headers={"content-type": SSE})
        await response.prepare(request)
        with suppress(ConnectionError):
            await asyncio.sleep(3)
        return response

    stand_in.answer = answer
    await metered.budgets.open(SESSION, 1000)
    client = await metered.client(retries={"total_max_attempts": 1}, read_timeout=0.15)
    with pytest.raises(Exception, match="Read timeout"):
        await blocking(client.converse_stream, **LIMITED)
    assert accepted.is_set()
    async with asyncio.timeout(5):
        while not (records := await metered.usage.of_session(SESSION)):
            await asyncio.sleep(0.02)
    assert [record.estimated for record in records] == [True]
    assert 0 < (await metered.standing()).used < 1000


async def test_more_than_was_asked_for_is_owed(metered: Metered, stand_in: StandIn) -> None:
    """A provider that passes the limit it was given: what it says it used counts, and the next call is refused."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5000}
    stand_in.answers({**COMPLETION, "usage": usage})
    await metered.budgets.open(SESSION, 1000)
    await metered.plane.converse(call(), LIMITED)
    assert await metered.standing() == Standing(1000, 5010)
    with pytest.raises(ServiceQuotaExceededException, match="5,010 of 1,000"):
        await metered.plane.converse(call(), LIMITED)


async def test_a_smaller_answer_that_fits_is_named(metered: Metered, stand_in: StandIn, openai: OpenAIProvider) -> None:
    """The answer asked for is not cut short silently; asking for less is the caller's to decide."""
    stand_in.answers(COMPLETION)
    await metered.budgets.open(SESSION, most(LIMITED, openai) - 10)
    with pytest.raises(ServiceQuotaExceededException, match="40 tokens or less would fit"):
        await metered.plane.converse(call(), LIMITED)
    await metered.plane.converse(call(), {**LIMITED, "inferenceConfig": {"maxTokens": 40}})
