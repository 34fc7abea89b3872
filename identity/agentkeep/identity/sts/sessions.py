"""A role's sessions: how a user's is called in AWS, and the policy that ends them."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from agentkeep.core.call import User
from agentkeep.core.rules_file import agent_name

__all__ = ["revocation_policy", "role_session_name"]

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_=,.@-]")  # for RoleSessionName, whose \w means ASCII; `+` sets parts apart
_READABLE: Final = 23
_DIGEST: Final = 16  # characters of base32: 80 bits


def role_session_name(user: User, runtime_id: str) -> str:
    """`<user>+<agent>+<digest>`, 64 characters at most. Two parts for who reads CloudTrail, cut short and without what
    AWS does not take; the digest of the whole, issuer included, so that no two users or agents share a name."""
    whole = orjson.dumps([user.issuer, user.id, runtime_id])
    digest = base64.b32encode(hashlib.sha256(whole).digest()).decode()[:_DIGEST].lower()
    readable = (_UNFIT.sub("-", part)[:_READABLE] for part in (user.id, agent_name(runtime_id)))
    return "+".join((*readable, digest))


def revocation_policy(before: datetime, session_name: str | None = None) -> dict[str, Any]:
    """For a role: keys that were given out before then are good for nothing, those of one session name, or all.

    Source: "Revoking IAM role temporary security credentials" in the IAM user guide; what its console's button writes.
    """
    issued = before.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition: dict[str, Any] = {"DateLessThan": {"aws:TokenIssueTime": issued}}
    if session_name is not None:
        condition["StringLike"] = {"aws:userid": f"*:{session_name}"}
    statement = {"Effect": "Deny", "Action": ["*"], "Resource": ["*"], "Condition": condition}
    return {"Version": "2012-10-17", "Statement": [statement]}
