"""Roles, for operators.

GET  /roles                  all there are
POST /roles/{name}/revoke    all keys that it has given until now are dead

What is done here is on record before it is answered.
"""

from __future__ import annotations

from typing import Any

from agentkeep.core.call import Caller
from agentkeep.core.clock import Clock
from agentkeep.core.errors import ResourceNotFoundException
from agentkeep.core.ports import Audit, AuditRecord
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.roles.roles import Roles
from agentkeep.service.asgi import Receive, Scope, Send, answered, path_parts

__all__ = ["RolesApp"]


class RolesApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through."""

    def __init__(self, roles: Roles, keys: AccessKeys, audit: Audit, clock: Clock) -> None:
        self._roles = roles
        self._keys = keys
        self._audit = audit
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answered(send, self._answer(scope))

    async def _answer(self, scope: Scope) -> tuple[int, object]:
        match scope["method"], path_parts(scope, 4):
            case "GET", ["roles"]:
                return 200, self._roles.listed()
            case "POST", ["roles", name, "revoke"]:
                return 200, await self._revoked(scope["agentkeep.caller"], name)
        return 404, {"message": "GET /roles, POST /roles/{name}/revoke"}

    async def _revoked(self, caller: Caller, name: str) -> dict[str, Any]:
        role = self._roles.named(name)
        if role is None:
            raise ResourceNotFoundException(f"There is no role {name!r}")
        summary = f"{caller.principal} revoked all keys that role {name!r} has given."
        record = AuditRecord(
            "role-revoked", summary, caller.principal, None, None, self._clock.now(), {"roleArn": role.arn}
        )
        await self._audit.record(record)
        await self._keys.revoke_role(name)
        return {"name": name, "arn": role.arn}
