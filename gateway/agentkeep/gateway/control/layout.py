"""Where gateways, targets, rate limits, policy engines and policies lie in the key-value store, and how they are read.

Every gateway and every engine has a *revision*: a value never seen before, put with each change of it or of anything
under it, in the same transaction. One read of it tells whether a copy in the process is still true; checked in a
transaction, it tells whether anything came between (a target made while its gateway is being deleted).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter

from agentkeep.core.errors import ConditionFailed
from agentkeep.gateway.records import GatewayRecord, PolicyEngineRecord, PolicyRecord, RateLimitRecord, TargetRecord
from agentkeep.storage.interface import PRESENT, Check, KeyValueStore, Once, Put, partition

__all__ = [
    "ENGINES",
    "ENGINE_NAMES",
    "GATEWAYS",
    "GATEWAY_NAMES",
    "TAGS",
    "Revision",
    "Stored",
    "all_of",
    "attached",
    "decode",
    "encode",
    "engine_revision",
    "find",
    "gateway_revision",
    "page_of",
    "policies",
    "policy_names",
    "rate_limit_keys",
    "rate_limits",
    "replayed",
    "revise",
    "target_names",
    "targets",
]

GATEWAYS: Final = partition("gateway", "gateways")
GATEWAY_NAMES: Final = partition("gateway", "gateway-names")
ENGINES: Final = partition("gateway", "policy-engines")
ENGINE_NAMES: Final = partition("gateway", "policy-engine-names")
TAGS: Final = partition("gateway", "tags")
_REVISIONS: Final = partition("gateway", "revisions")

R = TypeVar("R")


def targets(gateway_id: str) -> str:
    return partition("gateway", "targets", gateway_id)


def target_names(gateway_id: str) -> str:
    """Name -> id."""
    return partition("gateway", "target-names", gateway_id)


def rate_limits(gateway_id: str) -> str:
    return partition("gateway", "rate-limits", gateway_id)


def rate_limit_keys(gateway_id: str) -> str:
    """Dimension keys -> id: a gateway has one limit for the same keys in the same order."""
    return partition("gateway", "rate-limit-keys", gateway_id)


def policies(engine_id: str) -> str:
    return partition("gateway", "policies", engine_id)


def policy_names(engine_id: str) -> str:
    """Name -> id."""
    return partition("gateway", "policy-names", engine_id)


def attached(engine_id: str) -> str:
    """The gateways an engine decides for, by id."""
    return partition("gateway", "attached", engine_id)


# Revisions.


@dataclass(frozen=True, slots=True)
class Revision:
    """Where the revision of one gateway or engine is kept."""

    sort: str

    @property
    def partition(self) -> str:
        return _REVISIONS

    async def read(self, store: KeyValueStore) -> bytes | None:
        return await store.get(_REVISIONS, self.sort)

    def check(self, found: bytes) -> Check:
        """To be part of a write: it happens only while nothing has changed since `found` was read."""
        return Check(_REVISIONS, self.sort, found)


def gateway_revision(gateway_id: str) -> Revision:
    return Revision(f"gateway/{gateway_id}")


def engine_revision(engine_id: str) -> Revision:
    return Revision(f"engine/{engine_id}")


def revise(revision: Revision) -> Put:
    """To be part of every write that changes something under it."""
    return Put(_REVISIONS, revision.sort, secrets.token_hex(12).encode())


# Records.


@dataclass(frozen=True, slots=True)
class Stored(Generic[R]):
    """A record and the bytes it was read from: what a conditional write expects to find."""

    record: R
    raw: bytes = field(repr=False)

    def but(self, **changes: Any) -> R:
        return replace(self.record, **changes)  # type: ignore[type-var]


def encode(record: object) -> bytes:
    return _ADAPTERS[type(record)].dump_json(record)


def decode(kind: type[R], raw: bytes) -> R:
    record: R = _ADAPTERS[kind].validate_json(raw)
    return record


_ADAPTERS: Mapping[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (GatewayRecord, TargetRecord, RateLimitRecord, PolicyEngineRecord, PolicyRecord)
}


async def find(store: KeyValueStore, kind: type[R], where: str, sort: str) -> Stored[R] | None:
    raw = await store.get(where, sort)
    return None if raw is None else Stored(decode(kind, raw), raw)


async def page_of(store: KeyValueStore, kind: type[R], where: str, after: str | None, limit: int) -> list[R]:
    return [decode(kind, item.value) for item in await store.query(where, after=after, limit=limit)]


async def all_of(store: KeyValueStore, kind: type[R], where: str) -> AsyncIterator[R]:
    after: str | None = None
    while items := await store.query(where, after=after, limit=100):
        for item in items:
            yield decode(kind, item.value)
        after = items[-1].sort


async def replayed(store: KeyValueStore, once: Once | None) -> bytes | None:
    """What the client token made, if an equal request has spent it; asks without spending it, for the condition is
    never met. For refusals that depend on what the first request changed: a retry must get the first answer."""
    if once is None:
        return None
    try:
        found = await store.transact([Check(_REVISIONS, "-", PRESENT)], once=once)
    except ConditionFailed:
        return None
    return found.reference if found is not None else None
