"""Search store on SQLite: words by FTS5, vectors exactly, by numpy over the partition's rows.

A partition is one user's, so it is small: comparing every vector of it beats an index, and loses nothing (below some
50,000 rows). BM25 is computed here, from FTS5's postings, because FTS5's own counts words over the whole table: how
rare a word is among all users' memories would show in one user's scores.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from agentkeep.core.clock import Clock, SystemClock, epoch_ms
from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.file_search import any_in_files
from agentkeep.storage.search import EVERYTHING, Beneath, Document, Hit, Page, Selection, Vector
from agentkeep.storage.search_sqlite_rows import encode_metadata, encode_namespaces, read_document, where
from agentkeep.storage.search_values import continuation, cursor, unit
from agentkeep.storage.search_words import CONTEXT_WEIGHT, K1, B, query_words, split
from agentkeep.storage.sqlite import SqliteFile

__all__ = ["SqliteSearchStore"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS partitions (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS documents (
    number INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL REFERENCES partitions,
    id TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    words REAL NOT NULL,
    vector BLOB,
    namespaces TEXT NOT NULL,
    metadata TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (partition, id)
);
-- All that a search needs of every document, apart from the vectors: the rows themselves are ten times as long.
CREATE INDEX IF NOT EXISTS documents_by_place ON documents (partition, namespaces, expires_ms, words);
CREATE INDEX IF NOT EXISTS documents_by_id ON documents (id);
CREATE INDEX IF NOT EXISTS documents_by_time ON documents (partition, created_ms DESC, id DESC);
CREATE INDEX IF NOT EXISTS documents_by_expiry ON documents (expires_ms) WHERE expires_ms IS NOT NULL;
-- In which partitions a namespace is, or once was.
CREATE TABLE IF NOT EXISTS places (
    namespace TEXT NOT NULL, partition INTEGER NOT NULL, PRIMARY KEY (namespace, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vectors (model TEXT NOT NULL, dimensions INTEGER NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (
    partition, text, context, tokenize = 'porter unicode61 remove_diacritics 2'
);
INSERT INTO texts (texts, rank) VALUES ('secure-delete', 1);
"""

READ = """
SELECT id, text, created_ms, context, vector, namespaces, metadata, body, expires_ms
FROM documents JOIN texts ON texts.rowid = documents.number
"""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A partition's vectors, one row each, of length 1. `numbers`: the documents', ascending."""

    numbers: NDArray[np.int64]
    rows: Vector

    @property
    def size(self) -> int:
        return self.rows.nbytes + self.numbers.nbytes


class SqliteSearchStore:
    """`model` and `dimensions` of its vectors, recorded with the first: a file with vectors of another is refused
    (StoreUnavailable, says what to do). `dimensions` None: it neither takes nor compares vectors, whatever it has.
    `cache_bytes` bounds the matrices kept in memory, least recently used ones go."""

    def __init__(
        self,
        path: Path,
        *,
        dimensions: int | None,
        model: str = "",
        clock: Clock | None = None,
        cache_bytes: int = 64_000_000,
    ) -> None:
        self._file = SqliteFile(path, self._prepare)
        self._paths = (path, path.with_name(f"{path.name}-wal"))
        self._name = path.name
        self._model = model
        self._dimensions = dimensions
        self._clock = clock or SystemClock()
        self._matrices: OrderedDict[int, _Matrix] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0

    async def upsert(self, partition: str, documents: Sequence[Document]) -> None:
        rows = [(document, self._bytes(document.vector), encode_metadata(document.metadata)) for document in documents]

        def work(connection: apsw.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO partitions (name) VALUES (?)", (partition,))
            number = _partition(connection, partition)
            assert number is not None
            for document, vector, metadata in rows:
                _delete(connection, number, document.id)
                self._insert(connection, number, document, vector, metadata)
                connection.executemany(
                    "INSERT OR IGNORE INTO places (namespace, partition) VALUES (?, ?)",
                    [(namespace, number) for namespace in document.namespaces],
                )
            self._forget(number)

        await self._file.write(work)

    async def delete(self, partition: str, ids: Sequence[str]) -> list[str]:
        now = self._now()

        def work(connection: apsw.Connection) -> list[str]:
            number = _partition(connection, partition)
            if number is None:
                return []
            self._forget(number)
            return [id for id in dict.fromkeys(ids) if _delete(connection, number, id, now)]

        return await self._file.write(work)

    async def delete_partition(self, partition: str | Beneath) -> int:
        def work(connection: apsw.Connection) -> int:
            deleted = 0
            for number in _partitions(connection, partition):
                self._forget(number)
                connection.execute(
                    "DELETE FROM texts WHERE rowid IN (SELECT number FROM documents WHERE partition = ?)", (number,)
                )
                connection.execute("DELETE FROM documents WHERE partition = ?", (number,))
                deleted += connection.changes()
                connection.execute("DELETE FROM places WHERE partition = ?", (number,))
                connection.execute("DELETE FROM partitions WHERE number = ?", (number,))
            return deleted

        deleted = await self._file.write(work)
        # What was erased is gone from the write-ahead log too.
        await self._file.read(lambda connection: connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE))
        return deleted

    async def get(self, partition: str | Beneath, ids: Sequence[str]) -> list[Document | None]:
        now = self._now()
        among, name = _named(partition)
        # The plus keeps SQLite from going through all the partitions: ids are rare enough.
        read = (  # of clauses of our own
            f"{READ} WHERE id = ? AND (expires_ms IS NULL OR expires_ms > ?)"  # noqa: S608
            f" AND +documents.partition IN (SELECT number FROM partitions WHERE {among})"
        )

        def work(connection: apsw.Connection) -> list[Document | None]:
            rows = (connection.execute(read, (id, now, *name)).fetchone() for id in ids)
            return [read_document(row) if row else None for row in rows]

        return await self._file.read(work)

    async def newest(
        self, partition: str | Beneath, selection: Selection = EVERYTHING, *, limit: int = 100, after: str | None = None
    ) -> Page:
        selected, bindings = where(selection, self._now())
        if after is not None:
            selected += " AND (created_ms, id) < (?, ?)"
            bindings += cursor(after)

        def work(connection: apsw.Connection) -> Page:
            among = ", ".join(map(str, _partitions(connection, partition, selection)))
            rows = connection.execute(
                f"{READ} WHERE documents.partition IN ({among}) AND {selected}"
                " ORDER BY created_ms DESC, id DESC LIMIT ?",
                (*bindings, limit + 1),
            ).fetchall()
            documents = [read_document(row) for row in rows[:limit]]
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
    ) -> list[Hit]:
        matching, bindings = where(selection, self._now())
        query = None if vector is None else unit(vector, self._dimensions)

        def work(connection: apsw.Connection) -> list[Hit]:
            lexical: dict[int, float] = {}
            similar: dict[int, float] = {}
            for number in _partitions(connection, partition, selection) if limit > 0 else ():
                rows = connection.execute(
                    f"SELECT number FROM documents WHERE partition = ? AND {matching}",  # noqa: S608 (our own clauses)
                    (number, *bindings),
                ).fetchall()
                selected = np.array([row[0] for row in rows], np.int64)
                lexical |= _bm25(connection, number, text, selected)
                similar |= self._similar(connection, number, query, selected)
            best = sorted(lexical, key=lambda found: (-lexical[found], found))[:limit]
            chosen = dict.fromkeys(best)
            chosen |= dict.fromkeys(sorted(similar, key=lambda found: (-similar[found], found))[:limit])
            return [
                Hit(document, lexical.get(found, 0.0), similar.get(found))
                for found, document in _documents(connection, list(chosen))
            ]

        return sorted(await self._file.read(work), key=lambda hit: (-hit.lexical, -(hit.similarity or -1.0)))

    async def purge(self) -> int:
        now = self._now()

        def work(connection: apsw.Connection) -> int:
            connection.execute(
                "DELETE FROM texts WHERE rowid IN (SELECT number FROM documents WHERE expires_ms <= ?)", (now,)
            )
            connection.execute("DELETE FROM documents WHERE expires_ms <= ?", (now,))
            deleted = connection.changes()
            if deleted:
                self._matrices.clear()
                self._cached_bytes = 0
            return deleted

        return await self._file.write(work)

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

    def _insert(
        self, connection: apsw.Connection, number: int, document: Document, vector: bytes | None, metadata: bytes
    ) -> None:
        words = len(split(connection, document.text)) + CONTEXT_WEIGHT * len(split(connection, document.context))
        connection.execute(
            "INSERT INTO documents (partition, words, id, created_ms, vector, namespaces, metadata, body, expires_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(number, words, document.id, document.created_ms, vector),
                encode_namespaces(document.namespaces),
                *(metadata.decode(), document.body, document.expires_ms),
            ),
        )
        connection.execute(
            "INSERT INTO texts (rowid, partition, text, context) VALUES (?, ?, ?, ?)",
            (connection.last_insert_rowid(), _token(number), document.text, document.context),
        )

    def _prepare(self, connection: apsw.Connection) -> None:
        connection.register_fts5_function("occurrences", _occurrences)
        connection.execute(SCHEMA).close()
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

    # The matrices belong to the file's thread: all of this runs there.

    def _similar(
        self, connection: apsw.Connection, number: int, query: Vector | None, selected: NDArray[np.int64]
    ) -> dict[int, float]:
        if query is None or not selected.size:
            return {}
        matrix = self._matrix(connection, number)
        wanted = np.isin(matrix.numbers, selected, assume_unique=True)
        scores = matrix.rows @ query
        return dict(zip(matrix.numbers[wanted].tolist(), scores[wanted].tolist(), strict=True))

    def _matrix(self, connection: apsw.Connection, number: int) -> _Matrix:
        if (matrix := self._matrices.get(number)) is not None:
            self._matrices.move_to_end(number)
            return matrix
        rows: list[Any] = connection.execute(
            "SELECT number, vector FROM documents WHERE partition = ? AND vector IS NOT NULL ORDER BY number", (number,)
        ).fetchall()
        numbers = np.array([row[0] for row in rows], np.int64)
        vectors = np.frombuffer(b"".join(row[1] for row in rows), np.float32).reshape(-1, self._dimensions or 1)
        matrix = _Matrix(numbers, vectors)
        if matrix.size <= self._cache_bytes:
            self._matrices[number] = matrix
            self._cached_bytes += matrix.size
            while self._cached_bytes > self._cache_bytes:
                _, oldest = self._matrices.popitem(last=False)
                self._cached_bytes -= oldest.size
        return matrix

    def _forget(self, number: int) -> None:
        if (matrix := self._matrices.pop(number, None)) is not None:
            self._cached_bytes -= matrix.size


def _partition(connection: apsw.Connection, name: str) -> int | None:
    row = connection.execute("SELECT number FROM partitions WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def _named(partition: str | Beneath) -> tuple[str, tuple[str, ...]]:
    """The condition on `partitions`, and its bindings."""
    if isinstance(partition, Beneath):
        return "name >= ? AND name < ?", (f"{partition.name}/", f"{partition.name}0")  # 0 follows the slash
    return "name = ?", (partition,)


def _partitions(connection: apsw.Connection, partition: str | Beneath, selection: Selection = EVERYTHING) -> list[int]:
    """Numbers of those that may hold what is selected."""
    among, bindings = _named(partition)
    clauses = [among]
    if isinstance(partition, Beneath):
        inside = "number IN (SELECT partition FROM places WHERE {})"
        if selection.namespace is not None:
            clauses.append(inside.format("namespace = ?"))
            bindings += (selection.namespace,)
        if (path := selection.namespace_path) is not None:
            clauses.append(inside.format("namespace >= ? AND namespace < ?"))
            bindings += (path, path + "\U0010ffff")
    found = connection.execute(f"SELECT number FROM partitions WHERE {' AND '.join(clauses)}", bindings)  # noqa: S608
    return [row[0] for row in found]


def _delete(connection: apsw.Connection, partition: int, id: str, now: int | None = None) -> bool:
    """Whether it was there, and (given `now`) not expired."""
    row = connection.execute(
        "SELECT number, expires_ms FROM documents WHERE partition = ? AND id = ?", (partition, id)
    ).fetchone()
    if row is None:
        return False
    connection.execute("DELETE FROM texts WHERE rowid = ?", (row[0],))
    connection.execute("DELETE FROM documents WHERE number = ?", (row[0],))
    return now is None or row[1] is None or row[1] > now


def _documents(connection: apsw.Connection, numbers: Sequence[int]) -> list[tuple[int, Document]]:
    read = f"{READ} WHERE number = ?"
    return [(number, read_document(connection.execute(read, (number,)).fetchone())) for number in numbers]


def _token(partition: int) -> str:
    """The word that stands for a partition in the texts' column of that name."""
    return f"p{partition}"


def _bm25(connection: apsw.Connection, partition: int, query: str, selected: NDArray[np.int64]) -> dict[int, float]:
    """Shares of the ideal score, of the selected documents with at least one of the words. Rarity is counted in the
    whole partition."""
    words = query_words(connection, query)
    if not words or not selected.size:
        return {}
    quoted = " OR ".join(f'"{word}"' for word in words)
    match = f'partition : "{_token(partition)}" AND {{text context}} : ({quoted})'
    found: list[Any] = connection.execute(
        "SELECT rowid, occurrences(texts) FROM texts WHERE texts MATCH ?", (match,)
    ).fetchall()
    if not found:
        return {}
    numbers = np.array([row[0] for row in found], np.int64)
    counts = np.frombuffer(b"".join(row[1] for row in found), np.float64).reshape(len(found), -1)
    lengths = dict(connection.execute("SELECT number, words FROM documents WHERE partition = ?", (partition,)))
    length = np.array([lengths[number] for number in numbers.tolist()])
    average = sum(lengths.values()) / len(lengths) or 1.0
    documents_with = np.count_nonzero(counts, axis=0)
    rarity = np.log1p((len(lengths) - documents_with + 0.5) / (documents_with + 0.5))
    saturated = counts * (K1 + 1) / (counts + K1 * (1 - B + B * length[:, None] / average))
    scores = saturated @ rarity / rarity.sum()
    wanted = np.isin(numbers, selected)
    return dict(zip(numbers[wanted].tolist(), scores[wanted].tolist(), strict=True))


def _occurrences(row: apsw.FTS5ExtensionApi, *_: object) -> bytes:
    """How often each word of the query is in the row, as numbers. Phrase 0 of the query is the partition, and so is
    column 0 of the row."""
    return array(
        "d",
        [
            len(in_text) + CONTEXT_WEIGHT * len(in_context)
            for _, in_text, in_context in map(row.phrase_locations, range(1, row.phrase_count))
        ],
    ).tobytes()
