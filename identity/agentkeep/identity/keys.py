"""Access keys the platform issues: to operators, and to sessions for as long as they live.

No secret is stored. A key's secret and a session's token are computed from the master key and the key's record, so a
copy of the store is of no use to anyone.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import string
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ConditionFailed, ConflictException, ResourceNotFoundException, ValidationException
from agentkeep.core.identifiers import Deployment, suffix
from agentkeep.core.ports import AccessKey, SessionCredentials
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.sealing import Seal
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.interface import ABSENT, Delete, KeyValueStore, Put, partition

__all__ = ["AccessKeys", "IssuedOperatorKey", "OperatorKey"]

_KEYS = partition("identity", "access-keys")
_LIFE = "life"
_UPPER_ALPHANUMERIC = string.ascii_uppercase + string.digits
_OPERATOR_PREFIX = "AKIA"
_SESSION_PREFIX = "ASIA"
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "+=,.@_-")  # IAM's, for user names
_PAGE = 500


@dataclass(frozen=True, slots=True)
class OperatorKey:
    """An operator key as listings show it."""

    id: str
    name: str
    created: datetime
    acts_for_users: bool = False


@dataclass(frozen=True, slots=True)
class IssuedOperatorKey:
    """A new operator key with its secret; `repr` hides it."""

    id: str
    secret: str
    name: str
    created: datetime
    acts_for_users: bool = False

    def __repr__(self) -> str:
        return f"IssuedOperatorKey({self.id!r}, name={self.name!r})"


@dataclass(frozen=True, slots=True)
class _Record:
    """What is stored of a key. `life` names the session's life the key was issued in: a session id may be used again
    after its end, and the keys of its earlier lives stay dead. `acts_for_users`: of operators' keys; not so where an
    older record says nothing of it."""

    name: str
    created_ms: int
    expires_ms: int | None = None
    session: SessionRef | None = None
    life: str | None = None
    user: User | None = None
    acts_for_users: bool = False

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
            }
        )

    @classmethod
    def load(cls, value: bytes) -> _Record:
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
        )


@dataclass(frozen=True, slots=True)
class _Cached:
    key: AccessKey
    until: float  # monotonic


class AccessKeys:
    """Implements the port `Keys`; operators' keys besides.

    A session's end is one write: the item naming its current life goes, and no key of that life is found again. In
    this process that holds at once, in others when their cached copy is `key_cache` seconds old at the latest.
    """

    def __init__(
        self,
        store: KeyValueStore,
        master_key: MasterKey,
        deployment: Deployment,
        clock: Clock,
        settings: IdentitySettings,
    ) -> None:
        self._store = store
        self._deployment = deployment
        self._clock = clock
        self._settings = settings
        self._secrets = master_key.derive("access-key-secrets")
        self._tokens = Seal(master_key, "session-tokens")
        self._cache: dict[str, _Cached] = {}  # oldest first
        self._of_session: dict[SessionRef, set[str]] = {}
        self._endings = 0

    # The port.

    def cached(self, access_key_id: str) -> AccessKey | None:
        cached = self._cache.get(access_key_id)
        if cached is None:
            return None
        if cached.until <= self._clock.monotonic() or self._expired(cached.key):
            self._forget(access_key_id)
            return None
        return cached.key

    async def find(self, access_key_id: str) -> AccessKey | None:
        if (key := self.cached(access_key_id)) is not None:
            return key
        if not access_key_id.startswith((_OPERATOR_PREFIX, _SESSION_PREFIX)) or len(access_key_id) != 20:
            return None
        endings = self._endings
        value = await self._store.get(_KEYS, access_key_id)
        if value is None:
            return None
        record = _Record.load(value)
        key = self._key(access_key_id, record)
        if self._expired(key):
            return None
        if record.session is not None:
            life = await self._store.get(_session(record.session), _LIFE)
            if life is None or record.life is None or life != record.life.encode():
                return None
        # What ended while we read may be what we read: an answer is still right, keeping it is not.
        if endings == self._endings:
            self._keep(key)
        return key

    async def issue_for_session(self, session: SessionRef, user: User | None) -> SessionCredentials:
        """Raises ConflictException if the session ends meanwhile."""
        now = self._clock.now()
        expires = (now + timedelta(seconds=self._settings.session_key_life)).replace(microsecond=0)
        key_id = _SESSION_PREFIX + suffix(_UPPER_ALPHANUMERIC, 16)
        current = await self._store.get(_session(session), _LIFE)
        while True:
            life = current.decode() if current is not None else secrets.token_hex(8)
            record = _Record("", epoch_ms(now), epoch_ms(expires), session, life, user)
            try:
                await self._store.transact(
                    [
                        # The life outlives its last key; both are gone by themselves where nobody ends the session.
                        Put(
                            _session(session),
                            _LIFE,
                            life.encode(),
                            expect=ABSENT if current is None else current,
                            expires_ms=epoch_ms(expires) + 1000,
                        ),
                        Put(_KEYS, key_id, record.dump(), expect=ABSENT, expires_ms=epoch_ms(expires)),
                    ]
                )
                break
            except ConditionFailed as failed:
                if failed.index != 0 or current is not None or failed.current is None:
                    raise ConflictException(
                        f"Session {session.session_id} ended while credentials were issued for it"
                    ) from None
                current = failed.current  # its first key was issued at the same moment; ours joins that life
        key = self._key(key_id, record)
        assert key.session_token is not None
        return SessionCredentials(key_id, key.secret, key.session_token, expires)

    async def end_session(self, session: SessionRef) -> None:
        """Raises StoreUnavailable where the end could not be made durable: ask again."""
        self._forget_session(session)
        try:
            await self._store.transact([Delete(_session(session), _LIFE)])
        finally:
            self._forget_session(session)  # what a look-up brought back while the store was writing

    # Operators.

    async def issue_operator_key(self, name: str, *, acts_for_users: bool = False) -> IssuedOperatorKey:
        """A key for an operator or application called `name` (IAM's rules for user names; several keys may share it).
        `acts_for_users`: it may reach users' data, and name users, without a proof of theirs.

        The secret is shown by this answer; later by `find` only.
        """
        if not 1 <= len(name) <= 64 or not _NAME_CHARACTERS.issuperset(name):
            raise ValidationException(
                f"{name!r} cannot name an operator: use 1 to 64 letters, digits and the characters + = , . @ _ -"
            )
        key_id = _OPERATOR_PREFIX + suffix(_UPPER_ALPHANUMERIC, 16)
        record = _Record(name, epoch_ms(self._clock.now()), acts_for_users=acts_for_users)
        await self._store.transact([Put(_KEYS, key_id, record.dump(), expect=ABSENT)])
        return IssuedOperatorKey(key_id, self._secret(key_id), name, _moment(record.created_ms), acts_for_users)

    async def operator_key(self, name: str, *, acts_for_users: bool) -> AccessKey:
        """The oldest living operator key called `name`, made where there is none; from now on it acts for users or
        does not, whatever it did before."""
        named = [key for key in await self.list_operator_keys() if key.name == name]
        for known in sorted(named, key=lambda key: (key.created, key.id)):
            if known.acts_for_users != acts_for_users:
                await self._set_acting(known.id, acts_for_users)
            if (found := await self.find(known.id)) is not None:
                return found
        found = await self.find((await self.issue_operator_key(name, acts_for_users=acts_for_users)).id)
        if found is None:
            raise ResourceNotFoundException(f"The operator key {name} was revoked as soon as it was made")
        return found

    async def list_operator_keys(self) -> list[OperatorKey]:
        """Every operator key alive, by id."""
        found: list[OperatorKey] = []
        after = _OPERATOR_PREFIX
        while True:
            items = await self._store.query(_KEYS, after=after, before=_SESSION_PREFIX, limit=_PAGE)
            for item in items:
                record = _Record.load(item.value)
                found.append(OperatorKey(item.sort, record.name, _moment(record.created_ms), record.acts_for_users))
            if len(items) < _PAGE:
                return found
            after = items[-1].sort

    async def revoke_operator_key(self, access_key_id: str) -> None:
        """Raises ResourceNotFoundException. Other processes may accept the key for `key_cache` seconds more."""
        value = await self._store.get(_KEYS, access_key_id) if access_key_id.startswith(_OPERATOR_PREFIX) else None
        if value is None:
            raise ResourceNotFoundException(f"There is no operator key {access_key_id}")
        self._endings += 1
        self._forget(access_key_id)
        try:
            await self._store.transact([Delete(_KEYS, access_key_id)])
        finally:
            self._endings += 1
            self._forget(access_key_id)

    # Inside.

    async def _set_acting(self, key_id: str, acts_for_users: bool) -> None:
        """Other processes may go by what was before for `key_cache` seconds more."""
        value = await self._store.get(_KEYS, key_id)
        if value is None:
            return
        changed = replace(_Record.load(value), acts_for_users=acts_for_users)
        try:
            await self._store.transact([Put(_KEYS, key_id, changed.dump(), expect=value)])
        except ConditionFailed:  # revoked, or set by another process that starts with the same settings
            pass
        finally:
            self._endings += 1
            self._forget(key_id)

    def _key(self, key_id: str, record: _Record) -> AccessKey:
        account = self._deployment.account
        expires = _moment(record.expires_ms) if record.expires_ms is not None else None
        session = record.session
        if session is None:
            caller = Caller(CallerKind.OPERATOR, f"arn:aws:iam::{account}:user/{record.name}", key_id, acts_for_users=record.acts_for_users)
            return AccessKey(key_id, self._secret(key_id), caller, None, expires)
        principal = f"arn:aws:sts::{account}:assumed-role/{session.runtime_id}/{session.session_id}"
        caller = Caller(CallerKind.SESSION, principal, key_id, record.user, session)
        token = self._tokens.seal(
            {
                "key": key_id,
                "runtime": session.runtime_id,
                "session": session.session_id,
                "life": record.life,
                "user": record.user and [record.user.id, record.user.issuer],
                "expires": record.expires_ms,
            }
        )
        return AccessKey(key_id, self._secret(key_id), caller, token, expires)

    def _secret(self, key_id: str) -> str:
        # 30 of the 32 bytes: 40 characters without padding, the shape AWS's secrets have.
        return base64.b64encode(hmac.digest(self._secrets, key_id.encode(), "sha256")[:30]).decode()

    def _expired(self, key: AccessKey) -> bool:
        return key.expires is not None and key.expires <= self._clock.now()

    def _keep(self, key: AccessKey) -> None:
        if self._settings.key_cache <= 0:
            return
        self._forget(key.id)
        self._cache[key.id] = _Cached(key, self._clock.monotonic() + self._settings.key_cache)
        if key.caller.session is not None:
            self._of_session.setdefault(key.caller.session, set()).add(key.id)
        if len(self._cache) > self._settings.key_cache_size:
            self._forget(next(iter(self._cache)))

    def _forget(self, key_id: str) -> None:
        cached = self._cache.pop(key_id, None)
        if cached is None or (session := cached.key.caller.session) is None:
            return
        siblings = self._of_session.get(session, set())
        siblings.discard(key_id)
        if not siblings:
            self._of_session.pop(session, None)

    def _forget_session(self, session: SessionRef) -> None:
        self._endings += 1
        for key_id in tuple(self._of_session.get(session, ())):
            self._forget(key_id)


def _session(session: SessionRef) -> str:
    return partition("identity", "session-lives", session.runtime_id, session.session_id)


def _moment(epoch_milliseconds: int) -> datetime:
    return datetime.fromtimestamp(epoch_milliseconds / 1000, UTC)
