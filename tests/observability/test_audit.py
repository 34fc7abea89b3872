"""Audit records: durable, found by who, whom, what and when, and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ValidationException
from agentkeep.core.ports import AuditRecord
from agentkeep.observability import audit as audit_module
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.observability.audit_app import AuditRecordsApp
from agentkeep.storage.valkey import ValkeyKeyValueStore

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
APP, ADMIN = "arn:aws:iam::000000000000:user/app", "arn:aws:iam::000000000000:user/admin"
SESSION = SessionRef("runtime-1", "session-1")


@pytest.fixture
def audit(store: ValkeyKeyValueStore) -> KeyValueAudit:
    return KeyValueAudit(store)


def record(seconds: float = 0, **members: Any) -> AuditRecord:
    whole: dict[str, Any] = {
        "kind": "acted-for-user",
        "summary": f"{APP} called ListEvents for alice.",
        "principal": APP,
        "session": None,
        "user_id": "alice",
        "at": NOON + timedelta(seconds=seconds),
        "details": {"operation": "ListEvents"},
    }
    return AuditRecord(**whole | members)


async def kept_of(audit: KeyValueAudit, wanted: AuditFilter, limit: int = 3) -> list[AuditRecord]:
    """Every page there is."""
    found: list[AuditRecord] = []
    token: str | None = None
    while True:
        records, token = await audit.page(wanted, limit, token)
        assert len(records) <= limit
        found += records
        if token is None:
            return found


async def test_each_filter_finds_its_own_and_no_more(audit: KeyValueAudit) -> None:
    """IDN-2: who acted for whom can be looked up by either, by the kind, the session and the time."""
    records = [
        record(0),
        record(1, user_id="bob"),
        record(2, principal=ADMIN),
        record(3, kind="refused", session=SESSION, user_id=None),
        record(4, session=SESSION),
        record(5),
    ]
    for each in records:
        await audit.record(each)
    alice, app, in_session = AuditFilter(user="alice"), AuditFilter(principal=APP), AuditFilter(session="session-1")
    assert await kept_of(audit, AuditFilter()) == records[::-1]
    assert await kept_of(audit, alice) == [records[5], records[4], records[2], records[0]]
    assert await kept_of(audit, app) == [records[5], records[4], records[3], records[1], records[0]]
    assert await kept_of(audit, in_session) == [records[4], records[3]]
    assert await kept_of(audit, AuditFilter(kind="refused")) == [records[3]]
    assert await kept_of(audit, AuditFilter(kind="refused", user="alice")) == []
    assert await kept_of(audit, AuditFilter(user="alice", principal=ADMIN), 1) == [records[2]]
    some = AuditFilter(since=records[2].at, until=records[4].at)
    assert await kept_of(audit, some, 1) == [records[3], records[2]]
    assert await kept_of(audit, AuditFilter(user="nobody")) == []


async def test_pages_are_complete_while_records_come(audit: KeyValueAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rare kind among many: pages may be short, and what comes meanwhile is newer than all of them."""
    monkeypatch.setattr(audit_module, "MOST_READ", 8)
    monkeypatch.setattr(audit_module, "_READ", 4)
    wanted = []
    for number in range(30):
        each = record(number, principal=ADMIN if number % 10 == 0 else APP)
        wanted += [each] if each.principal == ADMIN else []
        await audit.record(each)
    found: list[AuditRecord] = []
    token: str | None = None
    while True:
        records, token = await audit.page(AuditFilter(user="alice", principal=ADMIN), 5, token)
        found += records
        await audit.record(record(1000 + len(found), principal=ADMIN))
        if token is None:
            break
    assert found == wanted[::-1]


async def test_records_end_with_their_time(store: ValkeyKeyValueStore) -> None:
    audit = KeyValueAudit(store, days=1)
    await audit.record(record(at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert await kept_of(audit, AuditFilter()) == await kept_of(audit, AuditFilter(user="alice")) == []


async def test_a_token_of_another_listing_cannot_leave_the_filter(audit: KeyValueAudit) -> None:
    for number in range(4):
        await audit.record(record(number))
    _, token = await audit.page(AuditFilter(), 1)
    records, _ = await audit.page(AuditFilter(until=NOON + timedelta(seconds=2)), 10, token)
    assert [each.at for each in records] == [NOON + timedelta(seconds=1), NOON]
    with pytest.raises(ValidationException, match="nextToken"):
        await audit.page(AuditFilter(), 1, "no token")


async def test_operators_read_them_over_http(audit: KeyValueAudit, serving: Any) -> None:
    for number in range(3):
        await audit.record(record(number))
    async with serving(AuditRecordsApp(audit)) as url, aiohttp.ClientSession() as client:

        async def ask(**query: str) -> Mapping[str, Any]:
            async with client.get(f"{url}/audit-records", params=query) as response:
                return {"status": response.status, **await response.json()}

        first = await ask(user="alice", maxResults="2")
        assert [found["at"][:19] for found in first["records"]] == ["2026-11-23T12:00:02", "2026-11-23T12:00:01"]
        assert first["records"][0]["details"] == {"operation": "ListEvents"}
        rest = await ask(user="alice", maxResults="2", nextToken=first["nextToken"])
        assert [found["at"][:19] for found in rest["records"]] == ["2026-11-23T12:00:00"]
        assert len((await ask(since="2026-11-23T12:00:01"))["records"]) == 2
        assert (await ask(user="bob"))["records"] == []
        for wrong in ({"maxResults": "0"}, {"since": "yesterday"}, {"nextToken": "-"}, {"users": "alice"}):
            assert (await ask(**wrong))["status"] == 400, wrong
        async with client.post(f"{url}/audit-records") as response:
            assert response.status == 405
        async with client.get(f"{url}/audit-records/x") as response:
            assert response.status == 404
