"""An SQLite file, used off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import apsw

from agentkeep.core.errors import StoreUnavailable

__all__ = ["DamagedFile", "SqliteFile"]

Result = TypeVar("Result")

BUSY_MS = 5000
#: What a connection keeps of the file in memory.
CACHE_KB: Final = 16_000
#: How much may wait for its turn, at each of the connections; more is refused at once.
MOST_WAITING: Final = 512

#: What is to be done about an error, by SQLite's name of it.
_ADVICE: Final[dict[type[apsw.Error], str]] = {
    apsw.BusyError: "another process keeps it locked; nothing was changed, try again",
    apsw.LockedError: "another process keeps it locked; nothing was changed, try again",
    apsw.FullError: "its disk is full; nothing was changed: make room and try again",
    apsw.IOError: "its disk cannot be read or written; nothing was changed: look at the disk and try again",
    apsw.ReadOnlyError: "it may not be written; nothing was changed: give it to the platform's user",
    apsw.CantOpenError: "it cannot be opened: give it, and its folder, to the platform's user",
}
_DAMAGED: Final = (
    "it is damaged. Stop the platform and bring it back from a backup, or recover what is there with sqlite3's "
    ".recover; to begin with an empty one, move it and its -wal and -shm files away"
)


class DamagedFile(Exception):
    """What was read cannot be what was written."""


class SqliteFile:
    """Two connections, each in a thread of its own, so that no read waits for a disk to confirm a write. Writes are
    done in the order they are asked for, and so are reads; a read that begins after a write returned sees it.

    `durable`: a commit survives the loss of power, not only the end of the process. `prepare` makes the schema; it
    runs first, in a transaction. `patience`: seconds in which work must get its turn.

    Raises StoreUnavailable where SQLite fails, saying what to do (disk full, file locked or damaged).
    """

    def __init__(
        self,
        path: Path,
        prepare: Callable[[apsw.Connection], None],
        *,
        durable: bool = True,
        patience: float = 10.0,
    ) -> None:
        self._path = path
        self._prepare = prepare
        self._durable = durable
        self._patience = patience
        self._writer, self._reader = _Turns(f"{path.stem}-w"), _Turns(f"{path.stem}-r")
        #: Grows when what is open may not be the file any more.
        self._opening = 0
        self._prepared = -1

    async def read(self, work: Callable[[apsw.Connection], Result]) -> Result:
        """`work` sees the file as it is at one moment."""
        if self._prepared != self._opening:
            await self.write(lambda _: None)

        def in_transaction() -> Result:
            return _transaction(self._connection(self._reader), "BEGIN", work)

        return await self._run(self._reader, in_transaction)

    async def write(self, work: Callable[[apsw.Connection], Result]) -> Result:
        """All of `work` or nothing, on disk when this returns."""

        def in_transaction() -> Result:
            # At once a writer: a reader that becomes one may have to give up, however long it waits.
            return _transaction(self._connection(self._writer), "BEGIN IMMEDIATE", work)

        return await self._run(self._writer, in_transaction)

    async def forget_log(self) -> None:
        """What was erased is gone from the write-ahead log too."""
        await self._run(
            self._writer,
            lambda: self._connection(self._writer).wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE),
        )

    async def close(self) -> None:
        for turns in (self._reader, self._writer):
            await turns.close()

    async def _run(self, turns: _Turns, work: Callable[[], Result]) -> Result:
        def guarded() -> Result:
            try:
                return work()
            except (apsw.CorruptError, apsw.NotADBError, DamagedFile) as error:
                self._opening += 1  # the next one may find a file that was put right
                raise StoreUnavailable(f"SQLite file {self._path.name}: {error}: {_DAMAGED}") from error
            except (apsw.Error, OSError) as error:
                if not isinstance(error, apsw.BusyError | apsw.FullError):
                    self._opening += 1
                advice = next((text for kind, text in _ADVICE.items() if isinstance(error, kind)), "try again")
                raise StoreUnavailable(f"SQLite file {self._path.name}: {error}: {advice}") from error

        return await turns.run(guarded, self._path.name, self._patience)

    def _connection(self, turns: _Turns) -> apsw.Connection:
        if turns.connection is None or turns.opening != self._opening:
            turns.disconnect()
            turns.opening = self._opening
            turns.connection = self._open(prepare=turns is self._writer)
        return turns.connection

    def _open(self, *, prepare: bool) -> apsw.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(self._path)
        connection = apsw.Connection(str(self._path))
        try:
            connection.set_busy_timeout(BUSY_MS)
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full" if self._durable else "normal")
            connection.pragma("foreign_keys", True)
            connection.pragma("secure_delete", True)  # erased means erased
            connection.pragma("cell_size_check", True)
            connection.pragma("cache_size", -CACHE_KB)
            if prepare:
                _transaction(connection, "BEGIN IMMEDIATE", self._prepare)
                self._prepared = self._opening
        except BaseException:
            connection.close()
            raise
        return connection


class _Turns:
    """One thread, and its connection."""

    def __init__(self, name: str) -> None:
        self.connection: apsw.Connection | None = None
        self.opening = -1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting = 0

    async def run(self, work: Callable[[], Result], name: str, patience: float) -> Result:
        if self._waiting >= MOST_WAITING:
            raise StoreUnavailable(f"SQLite file {name}: {self._waiting} others wait for it; nothing was changed")
        self._waiting += 1
        running: Future[Result] = self._thread.submit(work)
        running.add_done_callback(lambda _: None)
        try:
            return await self._result(running, name, patience)
        finally:
            self._waiting -= 1

    async def _result(self, running: Future[Result], name: str, patience: float) -> Result:
        # What has begun is finished, whoever leaves; what has not is never done once its caller has gone.
        done = asyncio.wrap_future(running)
        try:
            # Not wait_for: it may lose a cancellation that comes together with the result.
            async with asyncio.timeout(patience):
                return await asyncio.shield(done)
        except TimeoutError:
            if running.cancel():
                raise StoreUnavailable(
                    f"SQLite file {name} is busy with other work for {patience:g} s; nothing was changed, try again"
                ) from None
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            running.cancel()
            raise

    def disconnect(self) -> None:
        """In the thread."""
        if self.connection is not None:
            with contextlib.suppress(apsw.Error):
                self.connection.close()
            self.connection = None

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self.disconnect)
        self._thread.shutdown()


def _transaction(connection: apsw.Connection, begin: str, work: Callable[[apsw.Connection], Result]) -> Result:
    connection.execute(begin)
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _create(path: Path) -> None:
    """The file, unless it is there, for its owner alone. One without a byte is none of ours: it has lost what was in
    it, and is not taken for a new one."""
    try:
        if not path.stat().st_size:
            raise DamagedFile("it is there, but empty")
        path.chmod(0o600)
        return
    except FileNotFoundError:
        pass
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    with contextlib.closing(apsw.Connection(str(fresh))) as connection:
        fresh.chmod(0o600)
        connection.pragma("user_version", 0)
        connection.execute("VACUUM")  # writes the first page
    with contextlib.suppress(FileExistsError):  # another process was first
        os.link(fresh, path)
    fresh.unlink()
