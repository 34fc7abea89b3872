"""Spans of sessions, on SQLite. A span is kept under the session it came from, whatever it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import orjson

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock, SystemClock, epoch_ms
from agentkeep.storage.sqlite import SqliteFile

__all__ = ["Span", "SqliteSpanStore"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (
    runtime_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    span TEXT NOT NULL,
    PRIMARY KEY (runtime_id, session_id, trace_id, span_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spans_by_time ON spans (runtime_id, session_id, start_ns);
CREATE INDEX IF NOT EXISTS spans_by_age ON spans (received_ms);
"""

#: What is over its time is removed no more often than this, along with a write.
TIDY_MS = 60_000


@dataclass(frozen=True, slots=True)
class Span:
    """As OpenTelemetry has it: ids in hex, times in nanoseconds since 1970. `status`: 0 unset, 1 ok, 2 error."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    start_ns: int
    end_ns: int
    status: int = 0
    status_message: str = ""
    scope: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)


class SqliteSpanStore:
    def __init__(self, path: Path, *, days: float = 30, per_session: int = 20_000, clock: Clock | None = None) -> None:
        self._file = SqliteFile(path, lambda connection: connection.execute(SCHEMA).close(), durable=False)
        self._kept_ms = timedelta(days=days) // timedelta(milliseconds=1)
        self._per_session = per_session
        self._clock = clock or SystemClock()
        self._tidied_ms = 0

    async def add(self, session: SessionRef, spans: Sequence[Span]) -> int:
        """Keeps them; returns how many were turned away because the session has as many as it may. A span sent
        twice, as exporters do when they are unsure, is kept once."""
        now = epoch_ms(self._clock.now())
        rows = [
            (session.runtime_id, session.session_id, span.trace_id, span.span_id, span.start_ns, now, _encode(span))
            for span in spans
        ]

        def work(connection: apsw.Connection) -> int:
            if now - self._tidied_ms >= TIDY_MS:
                connection.execute("DELETE FROM spans WHERE received_ms < ?", (now - self._kept_ms,))
                self._tidied_ms = now
            kept: list[Any] = connection.execute(
                "SELECT count(*) FROM spans WHERE runtime_id = ? AND session_id = ?",
                (session.runtime_id, session.session_id),
            ).fetchall()
            room: int = max(self._per_session - kept[0][0], 0)
            connection.executemany("INSERT OR REPLACE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?)", rows[:room])
            return max(len(rows) - room, 0)

        return await self._file.write(work)

    async def of_session(self, session: SessionRef, *, limit: int = 1000) -> list[Span]:
        """In the order they began."""
        oldest = epoch_ms(self._clock.now()) - self._kept_ms

        def work(connection: apsw.Connection) -> list[Span]:
            rows: Any = connection.execute(
                "SELECT span FROM spans WHERE runtime_id = ? AND session_id = ? AND received_ms >= ?"
                " ORDER BY start_ns, span_id LIMIT ?",
                (session.runtime_id, session.session_id, oldest, limit),
            )
            return [Span(**orjson.loads(row[0])) for row in rows]

        return await self._file.read(work)

    async def close(self) -> None:
        await self._file.close()


def _encode(span: Span) -> str:
    # Text, not bytes: SQLite's JSON functions read it.
    return orjson.dumps({member: getattr(span, member) for member in Span.__slots__}).decode()
