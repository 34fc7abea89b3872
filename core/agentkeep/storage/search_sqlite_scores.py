"""How the SQLite search store scores one partition's documents: block by block, then all against its statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agentkeep.storage.search import Shortlist, Vector
from agentkeep.storage.search_sqlite_blocks import Block, word_key
from agentkeep.storage.search_words import K1, UNITS, B

__all__ = ["Found", "Query", "Scoring"]


@dataclass(frozen=True, slots=True)
class Query:
    """`words`: stems, the same one twice where two of its forms are asked for. `vector`: of length one."""

    words: Sequence[str]
    vector: Vector | None


@dataclass(slots=True)
class Found:
    """Scores of the best, each with both, by their numbers. `similar` has none of what has no vector."""

    lexical: dict[int, float] = field(default_factory=dict)
    similar: dict[int, float] = field(default_factory=dict)

    @property
    def numbers(self) -> Sequence[int]:
        return list(dict.fromkeys((*self.lexical, *self.similar)))

    def with_better(self, other: Found, limit: int) -> Found:
        """The best of both, of different partitions."""
        if not self.numbers:
            return other
        lexical, similar = self.lexical | other.lexical, self.similar | other.similar
        best = {number for number in sorted(lexical, key=lambda one: (-lexical[one], one))[:limit] if lexical[number]}
        best |= set(sorted(similar, key=lambda one: (-similar[one], one))[:limit])
        return Found(
            {number: score for number, score in lexical.items() if number in best},
            {number: score for number, score in similar.items() if number in best},
        )

    def shortened(self, shortlist: Shortlist) -> Found:
        """Of equal ones the earlier."""

        def order(number: int) -> tuple[float, int]:
            return -shortlist.weight(self.lexical.get(number, 0.0), self.similar.get(number)), number

        best = sorted(self.numbers, key=order)[: shortlist.count]
        return Found(
            {number: self.lexical[number] for number in best if number in self.lexical},
            {number: self.similar[number] for number in best if number in self.similar},
        )


@dataclass(slots=True)
class _Seen:
    """What one block gave: the documents that may be found, all similarities (NaN without a vector), and where which of
    the query's words occur, with what it counts for there."""

    numbers: NDArray[np.int64]
    selected: NDArray[np.bool_]
    lengths: NDArray[np.float64]
    similar: NDArray[np.float32] | None
    places: NDArray[np.int64]
    words: NDArray[np.int64]
    counts: NDArray[np.float64]


class Scoring:
    """Of one partition: `add` its blocks, then `best`."""

    def __init__(self, query: Query) -> None:
        self._query = query
        asked = Counter(query.words)
        self._keys = [word_key(word) for word in asked]
        self._times = np.array(list(asked.values()), np.float64)
        self._documents = 0
        self._length = 0.0
        self._having = np.zeros(len(asked))
        self._seen: list[_Seen] = []

    def add(self, block: Block, live: NDArray[np.bool_], selected: NDArray[np.bool_]) -> None:
        """`live` ones are counted, `selected` ones are scored."""
        self._documents += int(np.count_nonzero(live))
        self._length += float(np.dot(block.lengths, live))
        found = [block.occurrences(key) for key in self._keys]
        for word, (places, _) in enumerate(found):
            self._having[word] += np.count_nonzero(live[places])
        similar = None
        if self._query.vector is not None and block.vectors is not None:
            # In this thread alone: BLAS would divide the work among threads, which wait for one another on a busy
            # machine for longer than all of it takes.
            similar = np.vecdot(block.vectors, self._query.vector)
            similar[~block.embedded] = np.nan
        if selected.any():
            places = np.concatenate([_NOWHERE, *(places for places, _ in found)])
            words = np.repeat(np.arange(len(found)), [len(places) for places, _ in found])
            counts = np.concatenate([_NOWHERE, *(counts for _, counts in found)]) / UNITS
            self._seen.append(_Seen(block.numbers, selected, block.lengths, similar, places, words, counts))

    def best(self, limit: int) -> Found:
        """The best by words, and the best by vector."""
        if not self._seen:
            return Found()
        rarity = np.log1p((self._documents - self._having + 0.5) / (self._having + 0.5)) * self._times
        whole = float(rarity.sum()) or 1.0
        lexical = np.concatenate([_bm25(seen, rarity / whole, self._length / self._documents) for seen in self._seen])
        numbers = np.concatenate([seen.numbers for seen in self._seen])
        similar = np.concatenate([_similar(seen) for seen in self._seen])
        chosen = np.union1d(_top(lexical, numbers, limit, 0.0), _top(similar, numbers, limit, -np.inf))
        near = chosen[np.isfinite(similar[chosen])]
        return Found(
            dict(zip(numbers[chosen].tolist(), lexical[chosen].tolist(), strict=True)),
            dict(zip(numbers[near].tolist(), similar[near].tolist(), strict=True)),
        )


_NOWHERE: Final = np.zeros(0, np.int64)


def _bm25(seen: _Seen, rarity: NDArray[np.float64], average: float) -> NDArray[np.float64]:
    """Shares of the score of a document of average length with each word once; 0 for what is not selected."""
    longer = K1 * (1 - B + B * seen.lengths / (average or 1.0))
    saturated = seen.counts * (K1 + 1) / (seen.counts + longer[seen.places])
    scores = np.bincount(seen.places, saturated * rarity[seen.words], len(seen.numbers))
    return np.where(seen.selected, scores, 0.0)


def _similar(seen: _Seen) -> NDArray[np.float32]:
    nothing = np.float32(-np.inf)
    if seen.similar is None:
        return np.full(len(seen.numbers), nothing)
    return np.where(seen.selected, seen.similar, nothing)


def _top(scores: NDArray[Any], numbers: NDArray[np.int64], limit: int, above: float) -> NDArray[np.int64]:
    """Places of the best that are better than `above`; of equals the earlier."""
    places = np.flatnonzero(scores > above)
    if len(places) > limit:
        least = np.partition(scores[places], -limit)[-limit]
        places = places[scores[places] >= least]
        places = places[np.lexsort((numbers[places], -scores[places]))[:limit]]
    return places
