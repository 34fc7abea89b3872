"""Amazon Bedrock, through boto3 with the platform's own credentials.

boto3 blocks, so every call of it runs in a thread. A stream is pulled: one thread hop per event, none read ahead, so
a reader that stalls holds the provider back rather than filling memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import boto3
import urllib3.exceptions
from botocore.config import Config
from botocore.eventstream import ParserError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    ConnectTimeoutError,
    EndpointConnectionError,
    EventStreamError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ReadTimeoutError,
)

from agentkeep.core.errors import (
    AccessDeniedException,
    ModelErrorException,
    ModelNotReadyException,
    ModelStreamErrorException,
    ModelTimeoutException,
    ResourceNotFoundException,
    ServiceError,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
    ThrottlingException,
    ValidationException,
)
from agentkeep.gateway.models.provider import Answer, Document, Events, Request, TokenCounts
from agentkeep.gateway.models.references import refuse_references

__all__ = ["BedrockProvider"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

CONNECT_SECONDS = 5.0

#: boto3's name for an event that is newer than its service model, and so unknown to this platform's clients too.
UNKNOWN_EVENT = "SDK_UNKNOWN_MEMBER"

#: What Bedrock may say to the caller as it is. All else is about the platform's account and stays in the log.
PASSED_ON: dict[str, type[ServiceError]] = {
    kind.__name__.removesuffix("Exception").lower(): kind
    for kind in (
        ModelErrorException,
        ModelNotReadyException,
        ModelStreamErrorException,
        ModelTimeoutException,
        ResourceNotFoundException,
        ServiceQuotaExceededException,
        ServiceUnavailableException,
        ThrottlingException,
        ValidationException,
    )
}


class BedrockProvider:
    """`client` is boto3's for bedrock-runtime (see `bedrock_client`). `concurrency`: calls at once, each a thread
    while it waits for Bedrock."""

    name = "bedrock"

    def __init__(self, client: Any, *, concurrency: int = 64) -> None:
        self._client = client
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="bedrock")

    async def converse(self, model: str, request: Request) -> Answer:
        document = await self._call("converse", model, request)
        return Answer(document, model, TokenCounts.of_usage(document["usage"]))

    async def converse_stream(self, model: str, request: Request) -> Events:
        return await self._stream("converse_stream", "stream", model, request)

    async def invoke_model(self, model: str, request: Request) -> Answer:
        return await self._thread(partial(self._invoke_model, model, request))

    async def invoke_model_with_response_stream(self, model: str, request: Request) -> Events:
        return await self._stream("invoke_model_with_response_stream", "body", model, request)

    async def count_tokens(self, model: str, input: Document) -> int:
        return int((await self._call("count_tokens", model, {"input": input}))["inputTokens"])

    async def apply_guardrail(self, request: Request) -> Document:
        return _document(await self._thread(partial(self._client.apply_guardrail, **request)))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _invoke_model(self, model: str, request: Request) -> Answer:
        refuse_references(request)
        response = self._client.invoke_model(**{**request, "modelId": model})
        counts = response["ResponseMetadata"]["HTTPHeaders"]
        document = _document(response)
        document["body"] = response["body"].read()
        return Answer(document, model, _counted_in(counts))

    async def _call(self, operation: str, model: str, request: Request) -> Document:
        method = getattr(self._client, operation)

        def call() -> Any:
            refuse_references(request)
            return method(**{**request, "modelId": model})

        return _document(await self._thread(call))

    async def _stream(self, operation: str, member: str, model: str, request: Request) -> Events:
        response = await self._call(operation, model, request)
        stream = response.pop(member)

        async def close() -> None:
            await asyncio.shield(self._thread(partial(_end, stream)))

        return Events(model, self._pull(iter(stream)), close, response)

    async def _pull(self, stream: Iterator[Document]) -> AsyncGenerator[Document, None]:
        while True:
            event = await self._thread(partial(next, stream, None))
            if event is None:
                return
            if UNKNOWN_EVENT not in event:
                yield event

    async def _thread(self, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except (ClientError, BotoCoreError, urllib3.exceptions.HTTPError, ParserError, OSError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> ServiceError:
        match error:
            case ClientError():
                return self._refusal(error)
            case NoCredentialsError() | PartialCredentialsError():
                logger.error("no credentials for Amazon Bedrock: %s", error)
                return AccessDeniedException(
                    "The platform has no credentials for Amazon Bedrock; an operator must configure them "
                    "(AGENTKEEP_GATEWAY_BEDROCK_PROFILE, or the default chain of boto3)."
                )
            case ParamValidationError():
                return ValidationException(str(error))
            case ReadTimeoutError() | urllib3.exceptions.ReadTimeoutError():
                return ModelTimeoutException("Amazon Bedrock took too long to answer.")
            case ConnectTimeoutError() | EndpointConnectionError() | ConnectionError():
                return ServiceUnavailableException("Amazon Bedrock cannot be reached.")
            # What reads a stream lets urllib3's own errors through.
            case HTTPClientError() | urllib3.exceptions.HTTPError() | ParserError() | OSError():
                return ModelStreamErrorException("Amazon Bedrock broke off its answer.")
        logger.error("call of Amazon Bedrock failed", exc_info=error)
        return ModelErrorException("The call of Amazon Bedrock failed.")

    def _refusal(self, error: ClientError) -> ServiceError:
        details = error.response.get("Error", {})
        code, message = str(details.get("Code", "")), str(details.get("Message", ""))
        # In a stream the code is the event's name: `throttlingException`.
        kind = PASSED_ON.get(code.removesuffix("Exception").lower())
        if kind is not None:
            return kind(message)
        logger.error("Amazon Bedrock refused with %s: %s", code, message)
        if isinstance(error, EventStreamError):
            return ModelStreamErrorException("Amazon Bedrock failed midway.")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        if status >= 500:
            return ServiceUnavailableException("Amazon Bedrock failed; try again.")
        return AccessDeniedException(
            f"Amazon Bedrock refused the platform's credentials ({code}); an operator must set them right."
        )


def bedrock_client(
    *,
    region: str | None = None,
    profile: str | None = None,
    endpoint_url: str | None = None,
    answer_seconds: float = 300,
    concurrency: int = 64,
) -> Any:
    """boto3's client for bedrock-runtime.

    AWS_ENDPOINT_URL* of the environment are not followed: there they lead back to this platform, and a call would go
    round for ever. Nor does it retry: the caller's own client does, and the two would multiply.
    """
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=answer_seconds,
        max_pool_connections=concurrency,
        retries={"total_max_attempts": 1, "mode": "standard"},
        ignore_configured_endpoint_urls=True,
        user_agent_appid="agentkeep",
    )
    session = boto3.Session(profile_name=profile, region_name=region)
    return session.client("bedrock-runtime", endpoint_url=endpoint_url, config=config)


def _end(stream: Any) -> None:
    """Ends a stream that a thread may still be reading: `close` alone would wait until that thread has its event."""
    with suppress(ValueError, RuntimeError, OSError):  # read to its end, closed before
        stream._raw_stream.shutdown()
    stream.close()


def _document(response: dict[str, Any]) -> Document:
    return {member: value for member, value in response.items() if member != "ResponseMetadata"}


def _counted_in(headers: dict[str, str]) -> TokenCounts | None:
    """InvokeModel's counts are in headers that the service model does not have."""
    prefix = "x-amzn-bedrock-"
    try:
        return TokenCounts(
            int(headers[f"{prefix}input-token-count"]),
            int(headers[f"{prefix}output-token-count"]),
            int(headers.get(f"{prefix}cache-read-input-token-count", 0)),
            int(headers.get(f"{prefix}cache-write-input-token-count", 0)),
        )
    except (KeyError, ValueError):
        return None
