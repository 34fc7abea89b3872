"""Which records answer a query best: by words and by meaning.

The score is a fixed weighted sum of two measures that mean the same for every query and every user, so scores are
comparable and thresholds on them hold: the share of the query's (rare) words found, which is BM25 against what a text
with all of them would have, and the cosine of the embeddings. Sums of scores, rather than of ranks, because rank
fusion loses how much better the best is (Bruch et al., "An Analysis of Fusion Functions for Hybrid Retrieval", 2022).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from agentkeep.core.clock import Clock
from agentkeep.memory.long_term.record import Record
from agentkeep.storage.embedding import CachedEmbedder, Embedder, EmbeddingUnavailable
from agentkeep.storage.search import Beneath, Hit, SearchStore, Selection, Vector

__all__ = ["Retrieval", "Scored"]

logger = logging.getLogger(__name__)

_WORDS: Final = 0.5
_MEANING: Final = 0.5
#: How many of the best by words, and by meaning, are weighed together.
_CANDIDATES: Final = 100
#: Seconds after a failure in which the embedder is left alone.
_REST: Final = 30.0

#: Words that say nothing of what a question is about; in a small collection even these are rare.
_SAYING_LITTLE: Final = (
    "a about all am an and any are as at be been but by can could d did do does for from had has have he her him his "
    "how i if in into is it its just ll m me my no not of on or our re s she should so some t than that the their them "
    "then there these they this to up us user ve was we were what when where which who whom whose why will with would "
    "you your"
)
_STOP_WORDS: Final = frozenset(_SAYING_LITTLE.split())


class Scored(NamedTuple):
    record: Record
    score: float


class Retrieval:
    """Without an embedder, or while it fails, by words alone."""

    def __init__(self, search: SearchStore, embedder: Embedder | None, clock: Clock) -> None:
        self._search = search
        self._embedder = embedder
        self._queries = CachedEmbedder(embedder) if embedder is not None else None
        self._clock = clock
        self._rests_until: float | None = None
        if embedder is None:
            logger.warning("no embedding model: long-term memory is searched by words alone")

    async def best(self, partition: str | Beneath, query: str, selection: Selection, limit: int) -> list[Scored]:
        """Best first; scores from 0 to 1. The same query on the same records gives the same order."""
        vector = await self._query(query)
        hits = await self._search.search(
            partition, text=_telling(query), vector=vector, selection=selection, limit=max(limit, _CANDIDATES)
        )
        scored = [Scored(Record.of(hit.document), _score(hit, vector is not None)) for hit in hits]
        return sorted(scored, key=lambda one: (-one.score, one.record.id))[:limit]

    async def vectors(self, texts: Sequence[str]) -> list[Vector | None]:
        """Of records' texts; None for all of them where there is no embedder at work."""
        if self._embedder is not None and texts and not self._resting():
            try:
                return list(await self._embedder.embed(texts))
            except EmbeddingUnavailable as error:
                self._rest(error)
        return [None] * len(texts)

    async def _query(self, query: str) -> Vector | None:
        if self._queries is not None and not self._resting():
            try:
                return await self._queries.embed(query)
            except EmbeddingUnavailable as error:
                self._rest(error)
        return None

    def _resting(self) -> bool:
        return self._rests_until is not None and self._clock.monotonic() < self._rests_until

    def _rest(self, error: EmbeddingUnavailable) -> None:
        logger.warning("long-term memory is searched by words alone, and new records get no vectors: %s", error)
        self._rests_until = self._clock.monotonic() + _REST


def _score(hit: Hit, by_meaning: bool) -> float:
    words = min(hit.lexical, 1.0)
    if not by_meaning:
        return words
    return min(1.0, _WORDS * words + _MEANING * max(hit.similarity or 0.0, 0.0))


def _telling(query: str) -> str:
    """The query without its stop words, if any others are left."""
    return " ".join(word for word in re.findall(r"\w+", query) if word.lower() not in _STOP_WORDS) or query
