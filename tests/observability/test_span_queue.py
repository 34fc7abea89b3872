"""Spans on their way from the planes to the store: cheap, bounded, whole, and each under its own session."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanContext, TraceFlags

from agentkeep.core import telemetry_export
from agentkeep.core.call import SessionRef
from agentkeep.core.errors import AccessDeniedException, StoreUnavailable
from agentkeep.core.telemetry import parent_in, record, span_context, step, traceparent
from agentkeep.core.telemetry_content import capture, capture_json, capture_settings
from agentkeep.core.telemetry_settings import TelemetrySettings
from agentkeep.observability.span_queue import SpanQueue
from agentkeep.observability.spans import Origin, Span
from agentkeep.observability.spans_sqlite import SqliteSpanStore

ALICE, BOB = SessionRef("runtime-1", "alices"), SessionRef("runtime-1", "bobs")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteSpanStore]:
    store = SqliteSpanStore(tmp_path / "spans.db")
    yield store
    await store.close()


@pytest.fixture
async def queue(store: SqliteSpanStore) -> AsyncIterator[SpanQueue]:
    queue = SpanQueue(store)
    telemetry = telemetry_export.start("agentkeep", queue)
    yield queue
    await telemetry.stop()
    await queue.close()


async def test_a_step_becomes_a_span_of_its_session(queue: SpanQueue, store: SqliteSpanStore) -> None:
    """OBS-1."""
    with step("memory", "CreateEvent", ALICE, "alice", {"memory.id": "m-1"}) as outer:
        outer.set_attribute("event.id", "e-1")
        with step("memory", "within", ALICE):
            pass
    with step("gateway", "elsewhere"):
        pass
    await queue.flush()
    created, within = await store.of_session(ALICE)
    assert (created.name, created.scope, created.origin) == ("CreateEvent", "agentkeep.memory", Origin.PLATFORM)
    assert created.attributes == {
        "session.id": "alices",
        "aws.agent.id": "runtime-1",
        "enduser.id": "alice",
        "memory.id": "m-1",
        "event.id": "e-1",
    }
    assert created.status == 0
    assert created.start_ns <= within.start_ns <= within.end_ns <= created.end_ns
    assert (within.trace_id, within.parent_id) == (created.trace_id, created.span_id)
    [unowned] = await store.unowned()
    assert (unowned.name, unowned.parent_id) == ("elsewhere", "")
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_failed_step_says_why(queue: SpanQueue, store: SqliteSpanStore) -> None:
    """What the caller is told is told; of a defect, which may quote anything, only its name."""
    with pytest.raises(AccessDeniedException), step("memory", "refused", ALICE):
        raise AccessDeniedException("not yours")
    with pytest.raises(KeyError), step("memory", "defect", ALICE):
        raise KeyError("a secret")
    await queue.flush()
    refused, defect = await store.of_session(ALICE)
    assert (refused.status, refused.status_message) == (2, "AccessDeniedException")
    assert (refused.attributes["error.message"], refused.attributes["http.response.status_code"]) == ("not yours", 403)
    assert defect.attributes["error.type"] == "KeyError"
    assert "secret" not in str(defect)


async def test_many_sessions_at_once_do_not_mix(queue: SpanQueue, store: SqliteSpanStore) -> None:
    async def work(session: SessionRef) -> None:
        for _ in range(50):
            with step("memory", session.session_id, session):
                await asyncio.sleep(0)
                with step("memory", f"{session.session_id} within", session):
                    await asyncio.sleep(0)

    sessions = [SessionRef("runtime-1", f"session-{number}") for number in range(10)]
    await asyncio.gather(*map(work, sessions))
    await queue.flush()
    for session in sessions:
        spans = await store.of_session(session)
        assert len(spans) == 100
        assert {span.name.removesuffix(" within") for span in spans} == {session.session_id}
        by_id = {span.span_id: span for span in spans}
        assert all(by_id[span.parent_id].name == session.session_id for span in spans if span.parent_id)


async def test_spans_leave_by_themselves_also_from_threads(queue: SpanQueue, store: SqliteSpanStore) -> None:
    def work() -> None:
        with step("memory", "in a thread", ALICE):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    async with asyncio.timeout(5):
        while not await store.of_session(ALICE):
            await asyncio.sleep(0.02)
    thread.join()


class Away:
    """A span store that does not answer, until it does."""

    def __init__(self) -> None:
        self.away = True
        self.kept: list[Span] = []

    async def add(self, session: SessionRef | None, spans: Sequence[Span]) -> int:
        if self.away:
            raise StoreUnavailable("away")
        self.kept += spans
        return 0

    async def of_session(self, session: SessionRef, *, origin: Origin | None = None, limit: int = 1000) -> list[Span]:
        return self.kept[:limit]

    async def unowned(self, *, limit: int = 1000) -> list[Span]:
        return []

    async def close(self) -> None: ...


async def test_a_store_that_is_away_costs_the_planes_nothing_and_the_trace_little(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Spans wait, bounded; what does not fit is counted and told; what waited arrives when the store is back."""
    store = Away()
    queue = SpanQueue(store, waiting=10)
    telemetry = telemetry_export.start("agentkeep", queue)
    for number in range(15):
        with step("memory", f"step {number}", ALICE):
            pass
    with caplog.at_level(logging.WARNING):
        assert not await queue.flush()
    assert queue.dropped == 5
    assert "5 spans were dropped" in caplog.text
    store.away = False
    await telemetry.stop()
    await queue.close()
    assert [span.name for span in store.kept] == [f"step {number}" for number in range(10)]


async def test_a_recorded_span_is_the_callers_child(queue: SpanQueue, store: SqliteSpanStore) -> None:
    caller = SpanContext(0xAB, 0xCD, True, TraceFlags(0))
    context = span_context(caller)
    record("runtime", "InvokeAgentRuntime", context, caller, 1, {"session.id": "alices", "aws.agent.id": "runtime-1"})
    await queue.flush()
    [span] = await store.of_session(ALICE)
    assert (int(span.trace_id, 16), int(span.parent_id, 16)) == (0xAB, 0xCD)
    assert traceparent(context) == f"00-{0xAB:032x}-{span.span_id}-01"


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (f"00-{'ab' * 16}-{'cd' * 8}-01", True),
        (f"00-{'ab' * 16}-{'cd' * 8}-00", True),  # a caller that does not sample cannot make us blind
        (f"cc-{'ab' * 16}-{'cd' * 8}-01-and-more", True),
        (f"ff-{'ab' * 16}-{'cd' * 8}-01", False),
        (f"00-{'0' * 32}-{'cd' * 8}-01", False),
        (f"00-{'ab' * 16}-{'0' * 16}-01", False),
        (f"00-{'AB' * 16}-{'cd' * 8}-01", False),
        ("00-abc", False),
        ("", False),
    ],
)
def test_trace_context_as_the_standard_has_it(header: str, taken: bool) -> None:
    found = parent_in({"traceparent": header})
    assert (found is not None) is taken
    if found is not None:
        assert found.trace_flags.sampled
    assert parent_in({}) is None


@pytest.fixture
def content(request: pytest.FixtureRequest) -> object:
    yield
    capture_settings(TelemetrySettings())


@pytest.mark.usefixtures("content")
def test_content_is_bounded_and_can_be_left_out() -> None:
    capture_settings(TelemetrySettings(content_bytes=64))
    assert capture("x" * 64) == "x" * 64
    assert capture("x" * 65) == "x" * 64 + "… (65 in all)"
    assert (capture(b"\xff\xfe" * 20) or "").endswith("bytes that are no text)")
    long = capture(b"\xc3\xa4" * 100)
    assert long is not None and "in all" in long
    document = capture_json([{"text": "y" * 1000, "image": b"\0" * 10**6}, {"more": ["z"] * 10**5}])
    assert document is not None and len(document) < 400
    capture_settings(TelemetrySettings(content=False))
    assert capture("x") is None
    assert capture_json({"a": 1}) is None
