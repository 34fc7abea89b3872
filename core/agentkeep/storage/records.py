"""Typed records on the key-value store: dataclasses as JSON, read with the bytes that a conditional write expects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter

from agentkeep.core.errors import ConditionFailed
from agentkeep.storage.interface import Check, KeyValueStore, Once

__all__ = ["Stored", "all_of", "decode", "encode", "find", "page_of", "replayed"]

R = TypeVar("R")

_PAGE: Final = 100
_ADAPTERS: Final[dict[type, TypeAdapter[Any]]] = {}


@dataclass(frozen=True, slots=True)
class Stored(Generic[R]):
    """A record and the bytes it was read from: what a conditional write expects to find."""

    record: R
    raw: bytes = field(repr=False)

    def but(self, **changes: Any) -> R:
        return replace(self.record, **changes)  # type: ignore[type-var]


def encode(record: object) -> bytes:
    return _adapter(type(record)).dump_json(record)


def decode(kind: type[R], raw: bytes) -> R:
    record: R = _adapter(kind).validate_json(raw)
    return record


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    known = _ADAPTERS.get(kind)
    if known is None:
        known = _ADAPTERS[kind] = TypeAdapter(kind)
    return known


async def find(store: KeyValueStore, kind: type[R], where: str, sort: str) -> Stored[R] | None:
    raw = await store.get(where, sort)
    return None if raw is None else Stored(decode(kind, raw), raw)


async def page_of(store: KeyValueStore, kind: type[R], where: str, after: str | None, limit: int) -> list[Stored[R]]:
    items = await store.query(where, after=after, limit=limit)
    return [Stored(decode(kind, item.value), item.value) for item in items]


async def all_of(store: KeyValueStore, kind: type[R], where: str) -> AsyncIterator[Stored[R]]:
    after: str | None = None
    while True:
        items = await store.query(where, after=after, limit=_PAGE)
        for item in items:
            yield Stored(decode(kind, item.value), item.value)
        if len(items) < _PAGE:
            return
        after = items[-1].sort


async def replayed(store: KeyValueStore, once: Once | None) -> bytes | None:
    """What the client token made, if an equal request has spent it; asks without spending it.

    For refusals that depend on what the first request changed: a retry must get the first answer, not the refusal.
    Token checks come before conditions, and this condition is never met.
    """
    if once is None:
        return None
    try:
        found = await store.transact([Check("replayed", "-", b"never")], once=once)
    except ConditionFailed:
        return None
    return found.reference if found is not None else None
