"""Which sessions live, as a condition of other planes' writes.

The runtime plane writes this index in the very transactions that begin and end a session; another plane may make a
write depend on no session of a user's living under some id. The id alone matters, not the agent: agents that work
together for one user share their session's id, and their memory of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from agentkeep.core.call import SessionRef
from agentkeep.storage.interface import ABSENT, Check, Delete, KeyValueStore, Put, Write, partition

__all__ = ["SessionLives"]

#: user, session id, runtime id -> nothing, while the session lives.
_LIVING: Final = partition("runtime", "living-sessions-by-user")
#: user, session id -> unlike at each beginning; kept for a while only, since its change is what matters.
_BEGUN: Final = partition("runtime", "sessions-begun")
_BEGUN_MS: Final = 6 * 3_600_000


class SessionLives:
    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    @staticmethod
    def begin(session: SessionRef, user_id: str, now_ms: int) -> Sequence[Write]:
        """To be part of the write that begins the session."""
        return (
            Put(_LIVING, partition(user_id, session.session_id, session.runtime_id), b""),
            Put(_BEGUN, partition(user_id, session.session_id), secrets.token_bytes(8), expires_ms=now_ms + _BEGUN_MS),
        )

    @staticmethod
    def end(session: SessionRef, user_id: str) -> Write:
        """To be part of the write that ends it."""
        return Delete(_LIVING, partition(user_id, session.session_id, session.runtime_id))

    async def none(self, user_id: str, session_id: str) -> Check | None:
        """A condition that holds until a session of this user's and this id begins, on any runtime; None: one lives.
        A write with it fails with ConditionFailed once one has begun; and, rarely, where none has: then ask again."""
        begun = await self._store.get(_BEGUN, partition(user_id, session_id))
        # "0" follows "/".
        after, before = partition(user_id, session_id, ""), partition(user_id, session_id) + "0"
        if await self._store.query(_LIVING, after=after, before=before, limit=1):
            return None
        return Check(_BEGUN, partition(user_id, session_id), ABSENT if begun is None else begun)
