"""Any server that speaks OpenAI's chat completions: OpenAI, vLLM, llama.cpp, Ollama, LiteLLM, a bank's own gateway."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp

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
from agentkeep.gateway.models.chat_completions import (
    Dialect,
    request_body,
    response_document,
    stream_events,
    tokens_of,
)
from agentkeep.gateway.models.provider import Answer, Document, Events, Request

__all__ = ["OpenAIProvider"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
#: Below the five seconds after which common servers (uvicorn) close an idle connection.
KEEP_ALIVE_SECONDS = 4.0
#: An answer, or one event of a stream, longer than this is refused rather than held in memory.
MAX_ANSWER_BYTES = 25_000_000
MAX_EVENT_BYTES = 1_000_000
#: How much of a provider's error message is passed on.
MAX_MESSAGE = 500


class OpenAIProvider:
    """`url` is the API's base (`https://host/v1`). `connector` makes the client's connections (a Unix socket's)."""

    def __init__(
        self,
        url: str,
        *,
        dialect: Dialect,
        api_key: str | None = None,
        answer_seconds: float = 300,
        connector: aiohttp.BaseConnector | None = None,
    ) -> None:
        self.name = dialect.provider
        self._url = url.rstrip("/")
        self._dialect = dialect
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=answer_seconds)
        self._connector = connector
        self._session: aiohttp.ClientSession | None = None

    async def converse(self, model: str, request: Request) -> Answer:
        began = time.monotonic()
        body = request_body(model, request, self._dialect, stream=False)
        completion = await self.post("/chat/completions", body)
        document = response_document(completion, (time.monotonic() - began) * 1000)
        return Answer(document, _model(completion, model), tokens_of(completion))

    async def converse_stream(self, model: str, request: Request) -> Events:
        began = time.monotonic()
        body = request_body(model, request, self._dialect, stream=True)
        with self._translated():
            response = await self._open("/chat/completions", body)
        events = stream_events(self._chunks(response), lambda: (time.monotonic() - began) * 1000)

        async def close() -> None:
            response.close()

        return Events(model, events, close)

    async def post(self, path: str, body: Document) -> Document:
        """One JSON exchange; errors as bedrock-runtime has them."""
        with self._translated():
            async with await self._open(path, body) as response:
                data = await response.content.read(MAX_ANSWER_BYTES + 1)
                while len(data) <= MAX_ANSWER_BYTES and not response.content.at_eof():
                    data += await response.content.read(MAX_ANSWER_BYTES + 1 - len(data))
        try:
            document = json.loads(data) if len(data) <= MAX_ANSWER_BYTES else None
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise ModelErrorException(f"Provider {self.name!r} answered with something that is not a JSON object.")
        return document

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _open(self, path: str, body: Document) -> aiohttp.ClientResponse:
        if self._session is None:
            connector = self._connector or aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=self._headers)
        try:
            response = await self._session.post(self._url + path, json=body, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # A kept connection that the server had closed meanwhile; the second try is made on another.
            response = await self._session.post(self._url + path, json=body, allow_redirects=False)
        if response.status == 200:
            return response
        async with response:
            raise self._refusal(response.status, await response.content.read(64_000))

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[Mapping[str, Any], None]:
        """The JSON of each server-sent event until `[DONE]`."""
        buffer = b""
        try:
            with self._translated(stream=True):
                async for piece in response.content.iter_any():
                    buffer += piece
                    *lines, buffer = buffer.split(b"\n")
                    if len(buffer) > MAX_EVENT_BYTES:
                        raise ModelStreamErrorException(f"Provider {self.name!r} sent an event without an end.")
                    for line in lines:
                        data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                        if data == b"[DONE]":
                            return
                        if data:
                            yield json.loads(data)
        except ValueError:
            raise ModelStreamErrorException(f"Provider {self.name!r} sent an event that is not JSON.") from None
        finally:
            response.close()

    def _refusal(self, status: int, body: bytes) -> ServiceError:
        message = _error_message(body)
        match status:
            case 400 | 413 | 422:
                return ValidationException(f"Provider {self.name!r} refused the request: {message}")
            case 401 | 403:
                # The platform's credentials, not the caller's; what the provider says of them stays here.
                logger.error("provider %s refused the platform's credentials: %s %s", self.name, status, message)
                return AccessDeniedException(
                    f"Provider {self.name!r} refused the platform's credentials; an operator must set them right."
                )
            case 404:
                return ResourceNotFoundException(f"Provider {self.name!r} does not know the model: {message}")
            case 408 | 504:
                return ModelTimeoutException(f"Provider {self.name!r} took too long: {message}")
            case 429:
                return ThrottlingException(f"Provider {self.name!r} is at its limit: {message}")
            case 503 if b"oading model" in body:
                return ModelNotReadyException(f"Provider {self.name!r} is loading the model; try again shortly.")
            case 503:
                return ServiceUnavailableException(f"Provider {self.name!r} is unavailable: {message}")
        logger.warning("provider %s answered %s: %s", self.name, status, message)
        return ModelErrorException(f"Provider {self.name!r} failed with status {status}.")

    @contextmanager
    def _translated(self, *, stream: bool = False) -> Iterator[None]:
        """Turns the client library's exceptions into the model's."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError as error:
            raise ServiceUnavailableException(f"Provider {self.name!r} cannot be reached.") from error
        except TimeoutError as error:
            raise ModelTimeoutException(f"Provider {self.name!r} took too long to answer.") from error
        except aiohttp.ClientConnectorError as error:
            raise ServiceUnavailableException(f"Provider {self.name!r} cannot be reached.") from error
        except aiohttp.ClientError as error:
            failure = ModelStreamErrorException if stream else ModelErrorException
            raise failure(f"Provider {self.name!r} broke off its answer.") from error


def _model(completion: Mapping[str, Any], asked: str) -> str:
    """The model that answered, where the server says so by something other than a file's path."""
    name = completion.get("model")
    return name if isinstance(name, str) and name and not name.startswith("/") else asked


def _error_message(body: bytes) -> str:
    try:
        error = json.loads(body)
        error = error.get("error", error)
        text = str(error.get("message") or error) if isinstance(error, Mapping) else str(error)
    except (ValueError, AttributeError):
        text = body.decode("utf-8", "replace")
    return text[:MAX_MESSAGE] or "it says no more"
