"""Values of the service models' shapes, made up but valid: what a client may send, or a plane may answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from typing import Any, Final

from agentkeep.wire.model import Shape
from agentkeep.wire.patterns import MAX_UNBOUNDED, matcher, translate

__all__ = ["NoSample", "sample", "string", "variants"]

# Python's own parser of regular expressions: private, but Python's version is pinned.
sre: Final[Any] = import_module("re._constants")
parse_regex: Final[Any] = import_module("re._parser").parse

_ALPHABET: Final = "aA0-_./:b1"
_MOMENT: Final = datetime(2026, 3, 4, 5, 6, 7, 123456, tzinfo=UTC)


class NoSample(LookupError):
    """No string was found that a pattern and its lengths allow."""


def sample(shape: Shape, *, variant: int | None = None) -> Any:
    """A value of `shape`. `variant` None: only what is required; a number: everything, and of unions the member of
    that number."""
    return _sample(shape, variant, ())


def variants(shape: Shape) -> Iterator[Any]:
    """The smallest value, then enough full ones that each member of each union is there once."""
    yield sample(shape)
    for variant in range(max(1, _widest_union(shape, set()))):
        yield sample(shape, variant=variant)


def _widest_union(shape: Shape, seen: set[Shape]) -> int:
    if shape in seen or shape.error:
        return 0
    seen.add(shape)
    if shape.kind == "structure":
        inner = [member.shape for member in shape.members.values()]
        own = len(inner) if shape.union else 0
        return max([own, *(_widest_union(each, seen) for each in inner)])
    if shape.kind == "list":
        return _widest_union(shape.item, seen)
    if shape.kind == "map":
        return _widest_union(shape.value, seen)
    return 0


def _sample(shape: Shape, variant: int | None, inside: tuple[Shape, ...]) -> Any:
    kind = shape.kind
    if kind == "structure":
        return _structure(shape, variant, (*inside, shape))
    if kind == "list":
        count = max(int(shape.low or 0), 0 if variant is None or shape.item in inside else 1)
        return [_sample(shape.item, variant, inside) for _ in range(count)]
    if kind == "map":
        count = max(int(shape.low or 0), 0 if variant is None or shape.value in inside else 1)
        keys = shape.key.enum or tuple(string(shape.key, extra) for extra in range(count))
        return {key: _sample(shape.value, variant, inside) for key in keys[:count]}
    if kind == "string":
        return shape.enum[(variant or 0) % len(shape.enum)] if shape.enum else string(shape)
    if kind in ("integer", "long"):
        return int(shape.high if variant is not None and shape.high is not None else shape.low or 0)
    if kind == "float":
        return float(shape.high if variant is not None and shape.high is not None else shape.low or 0) + 0.0
    if kind == "boolean":
        return variant is not None
    if kind == "timestamp":
        return _MOMENT if variant is not None else _MOMENT.replace(microsecond=0)
    if kind == "blob":
        return b"\x00\xff" * max(int(shape.low or 0), 1)
    return {"any": ["json", 1, 2.5, True, None, {"deep": {}}]} if variant is not None else {}


def _structure(shape: Shape, variant: int | None, inside: tuple[Shape, ...]) -> dict[str, Any]:
    members = [member for member in shape.members.values() if not member.shape.error]
    if shape.union:
        # Not one that leads back here for ever, if another is there.
        ends = [member for member in members if member.shape not in inside] or members
        chosen = ends[(variant or 0) % len(ends)]
        return {chosen.name: _sample(chosen.shape, variant, inside)}
    return {
        member.name: _sample(member.shape, variant if member.location is None else variant or 0, inside)
        for member in members
        if member.required
        or member.location == "uri"
        or (variant is not None and member.shape not in inside and not _returns(member.shape, inside))
    }


def _returns(shape: Shape, inside: tuple[Shape, ...]) -> bool:
    """It is a list or map of a shape we are inside of."""
    while shape.kind in ("list", "map"):
        shape = shape.item if shape.kind == "list" else shape.value
    return shape in inside


def string(shape: Shape, extra: int = 0) -> str:
    """The shortest string found that the shape allows, or one `extra` characters longer."""
    low = int(shape.low or 0)
    if shape.pattern is None:
        return (_ALPHABET * (low // len(_ALPHABET) + 2))[: max(low, 1) + extra]
    return _matching(shape.pattern, low, int(shape.high or MAX_UNBOUNDED), extra)


@cache
def _matching(pattern: str, low: int, high: int, extra: int) -> str:
    matches = matcher(pattern)
    tree = parse_regex(translate(pattern), re.ASCII)
    skipped = 0
    for alternative in range(8):
        for repeats in range(min(high, 600) + 1):
            text = _write(tree, alternative, [repeats])
            if low <= len(text) <= high and text and matches(text):
                if skipped == extra:
                    return text
                skipped += 1
    raise NoSample(pattern)


def _write(tree: Any, alternative: int, more: list[int]) -> str:
    """A string the parsed pattern matches. `more`: repetitions to add, taken by the first that may."""
    out = []
    for op, value in tree:
        if op is sre.LITERAL:
            out.append(chr(value))
        elif op is sre.NOT_LITERAL:
            out.append("x" if value != ord("x") else "y")
        elif op is sre.ANY:
            out.append("x")
        elif op is sre.IN:
            out.append(_one_of(value))
        elif op is sre.SUBPATTERN:
            out.append(_write(value[3], alternative, more))
        elif op is sre.BRANCH:
            out.append(_write(value[1][alternative % len(value[1])], alternative, more))
        elif op in (sre.MAX_REPEAT, sre.POSSESSIVE_REPEAT):
            low, high, body = value
            count = low
            if high > low and more[0]:
                added = min(more[0], int(high) - low)
                more[0] -= added
                count += added
            out += [_write(body, alternative, [0]) for _ in range(count)]
    return "".join(out)


def _one_of(items: Any) -> str:
    negated = items[0][0] is sre.NEGATE
    for candidate in "a1A/.-_x0C4T[(":
        if _holds(items[1:] if negated else items, ord(candidate)) != negated:
            return candidate
    raise NoSample(str(items))


_CATEGORIES: Final[dict[Any, Callable[[str], bool]]] = {
    sre.CATEGORY_DIGIT: str.isdigit,
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
}


def _holds(members: Any, code: int) -> bool:
    for op, value in members:
        if op is sre.LITERAL and value == code:
            return True
        if op is sre.RANGE and value[0] <= code <= value[1]:
            return True
        if op is sre.CATEGORY:
            if value is sre.CATEGORY_NOT_SPACE:
                return True  # no candidate is a space
            if value in _CATEGORIES and _CATEGORIES[value](chr(code)):
                return True
    return False
