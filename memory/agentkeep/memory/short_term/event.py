"""One event, and how it is stored.

Its id is its place: 19 digits of its timestamp in milliseconds, then when it was inserted. So ids of a session sort as
AgentCore lists events: by timestamp, and among equals by insertion.

Stored as two lines of JSON: what filters look at, then the payload, which is parsed only when it is asked for. Payloads
are JSON documents of clients, kept value for value. Memory, actor, session and id are the item's key, not repeated.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.errors import FieldError, ValidationException

__all__ = ["MAIN", "Event", "EventIds", "decode", "encode"]

#: The branch of events that name none.
MAIN: Final = "main"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Limits of the service.
_LARGEST_EVENT: Final = 10 * 1024 * 1024
_LARGEST_JSON: Final = 100 * 1024


@dataclass(slots=True)
class Event:
    """`timestamp`: to the millisecond. `payload`: the service model's list of PayloadType. `branch`: its Branch.
    `extraction`: the request's extractionMode and extractionConfig, for who extracts long-term records from it."""

    id: str
    timestamp: datetime
    session_id: str
    payload: Sequence[Mapping[str, Any]] = ()
    branch: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    extraction: Mapping[str, Any] | None = None

    @property
    def branch_name(self) -> str:
        return MAIN if self.branch is None else str(self.branch["name"])


class EventIds:
    """Ids in the order of insertion."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = 0

    def next(self, timestamp: datetime) -> str:
        milliseconds = epoch_ms(timestamp)
        if milliseconds < 0:
            raise _invalid("eventTimestamp", "must not be before 1970")
        # Microseconds of insertion, never the same twice here; chance keeps those of two replicas apart.
        inserted = (self._clock.now() - _EPOCH) // timedelta(microseconds=1)
        self._last = max(inserted, self._last + 1)
        return f"{milliseconds:019}#{self._last:013x}{secrets.randbits(12):03x}"


def timestamp_of(event_id: str) -> datetime:
    return from_epoch_ms(int(event_id[:19]))


def encode(
    payload: Sequence[Mapping[str, Any]],
    branch: Mapping[str, Any] | None,
    metadata: Mapping[str, str],
    extraction: Mapping[str, Any] | None,
) -> bytes:
    """Raises ValidationException for more than the service takes."""
    for index, part in enumerate(payload):
        if "json" in part and len(orjson.dumps(part["json"]["content"])) > _LARGEST_JSON:
            raise _invalid(f"payload.{index}.member.json.content", "must be at most 100 KB of JSON")
    head: dict[str, Any] = {}
    if branch is not None:
        head["branch"] = branch
    if metadata:
        head["metadata"] = metadata
    if extraction:
        head["extraction"] = extraction
    value = orjson.dumps(head) + b"\n" + orjson.dumps(payload)
    if len(value) > _LARGEST_EVENT:
        raise _invalid("payload", "an event must be at most 10 MB: store it as several")
    return value


def decode(event_id: str, session_id: str, value: bytes, *, payload: bool) -> Event:
    end = value.index(b"\n")
    head = orjson.loads(value[:end])
    return Event(
        event_id,
        timestamp_of(event_id),
        session_id,
        orjson.loads(memoryview(value)[end + 1 :]) if payload else [],
        head.get("branch"),
        head.get("metadata", {}),
        head.get("extraction"),
    )


def _invalid(name: str, message: str) -> ValidationException:
    return ValidationException(f"{name} {message}", fields=[FieldError(name, message)])
