"""Operators' access keys, for operators.

GET    /operator-keys        all that live, without their secrets
POST   /operator-keys        {"name": "app", "actsForUsers": false}: a new one, with its secret
DELETE /operator-keys/{id}   revokes one

What is done here is on record before it is answered. A key that acts for users is issued only by one that does: nobody
gives what he has not. The first of a deployment has it from a setting (AGENTKEEP_OPERATOR_ACTS_FOR_USERS).
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from agentkeep.core.call import Caller
from agentkeep.core.clock import Clock
from agentkeep.core.errors import AccessDeniedException, ValidationException
from agentkeep.core.ports import Audit, AuditRecord
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.service.asgi import Receive, Scope, Send, answered, path_parts, pieces

__all__ = ["OperatorKeysApp"]

_MOST_BYTES: Final = 4096


class OperatorKeysApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through."""

    def __init__(self, keys: AccessKeys, audit: Audit, clock: Clock) -> None:
        self._keys = keys
        self._audit = audit
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answered(send, self._answer(scope, receive))

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, object]:
        caller: Caller = scope["agentkeep.caller"]
        match scope["method"], path_parts(scope, 3):
            case "GET", ["operator-keys"]:
                return 200, await self._listed()
            case "POST", ["operator-keys"]:
                return 201, await self._issued(caller, await _document(receive))
            case "DELETE", ["operator-keys", key_id] if key_id:
                return 200, await self._revoked(caller, key_id)
        return 404, {"message": "GET or POST /operator-keys, DELETE /operator-keys/{id}"}

    async def _listed(self) -> dict[str, Any]:
        keys = await self._keys.list_operator_keys()
        return {
            "keys": [
                {
                    "accessKeyId": key.id,
                    "name": key.name,
                    "actsForUsers": key.acts_for_users,
                    "createdAt": key.created,
                }
                for key in keys
            ]
        }

    async def _issued(self, caller: Caller, document: Any) -> dict[str, Any]:
        if not isinstance(document, dict) or not document.keys() <= {"name", "actsForUsers"}:
            raise ValidationException('Send {"name": "...", "actsForUsers": true or false}')
        name, acts = document.get("name"), document.get("actsForUsers", False)
        if not isinstance(name, str) or not isinstance(acts, bool):
            raise ValidationException("name must be a text, actsForUsers true or false")
        if acts and not caller.acts_for_users:
            raise AccessDeniedException(
                f"{caller.principal} may not issue a key that acts for users, since its own does not. Use one that "
                "does; AGENTKEEP_OPERATOR_ACTS_FOR_USERS says whether the deployment's first key does"
            )
        can = "acts for users" if acts else "does not act for users"
        await self._record(caller, "operator-key-issued", f"issued an operator key called {name!r} that {can}", name)
        key = await self._keys.issue_operator_key(name, acts_for_users=acts)
        return {
            "accessKeyId": key.id,
            "secretAccessKey": key.secret,
            "name": key.name,
            "actsForUsers": key.acts_for_users,
            "createdAt": key.created,
        }

    async def _revoked(self, caller: Caller, key_id: str) -> dict[str, Any]:
        await self._record(caller, "operator-key-revoked", f"revoked operator key {key_id!r}", key_id)
        await self._keys.revoke_operator_key(key_id)
        return {"accessKeyId": key_id}

    async def _record(self, caller: Caller, kind: str, did: str, key: str) -> None:
        summary = f"{caller.principal} {did}."
        await self._audit.record(
            AuditRecord(kind, summary, caller.principal, None, None, self._clock.now(), {"key": key[:128]})
        )


async def _document(receive: Receive) -> Any:
    body = bytearray()
    async for piece in pieces(receive):
        body += piece
        if len(body) > _MOST_BYTES:
            raise ValidationException(f"More than {_MOST_BYTES} bytes were sent", "CannotParse")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise ValidationException("The body is no JSON", "CannotParse") from None
