"""How the SQLite search store scores one partition's documents: block by block, then all against its statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentkeep.storage.search import Vector
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


@dataclass(slots=True)
class _Seen:
    """What one block gave: of the selected documents, similarities (NaN without a vector) and the query's words."""

    numbers: NDArray[np.int64]
    similar: NDArray[np.float32] | None
    places: NDArray[np.int64]
    words: NDArray[np.int64]
    counts: NDArray[np.float64]
    lengths: NDArray[np.float64]


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
        self._length += float(block.lengths[live].sum())
        chosen = np.flatnonzero(selected)
        place = np.full(len(selected), -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any], NDArray[np.float64]]] = []
        for word, key in enumerate(self._keys):
            documents, counts = block.occurrences(key)
            self._having[word] += np.count_nonzero(live[documents])
            wanted = selected[documents]
            documents = documents[wanted]
            if documents.size:
                words = np.full(len(documents), word)
                found.append((place[documents], words, counts[wanted] / UNITS, block.lengths[documents]))
        similar = None
        if self._query.vector is not None and block.vectors is not None and chosen.size:
            # In this thread alone: BLAS would divide the work among threads, which wait for one another on a busy
            # machine for longer than all of it takes.
            all_similar = np.vecdot(block.vectors, self._query.vector)
            all_similar[~block.embedded] = np.nan
            similar = all_similar[chosen]
        if found or similar is not None:
            parts = list(zip(*found, strict=True)) or [()] * 4
            kinds = (np.int64, np.int64, np.float64, np.float64)
            joined = [np.concatenate((np.zeros(0, kind), *part)) for kind, part in zip(kinds, parts, strict=True)]
            self._seen.append(_Seen(block.numbers[chosen], similar, *joined))

    def best(self, limit: int) -> Found:
        """The best by words, and the best by vector."""
        if not self._seen:
            return Found()
        rarity = np.log1p((self._documents - self._having + 0.5) / (self._having + 0.5)) * self._times
        whole = float(rarity.sum()) or 1.0
        average = self._length / self._documents or 1.0 if self._documents else 1.0
        lexical = np.concatenate([_bm25(seen, rarity / whole, average) for seen in self._seen])
        numbers = np.concatenate([seen.numbers for seen in self._seen])
        similar = np.concatenate([_similar(seen) for seen in self._seen])
        chosen = np.union1d(_top(lexical, numbers, limit, 0.0), _top(similar, numbers, limit, -np.inf))
        near = chosen[np.isfinite(similar[chosen])]
        return Found(
            dict(zip(numbers[chosen].tolist(), lexical[chosen].tolist(), strict=True)),
            dict(zip(numbers[near].tolist(), similar[near].tolist(), strict=True)),
        )


def _bm25(seen: _Seen, rarity: NDArray[np.float64], average: float) -> NDArray[np.float64]:
    """Shares of the score of a document of average length with each word once."""
    saturated = seen.counts * (K1 + 1) / (seen.counts + K1 * (1 - B + B * seen.lengths / average))
    return np.bincount(seen.places, saturated * rarity[seen.words], len(seen.numbers)).astype(np.float64, copy=False)


def _similar(seen: _Seen) -> NDArray[np.float32]:
    return np.full(len(seen.numbers), -np.inf, np.float32) if seen.similar is None else seen.similar


def _top(scores: NDArray[Any], numbers: NDArray[np.int64], limit: int, above: float) -> NDArray[np.int64]:
    """Places of the best that are better than `above`; of equals the earlier."""
    places = np.flatnonzero(scores > above)
    if len(places) > limit:
        least = np.partition(scores[places], -limit)[-limit]
        places = places[scores[places] >= least]
        places = places[np.lexsort((numbers[places], -scores[places]))[:limit]]
    return places
