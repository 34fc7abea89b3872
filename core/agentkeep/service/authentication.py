"""Who calls: SigV4 with keys the platform issued, and on which listener each key is good."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from agentkeep.core.alarm import Alarm
from agentkeep.core.call import Caller, CallerKind, SessionRef
from agentkeep.core.clock import Clock, SystemClock
from agentkeep.core.errors import RoleRefused, UnauthorizedException
from agentkeep.core.permissions import authorized
from agentkeep.core.ports import AccessKey, Keys
from agentkeep.wire.signature import SIGNING_NAMES, Claim, parse

__all__ = ["Authenticator", "Claim"]

logger = logging.getLogger(__name__)

_UNKNOWN_KEY = "The security token included in the request is invalid"


class Authenticator:
    """A key is good where it belongs and nowhere else: a session's keys on that session's own listener only, all
    others on the public one. Keys stolen from a session are worth nothing outside of it, and an agent that got hold of
    an operator's key cannot use it from inside.

    A claim is who a request says is calling; nothing may happen because of it before `prove`. All methods but
    `authorized` raise UnauthorizedException.
    """

    def __init__(
        self,
        keys: Keys,
        clock: Clock | None = None,
        alarm: Alarm | None = None,
        signing_names: Collection[bytes] = SIGNING_NAMES,
    ) -> None:
        """`signing_names`: the services for which requests may be signed."""
        self._keys = keys
        self._signing_names = signing_names
        self._alarm = alarm
        self._clock = clock or SystemClock()

    def claim(self, method: bytes, path: bytes, query: bytes, headers: Mapping[bytes, bytes]) -> Claim:
        """`path` and `query` raw; `headers` by lower-case name, repeated ones joined by a comma."""
        now = self._clock.now().timestamp()
        return parse(method, path, query, headers, now, signing_names=self._signing_names)

    def cached(self, claim: Claim, session: SessionRef | None) -> AccessKey | None:
        """The claimed key if it is known without waiting. `session`: the listener's; None: the public listener."""
        key = self._keys.cached(claim.access_key_id)
        if key is not None:
            self._check_place(key, session)
        return key

    async def find(self, claim: Claim, session: SessionRef | None) -> AccessKey:
        key = await self._keys.find(claim.access_key_id)
        if key is None:
            raise UnauthorizedException(_UNKNOWN_KEY)
        self._check_place(key, session)
        return key

    async def identify(
        self, method: bytes, path: bytes, query: bytes, headers: Mapping[bytes, bytes], session: SessionRef | None
    ) -> tuple[AccessKey, Claim]:
        claim = self.claim(method, path, query, headers)
        return self.cached(claim, session) or await self.find(claim, session), claim

    @staticmethod
    def prove(claim: Claim, key: AccessKey, body_sha256: str) -> None:
        """Returns if the key's holder signed this request with this body (hex SHA-256)."""
        claim.verify(key.secret, key.session_token, body_sha256)

    def authorized(self, caller: Caller, action: str, resources: Iterable[str]) -> Caller:
        """The caller of a proved request as whoever serves it is to know it (`core/permissions.py`). Raises
        RoleRefused, which goes on record."""
        with self.recording(caller):
            return authorized(caller, action, resources)

    @contextmanager
    def recording(self, caller: Caller) -> Iterator[None]:
        """What a role's caller is refused within goes on record."""
        try:
            yield
        except RoleRefused as refused:
            if self._alarm is not None:
                self._alarm.denied(caller, refused)
            raise

    def _check_place(self, key: AccessKey, session: SessionRef | None) -> None:
        caller = key.caller
        if session is None:
            good = caller.kind is not CallerKind.SESSION
        else:
            good = caller.kind is CallerKind.SESSION and caller.session == session
        if not good:
            # The same words as for an unknown key: whoever tries learns nothing.
            place = "the public listener" if session is None else f"the listener of session {session.session_id}"
            logger.warning("a key of %s was presented at %s", caller.principal, place)
            if self._alarm is not None:
                self._alarm.misplaced(caller.principal, session)
            raise UnauthorizedException(_UNKNOWN_KEY)
