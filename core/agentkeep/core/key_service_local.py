"""A key service on this machine: data keys are wrapped under a key derived from a secret, which is a file."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agentkeep.core.errors import KeyRefused, KeyServiceUnavailable, ValidationException
from agentkeep.core.key_service import LOCAL, LOCAL_IN_HALVES, Context, DataKey, unknown_wrapping
from agentkeep.core.sealing import KEY_BYTES, derived

__all__ = ["LocalKeyService"]

_NONCE: Final = 12
_NAME: Final = 16  # bytes of a half's name
_PURPOSE: Final = "data-keys"


class LocalKeyService:
    """`secret`: 32 bytes or more, kept apart from what is sealed.

    `halves`: a folder, where one secret of each data key lies in a file of its own, without which it does not open. So
    a data key can be erased although the secret stays, and although copies of the store still have it wrapped. To be
    shared by all replicas, and not to be kept in the same backups as the store. None: nothing can be erased.
    """

    def __init__(self, secret: bytes, halves: Path | None = None) -> None:
        if len(secret) < KEY_BYTES:
            raise ValueError(f"the secret of a key service has at least {KEY_BYTES} bytes")
        self._secret = secret
        self._halves = halves

    def __repr__(self) -> str:
        return "LocalKeyService()"

    async def generate(self, context: Context, arn: str | None = None) -> DataKey:
        if arn is not None:
            raise ValidationException(f"{arn} cannot be used: this deployment has no access to AWS KMS")
        plain, nonce = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(_NONCE)
        head, half = LOCAL, None
        if self._halves is not None:
            name, half = secrets.token_bytes(_NAME), secrets.token_bytes(KEY_BYTES)
            head = LOCAL_IN_HALVES + name
            try:
                await asyncio.to_thread(_write, self._halves / name.hex(), half)
            except OSError as error:
                raise KeyServiceUnavailable(
                    f"A new data key cannot be kept in {self._halves}: {error.strerror}. Make room, and try again"
                ) from None
        sealed = self._cipher(half).encrypt(nonce, plain, _bound(head, context))
        return DataKey(plain, head + nonce + sealed)

    async def unwrap(self, wrapped: bytes, context: Context) -> bytes:
        head, half = wrapped[:1], None
        if head == LOCAL_IN_HALVES:
            if len(wrapped) < 1 + _NAME + _NONCE:
                raise unknown_wrapping()
            head = wrapped[: 1 + _NAME]
            half = await self._half(head)
        elif head != LOCAL:
            raise unknown_wrapping()
        nonce, sealed = wrapped[len(head) : len(head) + _NONCE], wrapped[len(head) + _NONCE :]
        try:
            return self._cipher(half).decrypt(nonce, sealed, _bound(head, context))
        except (InvalidTag, ValueError):
            raise KeyRefused(
                "A data key does not open: it was wrapped under another secret, or for another purpose. Is the secret "
                "the one that this deployment began with?"
            ) from None

    async def erase(self, wrapped: bytes) -> None:
        if wrapped[:1] == LOCAL_IN_HALVES and self._halves is not None:
            path = self._halves / wrapped[1 : 1 + _NAME].hex()
            try:
                await asyncio.to_thread(_erase, path)
            except OSError as error:
                raise KeyServiceUnavailable(f"A data key cannot be erased from {path}: {error.strerror}") from None

    async def close(self) -> None: ...

    async def _half(self, head: bytes) -> bytes:
        if self._halves is None:
            raise KeyRefused("Half of a data key lies in a folder, and none is configured here")
        path = self._halves / head[1:].hex()
        try:
            half = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise KeyRefused(
                f"Half of a data key is not in {self._halves}: it was erased, or this is not the folder that the "
                "deployment began with"
            ) from None
        except OSError as error:
            raise KeyServiceUnavailable(f"A data key cannot be read from {path}: {error.strerror}") from None
        if len(half) != KEY_BYTES:
            raise KeyRefused(f"{path} is damaged: it must be {KEY_BYTES} bytes long")
        return half

    def _cipher(self, half: bytes | None) -> AESGCM:
        return AESGCM(derived(self._secret, _PURPOSE, half))


def _bound(head: bytes, context: Context) -> bytes:
    return head + orjson.dumps(dict(context), option=orjson.OPT_SORT_KEYS)


def _write(path: Path, half: bytes) -> None:
    """On disk when it returns: what is sealed under it must never outlive it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(half)
        file.flush()
        os.fsync(descriptor)
    _sync(path.parent)


def _erase(path: Path) -> None:
    """Overwritten, then removed. (A disk that writes elsewhere than it is told keeps the old for a while.)"""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(descriptor, bytes(KEY_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
