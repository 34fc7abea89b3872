"""The real local model, in its real process: tokens, streams, counts, limits, and its end."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from model_stand_ins import says

from agentkeep.core.errors import ThrottlingException, ValidationException
from agentkeep.gateway.models.demo import PLANNER, DemoProvider
from agentkeep.gateway.models.local import LOCAL_MODEL, LocalProvider
from agentkeep.gateway.models.provider import Document, TokenCounts

LONG = {"messages": [says("Tell me a long story.")], "inferenceConfig": {"maxTokens": 2000}}


@pytest.fixture(scope="module")
async def local() -> AsyncIterator[LocalProvider]:
    provider = LocalProvider(context=1024, queue=1)
    yield provider
    await provider.close()


def short(text: str) -> Document:
    return {"messages": [says(text)], "inferenceConfig": {"maxTokens": 5, "temperature": 0.0}}


async def test_answers_with_its_own_counts_and_name(local: LocalProvider) -> None:
    answer = await local.converse("us.anthropic.claude", short("What is a dog?"))
    assert answer.model == LOCAL_MODEL
    assert answer.document["stopReason"] == "max_tokens"
    assert answer.tokens is not None
    assert answer.tokens.output == 5
    assert answer.tokens.input == await local.count_tokens("x", {"converse": short("What is a dog?")})
    assert answer.document["output"]["message"]["content"][0]["text"]


async def test_streams_token_by_token(local: LocalProvider) -> None:
    events = await local.converse_stream("x", short("What is a dog?"))
    received = [event async for event in events]
    await events.aclose()
    assert len([event for event in received if "contentBlockDelta" in event]) >= 4
    assert received[-1]["metadata"]["usage"]["outputTokens"] == 5


async def test_counts_more_tokens_for_more_text(local: LocalProvider) -> None:
    one = await local.count_tokens("x", {"converse": {"messages": [says("tea")]}})
    more = await local.count_tokens("x", {"converse": {"messages": [says("tea with milk and sugar")]}})
    assert 0 < one < more
    with pytest.raises(ValidationException, match="converse"):
        await local.count_tokens("x", {"invokeModel": {"body": b"{}"}})


async def test_what_does_not_fit_is_refused(local: LocalProvider) -> None:
    with pytest.raises(ValidationException, match="context"):
        await local.converse("x", {"messages": [says("word " * 1100)]})


async def test_tools_it_cannot_use(local: LocalProvider) -> None:
    tools = {"tools": [{"toolSpec": {"name": "weather", "inputSchema": {"json": {}}}}]}
    history = [
        says("weather?"),
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t", "name": "weather", "input": {}}}]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "t", "content": [{"text": "sunny"}]}}]},
    ]
    answer = await local.converse("x", {**short("-"), "messages": history, "toolConfig": tools})
    assert answer.document["stopReason"] in ("end_turn", "max_tokens")
    with pytest.raises(ValidationException, match="toolChoice"):
        await local.converse("x", {**short("-"), "toolConfig": {**tools, "toolChoice": {"any": {}}}})


async def test_one_call_at_a_time_and_a_bounded_queue(local: LocalProvider) -> None:
    running = await local.converse_stream("x", LONG)
    await anext(running)
    waiting = asyncio.create_task(local.converse("x", short("Hi")))
    while not local._waiting:
        await asyncio.sleep(0.01)
    with pytest.raises(ThrottlingException, match="one call at a time"):
        await local.converse("x", short("Hi"))
    assert not waiting.done()
    await running.aclose()  # leaving ends the computing, and the next one's turn comes
    async with asyncio.timeout(60):
        assert (await waiting).tokens is not None


async def test_nobody_else_reaches_it(local: LocalProvider) -> None:
    """IDN-5: no open port, and nothing of the platform's environment in its process."""
    await local.count_text("start")
    assert local._process is not None
    assert local._folder is not None
    process = psutil.Process(local._process.pid)
    assert {connection.family.name for connection in process.net_connections("all")} == {"AF_UNIX"}
    assert stat.S_IMODE(local._folder.stat().st_mode) == 0o700
    assert set(process.environ()) <= {"LC_CTYPE"}
    assert process.nice() > psutil.Process().nice()


@pytest.mark.slow
async def test_ends_with_the_platform_however_that_ends(local: LocalProvider) -> None:
    await local.count_text("start")
    process, folder = local._process, local._folder
    assert process is not None
    assert folder is not None
    # What the kernel does when the platform is killed: its end of the pipe closes.
    assert process.stdin is not None
    process.stdin.close()
    async with asyncio.timeout(5):
        await process.wait()
    assert not folder.exists()
    # And a model that is gone, for whatever reason, is started again.
    assert await local.count_text("again") > 0
    assert local._process is not None
    os.kill(local._process.pid, 9)
    await local._process.wait()
    assert (await local.converse("x", short("Hi"))).tokens is not None


async def test_leaves_nothing_behind() -> None:
    provider = LocalProvider(context=512)
    await provider.count_text("start")
    assert provider._process is not None
    pid, folder = provider._process.pid, provider._folder
    await provider.close()
    await provider.close()
    assert not psutil.pid_exists(pid)
    assert not Path(str(folder)).exists()


async def test_the_planner_says_that_it_is_one(local: LocalProvider) -> None:
    demo = DemoProvider(local)
    request = {"messages": [says("My name is Alice and my order is A-1001.")]}
    answer = await demo.converse("us.anthropic.claude", request)
    text = answer.document["output"]["message"]["content"][0]["text"]
    assert "Alice" in text
    assert "A-1001" in text
    assert answer.model == PLANNER
    assert answer.document["additionalModelResponseFields"]["agentkeep"]["languageModel"] is False
    # Its counts are the real tokenizer's.
    sent = await local.count_tokens("x", {"converse": request})
    assert answer.tokens == TokenCounts(sent, await local.count_text(text))

    events = await demo.converse_stream("us.anthropic.claude", request)
    received = [event async for event in events]
    await events.aclose()
    deltas = [event["contentBlockDelta"]["delta"]["text"] for event in received if "contentBlockDelta" in event]
    assert len(deltas) > 5
    assert "".join(deltas) == text
    assert received[-2]["messageStop"]["additionalModelResponseFields"]["agentkeep"]["answeredBy"] == PLANNER
    assert received[-1]["metadata"]["usage"] == answer.tokens.usage()


async def test_what_the_planner_has_no_rule_for_the_model_answers(local: LocalProvider) -> None:
    demo = DemoProvider(local)
    assert (await demo.converse("x", short("What is a dog?"))).model == LOCAL_MODEL
    events = await demo.converse_stream("x", short("What is a dog?"))
    assert events.model == LOCAL_MODEL
    await events.aclose()
