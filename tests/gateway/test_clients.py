"""Unmodified boto3 and ChatBedrockConverse against the gateway plane, through the whole HTTP chain."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.tools import tool
from model_stand_ins import SESSION, StandIn, event, says
from session_stack import DEPLOYMENT, SessionStack, session_stack

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.gateway.models.bedrock import BedrockProvider
from agentkeep.gateway.models.calls import ModelCalls
from agentkeep.gateway.models.demo import DemoProvider
from agentkeep.gateway.models.local import LocalProvider
from agentkeep.gateway.models.openai import OpenAIProvider
from agentkeep.gateway.models.routing import ModelRoutes, parse_rules
from agentkeep.gateway.operations import GatewayPlane
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.storage.valkey import ValkeyKeyValueStore

with warnings.catch_warnings():  # the SDK's own, at its import
    warnings.simplefilter("ignore")
    from langchain_aws import ChatBedrockConverse

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
Result = TypeVar("Result")


@dataclass
class Served:
    """A session's view of the plane."""

    stack: SessionStack
    url: str
    usage: KeyValueUsage
    client: Any

    def client_with(self, credentials: dict[str, str]) -> Any:
        config = Config(retries={"total_max_attempts": 1})
        return boto3.client(
            "bedrock-runtime",
            endpoint_url=self.url,
            region_name=DEPLOYMENT.region,
            config=config,
            **credentials,  # type: ignore[arg-type]
        )

    def chat(self, **options: Any) -> ChatBedrockConverse:
        return ChatBedrockConverse(**{"model": CLAUDE, "client": self.client, "bedrock_client": self.client, **options})


@pytest.fixture
async def served(store: ValkeyKeyValueStore, openai: OpenAIProvider, bedrock: BedrockProvider) -> AsyncIterator[Served]:
    local = LocalProvider(context=1024)
    providers = {"demo": DemoProvider(local), "local": local, "openai": openai, "bedrock": bedrock}
    routes = ModelRoutes(parse_rules("gpt-*=openai bedrock-*=bedrock local=local us.*=demo"), providers)
    usage = KeyValueUsage(store)
    budget = SessionBudgets(store, SystemClock(), default=1_000_000)
    calls = ModelCalls(routes, usage, budget, SystemClock(), answer_seconds=20, gap_seconds=5, answer_tokens=1000)
    plane = GatewayPlane(calls)
    async with session_stack(store, [plane]) as stack:
        served = Served(stack, await stack.listen(SESSION), usage, None)
        served.client = served.client_with(await stack.credentials(SESSION, User("alice")))
        yield served
        served.client.close()
    await plane.close()


async def blocking(work: Callable[..., Result], *arguments: Any, **members: Any) -> Result:
    return await asyncio.to_thread(work, *arguments, **members)


async def test_boto3_converses_with_the_local_model(served: Served) -> None:
    messages = [says("What is a dog?")]
    client = served.client
    response = await blocking(
        client.converse, modelId="local", messages=messages, inferenceConfig={"maxTokens": 4, "temperature": 0}
    )
    assert response["stopReason"] == "max_tokens"
    assert response["usage"]["outputTokens"] == 4
    counted = await blocking(client.count_tokens, modelId="local", input={"converse": {"messages": messages}})
    assert counted["inputTokens"] == response["usage"]["inputTokens"]
    [record] = await served.usage.of_session(SESSION)
    assert (record.user_id, record.provider, record.output_tokens) == ("alice", "local", 4)


async def test_boto3_streams(served: Served) -> None:
    def stream() -> list[dict[str, Any]]:
        response = served.client.converse_stream(modelId=CLAUDE, messages=[says("My name is Alice. Order A-1001.")])
        return list(response["stream"])

    events = await blocking(stream)
    text = "".join(event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event)
    assert text == "Nice to meet you, Alice. I have noted your order A-1001. How can I help?"
    assert events[-1]["metadata"]["usage"]["outputTokens"] > 10
    [record] = await served.usage.of_session(SESSION)
    assert (record.model_id, record.estimated) == ("demo-planner", False)


async def test_events_come_as_the_provider_sends_them(served: Served, stand_in: StandIn) -> None:
    """Unbuffered: the first is there while the provider still holds the second back."""
    first = event("messageStart", b'{"role": "assistant"}')
    stand_in.streams(first, content_type="application/vnd.amazon.eventstream", hold=0.8)
    client = served.client

    def first_event() -> tuple[dict[str, Any], Any]:
        stream = client.converse_stream(modelId="bedrock-x", messages=[says("Hi")])["stream"]
        return next(iter(stream)), stream

    async with asyncio.timeout(0.7):
        received, stream = await blocking(first_event)
    assert received == {"messageStart": {"role": "assistant"}}
    stream.close()  # and a client that leaves is counted
    async with asyncio.timeout(3):
        while not (records := await served.usage.of_session(SESSION)):
            await asyncio.sleep(0.02)
    assert records[0].estimated


@pytest.mark.parametrize(
    ("model_id", "code"), [("nowhere", "ResourceNotFoundException"), ("gpt-1", "ThrottlingException")]
)
@pytest.mark.parametrize("operation", ["converse", "converse_stream"])
async def test_boto3_sees_the_models_errors(
    served: Served, stand_in: StandIn, model_id: str, code: str, operation: str
) -> None:
    stand_in.answers({"error": "slow down"}, 429)
    with pytest.raises(ClientError) as raised:
        await blocking(getattr(served.client, operation), modelId=model_id, messages=[says("Hi")])
    assert raised.value.response["Error"]["Code"] == code
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 429)


async def test_boto3_sees_an_error_midway(served: Served, stand_in: StandIn) -> None:
    frames = event("messageStart", b'{"role": "assistant"}')
    broken = event("throttlingException", b'{"message": "slow down"}', exception=True)
    stand_in.streams(frames, broken, content_type="application/vnd.amazon.eventstream")

    def stream() -> None:
        with closing(served.client.converse_stream(modelId="bedrock-x", messages=[says("Hi")])["stream"]) as events:
            list(events)

    with pytest.raises(EventStreamError, match="slow down") as raised:
        await blocking(stream)
    assert raised.value.response["Error"]["Code"] == "throttlingException"


async def test_boto3_invokes_bedrocks_models_natively(served: Served, stand_in: StandIn) -> None:
    stand_in.answers({"completion": "Hello"}, headers={"x-amzn-bedrock-input-token-count": "3"})
    response = await blocking(served.client.invoke_model, modelId="bedrock-x", body=b'{"prompt": "Hi"}')
    assert json.loads(response["body"].read()) == {"completion": "Hello"}
    with pytest.raises(ClientError, match="call Converse"):
        await blocking(served.client.invoke_model, modelId="gpt-1", body=b"{}")


async def test_a_session_cannot_call_with_another_sessions_listener(served: Served) -> None:
    """IDN-4: the key says who calls, and the socket has to agree."""
    other = SessionRef(SESSION.runtime_id, "session-2")
    client = served.client_with(await served.stack.credentials(other, User("bob")))
    with pytest.raises(ClientError) as raised:
        await blocking(client.converse, modelId=CLAUDE, messages=[says("What is my name?")])
    client.close()
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403)
    assert await served.usage.of_session(SESSION) == []


async def test_langchain_converses_and_streams(served: Served) -> None:
    chat = served.chat()
    thread = [("user", "My name is Alice and my order is A-1001."), ("assistant", "Noted."), ("user", "Which order?")]
    answer = await blocking(chat.invoke, thread)
    assert answer.text == "Your order number is A-1001."
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 5

    def stream() -> list[AIMessageChunk]:
        return list(chat.stream(thread))  # type: ignore[arg-type]

    chunks = await blocking(stream)
    assert len([chunk for chunk in chunks if chunk.text]) > 3
    assert "".join(chunk.text for chunk in chunks) == answer.text


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@pytest.mark.parametrize("streaming", [False, True])
async def test_langchains_tools_on_an_openai_compatible_server(
    served: Served, stand_in: StandIn, streaming: bool
) -> None:
    """Converse's tool use, there and back, with a client that knows nothing of chat completions."""
    call = {
        "id": "call_1",
        "index": 0,
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 5}
    if streaming:
        chunks = [
            {"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": None}]},
            {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
            {"choices": [], "usage": usage},
        ]
        pieces = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
        stand_in.streams(*pieces, content_type="text/event-stream")
    else:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        stand_in.answers({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage})
    chat = served.chat(model="gpt-oss", provider="openai", disable_streaming=not streaming).bind_tools([weather])

    def answer() -> Any:
        if not streaming:
            return chat.invoke("Weather in Rome?")
        first, *rest = list(chat.stream("Weather in Rome?"))
        for chunk in rest:
            first += chunk
        return first

    called = await blocking(answer)
    assert [(use["name"], use["args"]) for use in called.tool_calls] == [("weather", {"city": "Rome"})]
    assert called.usage_metadata["input_tokens"] == 20
    result = ToolMessage(weather.invoke({"city": "Rome"}), tool_call_id=called.tool_calls[0]["id"])
    stand_in.answers({"choices": [{"message": {"content": "Sunny."}, "finish_reason": "stop"}], "usage": usage})
    final = await blocking(chat.bind(disable_streaming=True).invoke, [("user", "Weather in Rome?"), called, result])
    assert final.text == "Sunny."
    assert stand_in.asked[-1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny in Rome"},
    ]
    assert stand_in.asked[0]["tools"][0]["function"]["name"] == "weather"
