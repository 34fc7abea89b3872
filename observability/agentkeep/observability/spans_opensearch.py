"""The span store of deployments of several services: one index of OpenSearch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock, SystemClock, epoch_ms
from agentkeep.observability.spans import Origin, Span, SpanLimits
from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.storage.opensearch_index import WINDOW, OpenSearchIndex

__all__ = ["OpenSearchSpanStore"]

#: A span is kept as it is, and found by these fields only: its attributes are the sender's, of any name and type.
INDEX: Final[Mapping[str, Any]] = {
    "settings": {},
    "mappings": {
        "dynamic": "strict",
        "_routing": {"required": True},
        "properties": {
            "owner": {"type": "keyword"},
            "origin": {"type": "keyword"},
            "span_id": {"type": "keyword"},
            "start_ns": {"type": "long"},
            "received_ms": {"type": "long"},
            "span": {"type": "object", "enabled": False},
        },
    },
}

#: What is over its time or number is removed no more often than this, along with a write.
TIDY_MS: Final = 60_000


class OpenSearchSpanStore:
    """The client is closed with the store. Limits of a session are counted before a write, so writers of one session
    that meet may together go past them by what they write at once."""

    def __init__(
        self,
        client: OpenSearchClient,
        limits: SpanLimits | None = None,
        clock: Clock | None = None,
        *,
        name: str = "agentkeep-spans",
        shards: int = 1,
    ) -> None:
        self._index = OpenSearchIndex(client, name, INDEX, shards=shards)
        self._limits = limits or SpanLimits()
        self._kept_ms = timedelta(days=self._limits.days) // timedelta(milliseconds=1)
        self._clock = clock or SystemClock()
        self._tidied_ms = 0

    async def add(self, session: SessionRef | None, spans: Sequence[Span]) -> int:
        now, owner = epoch_ms(self._clock.now()), _owner(session)
        await self._tidy(now)
        turned_away = 0
        lines: list[Mapping[str, Any]] = []
        for origin in Origin:
            of_origin = [span for span in spans if span.origin is origin]
            if of_origin and session is not None:
                held = await self._index.count(_filter({"term": {"owner": owner}}, {"term": {"origin": origin}}), owner)
                room = max(self._limits.of(origin) - held, 0)
                turned_away += max(len(of_origin) - room, 0)
                del of_origin[room:]
            for span in of_origin:
                lines += [{"index": {"_id": _name(owner, span)}}, _encode(owner, span, now)]
        if lines:
            await self._index.bulk(lines, owner)
        return turned_away

    async def of_session(self, session: SessionRef, *, origin: Origin | None = None, limit: int = 1000) -> list[Span]:
        of_origin = [] if origin is None else [{"term": {"origin": origin}}]
        return await self._select(_owner(session), of_origin, [{"start_ns": "asc"}, "origin", "span_id"], limit)

    async def unowned(self, *, limit: int = 1000) -> list[Span]:
        return await self._select(_owner(None), [], [{"start_ns": "desc"}, "span_id"], min(limit, self._limits.unowned))

    async def close(self) -> None:
        await self._index.close()

    async def _select(
        self, owner: str, more: Sequence[Mapping[str, Any]], order: Sequence[object], limit: int
    ) -> list[Span]:
        recent = {"range": {"received_ms": {"gte": epoch_ms(self._clock.now()) - self._kept_ms}}}
        query = _filter({"term": {"owner": owner}}, recent, *more)
        body = {"query": query, "sort": order, "size": min(limit, WINDOW), "_source": ["span", "origin"]}
        return [_decode(hit["_source"]) for hit in await self._index.hits(body, owner)]

    async def _tidy(self, now: int) -> None:
        """Begins it: reads leave out what is over its time or number anyway."""
        if now - self._tidied_ms < TIDY_MS:
            return
        self._tidied_ms = now
        await self._index.start_deleting({"range": {"received_ms": {"lt": now - self._kept_ms}}})
        nobodys, owner = _filter({"term": {"owner": _owner(None)}}), _owner(None)
        if (excess := await self._index.count(nobodys, owner) - self._limits.unowned) > 0:
            await self._index.start_deleting(nobodys, owner, sort="start_ns:asc", max_docs=excess)


def _filter(*clauses: Mapping[str, Any]) -> dict[str, Any]:
    return {"bool": {"filter": list(clauses)}}


def _owner(session: SessionRef | None) -> str:
    """Routing too: the spans of a session are on one shard. None that a session could have is nobody's."""
    return "nobody" if session is None else _digest([session.runtime_id, session.session_id])


def _name(owner: str, span: Span) -> str:
    return _digest([owner, span.origin, span.trace_id, span.span_id])


def _digest(parts: Sequence[str]) -> str:
    return sha256(orjson.dumps(parts)).hexdigest()


def _encode(owner: str, span: Span, now: int) -> dict[str, Any]:
    return {
        "owner": owner,
        "origin": span.origin,
        "span_id": span.span_id,
        "start_ns": span.start_ns,
        "received_ms": now,
        "span": {member: getattr(span, member) for member in Span.__slots__ if member != "origin"},
    }


def _decode(found: Mapping[str, Any]) -> Span:
    return Span(**{**found["span"], "origin": Origin(found["origin"])})
