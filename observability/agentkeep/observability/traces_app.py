"""`GET /traces/{runtime_id}/{session_id}`: the story of a session. For operators, and the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import StoreUnavailable
from agentkeep.core.ports import UsageRecord
from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.observability.prices import Prices
from agentkeep.observability.spans import Origin, SpanStore
from agentkeep.observability.story import story
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.service.asgi import Receive, Scope, Send, path_parts, respond

__all__ = ["TracesApp"]

#: Of each origin.
MOST_SPANS = 5_000


class TracesApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through.

    `flush`: brings what is on its way to the store there.
    """

    def __init__(
        self,
        spans: SpanStore,
        usage: KeyValueUsage,
        prices: Prices,
        alerts: KeyValueAlerts,
        flush: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._spans = spans
        self._usage = usage
        self._prices = prices
        self._alerts = alerts
        self._flush = flush

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match path_parts(scope, 4):
            case ["traces", runtime_id, session_id] if runtime_id and session_id:
                session = SessionRef(runtime_id, session_id)
            case _:
                await respond(send, 404, {"message": "GET /traces/{runtime_id}/{session_id}"})
                return
        if scope["method"] != "GET":
            await respond(send, 405, {"message": "Only GET"}, ((b"allow", b"GET"),))
            return
        try:
            await respond(send, 200, await self._story(session))
        except StoreUnavailable:
            await respond(send, 503, {"message": "A store of traces does not answer now. Try again later."})

    async def _story(self, session: SessionRef) -> dict[str, object]:
        if self._flush is not None:
            await self._flush()
        spans = await self._spans.of_session(session, origin=Origin.PLATFORM, limit=MOST_SPANS)
        said = await self._spans.of_session(session, origin=Origin.AGENT, limit=MOST_SPANS)
        records = await self._usage.of_session(session)
        alerts = await self._alerts.of_session(session)
        costs = await asyncio.to_thread(lambda: [self._prices.cost(record) for record in records])
        used: list[tuple[UsageRecord, Decimal | None]] = list(zip(records, costs, strict=True))
        document = await asyncio.to_thread(story, session, spans + said, used, alerts)
        document["cut"] = len(spans) >= MOST_SPANS or len(said) >= MOST_SPANS
        return document
