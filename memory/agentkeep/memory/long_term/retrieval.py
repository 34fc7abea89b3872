"""Which records answer a query best: by words and by meaning, of the record and of what stood around it.

The score is a fixed weighted sum of measures that mean the same for every query and every user, so scores are
comparable and thresholds on them hold: the share of the query's (rare) words found in the record or, for less, around
it, which is BM25 against what a text with all of them would have; the cosine of the query with the record's vector
averaged with its neighbours', and with the record's alone; and whether the speaker whom the query names said it. Sums
of scores, rather than of ranks, because rank fusion loses how much better the best is (Bruch et al., "An Analysis of
Fusion Functions for Hybrid Retrieval", 2022). How the weights were found: docs/development/retrieval.md.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agentkeep.core.clock import Clock
from agentkeep.memory.long_term.record import Record, likeness
from agentkeep.memory.long_term.reranking import DEPTH, features, odds
from agentkeep.memory.long_term.speech import Speakers, speaker_of, spoken
from agentkeep.storage.embedding import CachedEmbedder, Embedder, EmbeddingUnavailable
from agentkeep.storage.search import Beneath, Hit, SearchStore, Selection, Shortlist, Vector

__all__ = ["Looked", "Retrieval", "Scored", "telling"]

logger = logging.getLogger(__name__)

#: Of the words, of the averaged vector and of the record's own: together 1. The speaker adds to that.
_WORDS: Final = 0.55
_AROUND: Final = 0.25
_OWN: Final = 0.2
_SPEAKER: Final = 0.12
#: How many of the best by words, and by meaning, are weighed together.
_CANDIDATES: Final = 100
#: Of these, so many for each that is wanted, and so many at least, are looked at whole: to be among the best, a record
#: must be near it by words and the averaged vector already.
_EACH: Final = 8
_LEAST: Final = 80
#: Records in which speakers are looked for; seconds for which they are remembered; for how many places.
_RECENT: Final = 100
_REMEMBERED: Final = 60.0
_PLACES: Final = 4096
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


class Looked(NamedTuple):
    """Records, best first, their scores, and what these are made of (see reranking.features)."""

    records: list[Record]
    scores: list[float]
    features: NDArray[Any]


class Retrieval:
    """Without an embedder, or while it fails, by words alone. `reranks`: takes a second look at the best."""

    def __init__(self, search: SearchStore, embedder: Embedder | None, clock: Clock, *, reranks: bool = False) -> None:
        self._reranks = reranks
        self._search = search
        self._embedder = embedder
        self._queries = CachedEmbedder(embedder) if embedder is not None else None
        self._speakers = _RecentSpeakers(search, clock)
        self._clock = clock
        self._rests_until: float | None = None
        if embedder is None:
            logger.warning("no embedding model: long-term memory is searched by words alone")

    async def best(self, partition: str | Beneath, query: str, selection: Selection, limit: int) -> list[Scored]:
        """Best first; scores from 0 to 1. The same query on the same records gives the same order."""
        if not self._reranks:
            found = await self.looked_at(partition, query, selection, limit)
            return list(map(Scored, found.records, found.scores))
        found = await self.looked_at(partition, query, selection, max(limit, DEPTH))
        scored = list(map(Scored, found.records, odds(found.features).tolist()))
        return sorted(scored, key=lambda one: (-one.score, one.record.id))[:limit]

    async def looked_at(self, partition: str | Beneath, query: str, selection: Selection, depth: int) -> Looked:
        """The best `depth` by the first look."""
        speakers = await self._speakers.of(partition, selection)
        about = speakers.removed_from(query)
        vector = await self._query(about)
        hits = await self._search.search(
            partition,
            text=telling(about),
            vector=vector,
            selection=selection,
            limit=max(depth, _CANDIDATES),
            shortlist=Shortlist(max(_EACH * depth, _LEAST), _WORDS, _AROUND if vector is not None else 0.0),
        )
        return _looked_at(hits, vector, speakers.named_in(query), depth)

    async def vectors(self, texts: Sequence[str]) -> list[Vector | None]:
        """Of records' texts; None for all of them where there is no embedder at work."""
        if self._embedder is not None and texts and not self._resting():
            try:
                return list(await self._embedder.embed([spoken(text) for text in texts]))
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


class _RecentSpeakers:
    """Who speaks in the newest records of a partition and namespace; remembered where these are many, as it costs a
    read."""

    def __init__(self, search: SearchStore, clock: Clock) -> None:
        self._search = search
        self._clock = clock
        self._known: OrderedDict[tuple[object, ...], tuple[float, Speakers]] = OrderedDict()

    async def of(self, partition: str | Beneath, selection: Selection) -> Speakers:
        key = (partition, selection.namespace, selection.namespace_path)
        until, speakers = self._known.get(key, (0.0, Speakers()))
        if self._clock.monotonic() < until:
            self._known.move_to_end(key)
            return speakers
        within = Selection(namespace=selection.namespace, namespace_path=selection.namespace_path)
        page = await self._search.newest(partition, within, limit=_RECENT)
        speakers = Speakers.of([Record.of(document) for document in page.documents])
        self._known.pop(key, None)
        if page.after is not None:
            self._known[key] = (self._clock.monotonic() + _REMEMBERED, speakers)
            while len(self._known) > _PLACES:
                self._known.popitem(last=False)
        return speakers


def _looked_at(hits: Sequence[Hit], query: Vector | None, named: str | None, depth: int) -> Looked:
    """`named`: the speaker whom the query names, if any. Records are made only of those that may be among the best."""
    if not hits or depth <= 0:
        return Looked([], [], features(np.empty(0), [], []))
    words = np.array([min(hit.lexical, 1.0) for hit in hits])
    around = np.array([hit.similarity or 0.0 for hit in hits]).clip(0)
    own, scores = around, words
    if query is not None:
        own = likeness([hit.document for hit in hits], query, around).clip(0)
        scores = _WORDS * words + _AROUND * around + _OWN * own
    more = _SPEAKER if named is not None else 0.0
    least = np.sort(scores)[-min(depth, len(scores))] - more
    at = np.flatnonzero(scores >= least)
    records = [Record.of(hits[index].document) for index in at.tolist()]
    speakers = list(map(speaker_of, records))
    said = [named is not None and speaker == named for speaker in speakers]
    total = np.minimum(scores[at] + more * np.array(said), 1.0)
    best = sorted(range(len(records)), key=lambda index: (-total[index], records[index].id))[:depth]
    speak = [speaker is not None for speaker in speakers]
    rows = features(total, [spoken(record.text) for record in records], speak)
    return Looked([records[index] for index in best], [float(total[index]) for index in best], rows[best])


def telling(query: str) -> str:
    """The query without its stop words, if any others are left."""
    return " ".join(word for word in re.findall(r"\w+", query) if word.lower() not in _STOP_WORDS) or query
