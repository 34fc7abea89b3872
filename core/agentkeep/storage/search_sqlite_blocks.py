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

_KEY, _COUNT = np.dtype("<u4"), np.dtype("<u2")
_BYTES: Final = _KEY.itemsize + _COUNT.itemsize


def word_key(stem: str) -> int:
    """What stands for a word among those of one user. Two words share one in some 4 billion pairs."""
    return crc32(stem.encode())


def pack_words(counts: Mapping[str, int]) -> bytes:
    """Keys of a document's words, then what each counts for (`Stemmer.weighed`)."""
    keys = np.fromiter(map(word_key, counts), _KEY, len(counts))
    weights = np.fromiter((min(count, 0xFFFF) for count in counts.values()), _COUNT, len(counts))
    return keys.tobytes() + weights.tobytes()


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
        kinds: dict[tuple[str, str], int] = {}
        kind = np.fromiter((kinds.setdefault((row[2], row[3]), len(kinds)) for row in rows), np.int32, len(rows))
        sizes = np.fromiter((len(row[4]) for row in rows), np.int64, len(rows))
        if (sizes % _BYTES).any():
            raise DamagedFile("the words of a record are cut off")
        starts = np.concatenate(([0], np.cumsum(sizes // _BYTES)))
        packed = [(row[4], len(row[4]) // _BYTES * _KEY.itemsize) for row in rows]
        counts = np.frombuffer(b"".join(words[end:] for words, end in packed), _COUNT)
        sums = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        has = np.fromiter((row[5] is not None for row in rows), np.bool_, len(rows))
        return cls(
            numbers=np.fromiter((row[0] for row in rows), np.int64, len(rows)),
            expires=np.fromiter((NEVER if row[1] is None else row[1] for row in rows), np.int64, len(rows)),
            kinds=list(kinds),
            kind=kind,
            words=np.frombuffer(b"".join(words[:end] for words, end in packed), _KEY),
            counts=counts,
            starts=starts,
            lengths=(sums[starts[1:]] - sums[starts[:-1]]) / UNITS,
            embedded=has if dimensions is not None else np.zeros(len(rows), np.bool_),
            vectors=_matrix([row[5] for row in rows], has, dimensions) if dimensions is not None else None,
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
    size = dimensions * 4
    if any(vector is not None and len(vector) != size for vector in vectors):
        raise DamagedFile(f"a vector is not of {dimensions} numbers")
    joined = b"".join(vector if vector is not None else bytes(size) for vector in vectors)
    return np.frombuffer(joined, np.float32).reshape(-1, dimensions)
