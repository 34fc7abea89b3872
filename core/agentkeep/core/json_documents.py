"""Reading of JSON that people write and that decides what somebody may do."""

from __future__ import annotations

import json
from typing import Any

import orjson

__all__ = ["parse_json"]


def parse_json(text: bytes | str) -> Any:
    """As orjson reads it, but for objects that name a member twice: readers differ in which of the two they see, and
    none sees both. Raises ValueError, whose text says what is wrong."""
    orjson.loads(text)  # strict where the standard library is not (NaN, UTF-8), and with an end to nesting
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"an object names {name!r} twice, of which one would be ignored: join the two")
        found[name] = value
    return found
