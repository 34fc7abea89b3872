"""The one place where it is decided whether a caller by a role may do something.

Keys of roles prove callers of a kind of their own (`CallerKind.ROLE`), to which nothing is open. Whoever serves
requests asks here with the action and the resources, and gets a caller that is an operator for this one action. So a
door where nobody asked is closed to roles, not open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.errors import RoleRefused

__all__ = ["READ_VARIABLES", "authorized", "may_besides"]

#: What GetAgentRuntime needs besides to show environment variables, where people keep secrets.
READ_VARIABLES: Final = "agentkeep:ReadEnvironmentVariables"


def authorized(
    caller: Caller, action: str, resources: Iterable[str], context: Mapping[str, str] | None = None
) -> Caller:
    """The caller as operations are to know it: a role's as an operator, where its policies allow `action` on every one
    of `resources`; all others as they are. `context`: the request's condition keys, in lower case. Raises RoleRefused,
    of which the alarm is to be told: it goes on record."""
    if caller.grant is None:
        if caller.kind is CallerKind.ROLE:
            raise RoleRefused(f"User: {caller.principal} is not authorized to perform: {action}", action, "*")
        return caller
    caller.grant.require(action, resources, context or {})
    return replace(caller, kind=CallerKind.OPERATOR)


def may_besides(caller: Caller, action: str, resource: str) -> bool:
    """Whether an operator, whom an operation is open to, may also do this in it: whoever is none by a role may."""
    return caller.grant is None or caller.grant.allows(action, resource)
