"""Sessions that live and have their keys: all that a session's endpoint serves in their name."""

from __future__ import annotations

from agentkeep.core.call import SessionRef
from agentkeep.core.ports import SessionCredentials
from agentkeep.runtime.records import SessionState
from agentkeep.runtime.sessions.keys import SessionKeys, session_ended
from agentkeep.runtime.sessions.session import Session
from agentkeep.runtime.sessions.sessions import Sessions

__all__ = ["LivingSessions"]


class LivingSessions:
    def __init__(self, sessions: Sessions, keys: SessionKeys) -> None:
        self._sessions = sessions
        self._keys = keys

    def find(self, ref: SessionRef) -> Session:
        """Raises AccessDeniedException where it does not live here."""
        session = self._sessions.live(ref)
        if session is None or session.state is SessionState.STOPPING or not session.claimed.done():
            raise session_ended()
        return session

    async def credentials(self, ref: SessionRef) -> tuple[Session, SessionCredentials]:
        """Raises AccessDeniedException, what `SessionKeys.of` raises, and StoreUnavailable."""
        await self._sessions.table.replicas.confirm()  # it may be another replica's by now
        session = self.find(ref)
        credentials = await self._keys.of(session)
        if session.state is SessionState.STOPPING:
            raise session_ended()  # these die with it, and nobody need see them
        return session, credentials
