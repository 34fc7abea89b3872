"""The keys the development issuer signs with: made once, kept sealed in the store, so that tokens outlive a restart."""

from __future__ import annotations

import asyncio

from joserfc import jwk

from agentkeep.core.errors import ConditionFailed
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.sealing import Seal
from agentkeep.storage.interface import ABSENT, KeyValueStore, Put, partition

__all__ = ["SigningKey"]

_KEYS = partition("identity", "development-issuer")
_CURRENT = "signing-key"


class SigningKey:
    """An RSA key: RS256 is the one algorithm that every OpenID client must know."""

    def __init__(self, store: KeyValueStore, master_key: MasterKey) -> None:
        self._store = store
        self._seal = Seal(master_key, "signing-keys")
        self._key: jwk.RSAKey | None = None

    async def get(self) -> jwk.RSAKey:
        """The private key, with its id. Of several processes that make it at once, one wins."""
        if self._key is None:
            stored = await self._store.get(_KEYS, _CURRENT)
            while stored is None:
                made = await asyncio.to_thread(_make)
                sealed = self._seal.seal(dict(made.as_dict(private=True))).encode()
                try:
                    await self._store.transact([Put(_KEYS, _CURRENT, sealed, expect=ABSENT)])
                    stored = sealed
                except ConditionFailed as failed:
                    stored = failed.current
            document = self._seal.open(stored.decode())
            if document is None:
                raise ValueError(
                    "The development issuer's signing key was sealed under another master key; restore that key, or "
                    "start with an empty data folder"
                )
            self._key = jwk.RSAKey.import_key(document)
        return self._key


def _make() -> jwk.RSAKey:
    return jwk.RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
