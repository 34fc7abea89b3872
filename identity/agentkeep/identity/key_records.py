"""What is stored of an access key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from agentkeep.core.call import SessionRef, User

__all__ = ["KeyRecord"]


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is stored of a key. `life` names the session's life the key was issued in: a session id may be used again
    after its end, and the keys of its earlier lives stay dead. `acts_for_users`: of operators' keys; not so where an
    older record says nothing of it. `sealed`: secret and token of a key that was issued elsewhere; those of our own are
    computed."""

    name: str
    created_ms: int
    expires_ms: int | None = None
    session: SessionRef | None = None
    life: str | None = None
    user: User | None = None
    acts_for_users: bool = False
    sealed: str | None = None

    def dump(self) -> bytes:
        return orjson.dumps(
            {
                "name": self.name,
                "created": self.created_ms,
                "expires": self.expires_ms,
                "session": self.session and [self.session.runtime_id, self.session.session_id],
                "life": self.life,
                "user": self.user and [self.user.id, self.user.issuer, dict(self.user.claims)],
                "acts_for_users": self.acts_for_users,
                "sealed": self.sealed,
            }
        )

    @classmethod
    def load(cls, value: bytes) -> KeyRecord:
        document: dict[str, Any] = orjson.loads(value)
        session, user = document["session"], document["user"]
        return cls(
            document["name"],
            document["created"],
            document["expires"],
            SessionRef(*session) if session else None,
            document["life"],
            User(*user) if user else None,
            document.get("acts_for_users", False),
            document.get("sealed"),
        )
