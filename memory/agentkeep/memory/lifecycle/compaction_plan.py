"""One merge, decided before any of it is done, so that whoever goes on after a crash does the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import orjson

from agentkeep.memory.extraction.changes import Changes, Plan
from agentkeep.memory.long_term.record import Record, Source, new_id
from agentkeep.storage.records import decode, encode

__all__ = ["MergePlan", "duplicate", "state", "summary"]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """`changes`: the merged record, new or in place of one of them. `removed`: ids and states of the rest. `written`:
    it is durable and was made of what was there; from then on only deleting is left."""

    actor_id: str
    how: str
    changes: bytes
    removed: Sequence[tuple[str, str]]
    kept: tuple[str, str] | None = None
    written: bool = False

    @classmethod
    def of(cls, actor_id: str, how: str, merged: Record, records: Sequence[Record]) -> MergePlan:
        """`merged` in place of the `records`; where it has the id of one of them, of all others."""
        states = {record.id: state(record) for record in records}
        before = states.pop(merged.id, None)
        changes = Changes(added=[merged]) if before is None else Changes(replaced=[merged])
        kept = None if before is None else (merged.id, before)
        return cls(actor_id, how, Plan.of((), changes, ()).dump(), list(states.items()), kept)

    @property
    def merged(self) -> Record:
        changes = Plan.load(self.changes).changes
        return (*changes.added, *changes.replaced)[0]

    def dump(self) -> bytes:
        return encode(self)

    @classmethod
    def load(cls, raw: bytes) -> MergePlan:
        return decode(cls, raw)


def summary(seed: str, text: str, records: Sequence[Record], method: str, now_ms: int) -> Record:
    """A new record that stands for others of one actor, namespace, strategy and metadata. It is gone when the first of
    them would be: nothing is kept for longer than its category says."""
    first = records[0]
    return Record(
        new_id(seed),
        text,
        first.owner,
        first.namespace,
        first.strategy_id,
        max(record.timestamp for record in records),
        now_ms,
        _ends(records),
        first.metadata,
        sources=_sources(records, records),
        method=method,
    )


def duplicate(records: Sequence[Record]) -> Record:
    """The first, which stands for the rest from now on."""
    first = records[0]
    return replace(first, sources=_sources(records, records[1:]))


def state(record: Record) -> str:
    """Differs where anything of the record does that a user might have changed."""
    said = (record.text, record.namespace, record.strategy_id, record.timestamp.isoformat(), record.expires_ms)
    metadata = sorted((key, str(value)) for key, value in record.metadata.items())
    return sha256(orjson.dumps([*said, metadata])).hexdigest()[:32]


def _ends(records: Sequence[Record]) -> int | None:
    return min((record.expires_ms for record in records if record.expires_ms is not None), default=None)


def _sources(of_all: Sequence[Record], merged: Sequence[Record]) -> tuple[Source, ...]:
    """What the records were made of, and then they themselves."""
    found = [source for record in of_all for source in record.sources]
    found += [Source(record_id=record.id) for record in merged]
    return tuple(dict.fromkeys(found))
