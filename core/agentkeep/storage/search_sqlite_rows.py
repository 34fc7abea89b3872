"""How the SQLite search store keeps documents in rows, and finds them by what is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import apsw
import numpy as np
import orjson

from agentkeep.storage.search import Condition, Document, Operator, Selection, Value
from agentkeep.storage.search_values import check_key, typed, untyped

__all__ = ["LIVE", "READ", "encode_metadata", "encode_namespaces", "meeting", "read_documents", "where"]


READ: Final = """
SELECT records.id, text, created_ms, context, vector, namespaces, metadata, body, expires_ms, farther, records.number
FROM records JOIN contents ON contents.number = records.number JOIN features ON features.number = records.number
"""
LIVE: Final = "(expires_ms IS NULL OR expires_ms > ?)"
# The pairs of a list, as rows of which the same can be asked as of records.
_KINDS: Final = """
SELECT key FROM (
    SELECT key, json_extract(value, '$[0]') AS namespaces, json_extract(value, '$[1]') AS metadata FROM json_each(?)
) WHERE
"""


def where(selection: Selection) -> tuple[str, tuple[Any, ...]]:
    """The condition on `records` besides the partition, and its bindings. Raises ValueError."""
    clauses: list[str] = []
    bindings: list[Any] = []
    # Within the JSON array, a string's beginning is a quote, and none is inside: much faster than taking it apart.
    if selection.namespace is not None:
        clauses.append("instr(namespaces, ?)")
        bindings.append(_quoted(selection.namespace))
    if selection.namespace_path is not None:
        clauses.append("instr(namespaces, ?)")
        bindings.append(_quoted(selection.namespace_path)[:-1])
    for condition in selection.conditions:
        clause, more = _condition(condition)
        clauses.append(clause)
        bindings += more
    return " AND ".join(clauses) or "TRUE", tuple(bindings)


def meeting(
    connection: apsw.Connection, selection: Selection
) -> Callable[[Iterable[tuple[str, str]]], Sequence[int]] | None:
    """Says which pairs of namespaces and metadata meet a selection, by their places; None: all do."""
    clause, bindings = where(selection)
    if not bindings:
        return None

    def places(kinds: Iterable[tuple[str, str]]) -> Sequence[int]:
        given = orjson.dumps(list(kinds)).decode()
        return [row[0] for row in connection.execute(f"{_KINDS} {clause}", (given, *bindings))]

    return places


def encode_namespaces(namespaces: Sequence[str]) -> str:
    return f"[{','.join(map(_quoted, namespaces))}]"


def _quoted(namespace: str) -> str:
    if '"' in namespace:
        raise ValueError(f"namespace {namespace!r}: quotes are not allowed")
    return orjson.dumps(namespace).decode()


COMPARISONS = {
    Operator.GREATER_THAN: ">",
    Operator.GREATER_THAN_OR_EQUALS: ">=",
    Operator.LESS_THAN: "<",
    Operator.LESS_THAN_OR_EQUALS: "<=",
}


def _condition(condition: Condition) -> tuple[str, list[Any]]:
    path = _path(condition.key)
    match condition.operator, condition.value:
        case Operator.EXISTS, None:
            return "json_type(metadata, ?) IS NOT NULL", [path]
        case Operator.NOT_EXISTS, None:
            return "json_type(metadata, ?) IS NULL", [path]
        case Operator.EQUALS_TO, str() as text:
            return "json_extract(metadata, ?) = ?", [f"{path}.string", text]
        case Operator.EQUALS_TO, float() | int() as number:
            return "json_extract(metadata, ?) = ?", [f"{path}.number", number]
        case (Operator.BEFORE | Operator.AFTER) as operator, datetime() as moment:
            sign = "<" if operator is Operator.BEFORE else ">"
            return f"json_extract(metadata, ?) {sign} ?", [f"{path}.time", moment.timestamp()]
        case Operator.CONTAINS, [*texts] if texts and all(isinstance(text, str) for text in texts):
            one = "EXISTS (SELECT 1 FROM json_each(metadata, ?) WHERE value = ?)"
            return " AND ".join([one] * len(texts)), [part for text in texts for part in (f"{path}.strings", text)]
        case operator, float() | int() as number if operator in COMPARISONS:
            return f"json_extract(metadata, ?) {COMPARISONS[operator]} ?", [f"{path}.number", number]
    raise ValueError(f"{condition.operator} does not take {condition.value!r}")


def _path(key: str) -> str:
    """The JSON path of a metadata key. SQLite's paths know no escapes, so a key with a quote cannot be named."""
    check_key(key)
    return f'$."{key}"'


def encode_metadata(metadata: Mapping[str, Value]) -> bytes:
    return orjson.dumps(typed(metadata))


def read_documents(rows: Iterable[Any]) -> dict[int, Document]:
    """From rows of READ, by number. Equal metadata and namespaces, as most of one user's are, are one object."""
    metadata: dict[str, Mapping[str, Value]] = {}
    namespaces: dict[str, Sequence[str]] = {}
    documents: dict[int, Document] = {}
    for id, text, created_ms, context, vector, places, facts, body, expires_ms, farther, number in rows:
        if facts not in metadata:
            metadata[facts] = untyped(orjson.loads(facts))
        if places not in namespaces:
            namespaces[places] = orjson.loads(places)
        unit = None if vector is None else np.frombuffer(vector, np.float32)
        documents[number] = Document(
            id, text, created_ms, context, unit, namespaces[places], metadata[facts], body, expires_ms, farther
        )
    return documents
