"""The span store on SQLite, against its contract; and what only it has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import apsw
import orjson
import pytest

from agentkeep.core.call import SessionRef
from agentkeep.observability.spans import Origin, SpanStore
from agentkeep.observability.spans_sqlite import SqliteSpanStore
from agentkeep.testing.clock import SetClock
from agentkeep.testing.spans import LIMITS, SpanStoreContract, span


@pytest.fixture
def clock() -> SetClock:
    return SetClock(datetime(2026, 11, 23, tzinfo=UTC))


@pytest.fixture
async def span_store(tmp_path: Path, clock: SetClock) -> AsyncIterator[SpanStore]:
    store = SqliteSpanStore(tmp_path / "spans.db", LIMITS, clock)
    yield store
    await store.close()


class TestSqliteSpanStore(SpanStoreContract):
    pass


async def test_what_part_1_kept_is_the_agents_word(tmp_path: Path) -> None:
    """A data folder of the version before goes on."""
    connection = apsw.Connection(str(tmp_path / "spans.db"))
    connection.execute(
        "CREATE TABLE spans (runtime_id TEXT NOT NULL, session_id TEXT NOT NULL, trace_id TEXT NOT NULL,"
        " span_id TEXT NOT NULL, start_ns INTEGER NOT NULL, received_ms INTEGER NOT NULL, span TEXT NOT NULL,"
        " PRIMARY KEY (runtime_id, session_id, trace_id, span_id)) WITHOUT ROWID"
    )
    kept = span(1)
    members = {name: getattr(kept, name) for name in kept.__slots__ if name != "origin"}
    row = ("r", "s", kept.trace_id, kept.span_id, kept.start_ns, 2**40, orjson.dumps(members).decode())
    connection.execute("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    for _ in range(2):
        store = SqliteSpanStore(tmp_path / "spans.db", clock=SetClock(datetime(2000, 1, 1, tzinfo=UTC)))
        assert await store.of_session(SessionRef("r", "s"), origin=Origin.AGENT) == [kept]
        await store.close()
