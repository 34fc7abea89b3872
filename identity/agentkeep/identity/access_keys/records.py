"""What is stored of an access key."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import orjson

from agentkeep.core.call import SessionRef, User
from agentkeep.storage.interface import partition

__all__ = ["KeyRecord", "RoleSession", "ended", "lives_of", "role_lives", "session_lives"]


@dataclass(frozen=True, slots=True)
class RoleSession:
    """Who assumed which role, by a token that was verified: `subject` of `issuer`. `name`: what he called it. `policy`:
    the session policy he asked for, its text."""

    role: str
    name: str
    subject: str
    issuer: str
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is stored of a key. `life` names the life, of its session or role, that the key was issued in: a session id
    may be used again after its end, and the keys of its earlier lives stay dead. `acts_for_users`: of operators' keys;
    not so where an older record says nothing of it. `sealed`: secret and token of a key that was issued elsewhere;
    those of our own are computed."""

    name: str
    created_ms: int
    expires_ms: int | None = None
    session: SessionRef | None = None
    life: str | None = None
    user: User | None = None
    acts_for_users: bool = False
    sealed: str | None = None
    role: RoleSession | None = None

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
                "role": self.role and astuple(self.role),
            }
        )

    @classmethod
    def load(cls, value: bytes) -> KeyRecord:
        document: dict[str, Any] = orjson.loads(value)
        session, user, role = document["session"], document["user"], document.get("role")
        return cls(
            document["name"],
            document["created"],
            document["expires"],
            SessionRef(*session) if session else None,
            document["life"],
            User(*user) if user else None,
            document.get("acts_for_users", False),
            document.get("sealed"),
            RoleSession(*role) if role else None,
        )


def session_lives(session: SessionRef) -> str:
    """The partition where a session's life lies."""
    return partition("identity", "session-lives", session.runtime_id, session.session_id)


def role_lives(role: str) -> str:
    """The partition where a role's life lies: until it is revoked."""
    return partition("identity", "role-lives", role)


def lives_of(record: KeyRecord) -> str | None:
    """Where the life lies by which a key lives; None: an operator's, which is revoked by itself."""
    if record.role is not None:
        return role_lives(record.role.role)
    return session_lives(record.session) if record.session is not None else None


def ended(record: KeyRecord) -> str:
    """Why a key that was being issued was not."""
    if record.session is None:
        return "The role's keys were revoked while one was issued"
    return f"Session {record.session.session_id} ended while credentials were issued for it"
