"""The key-value store: ordered partitions, atomic conditional writes, expiry, client tokens.

Everything the platform must not lose or see half-written goes through `transact`. One call is one round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, Literal, Protocol
from urllib.parse import quote

from agentkeep.core.call import Idempotency

__all__ = [
    "ABSENT",
    "ANY",
    "PRESENT",
    "Check",
    "Clear",
    "Delete",
    "Ensure",
    "Expected",
    "Item",
    "KeyValueStore",
    "Once",
    "Put",
    "Replayed",
    "Write",
    "partition",
]


_DAY_MS: Final = 24 * 3_600_000


class _Expect(Enum):
    ANY = "any"
    ABSENT = "absent"
    PRESENT = "present"


ANY: Final = _Expect.ANY
ABSENT: Final = _Expect.ABSENT
PRESENT: Final = _Expect.PRESENT
#: What a conditional write wants to find: anything at all, no item, some item, or exactly these bytes (the value read
#: before).
Expected = Literal[_Expect.ANY, _Expect.ABSENT, _Expect.PRESENT] | bytes


def partition(*parts: str) -> str:
    """A partition's name. Each part is percent-encoded, so no part can reach into another (`a/b`, `c` is not `a`,
    `b/c`): the first wall between two users' data."""
    return "/".join(map(_encoded, parts))


@lru_cache(maxsize=16_384)
def _encoded(part: str) -> str:
    return quote(part, safe="")


@dataclass(frozen=True, slots=True)
class Item:
    sort: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """`expires_ms`: epoch milliseconds from which the item is gone for every reader; None keeps it for ever."""

    partition: str
    sort: str
    value: bytes
    expect: Expected = ANY
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    partition: str
    sort: str
    expect: Expected = ANY


@dataclass(frozen=True, slots=True)
class Check:
    """Writes nothing; the transaction happens only if the item is as expected."""

    partition: str
    sort: str
    expect: Expected


@dataclass(frozen=True, slots=True)
class Ensure:
    """The item exists: where there is one, its value is kept and its end only ever moved later; else it is put. For
    indexes (the sessions of an actor) that each write refreshes without reading."""

    partition: str
    sort: str
    value: bytes
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Clear:
    """Removes every item of the partition, however many there are. Before the other writes to it, or after them, as
    it stands among them."""

    partition: str


Write = Put | Delete | Check | Ensure | Clear


@dataclass(frozen=True, slots=True)
class Once:
    """A client token spent by this transaction. `reference` says, to the operation that wrote it, what it made (an
    id); it is what a replay returns. Kept until `expires_ms`."""

    key: str
    fingerprint: bytes
    reference: bytes
    expires_ms: int

    @classmethod
    def of(cls, idempotency: Idempotency | None, reference: bytes, now_ms: int) -> Once | None:
        """The token of a call, kept for a day; None where it has none."""
        if idempotency is None:
            return None
        return cls(idempotency.key, idempotency.fingerprint, reference, now_ms + _DAY_MS)


@dataclass(frozen=True, slots=True)
class Replayed:
    """The token was spent before by an equal request: nothing was written now."""

    reference: bytes


class KeyValueStore(Protocol):
    """Sort keys order bytewise. Values are opaque. Raises StoreUnavailable when the store does not answer."""

    async def get(self, partition: str, sort: str) -> bytes | None: ...

    async def get_many(self, partition: str, sorts: Sequence[str]) -> list[bytes | None]: ...

    async def query(
        self,
        partition: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = 100,
        reverse: bool = False,
        max_bytes: int | None = None,
    ) -> list[Item]:
        """Up to `limit` live items with after < sort < before (both exclusive), ascending, or descending with
        `reverse`. Fewer than `limit` means the range is exhausted, unless their values together reach `max_bytes`:
        the item that does so is the last returned."""
        ...

    async def transact(self, writes: Sequence[Write], once: Once | None = None) -> Replayed | None:
        """All writes or none, atomically, durable when it returns.

        With `once`: if the token was spent by an equal request, writes nothing and returns `Replayed`; if by a
        different one, raises ValidationException(IdempotentParameterMismatchException). Token checks come before
        conditions. Conditions are all checked before the first write. Raises ConditionFailed with the index of the
        first write whose expectation was wrong. After StoreUnavailable the write may or may not have happened.
        """
        ...

    async def delete_partition(self, partition: str) -> int:
        """Removes every item; returns how many there were."""
        ...

    async def close(self) -> None: ...
