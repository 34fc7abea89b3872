"""Fixtures: providers, each in front of a stand-in for its server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from model_stand_ins import StandIn

from agentkeep.gateway.models.bedrock import BedrockProvider, bedrock_client
from agentkeep.gateway.models.chat_completions import Dialect
from agentkeep.gateway.models.openai import OpenAIProvider


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    stand_in = StandIn()
    application = web.Application(client_max_size=50_000_000)
    application.router.add_route("*", "/{path:.*}", stand_in.handle)
    server = TestServer(application)
    await server.start_server()
    stand_in.url = f"http://127.0.0.1:{server.port}"
    yield stand_in
    await server.close()


@pytest.fixture
async def openai(stand_in: StandIn) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(f"{stand_in.url}/v1", dialect=Dialect("openai"), api_key="key-1", answer_seconds=1)
    yield provider
    await provider.close()


@pytest.fixture
async def bedrock(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BedrockProvider]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDPLATFORM")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    # As after `agentkeep env`: following it would call this platform again.
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "http://127.0.0.1:1")
    client = bedrock_client(region="us-east-1", endpoint_url=stand_in.url, answer_seconds=1)
    provider = BedrockProvider(client)
    yield provider
    await provider.close()
