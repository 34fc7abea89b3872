"""How the OpenSearch search store keeps documents in an index, and finds them by what is in them.

Everything a query selects by is a term of fixed length, made from a digest: so no partition, namespace, key or value
can be too long for a term, or be taken for a pattern; and metadata of any key needs no field of its own.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

import numpy as np

from agentkeep.storage.search import EVERYTHING, Beneath, Condition, Document, Operator, Selection, Vector
from agentkeep.storage.search_values import check_key, typed, untyped
from agentkeep.storage.search_words import UNITS, Stemmer

__all__ = ["INDEX", "Place", "document_id", "encode", "read_document", "vector_field"]

#: Stands for a time that never comes.
NEVER: Final = 2**62
#: Of a sort value's UTF-8 form: the longest term that Lucene takes is some 32 KB.
LONGEST_ID: Final = 8_000
#: Lucene's tokenizer would cut longer words in pieces: digests stand for them.
LONGEST_WORD: Final = 100
#: `document` is what comes back; all the rest is what it is found by, and not kept besides.
INDEX: Final[Mapping[str, Any]] = {
    "settings": {"index.knn": True},
    "mappings": {
        "dynamic": "strict",
        "_source": {"includes": ["document", "expires_ms", "batch"]},
        "_routing": {"required": True},
        "properties": {
            "partition": {"type": "keyword"},
            "above": {"type": "keyword"},
            "id": {"type": "keyword"},
            "created_ms": {"type": "long"},
            "expires_ms": {"type": "long"},
            "places": {"type": "keyword"},
            "facts": {"type": "keyword"},
            "words": {"type": "text", "analyzer": "whitespace", "norms": False, "index_options": "freqs"},
            "length": {"type": "double"},
            "batch": {"type": "keyword", "index": False, "doc_values": False},
            "document": {"type": "object", "enabled": False},
        },
    },
}


def vector_field(dimensions: int) -> dict[str, Any]:
    return {
        "embedding": {
            "type": "knn_vector",
            "dimension": dimensions,
            "method": {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"},
        }
    }


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call may look: every query is made here, and begins with the partition."""

    partition: str | Beneath

    @property
    def routing(self) -> str | None:
        """A partition's documents are on one shard."""
        return None if isinstance(self.partition, Beneath) else _digest(self.partition)

    def query(self, now: int, selection: Selection = EVERYTHING, *more: Mapping[str, Any]) -> dict[str, Any]:
        """What is in the partition, has not expired, is selected, and meets `more`. Raises ValueError."""
        return {"bool": {"filter": [self._inside, {"range": {"expires_ms": {"gt": now}}}, *_where(selection), *more]}}

    def everything(self) -> dict[str, Any]:
        """Expired or not."""
        return {"bool": {"filter": [self._inside]}}

    @property
    def _inside(self) -> Mapping[str, Any]:
        if isinstance(self.partition, Beneath):
            return {"term": {"above": _digest(self.partition.name)}}
        return {"term": {"partition": _digest(self.partition)}}


def document_id(partition: str, id: str) -> str:
    """In the index. Without the length, a partition and an id could be read as another pair."""
    return _digest(f"{len(partition)} {partition} {id}")


def encode(partition: str, document: Document, vector: Vector | None, stems: Stemmer, batch: str) -> dict[str, Any]:
    """A document of the index. `vector`: of length 1. Raises ValueError."""
    if len(document.id.encode()) > LONGEST_ID:
        raise ValueError(f"an id is at most {LONGEST_ID} bytes long")
    words = stems.weighed(document)
    metadata = typed(document.metadata)
    encoded = {
        "partition": _digest(partition),
        "above": [_digest(partition[:end]) for end, letter in enumerate(partition) if letter == "/"],
        "id": document.id,
        "created_ms": document.created_ms,
        "expires_ms": NEVER if document.expires_ms is None else document.expires_ms,
        "places": _places(document.namespaces),
        "facts": [fact for key, kinds in metadata.items() for fact in _facts(key, kinds)],
        "words": " ".join(term(word) for word in words.elements()),
        "length": words.total() / UNITS,
        "batch": batch,
        "document": {
            "id": document.id,
            "text": document.text,
            "created_ms": document.created_ms,
            "context": document.context,
            "farther": document.farther,
            "vector": None if vector is None else _packed(vector.tobytes()),
            "namespaces": list(document.namespaces),
            "metadata": metadata,
            "body": _packed(document.body),
            "expires_ms": document.expires_ms,
        },
    }
    if vector is not None:
        encoded["embedding"] = vector
    return encoded


def read_document(found: Mapping[str, Any]) -> Document:
    members = found["document"]
    vector = members["vector"]
    return Document(
        **{
            **members,
            "vector": None if vector is None else np.frombuffer(b64decode(vector), np.float32),
            "metadata": untyped(members["metadata"]),
            "body": b64decode(members["body"]),
        }
    )


def term(word: str) -> str:
    return word if len(word) <= LONGEST_WORD else _digest(word)


def _where(selection: Selection) -> list[dict[str, Any]]:
    clauses = [_condition(condition) for condition in selection.conditions]
    if selection.namespace is not None:
        clauses.append({"term": {"places": f"at {_digest(selection.namespace)}"}})
    if selection.namespace_path is not None:
        clauses.append({"term": {"places": f"in {_digest(selection.namespace_path)}"}})
    return clauses


def _places(namespaces: Sequence[str]) -> list[str]:
    """Each namespace itself, and every path it is beneath."""
    paths = {path[: end + 1] for path in namespaces for end, letter in enumerate(path) if letter == "/"}
    return [f"at {_digest(path)}" for path in namespaces] + [f"in {_digest(path)}" for path in paths]


def _condition(condition: Condition) -> dict[str, Any]:
    check_key(condition.key)
    match condition.operator, condition.value:
        case Operator.EXISTS, None:
            return _is(condition.key, "exists")
        case Operator.NOT_EXISTS, None:
            return {"bool": {"must_not": [_is(condition.key, "exists")]}}
        case Operator.EQUALS_TO, str() as text:
            return _is(condition.key, "string", _digest(text))
        case Operator.EQUALS_TO, float() | int() as number:
            return _is(condition.key, "number", _sortable(number))
        case Operator.BEFORE, datetime() as moment:
            return _range(condition.key, "time", "lt", moment.timestamp())
        case Operator.AFTER, datetime() as moment:
            return _range(condition.key, "time", "gt", moment.timestamp())
        case Operator.CONTAINS, [*texts] if texts and all(isinstance(text, str) for text in texts):
            return {"bool": {"filter": [_is(condition.key, "item", _digest(text)) for text in map(str, texts)]}}
        case operator, float() | int() as number if operator in _COMPARISONS:
            return _range(condition.key, "number", _COMPARISONS[operator], number)
    raise ValueError(f"{condition.operator} does not take {condition.value!r}")


_COMPARISONS: Final = {
    Operator.GREATER_THAN: "gt",
    Operator.GREATER_THAN_OR_EQUALS: "gte",
    Operator.LESS_THAN: "lt",
    Operator.LESS_THAN_OR_EQUALS: "lte",
}


def _facts(key: str, kinds: Mapping[str, Any]) -> list[str]:
    """What can be said of one metadata value. Of a key and kind, they are sorted as their values are."""
    facts = [_fact(key, "exists")]
    for kind, value in kinds.items():
        match kind:
            case "string":
                facts.append(_fact(key, "string", _digest(value)))
            case "strings":
                facts += [_fact(key, "item", _digest(item)) for item in value]
            case _:
                facts.append(_fact(key, kind, _sortable(value)))
    return facts


def _fact(key: str, kind: str, value: str = "") -> str:
    return f"{_digest(key)} {kind} {value}"


def _is(key: str, kind: str, value: str = "") -> dict[str, Any]:
    return {"term": {"facts": _fact(key, kind, value)}}


def _range(key: str, kind: str, comparison: str, value: float) -> dict[str, Any]:
    """Between the value and the end of what is said of this key in this kind."""
    ends = {"gt": ("lt", "~"), "gte": ("lt", "~"), "lt": ("gt", ""), "lte": ("gt", "")}  # a tilde follows all digits
    opposite, end = ends[comparison]
    bounds = {comparison: _fact(key, kind, _sortable(value)), opposite: _fact(key, kind, end)}
    return {"range": {"facts": bounds}}


def _sortable(number: float) -> str:
    """Hexadecimal, in the order of the numbers."""
    bits: int = struct.unpack(">q", struct.pack(">d", float(number) + 0.0))[0]  # the sum makes -0.0 a 0.0
    return f"{(bits ^ 0x7FFFFFFFFFFFFFFF if bits < 0 else bits) + 2**63:016x}"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _packed(data: bytes) -> str:
    return b64encode(data).decode()
