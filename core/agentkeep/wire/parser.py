"""Parsing and validation in one pass: each shape of the model becomes a function, made when first needed.

`parse(value, path, faults)` takes what JSON gave and returns what operations receive: aware `datetime`s, `bytes`,
members by their model names; members the model does not know are dropped, null ones too. Faults are collected, not
raised: a request is told all that is wrong with it. What is returned after a fault means nothing.

Checked: types, required members, ranges, lengths (before patterns, whose time grows with it), patterns, enums, exactly
one member of a union. Lengths of strings are counted in code points.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from math import isfinite
from typing import Any, Final, TypeAlias

from agentkeep.wire.faults import Faults, Path
from agentkeep.wire.model import Shape
from agentkeep.wire.patterns import MAX_UNBOUNDED, matcher
from agentkeep.wire.timestamps import parse_timestamp

__all__ = ["Parse", "ShapeParsers", "from_text"]

Parse: TypeAlias = Callable[[Any, Path, Faults], Any]

_NO_LIMIT: Final = 1 << 63
_BITS: Final = {"integer": 31, "long": 63}


def _limits(shape: Shape, low: float, high: float) -> tuple[float, float]:
    return (low if shape.low is None else shape.low), (high if shape.high is None else shape.high)


def _length_fault(low: float, length: int, high: float) -> str:
    if length < low:
        return f"Member must have length greater than or equal to {low}"
    return f"Member must have length less than or equal to {high}"


def _mismatch(value: Any, path: Path, faults: Faults, what: str, sensitive: bool) -> Any:
    """What stands in a structure's, list's or map's place is not shown: something inside may be sensitive."""
    if value is None:
        faults.missing(path)
    else:
        faults.add(path, value, f"Member must be {what}", sensitive)
    return value


class ShapeParsers:
    """The functions made so far, of one service model. Inside a sensitive shape everything is sensitive."""

    def __init__(self) -> None:
        self._made: dict[tuple[Shape, bool], Parse] = {}

    def of(self, shape: Shape, sensitive: bool = False) -> Parse | None:
        """None: any value will do as it is (documents)."""
        if shape.kind == "document":
            return None
        sensitive = sensitive or shape.sensitive
        key = shape, sensitive
        made = self._made.get(key)
        if made is None:
            # A shape that contains itself meets this while it is being made.
            self._made[key] = lambda value, path, faults: self._made[key](value, path, faults)
            make: Callable[[Shape, bool], Parse] = getattr(self, f"_{shape.kind}")
            made = self._made[key] = make(shape, sensitive)
        return made

    def _structure(self, shape: Shape, sensitive: bool) -> Parse:
        required = tuple(m.name for m in shape.members.values() if m.required and m.location is None)
        members = {m.wire: (m.name, self.of(m.shape, sensitive)) for m in shape.members.values() if m.location is None}
        union = shape.union
        one_of = "Member must have exactly one of these set: [" + ", ".join(shape.members) + "]"

        def parse(value: Any, path: Path, faults: Faults) -> Any:
            if type(value) is not dict:
                return _mismatch(value, path, faults, "a structure", True)
            out = {}
            for wire, item in value.items():
                if item is not None and (known := members.get(wire)) is not None:
                    name, sub = known
                    out[name] = item if sub is None else sub(item, (path, name), faults)
            for name in required:
                if name not in out:
                    faults.missing((path, name))
            if union and len(out) != 1:
                faults.add(path, out, one_of)
            return out

        return parse

    def _list(self, shape: Shape, sensitive: bool) -> Parse:
        sub = self.of(shape.item, sensitive)
        low, high = _limits(shape, 0, _NO_LIMIT)

        def parse(value: Any, path: Path, faults: Faults) -> Any:
            if type(value) is not list:
                return _mismatch(value, path, faults, "a list", True)
            if not low <= len(value) <= high:
                faults.add(path, value, _length_fault(low, len(value), high))
                return value  # its elements are not looked at: there may be millions
            if sub is None:
                return value
            return [sub(item, (path, i), faults) for i, item in enumerate(value, 1)]

        return parse

    def _map(self, shape: Shape, sensitive: bool) -> Parse:
        key_parse, sub = self.of(shape.key, sensitive), self.of(shape.value, sensitive)
        secret_keys = sensitive or shape.key.sensitive
        low, high = _limits(shape, 0, _NO_LIMIT)

        def parse(value: Any, path: Path, faults: Faults) -> Any:
            if type(value) is not dict:
                return _mismatch(value, path, faults, "a map", True)
            if not low <= len(value) <= high:
                faults.add(path, value, _length_fault(low, len(value), high))
                return value
            out = {}
            for key, item in value.items():
                at = (path, "*" if secret_keys else key, True)
                if key_parse is not None:
                    key_parse(key, at, faults)
                if item is None:
                    faults.missing(at)
                else:
                    out[key] = item if sub is None else sub(item, at, faults)
            return out

        return parse

    def _string(self, shape: Shape, sensitive: bool) -> Parse:
        enum = frozenset(shape.enum)
        if enum:
            enum_fault = f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"

            def parse_enum(value: Any, path: Path, faults: Faults) -> Any:
                if type(value) is not str:
                    return _mismatch(value, path, faults, "a string", sensitive)
                if value not in enum:
                    faults.add(path, value, enum_fault, sensitive)
                return value

            return parse_enum

        matches = matcher(shape.pattern) if shape.pattern is not None else None
        low, high = _limits(shape, 0, _NO_LIMIT if matches is None else MAX_UNBOUNDED)
        pattern_fault = f"Member must satisfy regular expression pattern: {shape.pattern}"

        def parse(value: Any, path: Path, faults: Faults) -> Any:
            if type(value) is not str:
                return _mismatch(value, path, faults, "a string", sensitive)
            if not low <= len(value) <= high:
                faults.add(path, value, _length_fault(low, len(value), high), sensitive)
            elif matches is not None and matches(value) is None:
                faults.add(path, value, pattern_fault, sensitive)
            return value

        return parse

    def _integer(self, shape: Shape, sensitive: bool) -> Parse:
        end = 1 << _BITS[shape.kind]
        low, high = _limits(shape, -end, end - 1)

        def parse(value: Any, path: Path, faults: Faults) -> Any:
            if type(value) is not int:
                return _mismatch(value, path, faults, "an integer", sensitive)
            if value < low:
                faults.add(path, value, f"Member must have value greater than or equal to {low}", sensitive)
            elif value > high:
                faults.add(path, value, f"Member must have value less than or equal to {high}", sensitive)
            return value

        return parse

    _long = _integer

    def _float(self, shape: Shape, sensitive: bool) -> Parse:
        low, high = _limits(shape, float("-inf"), float("inf"))

        def parse(value: Any, path: Path, faults: Faults) -> Any:
            if (type(value) is not float and type(value) is not int) or not isfinite(value):
                return _mismatch(value, path, faults, "a number", sensitive)
            if value < low:
                faults.add(path, value, f"Member must have value greater than or equal to {low}", sensitive)
            elif value > high:
                faults.add(path, value, f"Member must have value less than or equal to {high}", sensitive)
            return float(value)

        return parse

    def _boolean(self, shape: Shape, sensitive: bool) -> Parse:
        def parse(value: Any, path: Path, faults: Faults) -> Any:
            if type(value) is not bool:
                return _mismatch(value, path, faults, "a boolean", sensitive)
            return value

        return parse

    def _timestamp(self, shape: Shape, sensitive: bool) -> Parse:
        def parse(value: Any, path: Path, faults: Faults) -> Any:
            moment = parse_timestamp(value)
            if moment is None:
                return _mismatch(value, path, faults, "a timestamp", sensitive)
            return moment

        return parse

    def _blob(self, shape: Shape, sensitive: bool) -> Parse:
        low, high = _limits(shape, 0, _NO_LIMIT)

        def parse(value: Any, path: Path, faults: Faults) -> Any:
            try:
                data = b64decode(value, validate=True) if type(value) is str else None
            except ValueError:
                data = None
            if data is None:  # never shown: blobs are long, and may be anything
                return _mismatch(value, path, faults, "base64 text", True)
            if not low <= len(data) <= high:
                faults.add(path, data, _length_fault(low, len(data), high), True)
            return data

        return parse


_INTEGER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII).fullmatch
_FLOAT: Final = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?([eE][-+]?[0-9]{1,3})?", re.ASCII).fullmatch
_BOOLEAN: Final = {"true": True, "false": False}


def from_text(shape: Shape, text: str) -> Any:
    """A label's, header's or query's text as the JSON value it stands for; the text itself where it is none, which the
    shape's parser then refuses."""
    if shape.kind in ("integer", "long"):
        return int(text) if _INTEGER(text) else text
    if shape.kind == "float":
        return float(text) if _FLOAT(text) else text
    if shape.kind == "boolean":
        return _BOOLEAN.get(text, text)
    return text
