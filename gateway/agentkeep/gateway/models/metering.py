"""Counts what each model call used, whole answers and streams alike, also streams that are cut short."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from agentkeep.core.call import Call
from agentkeep.core.clock import Clock
from agentkeep.core.errors import AgentkeepError, ModelTimeoutException
from agentkeep.core.ports import Usage, UsageRecord
from agentkeep.gateway.models.provider import Answer, Document, Events, Request, TokenCounts
from agentkeep.gateway.models.spending import Spending
from agentkeep.gateway.models.tracing import ModelSpan

__all__ = ["Meter", "MeteredEvents", "estimate"]

logger = logging.getLogger(__name__)

#: Bytes of text to a token, the usual rule of thumb for English; used only where nobody counted.
BYTES_PER_TOKEN = 4

#: Where Bedrock puts the counts of a native stream: in the last chunk's JSON.
INVOCATION_METRICS = "amazon-bedrock-invocationMetrics"


class Meter:
    """The meter of one model call. Make it when the call begins."""

    def __init__(
        self, usage: Usage, clock: Clock, call: Call, provider: str, request: Request, spending: Spending
    ) -> None:
        self._usage = usage
        self._spending = spending
        self._clock = clock
        self._call = call
        self._provider = provider
        self._request = request
        self._began = clock.monotonic()
        self.span = ModelSpan(call, provider, request)

    async def answered(self, answer: Answer) -> None:
        self.span.answered(answer.document)
        if answer.tokens is not None:
            await self.counted(answer.model, answer.tokens)
            return
        tokens = estimate(self._request, answer.document)
        if "usage" in answer.document:  # Converse's response must have some; a guess misleads less than zeros
            answer.document["usage"] = tokens.usage()
        await self._spending.settle_uncounted(text_size(answer.document))
        await self.record(answer.model, tokens, estimated=True)

    async def counted(self, model: str, tokens: TokenCounts) -> None:
        await self._spending.settle(tokens.total)
        await self.record(model, tokens)

    def events(self, events: Events, gap_seconds: float) -> MeteredEvents:
        return MeteredEvents(self, events, gap_seconds)

    async def cut(self, model: str, produced: int | None) -> None:
        """A call that ended before its counts came; `produced`: bytes of output seen, None where none could be (what it
        may use at most then stays spent)."""
        if produced is not None:
            await self._spending.settle_uncounted(produced)
        tokens = TokenCounts(estimate(self._request, {}).input, -(-(produced or 0) // BYTES_PER_TOKEN))
        await self.record(model, tokens, estimated=True)

    async def record(self, model: str, tokens: TokenCounts, estimated: bool = False) -> None:
        """Fails open: the call is paid and answered, so a lost record is logged rather than the answer withheld."""
        caller = self._call.caller
        record = UsageRecord(
            session=caller.session,
            user_id=caller.user.id if caller.user else None,
            model_id=model,
            provider=self._provider,
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cache_read_tokens=tokens.cache_read,
            cache_write_tokens=tokens.cache_write,
            latency_ms=(self._clock.monotonic() - self._began) * 1000,
            at=self._clock.now(),
            request_id=self._call.request_id,
            estimated=estimated,
        )
        self.span.used(record)
        try:
            await self._usage.record(record)
        except AgentkeepError:
            logger.exception("usage of request %s was not recorded: %s", record.request_id, record)


class MeteredEvents:
    """A provider's stream, passed on as it comes and counted when it ends, fails, or is closed early.

    Whoever reads it closes it (`aclose`), as with an async generator; unlike one, it need not have begun.
    """

    def __init__(self, meter: Meter, events: Events, gap_seconds: float) -> None:
        self._meter = meter
        self._events = events
        self._gap_seconds = gap_seconds
        self._tokens: TokenCounts | None = None
        self._produced = 0
        self._finishing: asyncio.Task[None] | None = None

    def __aiter__(self) -> AsyncIterator[Document]:
        return self

    async def __anext__(self) -> Document:
        if self._finishing is not None:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(self._gap_seconds):
                event = await anext(self._events)
        except TimeoutError:
            silent = ModelTimeoutException(
                f"The model sent nothing for {self._gap_seconds:g} s; its answer was cut off."
            )
            self._meter.span.fail(silent)
            await self.aclose()
            raise silent from None
        except StopAsyncIteration:
            await self.aclose()
            raise
        except BaseException as error:
            self._meter.span.fail(error)
            await self.aclose()
            raise
        self._observe(event)
        return event

    async def aclose(self) -> None:
        # In a task of its own: a client that leaves cancels us, and what was used must be counted all the same.
        if self._finishing is None:
            self._finishing = asyncio.create_task(self._finish(), name="model stream usage")
        await asyncio.shield(self._finishing)

    async def _finish(self) -> None:
        try:
            await self._events.aclose()
        finally:
            if self._tokens is not None:
                await self._meter.counted(self._events.model, self._tokens)
            else:
                await self._meter.cut(self._events.model, self._produced)

    def _observe(self, event: Document) -> None:
        self._meter.span.event(event)
        if metadata := event.get("metadata"):
            self._tokens = TokenCounts.of_usage(metadata["usage"])
        elif delta := event.get("contentBlockDelta"):
            self._produced += text_size(delta["delta"])
        elif chunk := event.get("chunk"):
            body = chunk.get("bytes", b"")
            self._produced += len(body)
            if INVOCATION_METRICS.encode() in body:
                self._tokens = _invocation_metrics(body)


def _invocation_metrics(body: bytes) -> TokenCounts | None:
    try:
        metrics = json.loads(body)[INVOCATION_METRICS]
        return TokenCounts(
            int(metrics["inputTokenCount"]),
            int(metrics["outputTokenCount"]),
            int(metrics.get("cacheReadInputTokenCount", 0)),
            int(metrics.get("cacheWriteInputTokenCount", 0)),
        )
    except (ValueError, TypeError, KeyError):
        return None


def estimate(request: Request, response: Mapping[str, Any]) -> TokenCounts:
    """Counts by the text's length: what went in (messages, system, tools, or a native body), what came out."""
    sent = [request.get(member) for member in ("messages", "system", "toolConfig", "body")]
    received = [response.get(member) for member in ("output", "body")]
    return TokenCounts(-(-text_size(sent) // BYTES_PER_TOKEN), -(-text_size(received) // BYTES_PER_TOKEN))


def text_size(value: object) -> int:
    """Bytes of all text in a document."""
    match value:
        case str():
            return len(value.encode("utf-8", "surrogatepass"))
        case bytes():
            return len(value)
        case Mapping():
            return sum(map(text_size, value.values()))
        case list() | tuple():
            return sum(map(text_size, value))
    return 0
