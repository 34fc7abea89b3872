"""Access keys: operators' and roles', which the platform issues; and sessions', which it issues or AWS's STS does.

No secret is stored in clear. Those of the platform's own keys are computed from the master key and the key's record,
those of STS's keys are sealed under it; so a copy of the store is of no use to anyone.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import string
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ConditionFailed, ConflictException, ResourceNotFoundException, ValidationException
from agentkeep.core.identifiers import Deployment, suffix
from agentkeep.core.ports import AccessKey, SessionCredentials
from agentkeep.identity.access_keys.records import KeyRecord, RoleSession, ended, lives_of, role_lives, session_lives
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.roles.roles import LONGEST, Roles
from agentkeep.identity.sealing import Seal
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.sts.exchange import RoleExchange
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
class _Cached:
    key: AccessKey
    until: float  # monotonic


class AccessKeys:
    """Implements the port `Keys`; operators' keys and roles' besides.

    A session's end is one write: the item naming its current life goes, and no key of that life is found again. In
    this process that holds at once, in others when their cached copy is `key_cache` seconds old at the latest. A role's
    keys are revoked in the same way.
    """

    def __init__(
        self,
        store: KeyValueStore,
        master_key: MasterKey,
        deployment: Deployment,
        clock: Clock,
        settings: IdentitySettings,
        exchange: RoleExchange | None = None,
        roles: Roles | None = None,
    ) -> None:
        """`exchange`: where sessions get their users' keys of AWS's; None: all keys are the platform's own. `roles`:
        whose keys are good."""
        self._store = store
        self._deployment = deployment
        self._clock = clock
        self._settings = settings
        self._secrets = master_key.derive("access-key-secrets")
        self._tokens = Seal(master_key, "session-tokens")
        self._exchange = exchange
        self._roles = roles or Roles()
        self._issued_elsewhere = Seal(master_key, "issued-elsewhere")
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
        record = KeyRecord.load(value)
        key = self._key(access_key_id, record)
        if key is None or self._expired(key):
            return None
        if (lives := lives_of(record)) is not None:
            life = await self._store.get(lives, _LIFE)
            if life is None or record.life is None or life != record.life.encode():
                return None
        # What ended while we read may be what we read: an answer is still right, keeping it is not.
        if endings == self._endings:
            self._keep(key)
        return key

    async def begin_session(
        self, session: SessionRef, user: User | None, user_token: str | None = None
    ) -> SessionCredentials | None:
        if self._exchange is None:
            return None
        life = await self._store.get(session_lives(session), _LIFE)
        found = await self._exchange.assume(session, user, user_token)
        if found is None:
            return None
        assumed, role_arn = found
        sealed = self._issued_elsewhere.seal(
            {"key": assumed.access_key_id, "secret": assumed.secret_access_key, "token": assumed.session_token}
        )
        key = await self._add_of_session(session, life, assumed.access_key_id, assumed.expiration, user, sealed)
        return _credentials(key, role_arn)

    async def issue_for_session(
        self, session: SessionRef, user: User | None, user_token: str | None = None
    ) -> SessionCredentials:
        if (credentials := await self.begin_session(session, user, user_token)) is not None:
            return credentials
        life = await self._store.get(session_lives(session), _LIFE)
        expires = self._clock.now() + timedelta(seconds=self._settings.session_key_life)
        key_id = _SESSION_PREFIX + suffix(_UPPER_ALPHANUMERIC, 16)
        return _credentials(await self._add_of_session(session, life, key_id, expires.replace(microsecond=0), user))

    async def end_session(self, session: SessionRef) -> None:
        """Raises StoreUnavailable where the end could not be made durable: ask again."""
        self._forget_session(session)
        try:
            await self._store.transact([Delete(session_lives(session), _LIFE)])
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
        record = KeyRecord(name, epoch_ms(self._clock.now()), acts_for_users=acts_for_users)
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
                record = KeyRecord.load(item.value)
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

    # Roles.

    async def issue_for_role(self, session: RoleSession, expires: datetime) -> AccessKey:
        """Keys of a role for whoever has assumed it. Raises ConflictException: they were revoked at this moment."""
        key_id = _SESSION_PREFIX + suffix(_UPPER_ALPHANUMERIC, 16)
        record = KeyRecord("", epoch_ms(self._clock.now()), epoch_ms(expires), role=session)
        current = await self._store.get(role_lives(session.role), _LIFE)
        return await self._add(key_id, record, current, self._clock.now() + timedelta(seconds=LONGEST))

    async def revoke_role(self, role: str) -> None:
        """All keys that the role has given until now are dead when this returns; in other processes within `key_cache`
        seconds. Raises StoreUnavailable where that could not be made durable: ask again."""
        self._forget_role(role)
        try:
            await self._store.transact([Delete(role_lives(role), _LIFE)])
        finally:
            self._forget_role(role)

    # Inside.

    async def _set_acting(self, key_id: str, acts_for_users: bool) -> None:
        """Other processes may go by what was before for `key_cache` seconds more."""
        value = await self._store.get(_KEYS, key_id)
        if value is None:
            return
        changed = replace(KeyRecord.load(value), acts_for_users=acts_for_users)
        try:
            await self._store.transact([Put(_KEYS, key_id, changed.dump(), expect=value)])
        except ConditionFailed:  # revoked, or set by another process that starts with the same settings
            pass
        finally:
            self._endings += 1
            self._forget(key_id)

    async def _add_of_session(
        self,
        session: SessionRef,
        current: bytes | None,
        key_id: str,
        expires: datetime,
        user: User | None,
        sealed: str | None = None,
    ) -> AccessKey:
        now = self._clock.now()
        record = KeyRecord("", epoch_ms(now), epoch_ms(expires), session, None, user, sealed=sealed)
        last = max(expires, now + timedelta(seconds=self._settings.session_key_life))
        return await self._add(key_id, record, current, last)

    async def _add(self, key_id: str, record: KeyRecord, current: bytes | None, last: datetime) -> AccessKey:
        """A key in the `current` life of its session or role, or, where that has none, in its first. `last`: until when
        there may be keys of this life."""
        lives = lives_of(record)
        assert lives is not None and record.expires_ms is not None, "operators' keys have neither"
        while True:
            life = current.decode() if current is not None else secrets.token_hex(8)
            record = replace(record, life=life)
            try:
                # The life outlives its last key; both are gone by themselves where nobody ends the session.
                await self._store.transact(
                    [
                        Put(
                            lives,
                            _LIFE,
                            life.encode(),
                            expect=ABSENT if current is None else current,
                            expires_ms=epoch_ms(last) + 1000,
                        ),
                        Put(_KEYS, key_id, record.dump(), expect=ABSENT, expires_ms=record.expires_ms),
                    ]
                )
                break
            except ConditionFailed as failed:
                if failed.index != 0 or current is not None or failed.current is None:
                    raise ConflictException(ended(record)) from None
                current = failed.current  # its first key was issued at the same moment; ours joins that life
        key = self._key(key_id, record)
        assert key is not None, "what was sealed a moment ago opens"
        return key

    def _key(self, key_id: str, record: KeyRecord) -> AccessKey | None:
        """None: its secret was sealed under another master key, or for another key; or its role is gone."""
        account = self._deployment.account
        expires = _moment(record.expires_ms) if record.expires_ms is not None else None
        session = record.session
        if record.role is not None:
            found = self._roles.caller(record.role, key_id)
            if found is None:
                return None  # there is no such role any more
            token = self._tokens.seal(
                {"key": key_id, "role": astuple(record.role), "life": record.life, "expires": record.expires_ms}
            )
            return AccessKey(key_id, self._secret(key_id), found, token, expires)
        if session is None:
            caller = Caller(
                CallerKind.OPERATOR,
                f"arn:aws:iam::{account}:user/{record.name}",
                key_id,
                acts_for_users=record.acts_for_users,
            )
            return AccessKey(key_id, self._secret(key_id), caller, None, expires)
        principal = f"arn:aws:sts::{account}:assumed-role/{session.runtime_id}/{session.session_id}"
        caller = Caller(CallerKind.SESSION, principal, key_id, record.user, session)
        if record.sealed is not None:
            opened = self._issued_elsewhere.open(record.sealed)
            if opened is None or opened["key"] != key_id:
                return None
            return AccessKey(key_id, opened["secret"], caller, opened["token"], expires)
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

    def _forget_role(self, role: str) -> None:
        self._endings += 1
        for key_id, cached in list(self._cache.items()):
            caller = cached.key.caller
            if caller.kind is CallerKind.ROLE and caller.principal.split("/")[1] == role:
                self._forget(key_id)


def _credentials(key: AccessKey, role_arn: str | None = None) -> SessionCredentials:
    assert key.session_token is not None and key.expires is not None, "a session's key has both"
    return SessionCredentials(key.id, key.secret, key.session_token, key.expires, role_arn)


def _moment(epoch_milliseconds: int) -> datetime:
    return datetime.fromtimestamp(epoch_milliseconds / 1000, UTC)
