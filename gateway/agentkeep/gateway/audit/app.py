"""`GET /audit?gateway=..&session=..&maxResults=..&nextToken=..`: the audit trail of tool calls, oldest first.

For operators. One of `gateway` and `session` at least.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from agentkeep.core.errors import ServiceError, ValidationException
from agentkeep.gateway.audit.trail import AuditTrail
from agentkeep.service.asgi import Receive, Scope, Send, respond

__all__ = ["AuditApp"]

_MOST = 1000


class AuditApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await respond(send, 405, {"message": "Only GET"}, ((b"allow", b"GET"),))
            return
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        try:
            limit = _limit(query.get("maxResults", "100"))
            if (session := query.get("session")) is not None:
                records, token = await self._trail.of_session(
                    session, query.get("gateway"), limit, query.get("nextToken")
                )
            elif (gateway := query.get("gateway")) is not None:
                records, token = await self._trail.of_gateway(gateway, limit, query.get("nextToken"))
            else:
                raise ValidationException("Say whose calls: ?gateway=GATEWAY_ID, ?session=SESSION_ID or both")
        except ServiceError as error:
            await respond(send, error.status, {"code": error.code, "message": error.message})
            return
        answer = {"calls": records} | ({} if token is None else {"nextToken": token})
        await respond(send, 200, answer)


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST:
        raise ValidationException(f"maxResults must be a number from 1 to {_MOST}")
    return int(text)
