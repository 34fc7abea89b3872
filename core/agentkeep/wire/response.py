"""An answer on its way out, before HTTP frames it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Headers", "Response", "header_value"]

Headers: TypeAlias = list[tuple[bytes, bytes]]

_FORBIDDEN = dict.fromkeys([*range(32), 127], " ")


@dataclass(frozen=True, slots=True)
class Response:
    """`body` is whole, or comes piece by piece; then whoever sends it closes it (`aclose`), also when the client left.
    Names of headers are lower-case; `content-length` is left to whoever frames the answer."""

    status: int
    headers: Headers
    body: bytes | AsyncIterator[bytes]


def header_value(text: str) -> bytes:
    """A header's value: control characters, with which an answer could be split in two, become spaces."""
    return text.translate(_FORBIDDEN).strip().encode("latin-1", "replace")
