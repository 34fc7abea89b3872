"""One event, and how it is stored.

Its id is its place: 19 digits of its timestamp in milliseconds, then when it was inserted. So ids of a session sort as
AgentCore lists events: by timestamp, and among equals by insertion.

It is two documents of JSON: what filters look at, and the payload, which is opened and parsed only when asked for.
Payloads are JSON documents of clients, kept value for value. Memory, actor, session and id are the item's key, not
repeated. Each document is sealed under the memory's key for that place, and the payload for that head.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from agentkeep.core.clock import Clock, epoch_ms, from_epoch_ms
from agentkeep.core.errors import FieldError, SealBroken, ValidationException
from agentkeep.core.sealing import SEALED
from agentkeep.memory.keys import MemoryKey

__all__ = ["MAIN", "Event", "EventIds", "Place", "decode", "encode"]

#: The branch of events that name none.
MAIN: Final = "main"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Limits of the service.
_LARGEST_EVENT: Final = 10 * 1024 * 1024
_LARGEST_JSON: Final = 100 * 1024

#: Of what is stored: a byte that says that it is sealed, the head's length in so many, the head, the payload.
_MARK: Final = bytes([SEALED])
_LENGTH: Final = 4
_START: Final = 1 + _LENGTH
_NO_HEAD: Final = b"{}"
_TAG: Final = 16


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where events of one session are stored. `partition`: of the store; it names memory, actor and session."""

    key: MemoryKey
    partition: str
    session_id: str


def encode(
    place: Place,
    event_id: str,
    payload: Sequence[Mapping[str, Any]],
    branch: Mapping[str, Any] | None,
    metadata: Mapping[str, str],
    extraction: Mapping[str, Any] | None,
) -> bytes:
    """As it is stored there. Raises ValidationException for more than the service takes."""
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
    about, said = orjson.dumps(head) if head else b"", orjson.dumps(payload)
    if len(about) + len(said) > _LARGEST_EVENT:
        raise _invalid("payload", "an event must be at most 10 MB: store it as several")
    label = f"{place.partition}#{event_id}"
    about = place.key.seal(about, label) if about else b""
    return _MARK + len(about).to_bytes(_LENGTH, "big") + about + place.key.seal(said, _of_payload(label, about))


def decode(place: Place, event_id: str, value: bytes, *, payload: bool) -> Event:
    """Raises SealBroken for what was not stored there."""
    about, said = _parts(place, event_id, value, payload)
    head = orjson.loads(about)
    return Event(
        event_id,
        timestamp_of(event_id),
        place.session_id,
        orjson.loads(said) if payload else [],
        head.get("branch"),
        head.get("metadata", {}),
        head.get("extraction"),
    )


def _parts(place: Place, event_id: str, value: bytes, payload: bool) -> tuple[bytes, bytes]:
    """Head and payload, in clear."""
    if value[:1] != _MARK:
        if not place.key.mixed:
            raise SealBroken("an event is stored in clear in a memory that has none such")
        head, _, said = value.partition(b"\n")  # two lines, as they were stored before there were keys
        return head, said
    label = f"{place.partition}#{event_id}"
    end = _START + int.from_bytes(value[1:_START], "big")
    about = value[_START:end]
    return (
        place.key.open(about, label) if about else _NO_HEAD,
        place.key.open(value[end:], _of_payload(label, about)) if payload else b"",
    )


def _of_payload(label: str, about: bytes) -> str:
    """The payload's label. It names the very head, by what authenticates that."""
    return f"{label}#{about[-_TAG:].hex()}"


def _invalid(name: str, message: str) -> ValidationException:
    return ValidationException(f"{name} {message}", fields=[FieldError(name, message)])
