"""The one secret everything else is derived from, so that no other secret need be stored."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentkeep.core.errors import AgentkeepError

__all__ = ["FileMasterKey", "MasterKey", "MasterKeyError"]

_LENGTH = 32


class MasterKey(Protocol):
    """Derives keys. An implementation over a key service decrypts its key once, at start, so deriving never waits."""

    def derive(self, purpose: str) -> bytes:
        """32 bytes, the same for the same purpose for ever, independent of every other purpose's."""
        ...


class MasterKeyError(AgentkeepError):
    """The key file cannot be trusted or used; the message says what to do. The platform does not start."""


class FileMasterKey:
    """A master key kept in a file that only its owner can read."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _LENGTH:
            raise MasterKeyError(f"A master key has {_LENGTH} bytes, this one has {len(key)}.")
        self._key = key

    def __repr__(self) -> str:
        return "FileMasterKey()"

    def derive(self, purpose: str) -> bytes:
        return HKDF(hashes.SHA256(), _LENGTH, salt=None, info=b"agentkeep:" + purpose.encode()).derive(self._key)

    @classmethod
    def load_or_create(cls, path: Path) -> FileMasterKey:
        """Reads the file, or makes it where there is none. Does file I/O: call it before the event loop runs.

        Of several processes that create it at once, one wins and all return its key. Raises MasterKeyError.
        """
        try:
            return cls(_read(path))
        except FileNotFoundError:
            _create(path)
            return cls(_read(path))


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MasterKeyError(f"The master key {path} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MasterKeyError(f"The master key {path} is not a regular file.")
        if status.st_uid != os.geteuid():
            raise MasterKeyError(
                f"The master key {path} belongs to user {status.st_uid}, not to the one running the platform "
                f"({os.geteuid()}). Run as that user, or give the file to this one."
            )
        if status.st_mode & 0o077:
            raise MasterKeyError(
                f"The master key {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}); it must be 0600. "
                "If others may have read it, replace it: every key and token made with it must be issued again. "
                f"Otherwise: chmod 600 {path}"
            )
        key = os.read(descriptor, _LENGTH + 1)
    finally:
        os.close(descriptor)
    if len(key) != _LENGTH:
        raise MasterKeyError(
            f"The master key {path} is damaged: it must be {_LENGTH} bytes long. Restore it from your backup; without "
            "it, no key or token made with it can be used again."
        )
    return key


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_LENGTH))
            file.flush()
            os.fsync(descriptor)
        try:
            # A link, unlike a rename, never replaces a key that another process made meanwhile.
            os.link(draft, path)
        except FileExistsError:
            pass
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
