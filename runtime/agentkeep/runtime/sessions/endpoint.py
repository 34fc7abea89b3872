"""The container-credentials endpoint, as an agent's AWS SDK asks it at 169.254.170.2 (ECS's protocol).

Who asks is known by the listener that accepted the connection (`scope["agentkeep.session"]`), never by what is said.
"""

from __future__ import annotations

from datetime import UTC
from typing import Any

import orjson

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import (
    ServiceError,
    ServiceUnavailableException,
    StoreUnavailable,
    UnauthorizedException,
)
from agentkeep.core.ports import SessionCredentials
from agentkeep.runtime.environments.variables import CREDENTIALS_PATH
from agentkeep.runtime.records import SessionState
from agentkeep.runtime.sessions.keys import session_ended
from agentkeep.runtime.sessions.living import LivingSessions
from agentkeep.runtime.sessions.session import Session
from agentkeep.runtime.sessions.sessions import Sessions
from agentkeep.runtime.sessions.table import SessionTable
from agentkeep.service.asgi import Receive, Scope, Send, respond

__all__ = ["CredentialsApp", "LivingSessionUsers"]


class CredentialsApp:
    """ASGI application for `CREDENTIALS_PATH`, to be served on session listeners only; elsewhere it refuses."""

    def __init__(self, living: LivingSessions) -> None:
        self._living = living

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
                session, credentials = await self._living.credentials(ref)
            except ServiceUnavailableException as error:
                # SDKs ask again.
                await respond(send, 503, {"code": error.code, "message": error.message})
                return
            except ServiceError as error:
                status = 401 if isinstance(error, UnauthorizedException) else 403
                await respond(send, status, {"code": error.code, "message": error.message})
                return
            except StoreUnavailable:
                await respond(send, 503, {"code": "ServiceUnavailable", "message": "Keys cannot be issued now."})
                return
            await respond(send, 200, _document(session, credentials), ((b"cache-control", b"no-store"),))


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
            raise session_ended()
        return stored.record.user


def _document(session: Session, credentials: SessionCredentials) -> bytes:
    assert session.prepared is not None
    document: dict[str, Any] = {
        "AccessKeyId": credentials.access_key_id,
        "SecretAccessKey": credentials.secret_access_key,
        "Token": credentials.session_token,
        "Expiration": credentials.expiration.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "RoleArn": credentials.role_arn or session.prepared.settings.role_arn,
    }
    return orjson.dumps(document)
