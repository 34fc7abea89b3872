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

# Spans without a session have empty ids; a session has none such.
SCHEMA = """
CREATE TABLE IF NOT EXISTS session_spans (
    runtime_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    origin TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    span TEXT NOT NULL,
    PRIMARY KEY (runtime_id, session_id, origin, trace_id, span_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS session_spans_by_time ON session_spans (runtime_id, session_id, start_ns);
CREATE INDEX IF NOT EXISTS session_spans_by_age ON session_spans (received_ms);
"""

#: Part 1 kept agents' spans only, in a table without their origin.
FROM_PART_1 = """
INSERT OR IGNORE INTO session_spans
    SELECT runtime_id, session_id, 'agent', trace_id, span_id, start_ns, received_ms, span FROM spans;
DROP TABLE spans;
"""

OF_SESSION = """
SELECT span, origin FROM session_spans
    WHERE runtime_id = ? AND session_id = ? AND received_ms >= ? AND (? IS NULL OR origin = ?)
    ORDER BY start_ns, origin, span_id LIMIT ?
"""
UNOWNED = """
SELECT span, origin FROM session_spans
    WHERE runtime_id = ? AND session_id = ? AND received_ms >= ?
    ORDER BY start_ns DESC, span_id LIMIT ?
"""

#: What is over its time or number is removed no more often than this, along with a write.
TIDY_MS = 60_000

NOBODYS = ("", "")


class SqliteSpanStore:
    def __init__(self, path: Path, limits: SpanLimits | None = None, clock: Clock | None = None) -> None:
        self._file = SqliteFile(path, _prepare, durable=False)
        self._limits = limits or SpanLimits()
        self._kept_ms = timedelta(days=self._limits.days) // timedelta(milliseconds=1)
        self._clock = clock or SystemClock()
        self._tidied_ms = 0

    async def add(self, session: SessionRef | None, spans: Sequence[Span]) -> int:
        now = epoch_ms(self._clock.now())
        owner = _owner(session)

        def work(connection: apsw.Connection) -> int:
            if now - self._tidied_ms >= TIDY_MS:
                connection.execute("DELETE FROM session_spans WHERE received_ms < ?", (now - self._kept_ms,))
                self._trim(connection)
                self._tidied_ms = now
            turned_away = 0
            for origin in Origin:
                rows = [
                    (*owner, origin, span.trace_id, span.span_id, span.start_ns, now, _encode(span))
                    for span in spans
                    if span.origin is origin
                ]
                if not rows:
                    continue
                if session is not None:
                    room = max(self._limits.of(origin) - _count(connection, owner, origin), 0)
                    turned_away += max(len(rows) - room, 0)
                    del rows[room:]
                connection.executemany("INSERT OR REPLACE INTO session_spans VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            return turned_away

        return await self._file.write(work)

    def _trim(self, connection: apsw.Connection) -> None:
        connection.execute(
            "DELETE FROM session_spans WHERE runtime_id = ? AND session_id = ? AND start_ns <="
            " (SELECT start_ns FROM session_spans WHERE runtime_id = ? AND session_id = ?"
            "  ORDER BY start_ns DESC LIMIT 1 OFFSET ?)",
            (*NOBODYS, *NOBODYS, self._limits.unowned),
        )

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


def _count(connection: apsw.Connection, owner: tuple[str, str], origin: Origin) -> int:
    found: Any = connection.execute(
        "SELECT count(*) FROM session_spans WHERE runtime_id = ? AND session_id = ? AND origin = ?", (*owner, origin)
    ).fetchall()
    count: int = found[0][0]
    return count


def _encode(span: Span) -> str:
    # Text, not bytes: SQLite's JSON functions read it.
    return orjson.dumps({member: getattr(span, member) for member in Span.__slots__ if member != "origin"}).decode()
