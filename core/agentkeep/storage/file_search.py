"""What bytes are in a store's files: proof that what was erased is gone from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

__all__ = ["FileSearch", "any_in_files"]

_CHUNK: Final = 4 << 20


@runtime_checkable
class FileSearch(Protocol):
    """A search store that can look into its files."""

    async def in_files(self, ids: Sequence[str]) -> bool:
        """Whether the bytes of one of these documents' ids are anywhere in them, be it in places that are free. Raises
        StoreUnavailable."""
        ...


def any_in_files(paths: Iterable[Path], needles: Sequence[bytes]) -> bool:
    """Blocks. A file that is not there holds nothing. Raises OSError."""
    overlap = max(map(len, needles), default=1) - 1
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                rest = b""
                while piece := file.read(_CHUNK):
                    piece = rest + piece
                    if any(needle in piece for needle in needles):
                        return True
                    rest = piece[-overlap:] if overlap else b""
        except FileNotFoundError:
            continue
    return False
