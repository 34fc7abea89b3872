"""Grants: the tokens that authorization servers gave for an agent, or for an agent and its user, in the token vault."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import orjson

from agentkeep.core.call import User
from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.errors import ConditionFailed
from agentkeep.identity.vault.token_vault import VAULT, Sealer, TokenVault
from agentkeep.storage.interface import ANY, Clear, Delete, Expected, KeyValueStore, Put, Write, partition

__all__ = ["GrantKey", "Grants", "TokenSet"]

logger = logging.getLogger(__name__)

#: A token is renewed when this much of its life is left: enough for the call that it is for, a fifth of short lives.
_SPARE: Final = timedelta(seconds=60)
_SPARE_SHARE: Final = 5


@dataclass(frozen=True, slots=True)
class TokenSet:
    """What a token endpoint gave. `expires` is None where it did not say. `repr` hides the tokens."""

    access_token: str
    issued: datetime
    expires: datetime | None = None
    refresh_token: str | None = None

    def fresh(self, now: datetime) -> bool:
        """Whether the access token can be handed out."""
        if self.expires is None:
            return True
        return now < self.expires - min(_SPARE, (self.expires - self.issued) / _SPARE_SHARE)

    def good(self, now: datetime) -> bool:
        """Whether it can be used at all: in an outage, the rest of a token's life is better than nothing."""
        return self.expires is None or now < self.expires

    def dump(self) -> str:
        return orjson.dumps(
            {
                "access_token": self.access_token,
                "issued": epoch_ms(self.issued),
                "expires": self.expires and epoch_ms(self.expires),
                "refresh_token": self.refresh_token,
            }
        ).decode()

    @classmethod
    def load(cls, text: str) -> TokenSet:
        document = orjson.loads(text)
        expires = document["expires"]
        return cls(
            document["access_token"],
            from_epoch_ms(document["issued"]),
            None if expires is None else from_epoch_ms(expires),
            document["refresh_token"],
        )

    def __repr__(self) -> str:
        return f"TokenSet(expires={self.expires})"


@dataclass(frozen=True, slots=True)
class GrantKey:
    """Whose a grant is. `revision`: of the provider's configuration; what was granted under another is not used.
    `digest` says workload identity, user, scopes and what else tells one grant from another."""

    provider: str
    revision: str
    digest: str

    @classmethod
    def of(
        cls,
        provider: str,
        revision: str,
        workload: tuple[str, str],
        user: User | None,
        scopes: Sequence[str],
        others: Mapping[str, object],
    ) -> GrantKey:
        """`workload`: its name and incarnation. The order of scopes means nothing (RFC 6749, 3.3)."""
        document = {
            "workload": workload,
            "user": user and [user.id, user.issuer],
            "scopes": sorted(set(scopes)),
            "others": dict(others),
        }
        digest = hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()
        return cls(provider, revision, digest)

    @property
    def name(self) -> str:
        return f"grants/{self.provider}/{self.revision}/{self.digest}"


class Grants:
    """`life`: how long a grant is kept that does not end by itself, since it was given or renewed."""

    def __init__(self, store: KeyValueStore, vault: TokenVault, clock: Clock, life: timedelta) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock
        self._life = life

    async def get(self, key: GrantKey) -> TokenSet | None:
        found = await self.read(key)
        return None if found is None else found[0]

    async def read(self, key: GrantKey) -> tuple[TokenSet, bytes] | None:
        """With what is stored, which a change may expect."""
        envelope = await self._store.get(_partition(key.provider, key.revision), key.digest)
        if envelope is None:
            return None
        text = await self._vault.open(envelope, key.name)
        if text is None:
            logger.error(
                "a grant of credential provider %s does not open: sealed with another master key", key.provider
            )
            return None
        return TokenSet.load(text), envelope

    async def sealer(self, key: GrantKey) -> Sealer:
        """For a grant that is still to come. To be had before a server is asked for what it gives only once: then no
        key service is needed afterwards. Raises KeyServiceUnavailable and KeyRefused."""
        return await self._vault.sealer(key.name)

    async def put(self, key: GrantKey, tokens: TokenSet, expect: Expected = ANY, seal: Sealer | None = None) -> Write:
        ends = self._clock.now() + self._life
        if tokens.refresh_token is None and tokens.expires is not None:
            ends = min(ends, tokens.expires)
        envelope = (seal or await self.sealer(key))(tokens.dump())
        return Put(_partition(key.provider, key.revision), key.digest, envelope, expect, epoch_ms(ends))

    async def keep(self, key: GrantKey, tokens: TokenSet, seal: Sealer) -> None:
        await self._store.transact([await self.put(key, tokens, seal=seal)])

    async def change(self, key: GrantKey, stored: bytes, tokens: TokenSet | None, seal: Sealer | None = None) -> bool:
        """Puts `tokens` in the place of what was read; None removes it. False where there is something else by now,
        which the user consented to since: then nothing is written."""
        place = _partition(key.provider, key.revision), key.digest
        write = Delete(*place, stored) if tokens is None else await self.put(key, tokens, stored, seal)
        try:
            await self._store.transact([write])
        except ConditionFailed:
            return False
        return True

    def clear(self, provider: str, revision: str) -> Write:
        """Removes all that was granted to a provider."""
        return Clear(_partition(provider, revision))

    async def drop_all(self, provider: str, revision: str) -> None:
        await self._store.delete_partition(_partition(provider, revision))


def _partition(provider: str, revision: str) -> str:
    return partition("identity", "token-vaults", VAULT, "grants", provider, revision)
