"""What a search store needs of documents, so altered by a key that it can search them and not read them.

What stays visible to whoever has the store, though not the key: how many documents there are, when they were made and
where (namespaces), numbers and times; which documents of one key have a word or a value in common, and how often; and
how alike vectors are. Who knows many texts and finds the vectors that belong to them can solve for the turn, and then
guess at others' subjects: vectors are hidden from readers of a copy, not from an analyst with plain texts beside it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b, shake_256
from typing import Final, Protocol

import numpy as np

from agentkeep.storage.search import Condition, Selection, Value, Vector

__all__ = ["Blinding", "PartitionKey"]

_WORD: Final = 7  # bytes: among a million words, one in 100,000 keys has two that are taken for one
_DIGITS: Final = 17
_VALUE: Final = 16
#: A search store's stemmer leaves a blinded word as it is, and makes it of these forms: so two forms of one word count
#: twice in a query, as they do in clear.
_FORMS: Final = ("", "s", "ed", "ing", "eds", "ings")


class PartitionKey(Protocol):
    """What a partition's documents are sealed with (`agentkeep.core.sealing`). `mixed`: there are some in clear."""

    @property
    def mixed(self) -> bool: ...

    def seal(self, data: bytes, label: str) -> bytes: ...

    def open(self, sealed: bytes, label: str) -> bytes: ...

    def derive(self, purpose: str) -> bytes: ...


class Blinding:
    """All by one key. Vectors of equal length are turned in equal manner: their cosines stay."""

    def __init__(self, key: PartitionKey) -> None:
        self._words = key.derive("search: words")
        self._values = key.derive("search: values")
        self._vectors = key.derive("search: vectors")
        self._places = key.derive("search: places")
        self._turns: dict[int, Vector] = {}
        self._turning = asyncio.Lock()

    def text(self, stems: Iterable[str]) -> str:
        """Of a document's stems: as many words, in an order that says nothing."""
        return " ".join(sorted(map(self._word, stems)))

    def query(self, stems: Iterable[str]) -> str:
        words: list[str] = []
        seen: Counter[str] = Counter()
        for word in map(self._word, stems):
            if seen[word] < len(_FORMS):
                words.append(word + _FORMS[seen[word]])
            seen[word] += 1
        return " ".join(words)

    def metadata(self, metadata: Mapping[str, Value]) -> dict[str, Value]:
        """Strings become others; numbers and times stay, to be compared. Keys are names, and stay."""
        return {key: self._value(value) for key, value in metadata.items()}

    def selection(self, selection: Selection) -> Selection:
        """The same object where it compares no strings."""
        if not any(_has_text(condition) for condition in selection.conditions):
            return selection
        conditions = [
            replace(one, value=self._value(one.value)) if one.value is not None else one for one in selection.conditions
        ]
        return replace(selection, conditions=conditions)

    def place(self, partition: str) -> bytes:
        """16 bytes that stand for the partition."""
        return blake2b(partition.encode(), key=self._places, digest_size=_VALUE).digest()

    async def turn(self, dimensions: int) -> Vector:
        """An orthogonal matrix of this key's."""
        if (turn := self._turns.get(dimensions)) is None:
            async with self._turning:
                if (turn := self._turns.get(dimensions)) is None:
                    turn = self._turns[dimensions] = await asyncio.to_thread(_orthogonal, self._vectors, dimensions)
        return turn

    def known_turn(self, dimensions: int) -> Vector:
        """After `turn`."""
        return self._turns[dimensions]

    @staticmethod
    def turned(vector: Vector, turn: Vector) -> Vector:
        """As it is stored and searched. What is no vector is left to the store to refuse."""
        values = np.asarray(vector, np.float32)
        # Not by BLAS, whose threads wait for one another longer than this takes.
        return np.einsum("i,ij->j", values, turn) if values.ndim == 1 and values.size else values

    def _word(self, stem: str) -> str:
        digest = blake2b(stem.encode("utf-8", "surrogatepass"), key=self._words, digest_size=_WORD).digest()
        return f"a{int.from_bytes(digest, 'big'):0{_DIGITS}d}z"

    def _value(self, value: Value) -> Value:
        match value:
            case str():
                return self._text(value)
            case [*texts]:
                return [self._text(text) if isinstance(text, str) else text for text in texts]
        return value

    def _text(self, text: str) -> str:
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._values, digest_size=_VALUE).hexdigest()


def _has_text(condition: Condition) -> bool:
    return isinstance(condition.value, str | Sequence)


def _orthogonal(key: bytes, dimensions: int) -> Vector:
    """Drawn evenly from all there are: what is left of normal numbers by QR, with R's diagonal positive (Mezzadri, "How
    to generate random matrices from the classical compact groups", 2007). Made of a hash's bytes, since no generator of
    numpy's promises the same numbers in its next version."""
    count = dimensions * dimensions
    pairs = (count + 1) // 2
    stream = shake_256(key + dimensions.to_bytes(4, "big")).digest(pairs * 16)
    even = ((np.frombuffer(stream, "<u8") >> 11) + 0.5) * 2.0**-53  # strictly between 0 and 1
    radius, angle = np.sqrt(-2 * np.log(even[:pairs])), 2 * np.pi * even[pairs:]
    normal = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count].reshape(dimensions, dimensions)
    basis, rest = np.linalg.qr(normal)
    return np.asarray(basis * np.sign(np.diag(rest)), np.float32)
