"""Secrets planted to be looked for: wherever one turns up in clear, in any usual spelling, something leaks."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from urllib.parse import quote


def canary() -> str:
    """Long enough to be found by its middle, with characters that encodings change."""
    return f"canary/{secrets.token_hex(24)}+"


@cache
def spellings(secret: str | bytes) -> tuple[bytes, ...]:
    """As it is, as hexadecimal, percent-encoded, as Python shows it, and in base64 from any of the three places a byte
    can begin there."""
    plain = secret.encode() if isinstance(secret, str) else secret
    found = [plain, plain.hex().encode(), plain.hex().upper().encode(), quote(plain, safe="").encode()]
    found.append(repr(plain)[2:-1].encode())
    for shift in range(3):
        # The first and the last characters depend on what is around.
        core = base64.b64encode(b"\0" * shift + plain)[4:-4]
        found += [core, core.replace(b"+", b"-").replace(b"/", b"_")]
    return tuple(found)


def leaks(data: bytes, planted: Iterable[str | bytes]) -> bool:
    return any(spelling in data for secret in planted for spelling in spellings(secret))


def leaking_files(folder: Path, planted: Iterable[str | bytes]) -> list[str]:
    secrets = list(planted)
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and leaks(path.read_bytes(), secrets)
    ]
