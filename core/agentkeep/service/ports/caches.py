"""Look-ups that must not wait, where the answer is another service's: what was asked a moment ago is known here.

Seconds long, bounded, never beyond an expiry. A key that is revoked dies everywhere within these seconds and those of
the identity service's own memory (`AGENTKEEP_IDENTITY_KEY_CACHE`, which services divide between the two).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, Generic, TypeVar

import orjson

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.ports import AccessKey, Authorizers, Keys, SessionCredentials
from agentkeep.core.token_claims import claims_of

__all__ = ["CachedAuthorizers", "CachedKeys"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MOST: Final = 10_000


class _Recent(Generic[K, V]):
    """What was learnt at most `seconds` ago; the oldest goes first."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._kept: dict[K, tuple[V, float, float]] = {}

    def get(self, key: K) -> V | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        value, until, expires = kept
        if self._clock.monotonic() >= until or self._clock.now().timestamp() >= expires:
            del self._kept[key]
            return None
        return value

    def put(self, key: K, value: V, expires: float, asked: float) -> None:
        """`asked`: the monotonic time of the question, not of its answer."""
        self._kept.pop(key, None)
        self._kept[key] = (value, asked + self._seconds, expires)
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]

    def drop(self, found: Callable[[V], bool]) -> None:
        for key in [key for key, (value, _, _) in self._kept.items() if found(value)]:
            del self._kept[key]


class CachedKeys:
    """The port `Keys` of another service. Where a session is ended, its keys are dead at once."""

    def __init__(self, keys: Keys, clock: Clock, seconds: float) -> None:
        self._keys = keys
        self._clock = clock
        self._known: _Recent[str, AccessKey] = _Recent(clock, seconds)
        self._endings = 0

    def cached(self, access_key_id: str) -> AccessKey | None:
        return self._known.get(access_key_id)

    async def find(self, access_key_id: str) -> AccessKey | None:
        if (known := self._known.get(access_key_id)) is not None:
            return known
        asked, endings = self._clock.monotonic(), self._endings
        key = await self._keys.find(access_key_id)
        # What ended while we asked may be what we were told.
        if key is not None and endings == self._endings:
            expires = key.expires.timestamp() if key.expires is not None else float("inf")
            self._known.put(key.id, key, expires, asked)
        return key

    async def begin_session(
        self, session: SessionRef, user: User | None, user_token: str | None = None
    ) -> SessionCredentials | None:
        return await self._keys.begin_session(session, user, user_token)

    async def issue_for_session(
        self, session: SessionRef, user: User | None, user_token: str | None = None
    ) -> SessionCredentials:
        return await self._keys.issue_for_session(session, user, user_token)

    async def end_session(self, session: SessionRef) -> None:
        self._forget(session)
        try:
            await self._keys.end_session(session)
        finally:
            self._forget(session)

    def _forget(self, session: SessionRef) -> None:
        self._endings += 1
        self._known.drop(lambda key: key.caller.session == session)


class CachedAuthorizers:
    """The port `Authorizers` of another service. Tokens are remembered by digest, until they expire at the latest."""

    def __init__(self, authorizers: Authorizers, clock: Clock, seconds: float) -> None:
        self._authorizers = authorizers
        self._clock = clock
        self._known: _Recent[bytes, User] = _Recent(clock, seconds)

    async def check(self, authorizer: Mapping[str, Any]) -> None:
        await self._authorizers.check(authorizer)

    def cached(self, authorizer: Mapping[str, Any], token: str) -> User | None:
        return self._known.get(_digest(authorizer, token))

    async def verify(self, authorizer: Mapping[str, Any], token: str) -> User:
        digest = _digest(authorizer, token)
        if (known := self._known.get(digest)) is not None:
            return known
        asked = self._clock.monotonic()
        user = await self._authorizers.verify(authorizer, token)
        if (expires := _expiry(token)) is not None:
            self._known.put(digest, user, expires, asked)
        return user


def _digest(authorizer: Mapping[str, Any], token: str) -> bytes:
    configured = hashlib.sha256(orjson.dumps(authorizer, option=orjson.OPT_SORT_KEYS)).digest()
    return hashlib.sha256(configured + token.encode("utf-8", "surrogatepass")).digest()


def _expiry(token: str) -> float | None:
    """A verified token's `exp`; None where it cannot be read here: then it is asked about each time."""
    expires = claims_of(token).get("exp")
    return float(expires) if isinstance(expires, int | float) else None
