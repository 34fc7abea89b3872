"""The token vault: secrets that agents use at other services, kept so that the store holds none of them in clear.

Envelope encryption: each secret has a data key of its own, which lies beside it, sealed under the master key. Whoever
changes the master key, or puts a key service behind it, has data keys to seal again, never the secrets themselves.
"""

from __future__ import annotations

import base64
import secrets
from datetime import datetime

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.errors import ResourceNotFoundException
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.sealing import Seal
from agentkeep.storage.interface import Ensure, KeyValueStore, partition

__all__ = ["VAULT", "TokenVault"]

#: The only vault there is.
VAULT = "default"
_VAULTS = partition("identity", "token-vaults")
_KEY_BITS = 256
_NONCE = 12  # bytes


class TokenVault:
    def __init__(self, store: KeyValueStore, master_key: MasterKey, clock: Clock) -> None:
        self._store = store
        self._keys = Seal(master_key, "token-vault-keys")
        self._clock = clock

    def seal(self, secret: str, label: str) -> bytes:
        """The secret as it may be stored. `label` says whose it is: under another, it does not open."""
        key, nonce = AESGCM.generate_key(_KEY_BITS), secrets.token_bytes(_NONCE)
        sealed = AESGCM(key).encrypt(nonce, secret.encode(), label.encode())
        return orjson.dumps(
            {
                "key": self._keys.seal({"key": base64.b64encode(key).decode(), "label": label}),
                "secret": base64.b64encode(nonce + sealed).decode(),
            }
        )

    def open(self, envelope: bytes, label: str) -> str | None:
        """The secret, or None where this master key did not seal exactly this, under this label."""
        try:
            document = orjson.loads(envelope)
            key, sealed = self._keys.open(document["key"]), base64.b64decode(document["secret"], validate=True)
            if key is None or key["label"] != label:
                return None
            cipher = AESGCM(base64.b64decode(key["key"]))
            return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], label.encode()).decode()
        except (InvalidTag, ValueError, KeyError, TypeError):
            return None

    async def modified(self, vault: str) -> datetime:
        """Since when the vault is as it is: when it was first used or looked at, as its key cannot be changed.

        Raises ResourceNotFoundException for any vault but `default`.
        """
        if vault != VAULT:
            raise ResourceNotFoundException(f"There is no token vault {vault}; the one there is is called {VAULT}")
        value = await self._store.get(_VAULTS, vault)
        if value is None:
            await self._store.transact([Ensure(_VAULTS, vault, orjson.dumps(epoch_ms(self._clock.now())))])
            value = await self._store.get(_VAULTS, vault)
        assert value is not None
        return from_epoch_ms(orjson.loads(value))
