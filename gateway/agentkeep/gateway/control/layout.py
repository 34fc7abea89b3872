"""Where gateways, targets, rate limits, policy engines and policies lie in the key-value store, and how they are read.

Every gateway and every engine has a *revision*: a value never seen before, put with each change of it or of anything
under it, in the same transaction. One read of it tells whether a copy in the process is still true; checked in a
transaction, it tells whether anything came between (a target made while its gateway is being deleted).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from agentkeep.storage.interface import Check, KeyValueStore, Put, partition

__all__ = [
    "ENGINES",
    "ENGINE_NAMES",
    "GATEWAYS",
    "GATEWAY_NAMES",
    "TAGS",
    "Revision",
    "attached",
    "engine_revision",
    "gateway_revision",
    "policies",
    "policy_names",
    "rate_limit_keys",
    "rate_limits",
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
