"""The provider for Amazon Bedrock: real boto3 against a stand-in with Bedrock's wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from model_stand_ins import StandIn, chunk, event, says

from agentkeep.core.errors import (
    AccessDeniedException,
    ModelNotReadyException,
    ModelStreamErrorException,
    ModelTimeoutException,
    ServiceError,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
    ThrottlingException,
    ValidationException,
)
from agentkeep.gateway.models.bedrock import BedrockProvider, bedrock_client
from agentkeep.gateway.models.provider import TokenCounts

MODEL = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
USAGE = {"inputTokens": 11, "outputTokens": 2, "totalTokens": 16, "cacheReadInputTokens": 3}
CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
    "stopReason": "end_turn",
    "usage": USAGE,
    "metrics": {"latencyMs": 5},
}
STREAM = "application/vnd.amazon.eventstream"
EVENTS: list[tuple[str, Any]] = [
    ("messageStart", {"role": "assistant"}),
    ("contentBlockDelta", {"delta": {"text": "Hello"}, "contentBlockIndex": 0}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    ("messageStop", {"stopReason": "end_turn"}),
    ("metadata", {"usage": USAGE, "metrics": {"latencyMs": 5}}),
]
FRAMES = [event(name, json.dumps(payload).encode()) for name, payload in EVENTS]


async def test_converse(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    stand_in.answers(CONVERSED)
    request = {"modelId": "alias", "messages": [says("Hi")], "guardrailConfig": {"guardrailIdentifier": "g1"}}
    answer = await bedrock.converse(MODEL, request)
    assert answer.document == CONVERSED
    assert (answer.model, answer.tokens) == (MODEL, TokenCounts(11, 2, 3))
    [sent] = stand_in.requests
    assert sent.raw_path == "/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
    # The platform's key, never the caller's; and what the caller asks for, guardrail and all.
    assert "AKIDPLATFORM/" in sent.headers["authorization"]
    assert stand_in.asked == [{"messages": [says("Hi")], "guardrailConfig": {"guardrailIdentifier": "g1"}}]


SECRET = {"uri": "s3://the-platforms-own/secret"}


@pytest.mark.parametrize(
    "source",
    [
        {"image": {"format": "png", "source": {"s3Location": SECRET}}},
        {"document": {"format": "pdf", "name": "d", "source": {"s3Location": SECRET}}},
        {"toolResult": {"toolUseId": "t", "content": [{"video": {"format": "mp4", "source": {"s3Location": SECRET}}}]}},
    ],
)
async def test_nothing_is_read_with_the_platforms_permissions(
    bedrock: BedrockProvider, stand_in: StandIn, source: dict[str, Any]
) -> None:
    """GOV-4, IDN-2: Bedrock would fetch these as whoever signed, which is the platform."""
    messages = [{"role": "user", "content": [source]}]
    for call in (bedrock.converse, bedrock.converse_stream):
        with pytest.raises(ValidationException, match="s3Location"):
            await call(MODEL, {"modelId": "m", "messages": messages})
    native = json.dumps({"messages": messages}).encode()
    for body in (native, native.replace(b"s3L", b"\\u00733L"), native.replace(b'{"uri"', b'{"uri":"s3:","uri"')):
        with pytest.raises(ValidationException, match="s3Location"):
            await bedrock.invoke_model(MODEL, {"modelId": "m", "body": body})
        with pytest.raises(ValidationException, match="s3Location"):
            await bedrock.count_tokens(MODEL, {"invokeModel": {"body": body}})
    assert not stand_in.requests


async def test_text_may_speak_of_s3(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    stand_in.answers(CONVERSED)
    await bedrock.converse(MODEL, {"modelId": "m", "messages": [says("What is s3://bucket/key? And s3Location?")]})


async def test_converse_stream(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    newer = event("eventOfNextYear", b"{}")
    stand_in.streams(FRAMES[0], newer, *FRAMES[1:], content_type=STREAM)
    events = await bedrock.converse_stream(MODEL, {"modelId": "alias", "messages": [says("Hi")]})
    assert [event async for event in events] == [{name: payload} for name, payload in EVENTS]
    await events.aclose()


async def test_invoke_model(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    counts = {"x-amzn-bedrock-input-token-count": "9", "x-amzn-bedrock-output-token-count": "4"}
    stand_in.answers({"completion": "Hello"}, headers=counts)
    answer = await bedrock.invoke_model(MODEL, {"modelId": "alias", "body": b'{"prompt": "Hi"}'})
    assert json.loads(answer.document["body"]) == {"completion": "Hello"}
    assert answer.document["contentType"].startswith("application/json")
    assert answer.tokens == TokenCounts(9, 4)
    assert stand_in.asked == [{"prompt": "Hi"}]
    stand_in.answers({"completion": "Hello"})
    assert (await bedrock.invoke_model(MODEL, {"modelId": "alias", "body": b"{}"})).tokens is None


async def test_invoke_model_with_response_stream(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    stand_in.streams(chunk({"delta": "Hel"}), chunk({"delta": "lo"}), content_type=STREAM)
    events = await bedrock.invoke_model_with_response_stream(MODEL, {"modelId": "alias", "body": b"{}"})
    received = [json.loads(event["chunk"]["bytes"]) async for event in events]
    await events.aclose()
    assert received == [{"delta": "Hel"}, {"delta": "lo"}]


async def test_counts_tokens(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    stand_in.answers({"inputTokens": 42})
    assert await bedrock.count_tokens(MODEL, {"converse": {"messages": [says("Hi")]}}) == 42


async def test_applies_guardrails(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    usage = dict.fromkeys(
        [
            *("topicPolicyUnits", "contentPolicyUnits", "wordPolicyUnits", "sensitiveInformationPolicyUnits"),
            *("sensitiveInformationPolicyFreeUnits", "contextualGroundingPolicyUnits"),
        ],
        0,
    )
    applied = {"usage": usage, "action": "GUARDRAIL_INTERVENED", "outputs": [{"text": "no"}], "assessments": []}
    stand_in.answers(applied)
    request = {
        "guardrailIdentifier": "g1",
        "guardrailVersion": "1",
        "source": "INPUT",
        "content": [{"text": {"text": "x"}}],
    }
    assert await bedrock.apply_guardrail(request) == applied


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (400, "ValidationException", ValidationException, "the reason"),
        (429, "ThrottlingException", ThrottlingException, "the reason"),
        (429, "ModelNotReadyException", ModelNotReadyException, "the reason"),
        (400, "ServiceQuotaExceededException", ServiceQuotaExceededException, "the reason"),
        (408, "ModelTimeoutException", ModelTimeoutException, "the reason"),
        (403, "AccessDeniedException", AccessDeniedException, "operator"),
        (403, "ExpiredTokenException", AccessDeniedException, "operator"),
        (500, "InternalServerException", ServiceUnavailableException, "again"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_refusals_are_the_models_errors(
    bedrock: BedrockProvider,
    stand_in: StandIn,
    status: int,
    code: str,
    error: type[ServiceError],
    message: str,
    streaming: bool,
) -> None:
    stand_in.answers({"message": "the reason"}, status, {"x-amzn-errortype": f"{code}:http://internal.amazon.com/"})
    with pytest.raises(error, match=message):
        await (bedrock.converse_stream if streaming else bedrock.converse)(MODEL, {"messages": [says("Hi")]})
    assert len(stand_in.requests) == 1  # no retry: the caller's client does that


@pytest.mark.parametrize(
    ("exception", "error"),
    [
        ("throttlingException", ThrottlingException),
        ("modelStreamErrorException", ModelStreamErrorException),
        ("validationException", ValidationException),
        ("internalServerException", ModelStreamErrorException),
    ],
)
async def test_a_stream_that_fails_midway(
    bedrock: BedrockProvider, stand_in: StandIn, exception: str, error: type[ServiceError]
) -> None:
    broken = event(exception, b'{"message": "the reason"}', exception=True)
    stand_in.streams(FRAMES[0], FRAMES[1], broken, content_type=STREAM)
    events = await bedrock.converse_stream(MODEL, {"messages": [says("Hi")]})
    assert [await anext(events), await anext(events)] == [{name: payload} for name, payload in EVENTS[:2]]
    with pytest.raises(error):
        await anext(events)
    await events.aclose()


@pytest.mark.parametrize("second", [FRAMES[1][:20], FRAMES[1][:-1] + b"!"], ids=["cut", "garbled"])
async def test_a_stream_that_breaks(bedrock: BedrockProvider, stand_in: StandIn, second: bytes) -> None:
    stand_in.streams(FRAMES[0], second, content_type=STREAM, cut=True)
    events = await bedrock.converse_stream(MODEL, {"messages": [says("Hi")]})
    await anext(events)
    with pytest.raises(ModelStreamErrorException):
        await anext(events)
    await events.aclose()


async def test_a_stream_that_falls_silent(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    stand_in.streams(FRAMES[0], content_type=STREAM, hold=2)
    events = await bedrock.converse_stream(MODEL, {"messages": [says("Hi")]})
    await anext(events)
    with pytest.raises(ModelTimeoutException):
        await anext(events)
    await events.aclose()


async def test_leaving_a_silent_stream_waits_for_nothing(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    """Who leaves is not held up by a model that says nothing."""
    stand_in.streams(FRAMES[0], content_type=STREAM, hold=0.9)
    events = await bedrock.converse_stream(MODEL, {"messages": [says("Hi")]})
    await anext(events)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.wait([waiting])
    async with asyncio.timeout(0.4):
        await events.aclose()


async def test_bedrock_is_slow(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(2)
        return web.json_response(CONVERSED)

    stand_in.answer = answer
    with pytest.raises(ModelTimeoutException):
        await bedrock.converse(MODEL, {"messages": [says("Hi")]})


async def test_bedrock_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDPLATFORM")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    provider = BedrockProvider(bedrock_client(region="us-east-1", endpoint_url="http://127.0.0.1:1"))
    with pytest.raises(ServiceUnavailableException):
        await provider.converse(MODEL, {"messages": [says("Hi")]})
    await provider.close()


async def test_the_platform_has_no_credentials(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    provider = BedrockProvider(bedrock_client(region="us-east-1", endpoint_url=stand_in.url))
    with pytest.raises(AccessDeniedException, match="no credentials"):
        await provider.converse(MODEL, {"messages": [says("Hi")]})
    assert stand_in.requests == []
    await provider.close()


def test_environment_endpoints_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They lead back to the platform, and a call would go round for ever."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4780")
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "http://127.0.0.1:4780")
    client = bedrock_client(region="eu-central-1")
    assert client.meta.endpoint_url == "https://bedrock-runtime.eu-central-1.amazonaws.com"


async def test_streams_at_once_do_not_wait_for_one_another(bedrock: BedrockProvider, stand_in: StandIn) -> None:
    stand_in.streams(*FRAMES, content_type=STREAM, hold=0.2)

    async def one() -> int:
        events = await bedrock.converse_stream(MODEL, {"messages": [says("Hi")]})
        count = len([event async for event in events])
        await events.aclose()
        return count

    async with asyncio.timeout(3):  # one after another would take four seconds
        assert await asyncio.gather(*(one() for _ in range(20))) == [5] * 20
