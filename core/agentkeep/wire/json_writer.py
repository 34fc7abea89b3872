"""Writing a shape's values as JSON.

Most values go to orjson as they are: a hook writes blobs and timestamps. Only where that cannot be right (a member is
renamed on the wire, both timestamp formats meet, a null must be left out) is the value rewritten by the model first.
Documents are never touched.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

import orjson

from agentkeep.wire.model import Shape
from agentkeep.wire.timestamps import epoch_seconds, iso8601

__all__ = ["JsonWriter"]

_Rewrite: TypeAlias = Callable[[Any], Any]


def _blobs(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode("ascii")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _blobs_and_epochs(value: Any) -> Any:
    return epoch_seconds(value) if isinstance(value, datetime) else _blobs(value)


def _blobs_and_dates(value: Any) -> Any:
    return iso8601(value) if isinstance(value, datetime) else _blobs(value)


#: What writes datetimes, by the formats a shape holds. The default in JSON is seconds since 1970.
_HOOKS: Final = {
    frozenset[str | None](): _blobs_and_epochs,
    frozenset({None}): _blobs_and_epochs,
    frozenset({"unixTimestamp"}): _blobs_and_epochs,
    frozenset({"iso8601"}): _blobs_and_dates,
}


class JsonWriter:
    """Writes values of one shape."""

    def __init__(self, shape: Shape) -> None:
        formats: set[str | None] = set()
        renamed = _survey(shape, formats, set())
        hook = _HOOKS.get(frozenset(formats))
        self._hook = hook or _blobs_and_dates
        self._always_rewrite = renamed or hook is None
        self._rewrite: _Rewrite | None = None
        self._shape = shape

    def write(self, value: Any) -> bytes:
        if not self._always_rewrite:
            data = orjson.dumps(value, self._hook, orjson.OPT_PASSTHROUGH_DATETIME)
            # A null member; one in a string (agents store JSON as text) has its quotation mark escaped. In a document
            # it means nothing, and costs the rewrite.
            if b'":null' not in data or data.count(b'":null') == data.count(b'\\":null'):
                return data
        if self._rewrite is None:
            self._rewrite = _Rewriters().of(self._shape)
        return orjson.dumps(self._rewrite(value), _blobs_and_dates, orjson.OPT_PASSTHROUGH_DATETIME)


def _survey(shape: Shape, formats: set[str | None], seen: set[Shape]) -> bool:
    """Collects timestamp formats; whether a member of the body has another name on the wire."""
    if shape in seen or shape.error:
        return False
    seen.add(shape)
    if shape.kind == "timestamp":
        formats.add(shape.timestamp_format)
    inner: list[Shape] = []
    renamed = False
    if shape.kind == "structure":
        for member in shape.members.values():
            if member.location is None:
                renamed |= member.wire != member.name
                inner.append(member.shape)
    elif shape.kind == "list":
        inner = [shape.item]
    elif shape.kind == "map":
        inner = [shape.value]
    for each in inner:
        renamed |= _survey(each, formats, seen)
    return renamed


def _same(value: Any) -> Any:
    return value


class _Rewriters:
    """Functions that make a value what JSON shall hold, by shape."""

    def __init__(self) -> None:
        self._made: dict[Shape, _Rewrite] = {}

    def of(self, shape: Shape) -> _Rewrite:
        made = self._made.get(shape)
        if made is None:
            self._made[shape] = lambda value: self._made[shape](value)  # met by a shape that contains itself
            made = self._made[shape] = self._make(shape)
        return made

    def _make(self, shape: Shape) -> _Rewrite:
        if shape.kind == "structure":
            members = {m.name: (m.wire, self.of(m.shape)) for m in shape.members.values() if m.location is None}

            def structure(value: Mapping[str, Any]) -> dict[str, Any]:
                out = {}
                for name, item in value.items():
                    if item is not None and (known := members.get(name)) is not None:
                        wire, rewrite = known
                        out[wire] = rewrite(item)
                return out

            return structure
        if shape.kind == "list":
            sub = self.of(shape.item)
            return lambda value: [sub(item) for item in value]
        if shape.kind == "map":
            sub = self.of(shape.value)
            return lambda value: {key: sub(item) for key, item in value.items() if item is not None}
        if shape.kind == "timestamp" and shape.timestamp_format != "iso8601":
            return epoch_seconds
        return _same
