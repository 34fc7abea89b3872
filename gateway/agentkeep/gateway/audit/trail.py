"""The audit trail of tool calls, on the key-value store (GOV-7).

Before a tool is called its intent is written; durable, or the call is not made, whatever the tool's class. What came of
it is written after. A call whose outcome is missing was under way when the gateway ended, or still is: its status is
UNKNOWN, and that it may have happened is on record. Nothing is ever changed or removed before its time is over.

    gateway/audit/intents/GATEWAY     TIME#CALL -> what is meant to be done
    gateway/audit/outcomes/GATEWAY    TIME#CALL -> what came of it
    gateway/audit/sessions/SESSION    TIME#CALL -> GATEWAY
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import orjson

from agentkeep.core.clock import epoch_ms
from agentkeep.core.pages import place, token
from agentkeep.gateway.audit.records import Intent, Outcome, Status
from agentkeep.storage.interface import KeyValueStore, Put, Write, partition

__all__ = ["AuditTrail"]

_PAGE_BYTES: Final = 8_000_000


class AuditTrail:
    """`days`: how long records are kept. `most_bytes`: of arguments and results, each, that are kept in full."""

    def __init__(self, store: KeyValueStore, *, days: int, most_bytes: int) -> None:
        self._store = store
        self._kept = timedelta(days=days)
        self._most_bytes = most_bytes

    async def begin(self, intent: Intent) -> None:
        """Durable when it returns. Raises StoreUnavailable; then the call must not be made."""
        await self._store.transact(self._intent(intent))

    async def end(self, intent: Intent, outcome: Outcome) -> None:
        """Raises StoreUnavailable."""
        await self._store.transact([self._outcome(intent, outcome)])

    async def refused(self, intent: Intent, outcome: Outcome) -> None:
        """A call that was not made; both in one write. Raises StoreUnavailable."""
        await self._store.transact([*self._intent(intent), self._outcome(intent, outcome)])

    async def of_gateway(
        self, gateway_id: str, limit: int, next_token: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Calls through a gateway, oldest first, and the token of the next page."""
        items = await self._store.query(
            _intents(gateway_id), after=place(next_token), limit=limit, max_bytes=_PAGE_BYTES
        )
        sorts = [item.sort for item in items]
        outcomes = await self._store.get_many(_outcomes(gateway_id), sorts)
        records = [_record(item.value, outcome) for item, outcome in zip(items, outcomes, strict=True)]
        cut = len(items) == limit or sum(len(item.value) for item in items) >= _PAGE_BYTES
        return records, token(sorts[-1]) if cut else None

    async def of_session(
        self, session_id: str, gateway_id: str | None, limit: int, next_token: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Calls of a session, through whichever gateway or one, oldest first, and the token of the next page."""
        items = await self._store.query(_sessions(session_id), after=place(next_token), limit=limit)
        by_gateway: dict[str, list[str]] = {}
        for item in items:
            by_gateway.setdefault(item.value.decode(), []).append(item.sort)
        records: dict[str, dict[str, Any]] = {}
        for gateway, sorts in by_gateway.items():
            if gateway_id in (None, gateway):
                records |= await self._read(gateway, sorts)
        return [records[sort] for sort in sorted(records)], token(items[-1].sort) if len(items) == limit else None

    async def _read(self, gateway_id: str, sorts: Sequence[str]) -> dict[str, dict[str, Any]]:
        intents = await self._store.get_many(_intents(gateway_id), sorts)
        outcomes = await self._store.get_many(_outcomes(gateway_id), sorts)
        return {
            sort: _record(intent, outcome)
            for sort, intent, outcome in zip(sorts, intents, outcomes, strict=True)
            if intent is not None
        }

    def _intent(self, intent: Intent) -> list[Write]:
        sort, expires_ms = _sort(intent), self._expires(intent)
        value = orjson.dumps(intent.document(self._most_bytes))
        writes: list[Write] = [Put(_intents(intent.gateway_id), sort, value, expires_ms=expires_ms)]
        if intent.caller.session is not None:
            session = _sessions(intent.caller.session.session_id)
            writes.append(Put(session, sort, intent.gateway_id.encode(), expires_ms=expires_ms))
        return writes

    def _outcome(self, intent: Intent, outcome: Outcome) -> Put:
        value = orjson.dumps(outcome.document(self._most_bytes))
        return Put(_outcomes(intent.gateway_id), _sort(intent), value, expires_ms=self._expires(intent))

    def _expires(self, intent: Intent) -> int:
        return epoch_ms(intent.at + self._kept)


def _record(intent: bytes, outcome: bytes | None) -> dict[str, Any]:
    ended = orjson.loads(outcome) if outcome is not None else {"status": Status.UNKNOWN}
    return {**orjson.loads(intent), **ended}


def _sort(intent: Intent) -> str:
    return f"{epoch_ms(intent.at):013d}#{intent.call_id}"


def _intents(gateway_id: str) -> str:
    return partition("gateway", "audit", "intents", gateway_id)


def _outcomes(gateway_id: str) -> str:
    return partition("gateway", "audit", "outcomes", gateway_id)


def _sessions(session_id: str) -> str:
    return partition("gateway", "audit", "sessions", session_id)
