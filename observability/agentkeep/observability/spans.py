"""Spans, and where they are kept: under the session they belong to, and by who said them.

What an agent sends is kept as that session's and as the agent's word, whatever it says of itself. What the platform's
own services say of a session is kept apart from it: an agent can neither replace it (by using its ids) nor crowd it out
(by sending many).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from agentkeep.core.call import SessionRef
from agentkeep.core.telemetry import RUNTIME_ID, SESSION_ID

__all__ = ["Origin", "Span", "SpanLimits", "SpanStore", "owner"]


class Origin(StrEnum):
    AGENT = "agent"  # came through a session's listener
    PLATFORM = "platform"  # made by the platform's own services


@dataclass(frozen=True, slots=True)
class Span:
    """As OpenTelemetry has it: ids in hex, times in nanoseconds since 1970. `status`: 0 unset, 1 ok, 2 error.

    All but `origin` is what the sender said; its attributes, events and resource are JSON.
    """

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
    origin: Origin = Origin.AGENT


@dataclass(frozen=True, slots=True)
class SpanLimits:
    """`days`: how long spans are kept. The others are counts: of one session those of its agent, those of the platform,
    and of all spans that belong to no session the newest."""

    days: float = 30
    of_agent: int = 20_000
    of_platform: int = 100_000
    unowned: int = 100_000

    def of(self, origin: Origin) -> int:
        return self.of_agent if origin is Origin.AGENT else self.of_platform


def owner(span: Span) -> SessionRef | None:
    """Whose span it says it is. To be believed of the platform's own services only."""
    session_id, runtime_id = span.attributes.get(SESSION_ID), span.attributes.get(RUNTIME_ID)
    if isinstance(session_id, str) and isinstance(runtime_id, str) and session_id and runtime_id:
        return SessionRef(runtime_id, session_id)
    return None


class SpanStore(Protocol):
    """Raises StoreUnavailable. The contract suite is `agentkeep.testing.spans`."""

    async def add(self, session: SessionRef | None, spans: Sequence[Span]) -> int:
        """Keeps spans of one session, or of none; `of_session` has them when this returns.

        Returns how many were turned away because the session has as many of their origin as it may. A span sent twice,
        as exporters do when they are unsure, is kept once; a span is named by session, origin, trace id and span id.
        Of spans without a session the oldest make room, so none is turned away.
        """
        ...

    async def of_session(self, session: SessionRef, *, origin: Origin | None = None, limit: int = 1000) -> list[Span]:
        """The first `limit` (10,000 at most) in the order they began; of one origin, or of both."""
        ...

    async def unowned(self, *, limit: int = 1000) -> list[Span]:
        """Spans without a session: the last `limit` that began, latest first."""
        ...

    async def close(self) -> None: ...
