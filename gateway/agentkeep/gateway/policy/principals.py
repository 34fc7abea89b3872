"""Who a caller is to a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentkeep.core.call import INCOMPLETE_CLAIMS, RESERVED_CLAIMS, Caller, CallerKind
from agentkeep.gateway.policy.language import IAM_ENTITY, OAUTH_USER

__all__ = ["AGENT_TAG", "ISSUER_TAG", "SESSION_TAG", "entity", "is_known_in_full"]

#: The platform's own: no claim of a token becomes one.
AGENT_TAG: Final = RESERVED_CLAIMS + "agent"
SESSION_TAG: Final = RESERVED_CLAIMS + "session"
ISSUER_TAG: Final = RESERVED_CLAIMS + "issuer"


def entity(caller: Caller) -> Mapping[str, Any] | None:
    """The principal in Cedar's JSON entity format. None: nobody whom a policy could allow anything (an agent without
    a user, IDN-2)."""
    if caller.kind is CallerKind.OPERATOR and caller.session is None:
        return _entity(IAM_ENTITY, caller.principal, {})
    user = caller.user
    if user is None or (caller.kind is CallerKind.SESSION and caller.session is None):
        return None
    tags = {name: text for name, text in user.claims.items() if not name.startswith(RESERVED_CLAIMS)}
    if user.issuer is not None:
        tags[ISSUER_TAG] = user.issuer
    if caller.session is not None:
        tags[AGENT_TAG] = caller.session.runtime_id
        tags[SESSION_TAG] = caller.session.session_id
    return _entity(OAUTH_USER, user.id, tags)


def is_known_in_full(caller: Caller) -> bool:
    """Whether its tags are all that its user's token says: a forbid about one that is missing could not apply."""
    return caller.user is None or INCOMPLETE_CLAIMS not in caller.user.claims


def _entity(kind: str, id: str, tags: Mapping[str, str]) -> Mapping[str, Any]:
    return {"uid": {"type": kind, "id": id}, "attrs": {"id": id}, "tags": dict(tags), "parents": []}
