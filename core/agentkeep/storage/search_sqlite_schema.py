"""The tables of the SQLite search store, and how files of an earlier layout come to have them."""

from __future__ import annotations

import logging
from typing import Any, Final

import apsw

from agentkeep.core.errors import StoreUnavailable
from agentkeep.storage.search import Document
from agentkeep.storage.search_sqlite_blocks import pack_words
from agentkeep.storage.search_words import Stemmer

__all__ = ["prepare"]

logger = logging.getLogger(__name__)

#: In the file's `user_version`.
LAYOUT: Final = 2

# Numbers are never given twice (AUTOINCREMENT): what a process remembers of one is never taken for another.
_SCHEMA: Final = """
-- `changes` counts upserts, `removals` whatever else changes what is there: who remembers both as they are knows that
-- nothing has happened since.
CREATE TABLE partitions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    changes INTEGER NOT NULL DEFAULT 0,
    removals INTEGER NOT NULL DEFAULT 0
);
-- `change`: the partition's `changes` when it was written last.
CREATE TABLE records (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    partition INTEGER NOT NULL REFERENCES partitions,
    change INTEGER NOT NULL,
    id TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    namespaces TEXT NOT NULL,
    metadata TEXT NOT NULL,
    UNIQUE (partition, id)
);
CREATE INDEX records_by_change ON records (partition, change);
CREATE INDEX records_by_id ON records (id);
CREATE INDEX records_by_time ON records (partition, created_ms DESC, id DESC);
CREATE INDEX records_by_expiry ON records (expires_ms) WHERE expires_ms IS NOT NULL;
-- What is compared with a query, apart from what only comes back: `words` by `pack_words`, `vector` of length one.
CREATE TABLE features (
    number INTEGER PRIMARY KEY REFERENCES records ON DELETE CASCADE, words BLOB NOT NULL, vector BLOB
);
CREATE TABLE contents (
    number INTEGER PRIMARY KEY REFERENCES records ON DELETE CASCADE,
    text TEXT NOT NULL,
    context TEXT NOT NULL,
    farther TEXT NOT NULL,
    body BLOB NOT NULL
);
-- In which partitions a namespace is, or once was.
CREATE TABLE IF NOT EXISTS places (
    namespace TEXT NOT NULL, partition INTEGER NOT NULL, PRIMARY KEY (namespace, partition)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS places_of_partition ON places (partition);
-- How often a partition was erased: who remembers what is in some looks whether they are still there.
CREATE TABLE erasures (count INTEGER NOT NULL);
INSERT INTO erasures VALUES (0);
CREATE TABLE IF NOT EXISTS vectors (model TEXT NOT NULL, dimensions INTEGER NOT NULL);
"""

_FORMER: Final = """
SELECT d.number, t.text, t.context, d.created_ms, d.vector, d.body
FROM former_documents d JOIN texts t ON t.rowid = d.number ORDER BY d.number
"""


def prepare(connection: apsw.Connection, name: str) -> None:
    """Raises StoreUnavailable for a file of a later layout."""
    layout = connection.pragma("user_version")
    if layout == LAYOUT:
        return
    if layout > LAYOUT:
        raise StoreUnavailable(
            f"{name} was made by a later version of agentkeep (layout {layout}, this one knows {LAYOUT}): "
            "run that version, or one after it"
        )
    former = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'documents'").get
    if former:
        connection.execute("ALTER TABLE documents RENAME TO former_documents").close()
        connection.execute("ALTER TABLE partitions RENAME TO former_partitions").close()
    connection.execute(_SCHEMA).close()
    if former:
        _take_over(connection, name)
    connection.pragma("user_version", LAYOUT)


def _take_over(connection: apsw.Connection, name: str) -> None:
    """From the layout of Parts 1 to 3, which had words in a full-text index over all partitions."""
    logger.warning("%s is of an earlier layout: its records are taken over, which takes about a minute a million", name)
    connection.execute("INSERT INTO partitions (number, name) SELECT number, name FROM former_partitions").close()
    connection.execute(
        "INSERT INTO records (number, partition, change, id, created_ms, expires_ms, namespaces, metadata)"
        " SELECT number, partition, 0, id, created_ms, expires_ms, namespaces, metadata FROM former_documents"
    ).close()
    stems = Stemmer()
    rows: Any = connection.execute(_FORMER)
    for number, text, context, created_ms, vector, body in rows:
        words = pack_words(stems.weighed(Document("", text, created_ms, context)))
        connection.execute("INSERT INTO features VALUES (?, ?, ?)", (number, words, vector))
        connection.execute("INSERT INTO contents VALUES (?, ?, ?, '', ?)", (number, text, context, body))
    for table in ("texts", "former_documents", "former_partitions"):
        connection.execute(f"DROP TABLE {table}").close()
