"""An SQLite file, used off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw

from agentkeep.core.errors import StoreUnavailable

__all__ = ["SqliteFile"]

Result = TypeVar("Result")

BUSY_MS = 5000


class SqliteFile:
    """One connection in one thread of its own: work is done in the order it is asked for.

    `durable`: a commit survives the loss of power, not only the end of the process. `prepare` makes the schema; it
    runs first, in a transaction.
    """

    def __init__(self, path: Path, prepare: Callable[[apsw.Connection], None], *, durable: bool = True) -> None:
        self._path = path
        self._prepare = prepare
        self._durable = durable
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.stem)
        self._connection: apsw.Connection | None = None

    async def read(self, work: Callable[[apsw.Connection], Result]) -> Result:
        """Raises StoreUnavailable where SQLite fails (disk full, file damaged)."""
        return await self._run(lambda: work(self._open()))

    async def write(self, work: Callable[[apsw.Connection], Result]) -> Result:
        """The same in one transaction: all of `work` or nothing, on disk when this returns."""

        def in_transaction() -> Result:
            connection = self._open()
            with connection:
                result = work(connection)
            return result  # noqa: RET504 (committed only here)

        return await self._run(in_transaction)

    async def close(self) -> None:
        def close() -> None:
            if self._connection is not None:
                self._connection.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], Result]) -> Result:
        # Shielded: work that has begun is finished, and a caller that leaves does not tear a transaction.
        try:
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))
        except apsw.Error as error:
            raise StoreUnavailable(f"SQLite file {self._path.name}: {error}") from error

    def _open(self) -> apsw.Connection:
        if self._connection is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = apsw.Connection(str(self._path))
            self._path.chmod(0o600)
            connection.set_busy_timeout(BUSY_MS)
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full" if self._durable else "normal")
            connection.pragma("foreign_keys", True)
            connection.pragma("secure_delete", True)  # erased means erased
            with connection:
                self._prepare(connection)
            self._connection = connection
        return self._connection
