"""Embedding models that are asked over a network: real clients against a stand-in with the services' wires."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from model_stand_ins import StandIn

from agentkeep.storage import embedding_remote
from agentkeep.storage.embedding import EmbeddingUnavailable
from agentkeep.storage.embedding_bedrock import BedrockEmbeddings
from agentkeep.storage.embedding_openai import OpenAIEmbeddings
from agentkeep.storage.embedding_remote import RemoteEmbedder

TITAN = "amazon.titan-embed-text-v2:0"
COHERE = "cohere.embed-english-v3"


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


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(embedding_remote, "LONGEST_PAUSE", 0.02)


@pytest.fixture
async def openai(stand_in: StandIn) -> AsyncIterator[RemoteEmbedder]:
    service = OpenAIEmbeddings(f"{stand_in.url}/v1/", "small", api_key="sk-secret", dimensions=2, time_limit=5)
    embedder = RemoteEmbedder("openai/small", 2, service)
    yield embedder
    await embedder.close()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDPLATFORM")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    # As after `agentkeep env`: following it would call this platform.
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "http://127.0.0.1:1")


def bedrock(stand_in: StandIn, model: str) -> RemoteEmbedder:
    service = BedrockEmbeddings(model, dimensions=2, region="eu-west-1", endpoint_url=stand_in.url, time_limit=5)
    return RemoteEmbedder(f"bedrock/{model}", 2, service)


def by_length(stand_in: StandIn, longest: int = 10**9) -> None:
    """As OpenAI answers, in another order than asked: each vector tells its text's length. Longer texts are refused."""

    async def answer(request: web.Request) -> web.StreamResponse:
        texts = stand_in.asked[-1]["input"]
        if any(len(text) > longest for text in texts):
            return web.json_response({"error": {"message": f"too long: {texts}"}}, status=400)
        data = [{"index": index, "embedding": [1, len(text)]} for index, text in enumerate(texts)]
        return web.json_response({"object": "list", "data": data[::-1]})

    stand_in.answer = answer


def lengths(vectors: list[Any]) -> list[int]:
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    return [round(float(vector[1] / vector[0])) for vector in vectors]


async def test_openai(openai: RemoteEmbedder, stand_in: StandIn) -> None:
    by_length(stand_in)
    assert lengths(await openai.embed(["four", "sixsix"])) == [4, 6]
    assert stand_in.asked == [
        {"model": "small", "encoding_format": "float", "dimensions": 2, "input": ["four", "sixsix"]}
    ]
    [sent] = stand_in.requests
    assert sent.path == "/v1/embeddings"
    assert sent.headers["Authorization"] == "Bearer sk-secret"


async def test_many_texts_are_several_requests(openai: RemoteEmbedder, stand_in: StandIn) -> None:
    by_length(stand_in)
    texts = ["x" * (1 + number % 7) for number in range(150)]
    assert lengths(await openai.embed(texts)) == list(map(len, texts))
    assert sorted(len(asked["input"]) for asked in stand_in.asked) == [22, 64, 64]
    assert await openai.embed([]) == []


async def test_of_a_long_text_the_beginning(openai: RemoteEmbedder, stand_in: StandIn) -> None:
    """Halved until the model takes it; and what is embedded beside it is as it would be alone."""
    by_length(stand_in, longest=3000)
    assert lengths(await openai.embed(["four", "x" * 10_000, ""])) == [4, 2500, 1]
    by_length(stand_in)
    assert lengths(await openai.embed(["x" * 50_000])) == [20_000]
    by_length(stand_in, longest=2)
    with pytest.raises(EmbeddingUnavailable, match="openai/small does not take a text of 4 characters") as failed:
        await openai.embed(["four"])
    assert "too long: " not in str(failed.value)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_tries_again(openai: RemoteEmbedder, stand_in: StandIn, status: int) -> None:
    by_length(stand_in)
    good = stand_in.answer

    async def twice_busy(request: web.Request) -> web.StreamResponse:
        if len(stand_in.asked) < 3:
            return web.json_response({}, status=status, headers={"Retry-After": "0"})
        return await good(request)

    stand_in.answer = twice_busy
    assert lengths(await openai.embed(["four"])) == [4]
    stand_in.answers({}, status=status)
    with pytest.raises(EmbeddingUnavailable, match=f"openai/small does not answer: .* answers {status}"):
        await openai.embed(["four"])


async def test_what_does_not_answer_in_time(stand_in: StandIn) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    stand_in.answer = never
    embedder = RemoteEmbedder("openai/small", 2, OpenAIEmbeddings(stand_in.url, "small", time_limit=0.05))
    with pytest.raises(EmbeddingUnavailable, match="does not answer"):
        await embedder.embed(["four"])
    await embedder.close()
    away = RemoteEmbedder("openai/small", 2, OpenAIEmbeddings("http://127.0.0.1:9", "small"))
    with pytest.raises(EmbeddingUnavailable, match="cannot be reached"):
        await away.embed(["four"])
    await away.close()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, {}, "AGENTKEEP_MEMORY_EMBEDDING_KEY"),
        (404, {}, "AGENTKEEP_MEMORY_EMBEDDING_URL"),
        (302, {}, "answers 302"),
        (
            200,
            {"data": [{"index": 0, "embedding": [1, 2, 3]}]},
            "3 numbers and not 2: set AGENTKEEP_MEMORY",
        ),
        (200, {"data": [{"index": 0, "embedding": [0, 0]}]}, "no direction"),
        (200, {"data": []}, "0 vectors for 1 texts"),
        (200, {"data": [{"embedding": "AAAA"}]}, "no list of vectors"),
        (200, ["nonsense"], "no list of vectors"),
    ],
)
async def test_says_what_is_wrong(openai: RemoteEmbedder, stand_in: StandIn, status: int, body: Any, says: str) -> None:
    stand_in.answers(body, status=status)
    with pytest.raises(EmbeddingUnavailable, match=says) as failed:
        await openai.embed(["a user's words"])
    assert len(stand_in.asked) == 1
    assert "user" not in str(failed.value)
    assert "sk-secret" not in str(failed.value)


@pytest.mark.usefixtures("aws")
async def test_titan(stand_in: StandIn) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        text = (await request.json())["inputText"]
        if len(text) > 6000:
            headers = {"x-amzn-errortype": "ValidationException"}
            return web.json_response({"message": "Too many input tokens"}, status=400, headers=headers)
        return web.json_response({"embedding": [1, len(text)], "inputTextTokenCount": 3})

    stand_in.answer = answer
    embedder = bedrock(stand_in, TITAN)
    assert lengths(await embedder.embed(["four", "sixsix", "x" * 10_000])) == [4, 6, 5000]
    assert {"inputText": "four", "dimensions": 2, "normalize": True} in stand_in.asked
    assert stand_in.requests[0].raw_path == f"/model/{TITAN.replace(':', '%3A')}/invoke"
    assert "AKIDPLATFORM/" in stand_in.requests[0].headers["authorization"]
    assert embedder.name == f"bedrock/{TITAN}"
    await embedder.close()


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("by_type", [False, True])
async def test_cohere(stand_in: StandIn, by_type: bool) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        vectors = [[1, len(text)] for text in (await request.json())["texts"]]
        return web.json_response({"embeddings": {"float": vectors} if by_type else vectors})

    stand_in.answer = answer
    embedder = bedrock(stand_in, COHERE)
    texts = ["x" * (1 + number % 5) for number in range(97)]
    assert lengths(await embedder.embed(texts)) == list(map(len, texts))
    assert [len(asked["texts"]) for asked in stand_in.asked] in ([96, 1], [1, 96])
    assert lengths(await embedder.embed(["x" * 5000])) == [2048]
    await embedder.close()


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("status", "code", "asked", "says"),
    [
        (429, "ThrottlingException", 3, "ThrottlingException"),
        (503, "ServiceUnavailableException", 3, "ServiceUnavailableException"),
        (403, "AccessDeniedException", 1, "AGENTKEEP_MEMORY_EMBEDDING_MODEL and the platform's credentials"),
    ],
)
async def test_bedrock_refuses(stand_in: StandIn, status: int, code: str, asked: int, says: str) -> None:
    stand_in.answers({"message": "about a user's words"}, status=status, headers={"x-amzn-errortype": code})
    embedder = bedrock(stand_in, TITAN)
    with pytest.raises(EmbeddingUnavailable, match=says) as failed:
        await embedder.embed(["four"])
    assert len(stand_in.asked) == asked
    assert "words" not in str(failed.value)
    await embedder.close()


@pytest.mark.usefixtures("aws")
async def test_bedrock_with_another_answer(stand_in: StandIn) -> None:
    embedder = bedrock(stand_in, TITAN)
    for body, says in (({"nothing": 1}, "no vector"), ({"embedding": [1, 2, 3]}, "3 numbers and not 2")):
        stand_in.answers(json.loads(json.dumps(body)))
        with pytest.raises(EmbeddingUnavailable, match=says):
            await embedder.embed(["four"])
    await embedder.close()
