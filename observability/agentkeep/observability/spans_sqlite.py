"""The span store of embedded mode: one SQLite file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import orjson

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock, SystemClock, epoch_ms
from agentkeep.observability.spans import Origin, Span, SpanLimits
from agentkeep.storage.sqlite import SqliteFile

__all__ = ["SqliteSpanStore"]

# Rows are appended, and of what is indexed little is random: a span costs microseconds. Spans without a session have
# an owner with empty ids; a session has none such.
SCHEMA = """
CREATE TABLE IF NOT EXISTS owners (
    owner INTEGER PRIMARY KEY,
    runtime_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    UNIQUE (runtime_id, session_id)
);
CREATE TABLE IF NOT EXISTS kept_spans (
    number INTEGER PRIMARY KEY,
    owner INTEGER NOT NULL,
    origin TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    span TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS kept_spans_once ON kept_spans (owner, origin, span_id, trace_id);
CREATE INDEX IF NOT EXISTS kept_spans_by_time ON kept_spans (owner, start_ns);
CREATE INDEX IF NOT EXISTS kept_spans_by_age ON kept_spans (received_ms);
CREATE VIEW IF NOT EXISTS session_spans AS SELECT * FROM kept_spans JOIN owners USING (owner);
"""

#: Part 1 kept agents' spans only, in a table without their origin.
FROM_PART_1 = """
INSERT OR IGNORE INTO owners (runtime_id, session_id) SELECT DISTINCT runtime_id, session_id FROM spans;
INSERT OR IGNORE INTO kept_spans (owner, origin, trace_id, span_id, start_ns, received_ms, span)
    SELECT owner, 'agent', trace_id, span_id, start_ns, received_ms, span
    FROM spans JOIN owners USING (runtime_id, session_id);
DROP TABLE spans;
"""

INSERT = """
INSERT OR IGNORE INTO kept_spans (owner, origin, trace_id, span_id, start_ns, received_ms, span)
    VALUES (?, ?, ?, ?, ?, ?, ?)
"""
OF_SESSION = """
SELECT span, origin FROM kept_spans
    WHERE owner = (SELECT owner FROM owners WHERE runtime_id = ? AND session_id = ?)
    AND received_ms >= ? AND (? IS NULL OR origin = ?)
    ORDER BY start_ns, origin, span_id LIMIT ?
"""
UNOWNED = """
SELECT span, origin FROM kept_spans
    WHERE owner = (SELECT owner FROM owners WHERE runtime_id = ? AND session_id = ?) AND received_ms >= ?
    ORDER BY start_ns DESC, span_id LIMIT ?
"""
TRIM = """
DELETE FROM kept_spans WHERE owner = :owner AND start_ns <=
    (SELECT start_ns FROM kept_spans WHERE owner = :owner ORDER BY start_ns DESC LIMIT 1 OFFSET :most)
"""

#: What is over its time or number is removed no more often than this, along with a write.
TIDY_MS = 60_000

#: Sessions whose spans' number is remembered.
MOST_COUNTS = 4096
NOBODYS = ("", "")


class SqliteSpanStore:
    def __init__(self, path: Path, limits: SpanLimits | None = None, clock: Clock | None = None) -> None:
        self._file = SqliteFile(path, _prepare, durable=False)
        self._limits = limits or SpanLimits()
        self._kept_ms = timedelta(days=self._limits.days) // timedelta(milliseconds=1)
        self._clock = clock or SystemClock()
        self._tidied_ms = 0
        self._counts: dict[tuple[int, Origin], int] = {}

    async def add(self, session: SessionRef | None, spans: Sequence[Span]) -> int:
        now = epoch_ms(self._clock.now())

        def work(connection: apsw.Connection) -> int:
            if now - self._tidied_ms >= TIDY_MS:
                self._tidy(connection, now)
            owner = _number(connection, _owner(session))
            turned_away = 0
            for origin in Origin:
                rows = [
                    (owner, origin, span.trace_id, span.span_id, span.start_ns, now, _encode(span))
                    for span in spans
                    if span.origin is origin
                ]
                if rows and session is not None:
                    room = self._room(connection, owner, origin, len(rows))
                    turned_away += max(len(rows) - room, 0)
                    del rows[room:]
                connection.executemany(INSERT, rows)
            return turned_away

        return await self._file.write(work)

    def _room(self, connection: apsw.Connection, owner: int, origin: Origin, wanted: int) -> int:
        """For how many more there is room. Counting takes time where there are many: what was counted is remembered,
        too high by what was sent twice, and counted anew before anything is turned away because of it."""
        limit, key = self._limits.of(origin), (owner, origin)
        count = self._counts.get(key)
        if count is None or count + wanted > limit:
            if len(self._counts) >= MOST_COUNTS:
                self._counts.clear()
            count = _count(connection, owner, origin)
        room = max(limit - count, 0)
        self._counts[key] = count + min(wanted, room)
        return room

    def _tidy(self, connection: apsw.Connection, now: int) -> None:
        connection.execute("DELETE FROM kept_spans WHERE received_ms < ?", (now - self._kept_ms,))
        connection.execute("DELETE FROM owners WHERE owner NOT IN (SELECT owner FROM kept_spans)")
        nobodys = _number(connection, NOBODYS)
        connection.execute(TRIM, {"owner": nobodys, "most": self._limits.unowned})
        self._counts.clear()
        self._tidied_ms = now

    async def of_session(self, session: SessionRef, *, origin: Origin | None = None, limit: int = 1000) -> list[Span]:
        return await self._select(OF_SESSION, (*_owner(session), self._oldest(), origin, origin, limit))

    async def unowned(self, *, limit: int = 1000) -> list[Span]:
        return await self._select(UNOWNED, (*NOBODYS, self._oldest(), min(limit, self._limits.unowned)))

    async def _select(self, query: str, values: tuple[Any, ...]) -> list[Span]:
        def work(connection: apsw.Connection) -> list[Span]:
            rows: Any = connection.execute(query, values)
            return [Span(**{**orjson.loads(span), "origin": Origin(origin)}) for span, origin in rows]

        return await self._file.read(work)

    def _oldest(self) -> int:
        return epoch_ms(self._clock.now()) - self._kept_ms

    async def close(self) -> None:
        await self._file.close()


def _prepare(connection: apsw.Connection) -> None:
    connection.execute(SCHEMA).close()
    old: list[Any] = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'spans'").fetchall()
    if old:
        connection.execute(FROM_PART_1).close()


def _owner(session: SessionRef | None) -> tuple[str, str]:
    return NOBODYS if session is None else (session.runtime_id, session.session_id)


def _number(connection: apsw.Connection, owner: tuple[str, str]) -> int:
    connection.execute("INSERT OR IGNORE INTO owners (runtime_id, session_id) VALUES (?, ?)", owner)
    found: Any = connection.execute(
        "SELECT owner FROM owners WHERE runtime_id = ? AND session_id = ?", owner
    ).fetchall()
    number: int = found[0][0]
    return number


def _count(connection: apsw.Connection, owner: int, origin: Origin) -> int:
    found: Any = connection.execute(
        "SELECT count(*) FROM kept_spans WHERE owner = ? AND origin = ?", (owner, origin)
    ).fetchall()
    count: int = found[0][0]
    return count


def _encode(span: Span) -> str:
    # Text, not bytes: SQLite's JSON functions read it.
    return orjson.dumps({member: getattr(span, member) for member in Span.__slots__ if member != "origin"}).decode()
