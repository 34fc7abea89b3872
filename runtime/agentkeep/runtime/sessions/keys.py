"""A session's keys for as long as it lives: had before its agent runs where AWS gives them, else when the agent asks;
the same until half of their life has gone, then renewed, one question at a time.

What fails when keys are renewed takes nothing from those that are good yet: they are handed out until they expire.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from agentkeep.core.clock import Clock
from agentkeep.core.errors import AccessDeniedException, ConflictException, DependencyError, ServiceError
from agentkeep.core.ports import Keys, SessionCredentials
from agentkeep.core.telemetry import step
from agentkeep.core.token_claims import claims_of
from agentkeep.runtime.sessions.session import IssuedKeys, KeysRefused, Session

__all__ = ["SessionKeys", "newest", "session_ended"]

log = logging.getLogger(__name__)

#: Seconds after which a refusal may be another. An agent asks as often as it likes.
AGAIN: Final = 5.0
#: Seconds for which who has good keys waits for newer ones: AWS's SDKs give the credentials endpoint two.
PATIENCE: Final = 1.0


class SessionKeys:
    """What it knows of a session lies in that session (`issued_keys`, `keys_refused`, `issuing_keys`)."""

    def __init__(self, keys: Keys, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    async def begin(self, session: Session) -> None:
        """Before its agent runs. Raises what `Keys.begin_session` raises: then it must not."""
        credentials = await self._keys.begin_session(session.ref, session.user, session.user_token)
        if credentials is not None:
            self._keep(session, credentials)

    async def of(self, session: Session) -> SessionCredentials:
        """Keys of a session that lives. Raises what `Keys.issue_for_session` raises, and StoreUnavailable."""
        kept, now = session.issued_keys, self._clock.monotonic()
        if kept is not None and now < kept.renew:
            return kept.credentials
        good = kept.credentials if kept is not None and now < kept.expire else None
        refused = session.keys_refused
        if refused is not None and now < refused.until and refused.user_token == session.user_token:
            if good is None:
                raise refused.error
            return good
        task = session.issuing_keys
        if task is None:
            task = asyncio.create_task(self._issue(session), name=f"keys-{session.ref.session_id}")
            session.issuing_keys = task
            task.add_done_callback(lambda done: _landed(session, done))
        await asyncio.wait([task], timeout=PATIENCE if good is not None else None)
        if task.cancelled():
            raise session_ended()
        if good is not None and (not task.done() or task.exception() is not None):
            return good
        return task.result()

    async def _issue(self, session: Session) -> SessionCredentials:
        ref, user, token = session.ref, session.user, session.user_token
        try:
            with step("identity", "IssueSessionCredentials", ref, user.id if user is not None else None):
                credentials = await self._keys.issue_for_session(ref, user, token)
        except ConflictException:
            raise session_ended() from None
        except (ServiceError, DependencyError) as error:
            log.warning("session %s gets no keys: %s", ref.session_id, error)
            session.keys_refused = KeysRefused(error, self._clock.monotonic() + AGAIN, token)
            raise
        session.keys_refused = None
        self._keep(session, credentials)
        return credentials

    def _keep(self, session: Session, credentials: SessionCredentials) -> None:
        now = self._clock.monotonic()
        life = (credentials.expiration - self._clock.now()).total_seconds()
        session.issued_keys = IssuedKeys(credentials, now + life / 2, now + life)


def _landed(session: Session, task: asyncio.Task[SessionCredentials]) -> None:
    session.issuing_keys = None
    if not task.cancelled():
        task.exception()  # looked at, even where nobody's patience lasted


def session_ended() -> AccessDeniedException:
    return AccessDeniedException("The session has ended, and its credentials with it.")


def newest(known: str | None, brought: str | None) -> str | None:
    """Of two tokens of one user, both verified, the one that lives longer."""
    if known is None or brought is None:
        return brought if known is None else known
    return brought if _expiry(brought) >= _expiry(known) else known


def _expiry(token: str) -> float:
    expires = claims_of(token).get("exp")
    return float(expires) if isinstance(expires, int | float) else 0.0
