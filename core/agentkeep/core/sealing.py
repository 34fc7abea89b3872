"""A data key at work: what it seals can be neither read, changed nor moved by who has the store alone."""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentkeep.core.errors import SealBroken

__all__ = ["KEY_BYTES", "SEALED", "SealingKey", "derived"]

KEY_BYTES: Final = 32
#: The first byte of all that is sealed: no text or JSON begins so.
SEALED: Final = 0x01
_NONCE: Final = 12
_MARK: Final = bytes([SEALED])


def derived(key: bytes, purpose: str, salt: bytes | None = None) -> bytes:
    """32 bytes by HKDF (RFC 5869): the same for the same purpose for ever, independent of every other purpose's."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=salt, info=b"agentkeep:" + purpose.encode()).derive(key)


class SealingKey:
    """AES-256-GCM with random nonces, which are safe for some 2^32 sealings under one key (NIST SP 800-38D, 8.3)."""

    __slots__ = ("_cipher", "_key")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a data key has {KEY_BYTES} bytes")
        self._key = key
        self._cipher = AESGCM(derived(key, "seal"))

    def __repr__(self) -> str:
        return "SealingKey()"

    def seal(self, data: bytes, label: str) -> bytes:
        """28 bytes longer than `data`, and one that says that it is sealed. `label` says what it is and where it
        belongs: under another, it does not open."""
        nonce = os.urandom(_NONCE)
        return _MARK + nonce + self._cipher.encrypt(nonce, data, label.encode())

    def open(self, sealed: bytes, label: str) -> bytes:
        """Raises SealBroken for all that this key did not seal under this label."""
        if sealed[:1] != _MARK:
            raise SealBroken("what is stored is not sealed, though all is that belongs there")
        try:
            return self._cipher.decrypt(sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :], label.encode())
        except (InvalidTag, ValueError):
            raise SealBroken("what is stored does not open: it is damaged, or was sealed for another place") from None

    def derive(self, purpose: str) -> bytes:
        """A key of its own for another use than sealing."""
        return derived(self._key, purpose)
