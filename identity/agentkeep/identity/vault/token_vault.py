"""The token vault: secrets that agents use at other services, kept so that the store holds none of them in clear.

Envelope encryption: each secret has a data key of its own, which lies beside it, wrapped by a key service: under the
key of AWS KMS that the vault was given (SetTokenVaultCMK), else under the deployment's own. What is sealed already
stays under the key it was sealed under, until it is written again.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.data_keys import DataKeys
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    KeyRefused,
    ResourceNotFoundException,
    ValidationException,
)
from agentkeep.core.key_service import KMS, Context
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.sealing import Seal
from agentkeep.storage.interface import Ensure, KeyValueStore, Put, Write, partition

__all__ = ["VAULT", "VAULT_KEYS", "Sealer", "TokenVault", "VaultKey"]

#: The only vault there is.
VAULT = "default"
#: What the master key's own key service derives its secret for.
VAULT_KEYS: Final = "token-vault-data-keys"
_VAULTS = partition("identity", "token-vaults")
_NONCE: Final = 12  # bytes
_ATTEMPTS: Final = 5

#: From a secret to what may be stored of it.
Sealer = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class VaultKey:
    """`arn`: of the customer's key; None: the deployment's own. `modified_ms`: since when."""

    modified_ms: int
    arn: str | None = None

    @property
    def modified(self) -> datetime:
        return from_epoch_ms(self.modified_ms)

    @classmethod
    def load(cls, value: bytes) -> VaultKey:
        stored = orjson.loads(value)
        return cls(stored) if isinstance(stored, int) else cls(**stored)  # a number: from before it could be changed


class TokenVault:
    def __init__(self, store: KeyValueStore, master_key: MasterKey, keys: DataKeys, clock: Clock) -> None:
        """`master_key` opens what was sealed before there were key services."""
        self._store = store
        self._former = Seal(master_key, "token-vault-keys")
        self._keys = keys
        self._clock = clock

    async def seal(self, secret: str, label: str) -> bytes:
        """The secret as it may be stored. `label` says whose it is: under another, it does not open. Raises
        KeyServiceUnavailable and KeyRefused; it is never sealed under a lesser key instead."""
        return (await self.sealer(label))(secret)

    async def sealer(self, label: str) -> Sealer:
        """Seals one secret that is still to come, without asking a key service again. Raises as `seal`."""
        value = await self._store.get(_VAULTS, VAULT)
        arn = VaultKey.load(value).arn if value is not None else None
        key = await self._keys.generate(_context(label), arn)

        def seal(secret: str) -> bytes:
            nonce = secrets.token_bytes(_NONCE)
            sealed = AESGCM(key.plain).encrypt(nonce, secret.encode(), label.encode())
            return orjson.dumps({"wrapped": _text(key.wrapped), "secret": _text(nonce + sealed)})

        return seal

    async def open(self, envelope: bytes, label: str) -> str | None:
        """The secret, or None where no key of this platform's sealed exactly this, under this label. Raises
        KeyServiceUnavailable, and KeyRefused by AWS KMS."""
        try:
            document = orjson.loads(envelope)
            sealed = base64.b64decode(document["secret"], validate=True)
            key = await self._unwrapped(document, label)
            if key is None:
                return None
            return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], label.encode()).decode()
        except (InvalidTag, ValueError, KeyError, TypeError):
            return None

    async def key(self, vault: str) -> VaultKey:
        """What new secrets are sealed under, and since when: since the vault was first used or looked at, if it was
        never changed. Raises ResourceNotFoundException for any vault but `default`."""
        return VaultKey.load(await self._read(vault))

    async def set_key(self, vault: str, arn: str | None) -> VaultKey:
        """From now on; None: the deployment's own. Proves that the key can be used, and that what it seals opens.

        Raises ResourceNotFoundException, ValidationException, KeyRefused and KeyServiceUnavailable: then nothing has
        changed.
        """
        for _ in range(_ATTEMPTS):
            value = await self._read(vault)
            former = VaultKey.load(value)
            tried = await self._keys.generate(_context(""), arn)
            await self._keys.unwrap(tried.wrapped, _context(""))
            changed = VaultKey(epoch_ms(self._clock.now()), arn)
            if former.arn == arn:
                return former
            try:
                await self._store.transact([Put(_VAULTS, vault, orjson.dumps(asdict(changed)), expect=value)])
            except ConditionFailed:
                continue
            return changed
        raise ConflictException(f"Token vault {vault} is being changed by others; try again")

    async def reset_key(self, vault: str, others: Sequence[Write]) -> VaultKey:
        """To the deployment's own, where the customer's key is gone for good; with `others`, all or nothing.

        Raises ResourceNotFoundException, ValidationException where the key is still there, KeyServiceUnavailable where
        nobody can say, ConflictException.
        """
        value = await self._read(vault)
        arn = VaultKey.load(value).arn
        if arn is None:
            raise ValidationException(
                f"Token vault {vault} is under no customer managed key: there is nothing to reset"
            )
        try:
            await self._keys.generate(_context(""), arn)
        except KeyRefused as refused:
            if not refused.gone:
                raise ValidationException(
                    f"The key of token vault {vault} has not been deleted. {refused.message} Enable it or cancel its "
                    "deletion, or name another one with SetTokenVaultCMK"
                ) from None
        else:
            raise ValidationException(
                f"The key of token vault {vault} has not been deleted; to use another one, SetTokenVaultCMK"
            )
        changed = VaultKey(epoch_ms(self._clock.now()))
        try:
            await self._store.transact([Put(_VAULTS, vault, orjson.dumps(asdict(changed)), expect=value), *others])
        except ConditionFailed:
            raise ConflictException(f"Token vault {vault} is being changed by others; try again") from None
        return changed

    async def _read(self, vault: str) -> bytes:
        if vault != VAULT:
            raise ResourceNotFoundException(f"There is no token vault {vault}; the one there is is called {VAULT}")
        value = await self._store.get(_VAULTS, vault)
        if value is None:
            new = orjson.dumps(asdict(VaultKey(epoch_ms(self._clock.now()))))
            await self._store.transact([Ensure(_VAULTS, vault, new)])
            value = await self._store.get(_VAULTS, vault)
        assert value is not None
        return value

    async def _unwrapped(self, document: dict[str, Any], label: str) -> bytes | None:
        if "wrapped" not in document:
            former = self._former.open(document["key"])
            return base64.b64decode(former["key"]) if former is not None and former["label"] == label else None
        wrapped = base64.b64decode(document["wrapped"], validate=True)
        try:
            return await self._keys.unwrap(wrapped, _context(label))
        except KeyRefused:
            if wrapped[:1] == KMS:  # which may allow it again
                raise
            return None


def _context(label: str) -> Context:
    return {"agentkeep:token-vault": VAULT, "agentkeep:secret": label}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
