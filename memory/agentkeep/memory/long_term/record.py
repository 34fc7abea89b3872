"""A long-term memory record, and how it is a document of the search store."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from agentkeep.storage.search import Document, Value, Vector

__all__ = [
    "METHOD_KEY",
    "NOWHERE",
    "SPEAKER_KEY",
    "STRATEGY_KEY",
    "WITHOUT_STRATEGY",
    "Record",
    "Source",
    "Surroundings",
    "Turn",
    "likeness",
    "metadata_of",
    "new_id",
]

#: Among a document's metadata, where no caller's key can be: theirs have no dollar sign.
STRATEGY_KEY: Final = "$strategy"
#: In answers alone: how the platform made a record, and who said what it is.
METHOD_KEY: Final = "agentkeep:method"
SPEAKER_KEY: Final = "agentkeep:speaker"
#: What answers name where a record has no strategy: the member is required.
WITHOUT_STRATEGY: Final = "none"

#: Between a document's body and the record's own vector; never in JSON as it is written here.
_BEFORE_VECTOR: Final = b"\n"
_HALF: Final = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class Source:
    """What a record was made of: an event of a session of its actor, or an earlier record, or what was ingested in a
    session (`event_id` begins with `ingest-` then)."""

    session_id: str | None = None
    event_id: str | None = None
    record_id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """Of a record that is one turn of a conversation, word for word: where it stood there. Turns of a session follow
    one another as their `place` does, as text. `speaker`: the payload's role."""

    session_id: str
    place: str
    speaker: str


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What stands around a record and helps to find it; the `RecordWriter` alone makes it. `position`: by which it is
    put in order, None for what stands nowhere. `before`, `after`: ids of the next and the next but one. `near`,
    `farther`: the texts of those. `vector`: the record's own, averaged with theirs."""

    position: tuple[float, str] | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    near: str = ""
    farther: str = ""
    vector: Vector | None = None


NOWHERE: Final = Surroundings()


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """`owner`: the actor whose it is, None for nobody's. `namespace`: normalised; None where it is in none. `timestamp`
    is the caller's, `created_ms` ours. `vector`: of the text alone, None where it is not embedded.

    Of records that the platform made: `sources`, all they were made of, and `method`, how (`verbatim`, `pattern`,
    `extract`, `model <model id>`); else none."""

    id: str
    text: str
    owner: str | None
    namespace: str | None
    strategy_id: str | None
    timestamp: datetime
    created_ms: int
    expires_ms: int | None
    metadata: Mapping[str, Value]
    vector: Vector | None = None
    sources: tuple[Source, ...] = ()
    method: str | None = None
    turn: Turn | None = None
    around: Surroundings = NOWHERE

    def document(self) -> Document:
        return Document(
            self.id,
            self.text,
            self.created_ms,
            context=self.around.near,
            farther=self.around.farther,
            vector=self.vector if self.around.vector is None else self.around.vector,
            namespaces=(self.namespace,) if self.namespace is not None else (),
            metadata={**self.metadata, STRATEGY_KEY: self.strategy_id or WITHOUT_STRATEGY},
            body=orjson.dumps(self._body()) + self._own_vector(),
            expires_ms=self.expires_ms,
        )

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "owner": self.owner,
            "strategy": self.strategy_id,
            "timestamp": self.timestamp.timestamp(),
        }
        if self.method is not None:
            body["method"] = self.method
        if self.sources:
            body["sources"] = [[one.session_id, one.event_id, one.record_id] for one in self.sources]
        if self.turn is not None:
            body["turn"] = [self.turn.session_id, self.turn.place, self.turn.speaker]
        if self.around.position is not None:
            body["around"] = [self.around.position, self.around.before, self.around.after]
        return body

    def _own_vector(self) -> bytes:
        """Behind the body, where what is kept for search is averaged. Half precision tells likeness to four digits."""
        if self.around.vector is None or self.vector is None:
            return b""
        return _BEFORE_VECTOR + self.vector.astype(_HALF).tobytes()

    @classmethod
    def of(cls, document: Document) -> Record:
        described, _, own = document.body.partition(_BEFORE_VECTOR)
        body = orjson.loads(described)
        vector = np.frombuffer(own, _HALF).astype(np.float32) if own else document.vector
        return cls(
            document.id,
            document.text,
            body["owner"],
            next(iter(document.namespaces), None),
            body["strategy"],
            datetime.fromtimestamp(body["timestamp"], UTC),
            document.created_ms,
            document.expires_ms,
            {key: value for key, value in document.metadata.items() if key != STRATEGY_KEY},
            vector,
            tuple(Source(*one) for one in body.get("sources", ())),
            body.get("method"),
            Turn(*body["turn"]) if "turn" in body else None,
            _surroundings(body, document, averaged=bool(own)),
        )


def likeness(documents: Sequence[Document], query: Vector, averaged: NDArray[Any]) -> NDArray[Any]:
    """Cosines of the query with each record's own vector. `averaged`: with its averaged one, which is the own where
    none stands around it."""
    cosines = np.array(averaged, np.float32)
    own = [(index, tail) for index, one in enumerate(documents) if (tail := one.body.partition(_BEFORE_VECTOR)[2])]
    if own:
        rows = np.frombuffer(b"".join(tail for _, tail in own), _HALF).reshape(len(own), -1).astype(np.float32)
        cosines[[index for index, _ in own]] = rows @ query
    return cosines


def _surroundings(body: Mapping[str, Any], document: Document, *, averaged: bool) -> Surroundings:
    if "around" not in body:
        return NOWHERE
    (at, place), before, after = body["around"]
    vector = document.vector if averaged else None
    return Surroundings((at, place), tuple(before), tuple(after), document.context, document.farther, vector)


def new_id(seed: str | None = None) -> str:
    """`mem-` and 36 characters; the same for the same seed."""
    return f"mem-{uuid.uuid4() if seed is None else uuid.uuid5(uuid.NAMESPACE_URL, seed)}"


def metadata_of(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Value]:
    """From a request's MemoryRecordMetadataMap. What we said ourselves and a client sends back is left out. Raises
    ValueError."""
    return {key: metadata_value(value, key) for key, value in given.items() if key not in (METHOD_KEY, SPEAKER_KEY)}


def metadata_value(given: Mapping[str, Any], key: str) -> Value:
    """From a MemoryRecordMetadataValue. Raises ValueError."""
    ((kind, value),) = given.items()
    if kind == "numberValue":
        if not math.isfinite(value):
            raise ValueError(f"metadata {key}: numberValue must be finite")
        return float(value)
    text: str | datetime | Sequence[str] = value
    return text
