"""Any server that speaks OpenAI's `/embeddings`: OpenAI, vLLM, llama.cpp, Ollama, LiteLLM, a bank's own gateway."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import aiohttp

from agentkeep.storage.embedding import EmbeddingUnavailable
from agentkeep.storage.embedding_remote import EmbeddingRefused, TryAgain

__all__ = ["OpenAIEmbeddings"]

_CONNECT_SECONDS: Final = 5.0
#: Below the five seconds after which common servers (uvicorn) close an idle connection.
_KEEP_ALIVE_SECONDS: Final = 4.0
#: A batch of 64 vectors of 4,096 numbers as text is some 6 MB.
_MAX_ANSWER_BYTES: Final = 25_000_000
_TOO_LONG: Final = {400, 413, 422}
_BUSY: Final = {408, 409, 425, 429}


class OpenAIEmbeddings:
    """`url`: the API's base (`https://host/v1`). `dimensions`: asked for, where the model leaves a choice; None: not
    mentioned, as most other servers want it. `time_limit`: seconds, of one request."""

    batch = 64
    at_once = 4

    def __init__(
        self, url: str, model: str, *, api_key: str = "", dimensions: int | None = None, time_limit: float = 30.0
    ) -> None:
        self._url = f"{url.rstrip('/')}/embeddings"
        self._body: dict[str, Any] = {"model": model, "encoding_format": "float"}
        if dimensions is not None:
            self._body["dimensions"] = dimensions
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=time_limit, sock_connect=_CONNECT_SECONDS)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        try:
            async with self._client().post(
                self._url, json={**self._body, "input": list(texts)}, allow_redirects=False
            ) as response:
                data = b""
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > _MAX_ANSWER_BYTES:
                        raise EmbeddingUnavailable("the embeddings server's answer is too long")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TryAgain(f"the embeddings server cannot be reached or broke off ({type(error).__name__})") from None
        if response.status == 200:
            return _vectors(data)
        raise _failure(response)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(keepalive_timeout=_KEEP_ALIVE_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=self._headers)
        return self._session


def _failure(response: aiohttp.ClientResponse) -> Exception:
    """By its status alone: what it says may repeat the texts."""
    status = response.status
    if status in _TOO_LONG:
        return EmbeddingRefused(f"the embeddings server answers {status}")
    if status in _BUSY or status >= 500:
        after = response.headers.get("Retry-After", "")
        seconds = float(after) if after.isdecimal() else None
        return TryAgain(f"the embeddings server answers {status}", seconds)
    if status in (401, 403):
        return EmbeddingUnavailable(
            f"the embeddings server refuses the key ({status}): set AGENTKEEP_MEMORY_EMBEDDING_KEY right"
        )
    if status == 404:
        return EmbeddingUnavailable(
            "the embeddings server knows no such address or model (404): see AGENTKEEP_MEMORY_EMBEDDING_URL and _MODEL"
        )
    return EmbeddingUnavailable(f"the embeddings server answers {status}")


def _vectors(data: bytes) -> Sequence[Sequence[float]]:
    try:
        found = sorted(json.loads(data)["data"], key=lambda one: one["index"])
        return [[float(number) for number in one["embedding"]] for one in found]
    except (ValueError, TypeError, KeyError):
        raise EmbeddingUnavailable("the embeddings server answers with something that is no list of vectors") from None
