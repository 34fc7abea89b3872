"""A body too large for memory that must be proved before anything happens because of it: it waits on disk."""

from __future__ import annotations

import tempfile
from typing import Self

from agentkeep.core.errors import ServiceUnavailableException

__all__ = ["Spool", "Spools"]

_PIECE = 256 * 1024


class Spools:
    """All spools together: they share a limit, since whoever fills them has proved nothing yet."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def open(self) -> Spool:
        return Spool(self)


class Spool:
    """Written, then read from the start; gone when closed. The file has no name. Pieces are small and go to the page
    cache, so the event loop is not held up by the disk."""

    def __init__(self, spools: Spools) -> None:
        self.size = 0
        self._spools = spools
        self._read = 0
        self._file = tempfile.TemporaryFile(prefix="agentkeep-body-")  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Raises ServiceUnavailableException when the limit of all spools is reached."""
        if self._spools.used + len(data) > self._spools.limit:
            raise ServiceUnavailableException("Too many large requests are waiting to begin sessions. Try again later")
        self._spools.used += len(data)
        self.size += len(data)
        self._file.write(data)

    def read(self) -> bytes:
        """The next piece; empty at the end."""
        if self._read == 0:
            self._file.seek(0)
        data = self._file.read(_PIECE)
        self._read += len(data)
        return data

    @property
    def exhausted(self) -> bool:
        return self._read >= self.size

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._spools.used -= self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
