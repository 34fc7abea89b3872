"""Alerts, kept for operators on the key-value store.

Of one kind by one principal in one session there is one alert a minute, with a count: whoever tries in a loop makes a
number grow, not a store.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import epoch_ms
from agentkeep.core.errors import ConditionFailed, StoreUnavailable
from agentkeep.core.ports import Alert
from agentkeep.storage.interface import ABSENT, Item, KeyValueStore, Put, partition

__all__ = ["KeptAlert", "KeyValueAlerts"]

logger = logging.getLogger(__name__)

ALL = partition("alerts", "all")
MINUTE_MS = 60_000
#: Seconds after which the repetitions of an alert are written down.
PAUSE = 1.0
#: Repetitions of how many alerts wait at most; beyond, each is written at once.
MOST_WAITING = 10_000
ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class KeptAlert:
    """`count` attempts between `alert.at` and `last`."""

    alert: Alert
    count: int
    last: datetime


@dataclass(slots=True)
class _Minute:
    """One alert's minute, as far as this process has seen it."""

    alert: Alert
    written: bool = False
    waiting: int = 0
    last: datetime = field(default=datetime.min.replace(tzinfo=UTC))


class KeyValueAlerts:
    """The port `Alerts`. The first of a minute is durable when `raise_alert` returns, further ones within a second."""

    def __init__(self, store: KeyValueStore, *, days: int = 90) -> None:
        self._store = store
        self._kept = timedelta(days=days)
        self._minutes: dict[str, _Minute] = {}
        self._beginning = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None

    async def raise_alert(self, alert: Alert) -> None:
        sort = _sort(alert)
        if not self._written(sort):
            async with self._beginning:  # of many at once one begins the minute, the others find it begun
                if not self._written(sort):
                    await self._add(sort, alert, 1, alert.at)
                    logger.warning("alert %s: %s", alert.kind, alert.summary)
                    if len(self._minutes) < MOST_WAITING:
                        self._minutes[sort] = _Minute(alert, written=True, last=alert.at)
                    return
        minute = self._minutes[sort]
        minute.waiting += 1
        minute.last = max(minute.last, alert.at)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_soon(), name="alerts")

    def _written(self, sort: str) -> bool:
        minute = self._minutes.get(sort)
        return minute is not None and minute.written

    async def of_session(self, session: SessionRef, *, limit: int = 500) -> list[KeptAlert]:
        """Oldest first."""
        await self.flush()
        items = await self._store.query(_of_session(session), limit=limit)
        return [_alert(item) for item in items]

    async def latest(self, *, limit: int = 100) -> list[KeptAlert]:
        """Latest first."""
        await self.flush()
        items = await self._store.query(ALL, limit=limit, reverse=True)
        return [_alert(item) for item in items]

    async def flush(self) -> None:
        """Raises StoreUnavailable; what waits goes on waiting."""
        for sort, minute in list(self._minutes.items()):
            waiting, minute.waiting = minute.waiting, 0
            if waiting:
                try:
                    await self._add(sort, minute.alert, waiting, minute.last)
                except BaseException:
                    minute.waiting += waiting
                    raise
        newest = max((minute.last for minute in self._minutes.values()), default=None)
        for sort, minute in list(self._minutes.items()):
            if not minute.waiting and newest is not None and newest - minute.last > timedelta(minutes=2):
                del self._minutes[sort]

    async def _write_soon(self) -> None:
        while any(minute.waiting for minute in self._minutes.values()):
            await asyncio.sleep(PAUSE)
            try:
                await self.flush()
            except StoreUnavailable as error:
                logger.warning("repeated alerts wait for the store: %s", error)

    async def _add(self, sort: str, alert: Alert, count: int, last: datetime) -> None:
        """To what other processes have counted, too."""
        expires_ms = epoch_ms(alert.at + self._kept)
        for _ in range(ATTEMPTS):
            before = await self._store.get(ALL, sort)
            document = _document(alert) if before is None else orjson.loads(before)
            document["count"] += count
            document["last"] = max(document["last"], last.isoformat())
            value = orjson.dumps(document)
            writes = [Put(ALL, sort, value, ABSENT if before is None else before, expires_ms)]
            if alert.session is not None:
                writes.append(Put(_of_session(alert.session), sort, value, expires_ms=expires_ms))
            try:
                await self._store.transact(writes)
                return
            except ConditionFailed:
                continue
        raise StoreUnavailable("an alert was changed by others each time it was to be written")

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        try:
            await self.flush()
        except StoreUnavailable:
            waiting = sum(minute.waiting for minute in self._minutes.values())
            logger.error("%d repetitions of alerts were not written: the store is away", waiting)


def _of_session(session: SessionRef) -> str:
    return partition("alerts", "session", session.runtime_id, session.session_id)


def _sort(alert: Alert) -> str:
    """Minutes in their order; within one, by what makes alerts the same."""
    minute = epoch_ms(alert.at) // MINUTE_MS * MINUTE_MS
    session = alert.session
    same = (alert.kind, alert.principal, session.runtime_id if session else "", session.session_id if session else "")
    digest = sha256("\0".join(same).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{minute:015d}#{digest}"


def _document(alert: Alert) -> dict[str, Any]:
    session = alert.session
    return {
        "kind": alert.kind,
        "summary": alert.summary,
        "principal": alert.principal,
        "session": [session.runtime_id, session.session_id] if session is not None else None,
        "user_id": alert.user_id,
        "at": alert.at.isoformat(),
        "details": dict(alert.details),
        "count": 0,
        "last": alert.at.isoformat(),
    }


def _alert(item: Item) -> KeptAlert:
    members = orjson.loads(item.value)
    session = members["session"]
    alert = Alert(
        members["kind"],
        members["summary"],
        members["principal"],
        SessionRef(*session) if session is not None else None,
        members["user_id"],
        datetime.fromisoformat(members["at"]),
        members["details"],
    )
    return KeptAlert(alert, members["count"], datetime.fromisoformat(members["last"]))
