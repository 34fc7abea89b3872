"""`GET /audit-records?kind=..&user=..&principal=..&session=..&since=..&until=..&maxResults=..&nextToken=..`: audit
records, latest first. For operators, and the command line.

`since` and `until` are ISO 8601 moments (`2026-11-23T12:00:00Z`), UTC where they name no zone.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs

from agentkeep.core.errors import ValidationException
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.service.asgi import Receive, Scope, Send, answered, path_parts, respond

__all__ = ["AuditRecordsApp"]

MOST: Final = 1000
_FILTERS: Final = ("kind", "user", "principal", "session")
_MEMBERS: Final = frozenset({*_FILTERS, "since", "until", "maxResults", "nextToken"})


class AuditRecordsApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through."""

    def __init__(self, audit: KeyValueAudit) -> None:
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if path_parts(scope, 2) != ["audit-records"]:
            await respond(send, 404, {"message": "GET /audit-records"})
            return
        if scope["method"] != "GET":
            await respond(send, 405, {"message": "Only GET"}, ((b"allow", b"GET"),))
            return
        query = {
            name: values[-1] for name, values in parse_qs(scope.get("query_string", b"").decode("latin-1")).items()
        }
        await answered(send, self._page(query))

    async def _page(self, query: dict[str, str]) -> tuple[int, object]:
        if unknown := query.keys() - _MEMBERS:
            known = ", ".join(sorted(_MEMBERS))
            raise ValidationException(f"There is no filter {sorted(unknown)[0]!r}. There are: {known}")
        wanted = AuditFilter(
            **{name: query.get(name) for name in _FILTERS},
            since=_moment(query, "since"),
            until=_moment(query, "until"),
        )
        records, token = await self._audit.page(wanted, _limit(query), query.get("nextToken"))
        answer = {"records": [asdict(record) for record in records]}
        return 200, answer | ({} if token is None else {"nextToken": token})


def _limit(query: dict[str, str]) -> int:
    text = query.get("maxResults", "100")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST:
        raise ValidationException(f"maxResults must be a number from 1 to {MOST}")
    return int(text)


def _moment(query: dict[str, str], name: str) -> datetime | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValidationException(f"{name} is a moment such as 2026-11-23T12:00:00Z, not {text!r}") from None
