"""Audit records, kept for operators on the key-value store. Written once, never changed; gone when their time is over.

audit/records             TIME#ID -> the record
audit/by/FILTER/VALUE     TIME#ID -> nothing: which records have VALUE there
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from agentkeep.core.clock import epoch_ms
from agentkeep.core.pages import place, token
from agentkeep.core.ports import AuditRecord
from agentkeep.storage.interface import Item, KeyValueStore, Put, partition
from agentkeep.storage.records import decode, encode

__all__ = ["AuditFilter", "KeyValueAudit"]

RECORDS: Final = partition("audit", "records")
#: How many records one page looks at; of a rarer kind it may find fewer than were asked for, and says where to go on.
MOST_READ: Final = 2000
_READ: Final = 200


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which records are meant; None: any. `session` is the session's own id. `since` <= at < `until`."""

    kind: str | None = None
    user: str | None = None
    principal: str | None = None
    session: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def indexed(self) -> tuple[str, str] | None:
        """The filter with the fewest records, as far as anybody can know."""
        wanted = {"session": self.session, "user": self.user, "principal": self.principal, "kind": self.kind}
        return next(((name, value) for name, value in wanted.items() if value is not None), None)

    def admits(self, record: AuditRecord) -> bool:
        wanted = {"session": self.session, "user": self.user, "principal": self.principal, "kind": self.kind}
        found = _indexed(record)
        return all(value is None or found.get(name) == value for name, value in wanted.items())


class KeyValueAudit:
    """The port `Audit`."""

    def __init__(self, store: KeyValueStore, *, days: int = 365) -> None:
        self._store = store
        self._kept = timedelta(days=days)

    async def record(self, record: AuditRecord) -> None:
        sort = f"{epoch_ms(record.at):015d}#{record.id}"
        expires_ms = epoch_ms(record.at + self._kept)
        writes = [Put(RECORDS, sort, encode(record), expires_ms=expires_ms)]
        writes += [
            Put(_index(name, value), sort, b"", expires_ms=expires_ms) for name, value in _indexed(record).items()
        ]
        await self._store.transact(writes)

    async def page(
        self, wanted: AuditFilter, limit: int, next_token: str | None = None
    ) -> tuple[list[AuditRecord], str | None]:
        """Latest first, and the token of the next page. Raises StoreUnavailable, and ValidationException for a token
        that no page came with."""
        after = _before(wanted.since)
        before = min(filter(None, (place(next_token), _before(wanted.until))), default=None)
        found: list[AuditRecord] = []
        read = 0
        while len(found) < limit and read < MOST_READ:
            size = _READ if wanted.indexed is not None else min(_READ, limit - len(found))
            items = await self._items(wanted, after, before, size)
            for item in items:
                before = item.sort
                record = decode(AuditRecord, item.value) if item.value else None
                if record is not None and wanted.admits(record):
                    found.append(record)
                    if len(found) == limit:
                        break
            else:
                if len(items) < size:
                    return found, None
            read += len(items)
        assert before is not None
        return found, token(before)

    async def _items(self, wanted: AuditFilter, after: str | None, before: str | None, limit: int) -> list[Item]:
        """Records by their time, latest first; without a value where one ended between two looks."""
        if (indexed := wanted.indexed) is None:
            return await self._store.query(RECORDS, after=after, before=before, limit=limit, reverse=True)
        items = await self._store.query(_index(*indexed), after=after, before=before, limit=limit, reverse=True)
        values = await self._store.get_many(RECORDS, [item.sort for item in items])
        return [Item(item.sort, value or b"") for item, value in zip(items, values, strict=True)]


def _indexed(record: AuditRecord) -> Mapping[str, str]:
    found = {"kind": record.kind, "principal": record.principal}
    if record.session is not None:
        found["session"] = record.session.session_id
    if record.user_id is not None:
        found["user"] = record.user_id
    return found


def _index(name: str, value: str) -> str:
    return partition("audit", "by", name, value)


def _before(moment: datetime | None) -> str | None:
    """Sorts before every record of `moment` and after every earlier one: `"` comes before `#`."""
    return None if moment is None else f'{epoch_ms(moment):015d}"'
