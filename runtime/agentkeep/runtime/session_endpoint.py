"""The container-credentials endpoint, as an agent's AWS SDK asks it at 169.254.170.2 (ECS's protocol).

Who asks is known by the listener that accepted the connection (`scope["agentkeep.session"]`), never by what is said.
"""

from __future__ import annotations

from datetime import UTC
from typing import Any

import orjson

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import AccessDeniedException, ConflictException, StoreUnavailable
from agentkeep.core.ports import Keys, SessionCredentials
from agentkeep.core.telemetry import step
from agentkeep.runtime.environment import CREDENTIALS_PATH
from agentkeep.runtime.records import SessionState
from agentkeep.runtime.session import Session
from agentkeep.runtime.session_table import SessionTable
from agentkeep.runtime.sessions import Sessions
from agentkeep.service.asgi import Receive, Scope, Send, respond

__all__ = ["CredentialsApp", "LivingSessionUsers"]


class CredentialsApp:
    """ASGI application for `CREDENTIALS_PATH`, to be served on session listeners only; elsewhere it refuses."""

    def __init__(self, sessions: Sessions, keys: Keys, clock: Clock) -> None:
        self._sessions = sessions
        self._keys = keys
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        ref: SessionRef | None = scope.get("agentkeep.session")
        if ref is None or scope["path"] != CREDENTIALS_PATH:
            await respond(send, 404, {"code": "NotFound", "message": "There are no credentials here."})
        elif scope["method"] != "GET":
            await respond(send, 405, {"code": "MethodNotAllowed", "message": "Credentials are read with GET."})
        else:
            try:
                session, credentials = await self._credentials(ref)
            except AccessDeniedException as error:
                await respond(send, 403, {"code": error.code, "message": error.message})
                return
            except StoreUnavailable:
                # SDKs ask again.
                await respond(send, 503, {"code": "ServiceUnavailable", "message": "Keys cannot be issued now."})
                return
            await respond(send, 200, _document(session, credentials), ((b"cache-control", b"no-store"),))

    async def _credentials(self, ref: SessionRef) -> tuple[Session, SessionCredentials]:
        """Keys of this session, the same until half of their life has gone: an agent that asks all the time makes no
        more of them."""
        await self._sessions.table.replicas.confirm()  # it may be another replica's by now
        session = self._living(ref)
        async with session.issuing_keys:
            if session.issued_keys is not None and self._clock.monotonic() < session.issued_keys[1]:
                return session, session.issued_keys[0]
            try:
                with step("identity", "IssueSessionCredentials", ref, session.user.id if session.user else None):
                    credentials = await self._keys.issue_for_session(ref, session.user)
            except ConflictException:
                raise _ended() from None
            living = self._sessions.live(ref)
            if living is not session or session.state is SessionState.STOPPING:
                # It ended meanwhile, perhaps after its keys had been revoked: these, that nobody has seen, must not
                # outlive it. But a session begun anew under the same id keeps its own.
                # Nor is one that another replica has taken to lose those it has there.
                if (living is None or living is session) and not session.forfeited:
                    await self._keys.end_session(ref)
                raise _ended()
            life = (credentials.expiration - self._clock.now()).total_seconds()
            session.issued_keys = (credentials, self._clock.monotonic() + life / 2)
            return session, credentials

    def _living(self, ref: SessionRef) -> Session:
        session = self._sessions.live(ref)
        if session is None or session.state is SessionState.STOPPING or not session.claimed.done():
            raise _ended()
        return session


class LivingSessionUsers:
    """Implements the port `SessionUsers`."""

    def __init__(self, sessions: Sessions, table: SessionTable) -> None:
        self._sessions = sessions
        self._table = table

    async def user_of(self, session: SessionRef) -> User | None:
        if (living := self._sessions.live(session)) is not None:
            return living.user
        stored = await self._table.find(session)  # another replica's
        if stored is None or stored.record.state is SessionState.STOPPED:
            raise _ended()
        return stored.record.user


def _ended() -> AccessDeniedException:
    return AccessDeniedException("The session has ended, and its credentials with it.")


def _document(session: Session, credentials: SessionCredentials) -> bytes:
    assert session.prepared is not None
    document: dict[str, Any] = {
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "Token": credentials.session_token,
        "Expiration": credentials.expiration.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "RoleArn": session.prepared.settings.role_arn,
    }
    return orjson.dumps(document)
