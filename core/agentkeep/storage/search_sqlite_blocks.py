"""Some of a partition's documents as arrays: what a search compares with its query.

A partition is one user's, so it is small enough to be compared whole: that is exact, needs no index that writes would
have to keep up, and costs less than reading one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from agentkeep.storage.search import Vector
from agentkeep.storage.search_words import UNITS
from agentkeep.storage.sqlite import DamagedFile

__all__ = ["BLOCK", "NEVER", "Block", "pack_words", "word_key"]

#: Documents in a block: few enough that a processor keeps what it computes with at hand.
BLOCK: Final = 4096
#: Stands for a time that never comes.
NEVER: Final = 2**62

_WORD: Final = np.dtype([("key", "<u4"), ("count", "<u2")])


def word_key(stem: str) -> int:
    """What stands for a word among those of one user. Two words share one in some 4 billion pairs."""
    return crc32(stem.encode())


def pack_words(counts: Mapping[str, int]) -> bytes:
    """A document's words: the key of each, and what it counts for (`Stemmer.weighed`)."""
    words = np.empty(len(counts), _WORD)
    words["key"] = [word_key(word) for word in counts]
    words["count"] = [min(count, 0xFFFF) for count in counts.values()]
    return words.tobytes()


@dataclass(slots=True)
class Block:
    """`numbers`: the documents'. `alive`: those still there. `kinds`: the different pairs of namespaces and metadata,
    as they are in the file; `kind`: which of them a document has. `words`: keys, one document's after another's, from
    `starts` on. `vectors`: one row each, zeros where there is none, which `embedded` tells; None without any."""

    numbers: NDArray[np.int64]
    expires: NDArray[np.int64]
    kinds: list[tuple[str, str]]
    kind: NDArray[np.int32]
    words: NDArray[np.uint32]
    counts: NDArray[np.uint16]
    starts: NDArray[np.int64]
    lengths: NDArray[np.float64]
    embedded: NDArray[np.bool_]
    vectors: Vector | None
    alive: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.alive = np.ones(len(self.numbers), np.bool_)

    @classmethod
    def of(cls, rows: Sequence[Any], dimensions: int | None) -> Block:
        """From rows of number, expires_ms, namespaces, metadata, words, vector. `dimensions` None: without
        vectors. Raises DamagedFile."""
        numbers, expires, namespaces, metadata, words, vectors = zip(*(row[:6] for row in rows), strict=True)
        kinds: dict[tuple[str, str], int] = {}
        kind = [kinds.setdefault(pair, len(kinds)) for pair in zip(namespaces, metadata, strict=True)]
        sizes = np.array(list(map(len, words)), np.int64)
        if (sizes % _WORD.itemsize).any():
            raise DamagedFile("the words of a record are cut off")
        starts = np.concatenate(([0], np.cumsum(sizes // _WORD.itemsize)))
        joined = np.frombuffer(b"".join(words), _WORD)
        sums = np.concatenate(([0], np.cumsum(joined["count"], dtype=np.int64)))
        has = np.array([vector is not None for vector in vectors], np.bool_)
        return cls(
            numbers=np.array(numbers, np.int64),
            expires=np.array([NEVER if moment is None else moment for moment in expires], np.int64),
            kinds=list(kinds),
            kind=np.array(kind, np.int32),
            words=np.ascontiguousarray(joined["key"]),
            counts=np.ascontiguousarray(joined["count"]),
            starts=starts,
            lengths=(sums[starts[1:]] - sums[starts[:-1]]) / UNITS,
            embedded=has if dimensions is not None else np.zeros(len(rows), np.bool_),
            vectors=_matrix(vectors, has, dimensions) if dimensions is not None else None,
        )

    @classmethod
    def joined(cls, blocks: Sequence[Block]) -> Block:
        """What is alive in them."""
        kinds: dict[tuple[str, str], int] = {}
        kind = [
            np.array([kinds.setdefault(each, len(kinds)) for each in block.kinds], np.int32)[block.kind[block.alive]]
            for block in blocks
        ]
        sizes = [np.diff(block.starts) for block in blocks]
        inside = [np.repeat(block.alive, size) for block, size in zip(blocks, sizes, strict=True)]
        dimensions = next((block.vectors.shape[1] for block in blocks if block.vectors is not None), None)

        def join(member: str) -> NDArray[Any]:
            return np.concatenate([getattr(block, member)[block.alive] for block in blocks])

        def join_words(member: str) -> NDArray[Any]:
            return np.concatenate([getattr(block, member)[each] for block, each in zip(blocks, inside, strict=True)])

        return cls(
            numbers=join("numbers"),
            expires=join("expires"),
            kinds=list(kinds),
            kind=np.concatenate(kind),
            words=join_words("words"),
            counts=join_words("counts"),
            starts=np.concatenate(
                ([0], np.cumsum(np.concatenate([size[b.alive] for size, b in zip(sizes, blocks, strict=True)])))
            ),
            lengths=join("lengths"),
            embedded=join("embedded"),
            vectors=None if dimensions is None else np.concatenate([block.rows(dimensions) for block in blocks]),
        )

    def rows(self, dimensions: int) -> Vector:
        """The vectors of what is alive, zeros where there is none."""
        if self.vectors is None:
            return np.zeros((int(np.count_nonzero(self.alive)), dimensions), np.float32)
        return self.vectors[self.alive]

    @property
    def size(self) -> int:
        """Bytes."""
        arrays = (self.numbers, self.expires, self.kind, self.words, self.counts, self.starts, self.lengths)
        vectors = 0 if self.vectors is None else self.vectors.nbytes
        kinds = sum(200 + len(namespaces) + len(metadata) for namespaces, metadata in self.kinds)
        return sum(array.nbytes for array in arrays) + vectors + kinds + 2 * len(self.numbers)

    def without(self, numbers: NDArray[np.int64]) -> None:
        self.alive &= ~np.isin(self.numbers, numbers)

    def only(self, numbers: NDArray[np.int64]) -> None:
        self.alive &= np.isin(self.numbers, numbers)

    def live(self, now: int) -> NDArray[np.bool_]:
        return self.alive & (self.expires > now)

    def selected(
        self, live: NDArray[np.bool_], meets: Callable[[Iterable[tuple[str, str]]], Sequence[int]] | None
    ) -> NDArray[np.bool_]:
        """`meets` says which of some kinds meet the selection, by their places."""
        if meets is None:
            return live
        good = np.zeros(len(self.kinds), np.bool_)
        good[list(meets(self.kinds))] = True
        return live & good[self.kind]

    def occurrences(self, key: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """The documents that have a word, by place, and what it counts for in each."""
        at = np.flatnonzero(self.words == np.uint32(key))
        return np.searchsorted(self.starts, at, "right") - 1, self.counts[at]


def _matrix(vectors: Sequence[bytes | None], has: NDArray[np.bool_], dimensions: int) -> Vector | None:
    if not has.any():
        return None
    nothing = bytes(dimensions * 4)
    filled = vectors if has.all() else [vector or nothing for vector in vectors]
    if set(map(len, filled)) != {len(nothing)}:  # type: ignore[arg-type]  # none of them is None
        raise DamagedFile(f"a vector is not of {dimensions} numbers")
    return np.frombuffer(b"".join(filled), np.float32).reshape(-1, dimensions)  # type: ignore[arg-type]
