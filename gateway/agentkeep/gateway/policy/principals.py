"""Who a caller is to a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentkeep.core.call import Caller, CallerKind
from agentkeep.gateway.policy.language import IAM_ENTITY, OAUTH_USER

__all__ = ["AGENT_TAG", "ISSUER_TAG", "RESERVED", "SESSION_TAG", "entity"]

#: Tags that begin so are the platform's: no claim of a token becomes one.
RESERVED: Final = "agentkeep:"
AGENT_TAG: Final = RESERVED + "agent"
SESSION_TAG: Final = RESERVED + "session"
ISSUER_TAG: Final = RESERVED + "issuer"


def entity(caller: Caller) -> Mapping[str, Any] | None:
    """The principal in Cedar's JSON entity format. None: nobody whom a policy could allow anything (an agent without
    a user, IDN-2)."""
    if caller.kind is CallerKind.OPERATOR and caller.session is None:
        return _entity(IAM_ENTITY, caller.principal, {})
    user = caller.user
    if user is None or (caller.kind is CallerKind.SESSION and caller.session is None):
        return None
    tags = {name: text for name, text in user.claims.items() if not name.startswith(RESERVED)}
    if user.issuer is not None:
        tags[ISSUER_TAG] = user.issuer
    if caller.session is not None:
        tags[AGENT_TAG] = caller.session.runtime_id
        tags[SESSION_TAG] = caller.session.session_id
    return _entity(OAUTH_USER, user.id, tags)


def _entity(kind: str, id: str, tags: Mapping[str, str]) -> Mapping[str, Any]:
    return {"uid": {"type": kind, "id": id}, "attrs": {"id": id}, "tags": dict(tags), "parents": []}
