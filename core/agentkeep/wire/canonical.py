"""A request's canonical form, over which Signature Version 4 is made: path, query, headers.

Clients repeat themselves, so results for short inputs are remembered (bounded in number and in length).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote_to_bytes

__all__ = ["canonical_path", "canonical_query", "fold", "header_lines"]

_ENTRIES: Final = 4096
_LONGEST: Final = 512
_UNRESERVED: Final = "-_.~"


def canonical_path(raw: bytes) -> bytes:
    """The path as sent, percent-encoded once more (`%3A` becomes `%253A`); empty and dot segments removed."""
    return _short_path(raw) if len(raw) <= _LONGEST else _path(raw)


def _path(raw: bytes) -> bytes:
    text = raw.decode("latin-1")
    if "//" in text or "/." in text:
        kept: list[str] = []
        for part in text.split("/"):
            if part == "..":
                if kept:
                    kept.pop()
            elif part not in ("", "."):
                kept.append(part)
        text = "/" + "/".join(kept) + ("/" if kept and text.endswith("/") else "")
    return quote(text, safe="/~", encoding="latin-1").encode("ascii")


def canonical_query(raw: bytes) -> bytes:
    """Parameters decoded, encoded in the one right way, sorted; without the signature of a presigned URL."""
    return _short_query(raw) if len(raw) <= _LONGEST else _query(raw)


def _query(raw: bytes) -> bytes:
    pairs = []
    for pair in raw.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            encoded = quote(unquote_to_bytes(name), safe=_UNRESERVED)
            if encoded != "X-Amz-Signature":
                pairs.append((encoded, quote(unquote_to_bytes(value), safe=_UNRESERVED)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs)).encode("ascii")


_short_path = lru_cache(_ENTRIES)(_path)
_short_query = lru_cache(_ENTRIES)(_query)


def fold(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Headers by lower-case name, repeated ones joined by a comma in the order sent."""
    folded: dict[bytes, bytes] = {}
    for name, value in headers:
        name = name.lower()
        folded[name] = value if name not in folded else folded[name].strip() + b"," + value.strip()
    return folded


def header_lines(names: Iterable[bytes], headers: Mapping[bytes, bytes]) -> bytes | None:
    """`name:value` lines of the signed headers, blanks run together. None: one of them was not sent."""
    lines = []
    for name in names:
        value = headers.get(name)
        if value is None:
            return None
        lines.append(
            b"%b:%b\n" % (name, b" ".join(value.split()) if b"  " in value or b"\t" in value else value.strip())
        )
    return b"".join(lines)
