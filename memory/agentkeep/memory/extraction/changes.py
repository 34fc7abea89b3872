"""What an extraction changes of an actor's records, decided before any of it is done.

A plan is stored, whole and sealed, before the first record is written. Whoever goes on after a crash does what is
planned, with the same ids, so that doing it again changes nothing; no model is asked twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentkeep.core.call import SessionRef
from agentkeep.memory.long_term.record import Record, Source, Turn
from agentkeep.storage.records import decode, encode

__all__ = ["Changes", "Failure", "Plan"]


@dataclass(frozen=True, slots=True)
class Changes:
    """`added` are new, `replaced` new versions of records that were found."""

    added: Sequence[Record] = ()
    replaced: Sequence[Record] = ()

    def __add__(self, other: Changes) -> Changes:
        return Changes([*self.added, *other.added], [*self.replaced, *other.replaced])

    @property
    def ids(self) -> list[str]:
        return [record.id for record in (*self.added, *self.replaced)]


@dataclass(frozen=True, slots=True)
class Failure:
    """Of one strategy. `messages`: event id and index of each. `reason`: a code of AgentCore's."""

    job_id: str
    strategy_id: str
    messages: Sequence[tuple[str, int]]
    reason: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """A record as a plan keeps it; its vector is made when it is written."""

    id: str
    text: str
    owner: str | None
    namespace: str | None
    strategy_id: str | None
    timestamp: datetime
    created_ms: int
    expires_ms: int | None
    metadata: Mapping[str, Any]
    sources: tuple[Source, ...]
    method: str | None
    turn: Turn | None

    @classmethod
    def of(cls, record: Record) -> _Kept:
        metadata = {key: _packed(value) for key, value in record.metadata.items()}
        return cls(
            record.id,
            record.text,
            record.owner,
            record.namespace,
            record.strategy_id,
            record.timestamp,
            record.created_ms,
            record.expires_ms,
            metadata,
            record.sources,
            record.method,
            record.turn,
        )

    def record(self) -> Record:
        return Record(
            self.id,
            self.text,
            self.owner,
            self.namespace,
            self.strategy_id,
            self.timestamp,
            self.created_ms,
            self.expires_ms,
            {key: _unpacked(value) for key, value in self.metadata.items()},
            sources=self.sources,
            method=self.method,
            turn=self.turn,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """`done`: what of the waiting is then extracted, or failed, by sort key; `ingested`: the ids of what among it was
    ingested. `failures` has the jobs that will be listed. `job_id`: of the job that was run again. `session`: whose use
    of models it was."""

    done: Sequence[str]
    ingested: Sequence[str] = ()
    failures: Sequence[Failure] = ()
    job_id: str | None = None
    session: SessionRef | None = None
    added: Sequence[_Kept] = ()
    replaced: Sequence[_Kept] = ()

    @classmethod
    def of(
        cls,
        done: Sequence[str],
        changes: Changes,
        failures: Sequence[Failure] = (),
        *,
        ingested: Sequence[str] = (),
        job_id: str | None = None,
        session: SessionRef | None = None,
    ) -> Plan:
        added, replaced = ([_Kept.of(one) for one in some] for some in (changes.added, changes.replaced))
        return cls(done, ingested, failures, job_id, session, added, replaced)

    @property
    def changes(self) -> Changes:
        return Changes([one.record() for one in self.added], [one.record() for one in self.replaced])

    def dump(self) -> bytes:
        return encode(self)

    @classmethod
    def load(cls, raw: bytes) -> Plan:
        return decode(cls, raw)


def _packed(value: Any) -> Any:
    return {"time": value.isoformat()} if isinstance(value, datetime) else value


def _unpacked(value: Any) -> Any:
    return datetime.fromisoformat(value["time"]) if isinstance(value, dict) else value
