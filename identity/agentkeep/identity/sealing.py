"""Opaque tokens: documents sealed under the master key, which nobody else can make, change or read."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from agentkeep.identity.master_key import MasterKey

__all__ = ["Seal"]


class Seal:
    """AES-SIV (RFC 5297): authenticated, and deterministic, so that a token can be made again rather than stored.

    What one purpose sealed, another cannot open. Equal documents give equal tokens: put something random in where
    that must not show.
    """

    def __init__(self, master_key: MasterKey, purpose: str) -> None:
        self._cipher = AESSIV(master_key.derive(f"seal:{purpose}:encrypt") + master_key.derive(f"seal:{purpose}:mac"))
        self._purpose = [purpose.encode()]

    def seal(self, document: dict[str, Any]) -> str:
        """URL-safe text without padding."""
        sealed = self._cipher.encrypt(orjson.dumps(document, option=orjson.OPT_SORT_KEYS), self._purpose)
        return _text(sealed)

    def open(self, token: str) -> dict[str, Any] | None:
        """The document, or None where this purpose did not seal exactly this text."""
        try:
            sealed = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
            if _text(sealed) != token:
                return None  # base64 can say the same bytes in several ways
            document: dict[str, Any] = orjson.loads(self._cipher.decrypt(sealed, self._purpose))
        except (InvalidTag, binascii.Error, ValueError):
            return None
        return document


def _text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
