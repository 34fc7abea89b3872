"""What a model provider is: something that answers Bedrock's Converse.

Requests and responses are bedrock-runtime's own shapes (camelCase members, blobs as bytes). What only some providers
can do (Bedrock's native bodies, guardrails, counting tokens) is a protocol of its own; one without it is never asked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "Answer",
    "AppliesGuardrails",
    "BoundsAnswers",
    "CountsTokens",
    "Document",
    "Events",
    "InvokesModels",
    "Provider",
    "Request",
    "TokenCounts",
]

Document = dict[str, Any]
Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """As Converse counts: `input` excludes what was read from or written to a prompt cache."""

    input: int
    output: int
    cache_read: int = 0
    cache_write: int = 0

    @classmethod
    def of_usage(cls, usage: Mapping[str, Any]) -> TokenCounts:
        """From Converse's `usage` structure."""
        return cls(
            usage["inputTokens"],
            usage["outputTokens"],
            usage.get("cacheReadInputTokens", 0),
            usage.get("cacheWriteInputTokens", 0),
        )

    @property
    def total(self) -> int:
        return self.input + self.output + self.cache_read + self.cache_write

    def usage(self) -> Document:
        """Converse's `usage` structure."""
        usage = {"inputTokens": self.input, "outputTokens": self.output, "totalTokens": self.total}
        if self.cache_read or self.cache_write:
            usage |= {"cacheReadInputTokens": self.cache_read, "cacheWriteInputTokens": self.cache_write}
        return usage


@dataclass(frozen=True, slots=True)
class Answer:
    """`document` is the operation's response, `model` the provider's name of the model that answered, `tokens` what it
    says it used (None: it does not say)."""

    document: Document
    model: str
    tokens: TokenCounts | None


class Events:
    """A streaming answer that the provider has accepted: one-key dictionaries (`{"messageStart": {...}}`).

    Close it, read to its end or not: a connection is behind it. Raises ServiceError where the provider fails midway.
    """

    def __init__(
        self,
        model: str,
        source: AsyncGenerator[Document, None],
        close: Callable[[], Awaitable[None]] | None = None,
        headers: Document | None = None,
    ) -> None:
        self.model = model
        #: Members of the response beside the stream (contentType, serviceTier, ...).
        self.headers = headers or {}
        self._source = source
        self._close = close

    def __aiter__(self) -> AsyncIterator[Document]:
        return self

    async def __anext__(self) -> Document:
        return await self._source.__anext__()

    async def aclose(self) -> None:
        # Apart from the generator: one that never began runs no `finally`.
        close, self._close = self._close, None
        try:
            await self._source.aclose()
        finally:
            if close is not None:
                await close()


class Provider(Protocol):
    """Answers Converse and ConverseStream. `model` is the name it knows the model by; `request["modelId"]` is not read.

    Errors are those the bedrock-runtime model has for the operation; nothing of a provider's own wire gets through.
    """

    @property
    def name(self) -> str: ...

    async def converse(self, model: str, request: Request) -> Answer: ...

    async def converse_stream(self, model: str, request: Request) -> Events:
        """Returns once the provider has accepted the call, so that a refusal is an error and not a broken stream."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class CountsTokens(Protocol):
    async def count_tokens(self, model: str, input: Document) -> int:
        """`input` is CountTokens' union: `converse` or `invokeModel`."""
        ...


@runtime_checkable
class BoundsAnswers(Protocol):
    @property
    def answer_tokens(self) -> int:
        """Most tokens of an answer to a request that names no limit."""
        ...


@runtime_checkable
class InvokesModels(Protocol):
    """Takes the native bodies of InvokeModel."""

    async def invoke_model(self, model: str, request: Request) -> Answer: ...

    async def invoke_model_with_response_stream(self, model: str, request: Request) -> Events: ...


@runtime_checkable
class AppliesGuardrails(Protocol):
    """Honours `guardrailConfig` in its calls, and guardrails by themselves."""

    async def apply_guardrail(self, request: Request) -> Document: ...
