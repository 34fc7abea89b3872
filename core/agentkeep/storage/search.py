"""The search store: documents with text, vector and metadata, searched inside one partition.

A partition is one user's: a call names exactly one, and nothing of another is read, written or counted by it. Only the
platform's operators look at several at once, by naming `Beneath`.
Embedding texts and weighing the two scores against each other is the caller's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Beneath",
    "Condition",
    "Document",
    "Hit",
    "Operator",
    "Page",
    "SearchStore",
    "Selection",
    "Shortlist",
    "Value",
    "Vector",
]

Vector = NDArray[np.float32]

#: What metadata may hold. Times are aware.
Value = str | float | datetime | Sequence[str]


@dataclass(frozen=True, slots=True)
class Beneath:
    """All partitions whose names begin with `name` and a slash."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """`id` is unique in its partition. `text` is what is searched; `context` is text found near it (the turns before
    and after), whose words count half; `farther` is text a step further away, whose words count a quarter. `vector` is
    None or of the store's dimensions; its length does not matter. `namespaces` are paths, normalised by the caller to
    begin and end with a slash. `body` is the owner's and comes back as it was. `expires_ms`: epoch milliseconds after
    which the document is gone for every reader."""

    id: str
    text: str
    created_ms: int
    context: str = ""
    vector: Vector | None = None
    namespaces: Sequence[str] = ()
    metadata: Mapping[str, Value] = field(default_factory=dict)
    body: bytes = b""
    expires_ms: int | None = None
    farther: str = ""


class Operator(StrEnum):
    """AgentCore's, on memory records' metadata."""

    EQUALS_TO = "EQUALS_TO"
    EXISTS = "EXISTS"
    NOT_EXISTS = "NOT_EXISTS"
    BEFORE = "BEFORE"
    AFTER = "AFTER"
    CONTAINS = "CONTAINS"
    GREATER_THAN = "GREATER_THAN"
    GREATER_THAN_OR_EQUALS = "GREATER_THAN_OR_EQUALS"
    LESS_THAN = "LESS_THAN"
    LESS_THAN_OR_EQUALS = "LESS_THAN_OR_EQUALS"


@dataclass(frozen=True, slots=True)
class Condition:
    """On one metadata key. A value of another type than the operator compares never matches. EQUALS_TO takes a string
    or a number, BEFORE and AFTER a time, CONTAINS strings that must all be in the list, the rest numbers; EXISTS and
    NOT_EXISTS take none."""

    key: str
    operator: Operator
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which documents of the partition count: all conditions, and the namespace itself or anything beneath it."""

    namespace: str | None = None
    namespace_path: str | None = None
    conditions: Sequence[Condition] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """`lexical`: BM25 as a share of what a document of average length with each of the query's words once would have;
    0 where no word matches, somewhat above 1 at most a few times. How rare a word is, is counted in the document's own
    partition. `similarity`: cosine, None where the document or the query has no vector. Exact for every hit."""

    document: Document
    lexical: float
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Of what was found, only the best `count` by `words` times the lexical score (1 at most) and `meaning` times the
    similarity (0 at least). What is left out is not read."""

    count: int
    words: float
    meaning: float

    def weight(self, lexical: float, similarity: float | None) -> float:
        return self.words * min(lexical, 1.0) + self.meaning * max(similarity or 0.0, 0.0)

    def best(self, hits: Sequence[Hit]) -> list[Hit]:
        """Of equal ones those of the lesser ids."""
        if len(hits) <= self.count:
            return list(hits)
        ordered = sorted(hits, key=lambda hit: (-self.weight(hit.lexical, hit.similarity), hit.document.id))
        return ordered[: self.count]


@dataclass(frozen=True, slots=True)
class Page:
    """`after` continues the list; None at its end."""

    documents: list[Document]
    after: str | None


EVERYTHING = Selection()


class SearchStore(Protocol):
    """A write is durable, and seen by every later read and search, when it returns. Raises StoreUnavailable when the
    store does not answer, ValueError for documents and conditions that are none (a vector of other dimensions)."""

    async def upsert(self, partition: str, documents: Sequence[Document], *, replacing: Collection[str] = ()) -> None:
        """All or none; a document of the same id is replaced. `replacing`: ids of those that are nothing but new
        versions: one that is gone, even while this is under way, does not come back."""
        ...

    async def delete(self, partition: str, ids: Sequence[str]) -> list[str]:
        """Those of the ids that were there."""
        ...

    async def delete_partition(self, partition: str | Beneath) -> int:
        """Erases all of it; returns how many documents there were."""
        ...

    async def get(self, partition: str | Beneath, ids: Sequence[str]) -> list[Document | None]: ...

    async def newest(
        self, partition: str | Beneath, selection: Selection = EVERYTHING, *, limit: int = 100, after: str | None = None
    ) -> Page:
        """A list, newest first: by creation and then id, both descending. `after` is an earlier page's, and stays good
        when documents come and go in between."""
        ...

    async def search(
        self,
        partition: str | Beneath,
        *,
        text: str = "",
        vector: Vector | None = None,
        selection: Selection = EVERYTHING,
        limit: int = 100,
        shortlist: Shortlist | None = None,
    ) -> list[Hit]:
        """The best `limit` by words and the best `limit` by vector, of what is selected, each hit once with both its
        scores; best lexical score first. Without `text`, or `vector`, that half is left out. No syntax: `text` is
        words, whatever signs are in it."""
        ...

    async def purge(self) -> int:
        """Removes what has expired from the disk; returns how much."""
        ...

    async def close(self) -> None: ...
