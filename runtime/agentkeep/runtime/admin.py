"""Plain HTTP routes for operators, where AgentCore has no operation: uploading code, listing sessions, reading logs.

    PUT /artifacts/{bucket}/{key}             the body becomes a new version of the object
    GET /sessions                             sessions that live, on every replica, and this replica's warm pools
    GET /sessions?runtimeId={runtime_id}      sessions of a runtime, ended ones too (at most 1,000)
    GET /logs/{session_id}                    what the session's agent wrote
    GET /logs/{runtime_id}/{session_id}

They are mounted behind the service's authentication, which puts the caller into `scope["agentkeep.caller"]`.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs

from agentkeep.core.call import Caller, CallerKind, SessionRef
from agentkeep.runtime.agents.artifacts import ArtifactStore, ArtifactTooLarge
from agentkeep.runtime.environments.warm_pools import WarmPools
from agentkeep.runtime.records import SessionRecord
from agentkeep.runtime.sessions.logs import Logs
from agentkeep.runtime.sessions.table import SessionTable
from agentkeep.service.asgi import ClientLeft, Receive, Scope, Send, path_parts, pieces, respond

__all__ = ["AdminApp", "ArtifactsApp"]

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEY_LIMIT: Final = 1024
_MOST: Final = 1000


async def _is_operator(scope: Scope, send: Send) -> bool:
    caller: Caller | None = scope.get("agentkeep.caller")
    if caller is not None and caller.kind is CallerKind.OPERATOR and scope.get("agentkeep.session") is None:
        return True
    await _refuse(send, 403, "AccessDeniedException", "This is open to operators only.")
    return False


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    headers = ((b"x-amzn-errortype", code.encode()),)
    await respond(send, status, {"code": code, "message": message}, headers)


class ArtifactsApp:
    """Uploads into the artifact store. `limit`: bytes of one object."""

    def __init__(self, store: ArtifactStore, limit: int) -> None:
        self._store = store
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not await _is_operator(scope, send):
            return
        parts = path_parts(scope, 3)
        if len(parts) != 3 or _BUCKET.fullmatch(parts[1]) is None or not 1 <= len(parts[2]) <= _KEY_LIMIT:
            await _refuse(send, 400, "ValidationException", "The path must be /artifacts/BUCKET/KEY.")
        elif scope["method"] != "PUT":
            await _refuse(send, 405, "ValidationException", "Artifacts are uploaded with PUT.")
        else:
            try:
                stored = await self._store.put(parts[1], parts[2], pieces(receive), self._limit)
            except ArtifactTooLarge as error:
                await _refuse(send, 400, "ValidationException", str(error))
            except ClientLeft:
                pass  # nothing was stored, and nobody is left to be told
            else:
                await respond(
                    send,
                    200,
                    {"bucket": stored.bucket, "key": stored.key, "versionId": stored.version_id, "size": stored.size},
                )


class AdminApp:
    """Sessions and logs."""

    def __init__(self, table: SessionTable, logs: Logs, warm_pools: WarmPools) -> None:
        self._table = table
        self._logs = logs
        self._warm_pools = warm_pools

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not await _is_operator(scope, send):
            return
        match path_parts(scope, 3):
            case _ if scope["method"] != "GET":
                await _refuse(send, 405, "ValidationException", "This is read with GET.")
            case ["sessions"]:
                await self._sessions(scope, send)
            case ["logs", session_id]:
                await self._log(send, await self._logs.find(session_id))
            case ["logs", runtime_id, session_id] if re.fullmatch(r"[a-zA-Z0-9_-]+", runtime_id):
                await self._log(send, [SessionRef(runtime_id, session_id)])
            case _:
                await _refuse(send, 404, "ResourceNotFoundException", "There is nothing at this path.")

    async def _sessions(self, scope: Scope, send: Send) -> None:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        runtime_id = query.get("runtimeId", [None])[0]
        if runtime_id is not None:
            records = await self._table.of_runtime(runtime_id, _MOST)
        else:
            records = [record async for record in self._table.live()]
        await respond(
            send,
            200,
            {"sessions": [_document(record) for record in records], "warmPools": self._warm_pools.describe(runtime_id)},
        )

    async def _log(self, send: Send, sessions: list[SessionRef]) -> None:
        texts = [text for ref in sessions if (text := await self._logs.read(ref)) is not None]
        if not texts:
            await _refuse(send, 404, "ResourceNotFoundException", "No output of such a session is kept.")
            return
        await respond(send, 200, b"".join(texts), content_type=b"text/plain; charset=utf-8")


def _document(record: SessionRecord) -> dict[str, object]:
    return {
        "sessionId": record.session_id,
        "agentRuntimeId": record.runtime_id,
        "agentRuntimeVersion": str(record.version),
        "endpoint": record.endpoint,
        "user": record.user_id,
        "status": record.state.value,
        "endReason": record.end_reason.value if record.end_reason else None,
        "createdAt": record.created_at.isoformat(timespec="seconds"),
        "lastUpdatedAt": record.updated_at.isoformat(timespec="seconds"),
    }
