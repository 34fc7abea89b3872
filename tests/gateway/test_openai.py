"""The provider for OpenAI-compatible servers, over a real connection."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from aiohttp import web
from model_stand_ins import StandIn, says

from agentkeep.core.errors import (
    AccessDeniedException,
    ModelErrorException,
    ModelNotReadyException,
    ModelStreamErrorException,
    ModelTimeoutException,
    ResourceNotFoundException,
    ServiceError,
    ServiceUnavailableException,
    ThrottlingException,
    ValidationException,
)
from agentkeep.gateway.models.chat_completions import Dialect
from agentkeep.gateway.models.openai import OpenAIProvider
from agentkeep.gateway.models.provider import TokenCounts

REQUEST = {"modelId": "ignored", "messages": [says("Hi")]}
COMPLETION = {
    "model": "gpt-oss-20b-2026",
    "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 2},
}
EVENTS = "text/event-stream"


def sse(*documents: Any) -> list[bytes]:
    return [f"data: {json.dumps(document)}\r\n\r\n".encode() for document in documents]


PIECES = sse({"choices": [{"delta": {"content": "Hel"}}]}, {"choices": [{"delta": {"content": "lo"}}]})
END = sse({"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": COMPLETION["usage"]})


async def test_answers(openai: OpenAIProvider, stand_in: StandIn) -> None:
    stand_in.answers(COMPLETION)
    answer = await openai.converse("gpt-oss-20b", REQUEST)
    assert answer.document["output"]["message"]["content"] == [{"text": "Hello"}]
    assert (answer.model, answer.tokens) == ("gpt-oss-20b-2026", TokenCounts(8, 2))
    [request] = stand_in.requests
    assert (request.path, request.headers["authorization"]) == ("/v1/chat/completions", "Bearer key-1")
    assert stand_in.asked == [{"model": "gpt-oss-20b", "messages": [{"role": "user", "content": "Hi"}]}]


@pytest.mark.parametrize("pieces", [[*PIECES, *END, b"data: [DONE]\n\n"], [*PIECES, *END]])
async def test_streams(openai: OpenAIProvider, stand_in: StandIn, pieces: list[bytes]) -> None:
    # However the bytes are cut, and with a comment as servers send them to keep the connection alive.
    whole = b": ping\n\n" + b"".join(pieces)
    stand_in.streams(whole[:25], whole[25:33], whole[33:], content_type=EVENTS)
    events = await openai.converse_stream("gpt", REQUEST)
    received = [event async for event in events]
    await events.aclose()
    text = [event["contentBlockDelta"]["delta"]["text"] for event in received if "contentBlockDelta" in event]
    assert text == ["Hel", "lo"]
    assert received[-1]["metadata"]["usage"] == {"inputTokens": 8, "outputTokens": 2, "totalTokens": 10}
    assert stand_in.asked[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (400, {"error": {"message": "context too long"}}, ValidationException, "context too long"),
        (401, {"error": {"message": "key-1 is no key"}}, AccessDeniedException, "operator"),
        (403, {}, AccessDeniedException, "operator"),
        (404, {"error": {"message": "no model gpt"}}, ResourceNotFoundException, "no model gpt"),
        (408, {}, ModelTimeoutException, "long"),
        (429, {"error": "slow down"}, ThrottlingException, "slow down"),
        (500, {"error": "trace of the server"}, ModelErrorException, "status 500"),
        (503, {"error": {"message": "Loading model"}}, ModelNotReadyException, "loading"),
        (503, {}, ServiceUnavailableException, "unavailable"),
        (302, {}, ModelErrorException, "status 302"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_refusals_are_the_models_errors(
    openai: OpenAIProvider,
    stand_in: StandIn,
    status: int,
    body: Any,
    error: type[ServiceError],
    message: str,
    streaming: bool,
) -> None:
    stand_in.answers(body, status, headers={"location": "http://169.254.169.254/"})
    with pytest.raises(error, match=message) as raised:
        await (openai.converse_stream if streaming else openai.converse)("gpt", REQUEST)
    for secret in ("key-1", "trace of the server"):
        assert secret not in raised.value.message
    assert len(stand_in.requests) == 1  # no retry: the caller's client does that


@pytest.mark.parametrize("text", ["no json", "[]", '{"choices": []}'])
async def test_an_answer_that_is_none(openai: OpenAIProvider, stand_in: StandIn, text: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text)

    stand_in.answer = answer
    with pytest.raises(ModelErrorException):
        await openai.converse("gpt", REQUEST)


async def test_a_server_that_is_slow(openai: OpenAIProvider, stand_in: StandIn) -> None:
    stand_in.streams(b"{", content_type="application/json", hold=3)
    with pytest.raises(ModelTimeoutException):
        await openai.converse("gpt", REQUEST)


async def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    provider = OpenAIProvider(url, dialect=Dialect("openai"))
    with pytest.raises(ServiceUnavailableException, match="cannot be reached"):
        await provider.converse("gpt", REQUEST)
    await provider.close()


@pytest.mark.parametrize(
    ("pieces", "cut"),
    [
        (PIECES, True),
        (PIECES, False),
        ([*PIECES, b"data: {broken\n\n"], False),
        ([*PIECES, b"data: " + b"x" * 1_100_000], False),
        ([*PIECES, *sse({"error": {"message": "overloaded"}})], False),
    ],
    ids=["cut", "ended", "no-json", "endless", "error"],
)
async def test_a_stream_that_breaks(openai: OpenAIProvider, stand_in: StandIn, pieces: list[bytes], cut: bool) -> None:
    stand_in.streams(*pieces, content_type=EVENTS, cut=cut)
    events = await openai.converse_stream("gpt", REQUEST)
    received = [await anext(events), await anext(events), await anext(events)]  # what came before is passed on
    with pytest.raises(ModelStreamErrorException):
        await anext(events)
    await events.aclose()
    assert [event["contentBlockDelta"]["delta"]["text"] for event in received[1:]] == ["Hel", "lo"]


async def test_leaving_a_stream_leaves_the_server(openai: OpenAIProvider, stand_in: StandIn) -> None:
    left = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": EVENTS})
        await response.prepare(request)
        try:
            while True:
                await response.write(PIECES[0])
                await asyncio.sleep(0.01)
        finally:
            left.set()

    stand_in.answer = answer
    events = await openai.converse_stream("gpt", REQUEST)
    await anext(events)
    await events.aclose()
    await asyncio.wait_for(left.wait(), 5)


async def test_a_kept_connection_that_was_closed_is_replaced(openai: OpenAIProvider, stand_in: StandIn) -> None:
    """What a server does that closes idle connections just when a call comes."""
    calls = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert request.transport is not None
            request.transport.close()
        return web.json_response(COMPLETION)

    stand_in.answer = answer
    for _ in range(2):
        assert (await openai.converse("gpt", REQUEST)).tokens == TokenCounts(8, 2)
