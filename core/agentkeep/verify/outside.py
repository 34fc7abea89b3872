"""Attempts from outside of sessions, at the public port: by users on others' sessions, and with stolen keys.

Each with its control: the same request by who may make it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from botocore.credentials import Credentials

from agentkeep.verify.probe.attack import unmasked
from agentkeep.verify.sessions import Answer, Session

__all__ = ["OUTSIDE", "Attempt"]

WHO = {"do": "who"}


@dataclass(frozen=True)
class Attempt:
    """`attack` and `control` are given the attacked session and the attacker's; both return what was answered."""

    name: str
    tries: str
    attack: Callable[[Session, Session], Answer]
    control: Callable[[Session, Session], Answer]
    ended: bool = False  # of the attacked session


def _events(session: Session, keys: Credentials | None) -> Answer:
    victim = session.victim
    path = f"/memories/{victim.memory}/actor/{quote(victim.user, safe='')}/sessions/s"
    return session.wire.signed("POST", path, {}, {}, keys)


def _stolen(session: Session) -> Credentials:
    return Credentials(*(unmasked(key) for key in session.victim.keys))


def _anonymous(session: Session, path: str) -> Answer:
    return session.wire._send("GET", path, b"", {})


def _once_more(session: Session) -> Answer:
    answer = session.invoke(WHO)
    session.stop()
    return answer


OUTSIDE = (
    Attempt(
        "sessions_of_other_users",
        "Speak to another user's session, whose id is known.",
        lambda theirs, mine: theirs.invoke(WHO, user=mine.user),
        lambda theirs, mine: theirs.invoke(WHO),
    ),
    Attempt(
        "commands_in_sessions_of_others",
        "Run a command in another user's session, whose id is known.",
        lambda theirs, mine: theirs.command("true", user=mine.user),
        lambda theirs, mine: theirs.command("true"),
    ),
    Attempt(
        "keys_of_living_sessions",
        "Use a living session's keys outside of it.",
        lambda theirs, mine: _events(theirs, _stolen(theirs)),
        lambda theirs, mine: _events(theirs, None),
    ),
    Attempt(
        "keys_of_ended_sessions",
        "Use an ended session's keys.",
        lambda theirs, mine: _events(theirs, _stolen(theirs)),
        lambda theirs, mine: _events(theirs, None),
        ended=True,
    ),
    Attempt(
        "ids_of_ended_sessions",
        "Take over the id of another user's ended session.",
        lambda theirs, mine: theirs.invoke(WHO, user=mine.user),
        lambda theirs, mine: _once_more(theirs),
        ended=True,
    ),
    Attempt(
        "routes_without_a_signature",
        "List all sessions without saying who asks.",
        lambda theirs, mine: _anonymous(theirs, "/sessions"),
        lambda theirs, mine: theirs.wire.signed("GET", "/sessions", None, {}),
    ),
    Attempt(
        "logs_without_a_signature",
        "Read a session's log without saying who asks.",
        lambda theirs, mine: _anonymous(theirs, f"/logs/{theirs.id}"),
        lambda theirs, mine: theirs.wire.signed("GET", f"/logs/{theirs.id}", None, {}),
    ),
)
