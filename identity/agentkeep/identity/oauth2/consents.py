"""Consents under way: an authorization code flow from the agent's question to the user's confirmation.

    PENDING ──the user's browser comes back with a code──> CONSENTED ──the same user confirms──> COMPLETED
       └──────────── refused, or confirmed by somebody else ────┴──────────────────────────────> FAILED

Each step is a conditional write: of two callbacks, or two confirmations, one happens.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import orjson

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.errors import ConditionFailed, ThrottlingException
from agentkeep.identity.oauth2.grants import GrantKey
from agentkeep.identity.vault.token_vault import VAULT, TokenVault
from agentkeep.storage.interface import Clear, KeyValueStore, Put, Write, partition

__all__ = ["Consent", "ConsentState", "Consents", "Kept"]

_CONSENTS: Final = partition("identity", "token-vaults", VAULT, "consents")
_URI: Final = "urn:ietf:params:oauth:request_uri:"
_ID_BYTES: Final = 32
#: How many an agent may begin of one user's in the time one lasts.
_MOST: Final = 50
#: How long its end can still be asked for.
_REMEMBERED: Final = timedelta(hours=1)


class ConsentState(StrEnum):
    PENDING = "pending"
    CONSENTED = "consented"
    COMPLETED = "completed"
    FAILED = "failed"


_NEXT: Final = {
    ConsentState.PENDING: {ConsentState.CONSENTED, ConsentState.FAILED},
    ConsentState.CONSENTED: {ConsentState.COMPLETED, ConsentState.FAILED},
    ConsentState.COMPLETED: frozenset[ConsentState](),
    ConsentState.FAILED: frozenset[ConsentState](),
}


@dataclass(frozen=True, slots=True)
class Consent:
    """`workload`: name and incarnation. `issuer`: whom the answer must name, if it names anyone, or if `issuer_named`.
    `code` is there only while CONSENTED; `reason` why it FAILED. `session` is the one that asked,
    `granting` the custom parameters that tell its grant from others. `repr` hides all."""

    state: ConsentState
    workload: tuple[str, str]
    user: User
    key: GrantKey
    callback_id: str
    callback_url: str
    issuer: str
    issuer_named: bool
    verifier: str
    return_url: str
    custom_state: str | None
    resources: tuple[str, ...]
    expires: datetime
    authorization_url: str = ""
    code: str | None = None
    reason: str | None = None
    session: SessionRef | None = None
    granting: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"Consent({self.state}, {self.key.provider!r})"

    def to(self, state: ConsentState, **changes: Any) -> Consent:
        assert state in _NEXT[self.state], f"{self.state} -> {state}"
        secrets_gone = {} if state is ConsentState.CONSENTED else {"code": None, "verifier": ""}
        return replace(self, state=state, authorization_url="", **(secrets_gone | changes))

    def dump(self) -> str:
        document = {member.name: getattr(self, member.name) for member in fields(self)}
        document |= {
            "user": [self.user.id, self.user.issuer],
            "expires": epoch_ms(self.expires),
            "session": self.session and [self.session.runtime_id, self.session.session_id],
        }
        return orjson.dumps(document).decode()

    @classmethod
    def load(cls, text: str) -> Consent:
        document = orjson.loads(text)
        document["state"] = ConsentState(document["state"])
        document["workload"] = tuple(document["workload"])
        document["user"] = User(*document["user"])
        document["key"] = GrantKey(**document["key"])
        document["resources"] = tuple(document["resources"])
        document["expires"] = from_epoch_ms(document["expires"])
        document["granting"] = tuple((name, value) for name, value in document.get("granting", ()))
        if document.get("session") is not None:
            document["session"] = SessionRef(*document["session"])
        return cls(**document)


@dataclass(frozen=True, slots=True)
class Kept:
    """A consent as it was read: `stored` is what a change must find."""

    id: str
    consent: Consent
    stored: bytes

    @property
    def uri(self) -> str:
        return _URI + self.id

    @property
    def name(self) -> str:
        """For where its id must not be seen."""
        return _label(self.id)

    def __repr__(self) -> str:
        return f"Kept({self.consent!r})"


class Consents:
    def __init__(self, store: KeyValueStore, vault: TokenVault, clock: Clock, life: timedelta) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock
        self._life = life

    def new_id(self) -> str:
        return secrets.token_hex(_ID_BYTES)

    def end(self) -> datetime:
        """When a consent that begins now ends."""
        return from_epoch_ms(epoch_ms(self._clock.now() + self._life))

    async def begin(self, id: str, consent: Consent) -> str:
        """Its session URI. Raises ThrottlingException where the user is asked too often."""
        asked = _asked(consent)
        # Read, not counted in the transaction: of those that begin at the same moment some too many may pass.
        if len(await self._store.query(asked, limit=_MOST)) == _MOST:
            raise ThrottlingException(
                f"This agent has begun {_MOST} consents of this user's that could still be given. Poll with the "
                "sessionUri of one, rather than begin another, or wait for them to expire"
            )
        index = Put(asked, _digest(id), b"", expires_ms=epoch_ms(consent.expires))
        await self._store.transact([await self._put(id, consent), index])
        return _URI + id

    async def get(self, uri_or_id: str) -> Kept | None:
        id = uri_or_id.removeprefix(_URI)
        stored = await self._store.get(_CONSENTS, _digest(id))
        if stored is None:
            return None
        text = await self._vault.open(stored, _label(id))
        return None if text is None else Kept(id, Consent.load(text), stored)

    def over(self, consent: Consent) -> bool:
        return self._clock.now() >= consent.expires

    async def change(self, kept: Kept, consent: Consent) -> bool:
        """False where it is no longer as it was read; then nothing is written."""
        return await self.write(await self.becoming(kept, consent))

    async def becoming(self, kept: Kept, consent: Consent) -> Write:
        """The change, sealed but not written. Raises KeyServiceUnavailable and KeyRefused."""
        return await self._put(kept.id, consent, kept.stored)

    async def write(self, *change: Write) -> bool:
        """As `change`; with what else is to be written, or not, at the same moment."""
        try:
            await self._store.transact(change)
        except ConditionFailed:
            return False
        return True

    def clear(self) -> Write:
        """Removes all, those that are under way too."""
        return Clear(_CONSENTS)

    async def _put(self, id: str, consent: Consent, expected: bytes | None = None) -> Write:
        envelope = await self._vault.seal(consent.dump(), _label(id))
        expires = epoch_ms(consent.expires + _REMEMBERED)
        if expected is None:
            return Put(_CONSENTS, _digest(id), envelope, expires_ms=expires)
        return Put(_CONSENTS, _digest(id), envelope, expect=expected, expires_ms=expires)


def _digest(id: str) -> str:
    """Whoever reads the store does not learn the session's name, which opens it."""
    return hashlib.sha256(id.encode()).hexdigest()


def _asked(consent: Consent) -> str:
    """The partition of what an agent asked a user lately."""
    user = consent.user
    return partition("identity", "consents-of", *consent.workload, user.id, user.issuer or "")


def _label(id: str) -> str:
    return f"consents/{_digest(id)}"
