"""The contract of a span store. Every implementation runs it: subclass, and give it two fixtures:

- `span_store`: an empty store, with `LIMITS`;
- `clock`: the SetClock the store goes by.

Ids are hexadecimal, of 16 and 8 bytes, as OpenTelemetry's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agentkeep.core.call import SessionRef
from agentkeep.observability.spans import Origin, Span, SpanLimits, SpanStore
from agentkeep.testing.clock import SetClock

__all__ = ["LIMITS", "SpanStoreContract"]

#: Of the stores under test.
LIMITS = SpanLimits(days=2, of_agent=5, of_platform=10, unowned=8)

DAY = 86_400
SESSION = SessionRef("support-AbCdEfGhIj", "session-1")
OTHER_SESSION = SessionRef("support-AbCdEfGhIj", "session-2")
OTHER_RUNTIME = SessionRef("sales-AbCdEfGhIj", "session-1")


def span(number: int, *, start: int | None = None, origin: Origin = Origin.AGENT, **members: Any) -> Span:
    """Span number `number` of a trace; it begins at `start`, or in the order of numbers."""
    begins = 1_800_000_000_000_000_000 + (number if start is None else start)
    return Span(
        trace_id=members.pop("trace_id", "aa" * 16),
        span_id=f"{number:016x}",
        parent_id="",
        name=members.pop("name", f"step {number}"),
        kind=1,
        start_ns=begins,
        end_ns=begins + 5,
        origin=origin,
        **members,
    )


def numbers(spans: list[Span]) -> list[int]:
    return [int(found.span_id, 16) for found in spans]


class SpanStoreContract:
    async def test_gives_back_what_was_added(self, span_store: SpanStore) -> None:
        """OBS-1."""
        whole = Span(
            trace_id="ab" * 16,
            span_id="cd" * 8,
            parent_id="ef" * 8,
            name="chat claude",
            kind=3,
            start_ns=1_800_000_000_123_456_789,
            end_ns=1_800_000_001_123_456_789,
            status=2,
            status_message="ThrottlingException",
            scope="agentkeep.gateway",
            attributes={
                "gen_ai.usage.input_tokens": 11,
                "gen_ai.usage.cost": 0.25,
                "cached": False,
                "finish": ["end_turn", "stop"],
                "odd": {"a.b": [1, "two", None]},
                "unicode": "käse \u0000 \U0001f9c0",
            },
            events=[{"name": "choice", "time_ns": 1_800_000_000_500_000_000, "attributes": {"k": True}}],
            resource={"service.name": "support"},
            origin=Origin.PLATFORM,
        )
        assert await span_store.add(SESSION, [whole]) == 0
        assert await span_store.of_session(SESSION) == [whole]

    async def test_attributes_of_one_name_may_have_many_types(self, span_store: SpanStore) -> None:
        """Agents name attributes as they like: no span is lost because another had a number where it has a text."""
        values: list[Any] = [1, "text", 2.5, True, ["a"], {"deep": {"er": 1}}, "2026-11-23", "x" * 70_000]
        spans = [span(i, attributes={"v": value, f"name-{i}": i}) for i, value in enumerate(values[:5], 1)]
        rest = [span(i, attributes={"v": value}, origin=Origin.PLATFORM) for i, value in enumerate(values[5:], 6)]
        for added in (*spans, *rest):
            assert await span_store.add(SESSION, [added]) == 0
        assert [found.attributes["v"] for found in await span_store.of_session(SESSION)] == values

    async def test_in_the_order_they_began(self, span_store: SpanStore) -> None:
        await span_store.add(SESSION, [span(1, start=30), span(2, start=10)])
        await span_store.add(SESSION, [span(3, start=20, origin=Origin.PLATFORM)])
        assert numbers(await span_store.of_session(SESSION)) == [2, 3, 1]
        assert numbers(await span_store.of_session(SESSION, limit=2)) == [2, 3]
        assert numbers(await span_store.of_session(SESSION, origin=Origin.PLATFORM)) == [3]
        assert numbers(await span_store.of_session(SESSION, origin=Origin.AGENT)) == [2, 1]

    async def test_sessions_do_not_mix(self, span_store: SpanStore) -> None:
        """A trace id is what a sender makes of it: it joins nothing across sessions."""
        for number, session in enumerate((SESSION, OTHER_SESSION, OTHER_RUNTIME, None), 1):
            await span_store.add(session, [span(number)])
        assert numbers(await span_store.of_session(SESSION)) == [1]
        assert numbers(await span_store.of_session(OTHER_SESSION)) == [2]
        assert numbers(await span_store.of_session(OTHER_RUNTIME)) == [3]
        assert numbers(await span_store.unowned()) == [4]
        assert await span_store.of_session(SessionRef("support-AbCdEfGhIj", "session")) == []

    async def test_the_same_ids_in_two_sessions_are_two_spans(self, span_store: SpanStore) -> None:
        await span_store.add(SESSION, [span(1, name="mine")])
        await span_store.add(OTHER_SESSION, [span(1, name="yours")])
        assert [found.name for found in await span_store.of_session(SESSION)] == ["mine"]

    async def test_ids_are_taken_as_they_are(self, span_store: SpanStore) -> None:
        """Session ids are any visible ASCII."""
        odd = SessionRef("r*", 's"ession/../%2f\\?a=b*{}')
        upper = SessionRef("r*", odd.session_id.upper())
        await span_store.add(odd, [span(1)])
        assert numbers(await span_store.of_session(odd)) == [1]
        assert await span_store.of_session(upper) == []
        assert await span_store.of_session(SessionRef("r*", "s*")) == []

    async def test_a_span_sent_again_is_kept_once(self, span_store: SpanStore) -> None:
        await span_store.add(SESSION, [span(1), span(2)])
        assert await span_store.add(SESSION, [span(1), span(2)]) == 0
        assert numbers(await span_store.of_session(SESSION)) == [1, 2]

    async def test_an_agent_cannot_replace_what_the_platform_said(self, span_store: SpanStore) -> None:
        """OBS-5: it knows the ids: they come to it as the trace context of its request."""
        await span_store.add(SESSION, [span(1, name="InvokeAgentRuntime", origin=Origin.PLATFORM)])
        await span_store.add(SESSION, [span(1, name="nothing happened")])
        assert [found.name for found in await span_store.of_session(SESSION, origin=Origin.PLATFORM)] == [
            "InvokeAgentRuntime"
        ]
        assert len(await span_store.of_session(SESSION)) == 2

    async def test_an_agent_cannot_crowd_out_what_the_platform_says(self, span_store: SpanStore) -> None:
        flood = [span(number) for number in range(1, 13)]
        assert await span_store.add(SESSION, flood) == 12 - LIMITS.of_agent
        assert await span_store.add(SESSION, [span(99)]) == 1
        assert await span_store.add(SESSION, [span(100, origin=Origin.PLATFORM)]) == 0
        assert numbers(await span_store.of_session(SESSION)) == [1, 2, 3, 4, 5, 100]
        assert await span_store.add(OTHER_SESSION, [span(1)]) == 0

    async def test_the_platform_has_its_own_limit(self, span_store: SpanStore) -> None:
        spans = [span(number, origin=Origin.PLATFORM) for number in range(1, 13)]
        assert await span_store.add(SESSION, spans) == 12 - LIMITS.of_platform
        assert len(await span_store.of_session(SESSION)) == LIMITS.of_platform

    async def test_many_at_once_lose_nothing(self, span_store: SpanStore) -> None:
        sessions = [SessionRef("r", f"session-{number}") for number in range(10)]
        await asyncio.gather(*(span_store.add(ref, [span(1), span(2)]) for ref in sessions))
        for ref in sessions:
            assert numbers(await span_store.of_session(ref)) == [1, 2]

    async def test_spans_without_a_session_are_the_newest(self, span_store: SpanStore) -> None:
        for number in range(1, 21):
            assert await span_store.add(None, [span(number, origin=Origin.PLATFORM)]) == 0
        assert numbers(await span_store.unowned(limit=3)) == [20, 19, 18]
        assert numbers(await span_store.unowned()) == list(range(20, 20 - LIMITS.unowned, -1))

    async def test_spans_go_when_their_time_is_over(self, span_store: SpanStore, clock: SetClock) -> None:
        await span_store.add(SESSION, [span(1)])
        await span_store.add(None, [span(1)])
        clock.advance(1.5 * DAY)
        await span_store.add(SESSION, [span(2)])
        assert numbers(await span_store.of_session(SESSION)) == [1, 2]
        clock.advance(1 * DAY)
        assert numbers(await span_store.of_session(SESSION)) == [2]
        assert await span_store.unowned() == []
        clock.advance(2 * DAY)
        assert await span_store.of_session(SESSION) == []

    async def test_nothing_to_add(self, span_store: SpanStore) -> None:
        assert await span_store.add(SESSION, []) == 0
        assert await span_store.of_session(SESSION) == []
