"""What the search stores have in common in keeping documents: metadata under types, vectors at length one, and
the places of a list."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from agentkeep.storage.search import Document, Value, Vector

__all__ = ["check_key", "continuation", "cursor", "typed", "unit", "untyped"]


def check_key(key: str) -> None:
    """Not every store can name such a key in a query. Raises ValueError."""
    if '"' in key or "\\" in key:
        raise ValueError(f"metadata key {key!r}: quotes and backslashes are not allowed")


def unit(vector: Vector, dimensions: int | None) -> Vector:
    """The vector at length one. Raises ValueError for what has no direction, or other dimensions."""
    values = np.asarray(vector, np.float32)
    length = float(np.linalg.norm(values)) if values.shape == (dimensions,) else math.nan
    if not math.isfinite(length) or length == 0:
        raise ValueError(f"a vector of {dimensions} finite numbers, not all zero, is wanted")
    return values / np.float32(length)


def typed(metadata: Mapping[str, Value]) -> dict[str, dict[str, object]]:
    """Each value under its type's name, so that a comparison meets only its own type. Raises ValueError."""
    for key in metadata:
        check_key(key)
    return {key: _typed(value) for key, value in metadata.items()}


def _typed(value: Value) -> dict[str, object]:
    match value:
        case str():
            return {"string": value}
        case datetime():
            return {"time": value.timestamp()}
        case int() | float():
            return {"number": value}
    return {"strings": list(value)}


_DECODE: Final[dict[str, Callable[[Any], Value]]] = {
    "string": str,
    "number": float,
    "strings": list,
    "time": lambda seconds: datetime.fromtimestamp(seconds, UTC),
}


def untyped(metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, Value]:
    return {key: _DECODE[kind](value) for key, kinds in metadata.items() for kind, value in kinds.items()}


def continuation(last: Document) -> str:
    """Of a list, newest first, that ended with this document so far."""
    return f"{last.created_ms}.{last.id}"


def cursor(after: str) -> tuple[int, str]:
    """Creation and id of the document behind which a list goes on. Raises ValueError."""
    created_ms, separator, id = after.partition(".")
    if not separator or not created_ms.lstrip("-").isdigit() or len(created_ms) > 18:
        raise ValueError("not a continuation of this list")
    return int(created_ms), id
