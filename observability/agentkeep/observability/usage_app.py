"""`GET /usage/{runtime_id}/{session_id}`: what a session's model calls used. For operators, and the command line."""

from __future__ import annotations

from dataclasses import asdict
from urllib.parse import unquote

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.observability.asgi import Receive, Scope, Send, respond
from agentkeep.observability.usage import KeyValueUsage, UsageTotals

__all__ = ["UsageApp"]

JSON = b"application/json"


class UsageApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through."""

    def __init__(self, usage: KeyValueUsage) -> None:
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The raw path: an id may hold an encoded slash.
        match (scope.get("raw_path") or scope["path"].encode()).split(b"/"):
            case [b"", b"usage", runtime_id, session_id] if runtime_id and session_id:
                pass
            case _:
                await respond(send, 404, orjson.dumps({"message": "GET /usage/{runtime_id}/{session_id}"}), JSON)
                return
        if scope["method"] != "GET":
            await respond(send, 405, orjson.dumps({"message": "Only GET"}), JSON, {b"allow": b"GET"})
            return
        session = SessionRef(unquote(runtime_id.decode()), unquote(session_id.decode()))
        records = await self._usage.of_session(session)
        calls = [
            {member: value for member, value in asdict(record).items() if member != "session"} for record in records
        ]
        answer = {"session": asdict(session), "totals": asdict(UsageTotals.of(records)), "calls": calls}
        await respond(send, 200, orjson.dumps(answer), JSON)
