"""What models were used for, call by call, kept per session on the key-value store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import epoch_ms
from agentkeep.core.ports import UsageRecord
from agentkeep.storage.interface import Item, KeyValueStore, Put, partition

__all__ = ["KeyValueUsage", "UsageTotals"]

PAGE = 500


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """`estimated_calls`: how many of `calls` gave no counts, so that theirs were reckoned."""

    calls: int = 0
    estimated_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    latency_ms: float = 0

    @classmethod
    def of(cls, records: Iterable[UsageRecord]) -> UsageTotals:
        kept = list(records)
        return cls(
            calls=len(kept),
            estimated_calls=sum(record.estimated for record in kept),
            input_tokens=sum(record.input_tokens for record in kept),
            output_tokens=sum(record.output_tokens for record in kept),
            cache_read_tokens=sum(record.cache_read_tokens for record in kept),
            cache_write_tokens=sum(record.cache_write_tokens for record in kept),
            latency_ms=sum(record.latency_ms for record in kept),
        )


class KeyValueUsage:
    """The port `Usage`. A session's records are a partition of their own; calls outside any session are kept by day."""

    def __init__(self, store: KeyValueStore, *, days: int = 90) -> None:
        self._store = store
        self._kept = timedelta(days=days)

    async def record(self, record: UsageRecord) -> None:
        # The request id makes a record unique in its millisecond, and a repeated write of it harmless.
        sort = f"{epoch_ms(record.at):013d}#{record.request_id}"
        value = orjson.dumps({member: getattr(record, member) for member in MEMBERS})
        expires_ms = epoch_ms(record.at + self._kept)
        await self._store.transact([Put(_partition(record), sort, value, expires_ms=expires_ms)])

    async def of_session(self, session: SessionRef) -> list[UsageRecord]:
        """Oldest first."""
        place = _session_partition(session)
        records: list[UsageRecord] = []
        after: str | None = None
        while True:
            items = await self._store.query(place, after=after, limit=PAGE)
            records += [_record(item, session) for item in items]
            if len(items) < PAGE:
                return records
            after = items[-1].sort

    async def totals(self, session: SessionRef) -> UsageTotals:
        return UsageTotals.of(await self.of_session(session))


#: All of a record but its session, which the partition says.
MEMBERS = tuple(member for member in UsageRecord.__slots__ if member != "session")


def _partition(record: UsageRecord) -> str:
    if record.session is None:
        return partition("usage", "no-session", record.at.astimezone(UTC).date().isoformat())
    return _session_partition(record.session)


def _session_partition(session: SessionRef) -> str:
    return partition("usage", "session", session.runtime_id, session.session_id)


def _record(item: Item, session: SessionRef) -> UsageRecord:
    members = orjson.loads(item.value)
    return UsageRecord(**{**members, "session": session, "at": datetime.fromisoformat(members["at"])})
