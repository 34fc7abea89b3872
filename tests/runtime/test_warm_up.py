"""The warm-up hook: run when a version is made, and in every environment before its first turn."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from aiohttp import web

from agentkeep.core.errors import EnvironmentStartFailed, RuntimeClientError, ValidationException
from agentkeep.runtime.environments.warm_pool_sizes import WARM_POOL_TAG
from agentkeep.runtime.environments.warm_up import WarmUp
from agentkeep.runtime.invocations.headers import SESSION_HEADER


def hook(path: str = "/warm", **more: Any) -> dict[str, Any]:
    return {"hooksConfiguration": {"build": {"warmup": {"action": {"httpPost": {"path": path, **more}}}}}}


def paths(agent: Any) -> list[str]:
    return [request["path"] for request in agent.requests]


async def answers(status: int, agent: Any, request: web.Request) -> web.Response:
    return web.Response(status=status if request.path == "/warm" else 200, text=request.path)


async def _create(platform: Any, status: str = "READY", **settings: Any) -> str:
    await platform.upload()
    definition = platform.definition(**settings)
    made = await platform.call("create_agent_runtime", agentRuntimeName="warmed", **definition)
    await platform.ready(made["agentRuntimeId"], status)
    return str(made["agentRuntimeId"])


async def test_it_runs_before_the_first_turn_for_nobody(platform: Any) -> None:
    runtime_id = await _create(platform, **hook())
    (tried,) = platform.driver.agents
    assert (paths(tried), tried.is_gone) == (["/warm"], True)
    turn = await platform.begin(runtime_id, str(uuid.uuid4()), user_id="alice")
    turn.end()
    agent = platform.driver.agents[-1]
    assert agent.id == turn.environment_id
    (request,) = agent.requests
    assert request["path"] == "/warm"
    assert request["body"] == b""
    names = {name.lower() for name in request["headers"]}
    assert not names & {SESSION_HEADER.lower(), "authorization", "workloadaccesstoken"}
    assert not any(name.startswith("x-amzn-") for name in names)


async def test_in_a_pool_it_runs_ahead(platform: Any) -> None:
    runtime_id = await _create(platform, tags={WARM_POOL_TAG: "1"}, **hook())
    async with asyncio.timeout(10):
        while not platform.plane._parts.warm_pools.describe(runtime_id)[0:1] or not platform.driver.living:
            await asyncio.sleep(0.005)
        while not paths(platform.driver.living[0]):
            await asyncio.sleep(0.005)
    waiting = platform.driver.living[0]
    await platform.clock.move(6)
    turn = await platform.begin(runtime_id, str(uuid.uuid4()))
    turn.end()
    assert turn.environment_id == waiting.id
    assert paths(waiting) == ["/warm"]


async def test_one_that_fails_fails_the_version(platform: Any) -> None:
    platform.driver.behaviour.answer = lambda agent, request: answers(503, agent, request)
    runtime_id = await _create(platform, "CREATE_FAILED", **hook())
    found = await platform.call("get_agent_runtime", agentRuntimeId=runtime_id)
    assert "warm-up hook (POST /warm, port 8080) answered 503" in found["failureReason"]
    assert not platform.driver.living


async def test_one_that_fails_later_fails_the_start(platform: Any) -> None:
    runtime_id = await _create(platform, **hook())
    platform.driver.behaviour.answer = lambda agent, request: answers(500, agent, request)
    with pytest.raises(RuntimeClientError, match=r"warm-up hook \(POST /warm, port 8080\) answered 500"):
        await platform.begin(runtime_id, str(uuid.uuid4()))
    async with asyncio.timeout(5):
        while platform.driver.living:
            await asyncio.sleep(0.005)


async def test_one_that_does_not_answer_in_time(platform: Any) -> None:
    async def never(agent: Any, request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    platform.driver.behaviour.answer = never
    await platform.begin(await platform.create(), str(uuid.uuid4()))
    with pytest.raises(EnvironmentStartFailed, match=r"did not answer within 0\.1 seconds"):
        await WarmUp("/warm", 8080).run(platform.driver.agents[0], timeout=0.1)


@pytest.mark.parametrize("wrong", ["warm", "/" + "w" * 32, "/w?x=1", "/w m", "/invocations", "/ping"])
async def test_a_path_that_is_none_or_taken_is_refused(platform: Any, wrong: str) -> None:
    with pytest.raises(ValidationException, match="httpPost"):
        await platform.create(**hook(wrong))


async def test_another_port_may_serve_the_same_path(platform: Any) -> None:
    await platform.create(**hook("/invocations", port=9090))
