"""How many sessions one user has alive at one time, exact whatever the number of replicas.

A session takes one of the user's numbered seats in the very transaction that claims it, if nobody sits there, and
leaves it in the one that ends it. So there is no count that could be wrong after a crash: a seat is taken exactly as
long as the session's record says that it lives.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import ServiceQuotaExceededException
from agentkeep.runtime.records import SessionRecord
from agentkeep.storage.interface import ABSENT, Delete, KeyValueStore, Put, Write, partition

__all__ = ["UserSessions"]

#: Seats are read in one query. The setting's upper bound.
MOST_SEATS: Final = 1000


class UserSessions:
    """`limit` of sessions a user has alive at once; 0: no limit, and no seats are taken."""

    def __init__(self, store: KeyValueStore, limit: int) -> None:
        self._store = store
        self._limit = limit

    async def seat(self, user: User | None) -> int | None:
        """One that is free now; None where none is needed. Raises ServiceQuotaExceededException."""
        if user is None or not self._limit:
            return None
        taken = {int(item.sort) for item in await self._store.query(_seats_of(user), limit=MOST_SEATS)}
        free = [seat for seat in range(self._limit) if seat not in taken]
        # Seats above the limit count: they were taken when it was higher.
        if len(taken) >= self._limit or not free:
            raise ServiceQuotaExceededException(
                f"{len(taken)} sessions of this user are active, and {self._limit} may be at once "
                "(AGENTKEEP_RUNTIME_SESSIONS_PER_USER). Stop some, or wait until idle ones have ended"
            )
        return random.choice(free)  # noqa: S311 -- so that two claims at once seldom want the same

    def take(self, record: SessionRecord) -> Sequence[Write]:
        """For the transaction that claims the session."""
        if record.user is None or record.seat is None:
            return ()
        return [Put(_seats_of(record.user), str(record.seat), _key(record.ref), ABSENT)]

    def leave(self, record: SessionRecord) -> Sequence[Write]:
        """For the transaction that ends the session. `record`: as it lived."""
        if record.user is None or record.seat is None:
            return ()
        return [Delete(_seats_of(record.user), str(record.seat))]


def _seats_of(user: User) -> str:
    return partition("runtime", "user-sessions", user.issuer or "", user.id)


def _key(ref: SessionRef) -> bytes:
    return partition(ref.runtime_id, ref.session_id).encode()
