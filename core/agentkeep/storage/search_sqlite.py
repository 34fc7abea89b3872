"""Search store on SQLite: words and vectors of a partition compared whole, by numpy.

A partition is one user's, so it is small: comparing all of it beats an index, and loses nothing. How rare a word is
among all users' memories would show in one user's scores, if it were counted beyond the partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import orjson

from agentkeep.core.clock import Clock, SystemClock, epoch_ms
from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.file_search import any_in_files
from agentkeep.storage.search import EVERYTHING, Beneath, Document, Hit, Page, Selection, Shortlist, Vector
from agentkeep.storage.search_sqlite_blocks import NEVER, pack_words
from agentkeep.storage.search_sqlite_cache import PartitionCache
from agentkeep.storage.search_sqlite_partitions import Partitions, changed
from agentkeep.storage.search_sqlite_rows import (
    LIVE,
    READ,
    encode_metadata,
    encode_namespaces,
    meeting,
    read_documents,
    where,
)
from agentkeep.storage.search_sqlite_schema import prepare
from agentkeep.storage.search_sqlite_scores import Found, Query, Scoring
from agentkeep.storage.search_values import continuation, cursor, unit
from agentkeep.storage.search_words import Stemmer
from agentkeep.storage.sqlite import DamagedFile, SqliteFile

__all__ = ["SqliteSearchStore"]

#: Documents that are removed in one transaction, so that no other write waits for long.
AT_ONCE: Final = 2000


class SqliteSearchStore:
    """`model` and `dimensions` of its vectors, recorded with the first: a file with vectors of another is refused
    (StoreUnavailable, says what to do). `dimensions` None: it neither takes nor compares vectors, whatever it has.
    `cache_bytes` bounds what is kept in memory of partitions searched lately, some 2 KB a record."""

    def __init__(
        self,
        path: Path,
        *,
        dimensions: int | None,
        model: str = "",
        clock: Clock | None = None,
        cache_bytes: int = 256_000_000,
    ) -> None:
        self._file = SqliteFile(path, self._prepare)
        self._paths = (path, path.with_name(f"{path.name}-wal"))
        self._name = path.name
        self._model = model
        self._dimensions = dimensions
        self._clock = clock or SystemClock()
        self._cache = PartitionCache(dimensions, cache_bytes)
        #: The writing and the reading thread's.
        self._write_stems, self._read_stems = Stemmer(), Stemmer()

    async def upsert(self, partition: str, documents: Sequence[Document], *, replacing: Collection[str] = ()) -> None:
        rows = [(document, self._bytes(document.vector), encode_metadata(document.metadata)) for document in documents]
        encoded = [encode_namespaces(document.namespaces) for document in documents]

        def work(connection: apsw.Connection) -> None:
            number, change = changed(connection, partition)
            for (document, vector, metadata), namespaces in zip(rows, encoded, strict=True):
                if document.id in replacing and not connection.execute(_THERE, (number, document.id)).get:
                    continue
                record = (number, change, document.id, document.created_ms, document.expires_ms)
                at = connection.execute(_PUT, (*record, namespaces, metadata.decode())).get
                words = pack_words(self._write_stems.weighed(document))
                connection.execute("REPLACE INTO features VALUES (?, ?, ?)", (at, words, vector))
                contents = (at, document.text, document.context, document.farther, document.body)
                connection.execute("REPLACE INTO contents VALUES (?, ?, ?, ?, ?)", contents)
            places = {(namespace, number) for document in documents for namespace in document.namespaces}
            connection.executemany("INSERT OR IGNORE INTO places (namespace, partition) VALUES (?, ?)", places)

        if documents:
            await self._file.write(work)

    async def delete(self, partition: str, ids: Sequence[str]) -> list[str]:
        now = self._now()

        def work(connection: apsw.Connection) -> list[str]:
            gone: list[str] = []
            for number in Partitions(partition).numbers(connection):
                for id in dict.fromkeys(ids):
                    row: Any = connection.execute(_DELETE, (number, id, NEVER)).get
                    if row is not None and row > now:
                        gone.append(id)
                connection.execute("UPDATE partitions SET removals = removals + 1 WHERE number = ?", (number,))
            return gone

        return await self._file.write(work)

    async def delete_partition(self, partition: str | Beneath) -> int:
        deleted = 0
        while (some := await self._file.write(lambda connection: _erase(connection, partition))) is not None:
            deleted += some
        await self._file.read(self._cache.forget_erased)
        await self._file.forget_log()
        return deleted

    async def get(self, partition: str | Beneath, ids: Sequence[str]) -> list[Document | None]:
        now = self._now()
        clause, name = Partitions(partition).clause
        # The plus keeps SQLite from going through all the partitions: ids are rare enough.
        plus = "+" if isinstance(partition, Beneath) else ""
        read = (  # of clauses of our own
            f"{READ} WHERE records.id = ? AND {LIVE}"  # noqa: S608
            f" AND {plus}records.partition IN (SELECT number FROM partitions WHERE {clause})"
        )

        def work(connection: apsw.Connection) -> list[Document | None]:
            rows = [row for id in dict.fromkeys(ids) for row in connection.execute(read, (id, now, *name))]
            found = {document.id: document for document in read_documents(rows).values()}
            return [found.get(id) for id in ids]

        return await self._file.read(work)

    async def newest(
        self, partition: str | Beneath, selection: Selection = EVERYTHING, *, limit: int = 100, after: str | None = None
    ) -> Page:
        selected, bindings = where(selection)
        behind: tuple[Any, ...] = () if after is None else cursor(after)
        clauses = ("partition = ?", LIVE, selected, "(created_ms, id) < (?, ?)" if behind else "TRUE")
        find = (
            f"SELECT number, created_ms, id FROM records WHERE {' AND '.join(clauses)}"  # noqa: S608 (our own clauses)
            " ORDER BY created_ms DESC, id DESC LIMIT ?"
        )
        given = (self._now(), *bindings, *behind, limit + 1)

        def work(connection: apsw.Connection) -> Page:
            rows: list[Any] = []
            for number in Partitions(partition).numbers(connection, selection):
                rows += connection.execute(find, (number, *given)).fetchall()
            rows.sort(key=lambda row: row[1:], reverse=True)
            found = _documents(connection, [row[0] for row in rows[:limit]])
            documents = [found[row[0]] for row in rows[:limit]]
            more = len(rows) > limit
            return Page(documents, continuation(documents[-1]) if more and documents else None)

        return await self._file.read(work)

    async def search(
        self,
        partition: str | Beneath,
        *,
        text: str = "",
        vector: Vector | None = None,
        selection: Selection = EVERYTHING,
        limit: int = 100,
        shortlist: Shortlist | None = None,
    ) -> list[Hit]:
        asked = None if vector is None else unit(vector, self._dimensions)
        where(selection)  # raises for conditions that are none, in any case
        now = self._now()

        def work(connection: apsw.Connection) -> list[Hit]:
            query = Query(self._read_stems.of_query(text), asked)
            self._cache.forget_erased(connection)
            meets = meeting(connection, selection)
            best = Found()
            for number in Partitions(partition).numbers(connection, selection) if limit > 0 else ():
                scoring = Scoring(query)
                for block in self._cache.blocks(connection, number):
                    live = block.live(now)
                    scoring.add(block, live, block.selected(live, meets))
                best = best.with_better(scoring.best(limit), limit)
            if shortlist is not None:
                best = best.shortened(shortlist)
            documents = _documents(connection, best.numbers)
            return [
                Hit(documents[number], best.lexical.get(number, 0.0), best.similar.get(number))
                for number in best.numbers
            ]

        return sorted(await self._file.read(work), key=lambda hit: (-hit.lexical, -(hit.similarity or -1.0)))

    async def purge(self) -> int:
        purged = 0
        while some := await self._file.write(lambda connection: _purge(connection, self._now())):
            purged += some
        if purged:
            await self._file.forget_log()
        return purged

    async def in_files(self, ids: Sequence[str]) -> bool:
        """`FileSearch`."""
        needles = [id.encode() for id in ids]
        try:
            return await asyncio.to_thread(any_in_files, self._paths, needles)
        except OSError as error:
            raise StoreUnavailable(f"SQLite file {self._name}: {error}") from error

    async def close(self) -> None:
        await self._file.close()

    def _now(self) -> int:
        return epoch_ms(self._clock.now())

    def _bytes(self, vector: Vector | None) -> bytes | None:
        return None if vector is None else unit(vector, self._dimensions).tobytes()

    def _prepare(self, connection: apsw.Connection) -> None:
        prepare(connection, self._name)
        if self._dimensions is None:
            return
        wanted = (self._model, self._dimensions)
        recorded: tuple[Any, ...] | None = connection.execute("SELECT model, dimensions FROM vectors").fetchone()
        if recorded is None:
            connection.execute("INSERT INTO vectors (model, dimensions) VALUES (?, ?)", wanted)
        elif recorded != wanted:
            raise StoreUnavailable(
                f"{self._name} holds vectors of the model {recorded[0]!r} ({recorded[1]} dimensions), which cannot be "
                f"compared with those of {wanted[0]!r} ({wanted[1]}): configure the former model again, or none "
                "(AGENTKEEP_MEMORY_EMBEDDING=none), to search by words alone"
            )


_PUT: Final = """
INSERT INTO records (partition, change, id, created_ms, expires_ms, namespaces, metadata) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (partition, id) DO UPDATE SET change = excluded.change, created_ms = excluded.created_ms,
    expires_ms = excluded.expires_ms, namespaces = excluded.namespaces, metadata = excluded.metadata
RETURNING number
"""
#: Gives when it would have expired.
_THERE: Final = "SELECT 1 FROM records WHERE partition = ? AND id = ?"
_DELETE: Final = "DELETE FROM records WHERE partition = ? AND id = ? RETURNING coalesce(expires_ms, ?)"


def _erase(connection: apsw.Connection, partition: str | Beneath) -> int | None:
    """Some of it; how many documents. None when there is nothing left."""
    numbers = Partitions(partition).numbers(connection)
    left = AT_ONCE
    for number in numbers:
        connection.execute(
            "DELETE FROM records WHERE number IN (SELECT number FROM records WHERE partition = ? LIMIT ?)",
            (number, left),
        )
        left -= connection.changes()
        if not left:  # there may be more of it
            connection.execute("UPDATE partitions SET removals = removals + 1 WHERE number = ?", (number,))
            break
        connection.execute("DELETE FROM places WHERE partition = ?", (number,))
        connection.execute("DELETE FROM partitions WHERE number = ?", (number,))
        connection.execute("UPDATE erasures SET count = count + 1")
    return AT_ONCE - left if numbers else None


def _purge(connection: apsw.Connection, now: int) -> int:
    rows: Any = connection.execute(
        "DELETE FROM records WHERE number IN (SELECT number FROM records WHERE expires_ms <= ? LIMIT ?)"
        " RETURNING partition",
        (now, AT_ONCE),
    ).fetchall()
    connection.executemany("UPDATE partitions SET removals = removals + 1 WHERE number = ?", set(rows))
    return len(rows)


def _documents(connection: apsw.Connection, numbers: Iterable[int]) -> dict[int, Document]:
    wanted = list(numbers)
    read = f"{READ} WHERE records.number IN (SELECT value FROM json_each(?))"  # noqa: S608 (nothing from outside)
    rows: Any = connection.execute(read, (orjson.dumps(wanted).decode(),))
    found = read_documents(rows)
    if len(found) != len(wanted):
        raise DamagedFile("a record has lost its contents")
    return found
