"""Between spans that end now and the store that keeps them soon: embedded mode's way out of the process.

on_end (any thread, never waits) ─▶ bounded queue ─▶ in batches, every so often ─▶ store, by session
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import islice

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as LiveSpan

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import StoreUnavailable
from agentkeep.observability.spans import Origin, Span, SpanStore, owner

__all__ = ["SpanQueue"]

logger = logging.getLogger(__name__)

#: Spans that wait at most, and those of one batch.
WAITING = 8192
BATCH = 512
#: Seconds between a span's end and its way to the store; and after the store was away.
PAUSE = 0.2
PAUSE_AFTER_FAILURE = 2.0


class SpanQueue(SpanProcessor):
    """Made in the event loop. What does not fit, because the store is slow or away, is dropped: counted, and told in
    the log. `flush` before spans are read, `close` at the end."""

    def __init__(self, store: SpanStore, waiting: int = WAITING) -> None:
        self.dropped = 0
        self._store = store
        self._most = waiting
        self._waiting: deque[ReadableSpan] = deque()
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._woken = False
        self._writing = asyncio.Lock()
        self._told = 0
        self._task = self._loop.create_task(self._run(), name="spans")

    # OpenTelemetry's SpanProcessor.

    def on_start(self, span: LiveSpan, parent_context: Context | None = None) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        if len(self._waiting) >= self._most:
            self.dropped += 1
            return
        self._waiting.append(span)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._filled.set)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """For code outside the loop; the loop's own says `await flush()`."""
        return True

    # The event loop's side.

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            await asyncio.sleep(PAUSE)
            if not await self.flush():
                await asyncio.sleep(PAUSE_AFTER_FAILURE)

    async def flush(self) -> bool:
        """What has ended so far is in the store when this returns; False: the store is away, and it waits on."""
        async with self._writing:
            self._filled.clear()
            self._woken = False
            try:
                for _ in range(-(-len(self._waiting) // BATCH)):
                    await self._write(list(islice(self._waiting, BATCH)))
            except StoreUnavailable as error:
                logger.warning("%d spans wait for their store: %s", len(self._waiting), error)
                self._woken = True
                self._filled.set()
                return False
            finally:
                self._tell()
            return True

    async def _write(self, batch: list[ReadableSpan]) -> None:
        by_owner: dict[SessionRef | None, list[Span]] = {}
        for ended in batch:
            span = _span(ended)
            by_owner.setdefault(owner(span), []).append(span)
        for session, spans in by_owner.items():
            # Sent again after a failure, a span is kept once all the same.
            if turned_away := await self._store.add(session, spans):
                self.dropped += turned_away
        for _ in batch:
            self._waiting.popleft()

    def _tell(self) -> None:
        if self.dropped > self._told:
            logger.warning("%d spans were dropped: traces have gaps", self.dropped - self._told)
            self._told = self.dropped

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.flush()


def _span(ended: ReadableSpan) -> Span:
    context, parent, scope = ended.context, ended.parent, ended.instrumentation_scope
    return Span(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{parent.span_id:016x}" if parent is not None else "",
        name=ended.name,
        kind=ended.kind.value + 1,  # OTLP counts from 1: 0 is unspecified
        start_ns=ended.start_time or 0,
        end_ns=ended.end_time or 0,
        status=ended.status.status_code.value,
        status_message=ended.status.description or "",
        scope=scope.name if scope is not None else "",
        attributes=dict(ended.attributes or {}),
        origin=Origin.PLATFORM,
    )
