"""Alerts: kept, bounded, and never in the way of the refusal they tell of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.alarm import CROSS_USER_ACCESS, MISPLACED_KEY, Alarm
from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User, allow
from agentkeep.core.errors import CrossUserAccess, StoreUnavailable, UnauthorizedException
from agentkeep.core.ports import AccessKey, Alert
from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.observability.alerts_app import AlertsApp
from agentkeep.service.authentication import Authenticator
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.testing.clock import SetClock

MINE, THEIRS = SessionRef("runtime-1", "session-1"), SessionRef("runtime-1", "session-2")
PRINCIPAL = "arn:aws:sts::000000000000:assumed-role/runtime-1/session-1"
AGENT = Caller(CallerKind.SESSION, PRINCIPAL, user=User("alice"), session=MINE)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(datetime(2026, 11, 23, 12, tzinfo=UTC))


@pytest.fixture
async def alerts(store: ValkeyKeyValueStore) -> AsyncIterator[KeyValueAlerts]:
    alerts = KeyValueAlerts(store)
    yield alerts
    await alerts.close()


def alert(clock: SetClock, session: SessionRef | None = MINE, kind: str = CROSS_USER_ACCESS) -> Alert:
    return Alert(kind, "tried, and was refused", PRINCIPAL, session, "alice", clock.now(), {"operation": "ListEvents"})


async def test_keeps_alerts_in_their_order(alerts: KeyValueAlerts, clock: SetClock) -> None:
    first = alert(clock)
    await alerts.raise_alert(first)
    clock.advance(90)
    await alerts.raise_alert(alert(clock, None, MISPLACED_KEY))
    [latest, earliest] = await alerts.latest()
    assert (latest.alert.kind, earliest.alert, earliest.count) == (MISPLACED_KEY, first, 1)
    assert [kept.alert for kept in await alerts.of_session(MINE)] == [first]
    assert await alerts.of_session(THEIRS) == []


async def test_a_loop_makes_one_alert_a_minute_with_its_count(
    alerts: KeyValueAlerts, store: ValkeyKeyValueStore, clock: SetClock
) -> None:
    """MEM-5: a thousand attempts are one line to an operator, and two replicas count together."""
    other = KeyValueAlerts(store)
    for _ in range(500):
        await alerts.raise_alert(alert(clock))
        await other.raise_alert(alert(clock))
        clock.advance(0.01)
    await asyncio.gather(alerts.flush(), other.flush())
    [kept] = await alerts.latest()
    assert kept.count == 1000
    assert kept.last > kept.alert.at
    clock.advance(60)
    await alerts.raise_alert(alert(clock))
    assert [found.count for found in await alerts.latest()] == [1, 1000]
    await other.close()


async def test_the_first_is_durable_and_the_rest_soon(
    alerts: KeyValueAlerts, store: ValkeyKeyValueStore, clock: SetClock
) -> None:
    for _ in range(3):
        await alerts.raise_alert(alert(clock))
    reader = KeyValueAlerts(store)
    assert [kept.count for kept in await reader.latest()] == [1]
    await alerts.close()
    assert [kept.count for kept in await reader.latest()] == [3]


async def test_alerts_expire(store: ValkeyKeyValueStore, clock: SetClock) -> None:
    alerts = KeyValueAlerts(store, days=1)  # by the store's clock this one is long over
    clock.at = datetime(2020, 1, 1, tzinfo=UTC)
    await alerts.raise_alert(alert(clock))
    assert await alerts.latest() == []


class Memory:
    """A plane that refuses everybody."""

    name = "memory"
    arn_kinds: frozenset[str] = frozenset()

    @allow(CallerKind.SESSION)
    async def list_events(self, call: Call, request: Mapping[str, Any]) -> dict[str, Any]:
        raise CrossUserAccess("not yours", "memory m-1")


def call(caller: Caller = AGENT) -> Call:
    return Call("bedrock-agentcore", "ListEvents", caller, "request-1")


async def test_a_refused_crossing_raises_an_alert(alerts: KeyValueAlerts, clock: SetClock) -> None:
    """MEM-5: it is there when the refusal is answered; the caller sees an ordinary AccessDeniedException."""
    backend = SelfBackend([Memory()], Alarm(alerts, clock))
    with pytest.raises(CrossUserAccess) as refused:
        await backend.invoke(call(), {"memoryId": "m-1", "actorId": "bob"})
    assert (refused.value.code, refused.value.status) == ("AccessDeniedException", 403)
    [kept] = await alerts.of_session(MINE)
    assert kept.alert.kind == CROSS_USER_ACCESS
    assert (kept.alert.principal, kept.alert.user_id) == (PRINCIPAL, "alice")
    assert kept.alert.details == {"operation": "ListEvents", "resource": "memory m-1", "request-id": "request-1"}
    assert "bob" not in str(kept)  # what the request carried is nobody's business


class Failing:
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def raise_alert(self, alert: Alert) -> None:
        if self.error is not None:
            raise self.error
        await asyncio.sleep(3600)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a defect"), None])
async def test_a_store_that_is_away_changes_nothing_of_the_refusal(
    error: Exception | None, clock: SetClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MEM-5: refused all the same, not a 500, not for ever; and the log has it."""
    monkeypatch.setattr("agentkeep.core.alarm.PATIENCE", 0.05)
    backend = SelfBackend([Memory()], Alarm(Failing(error), clock))
    with caplog.at_level(logging.ERROR), pytest.raises(CrossUserAccess):
        async with asyncio.timeout(1):
            await backend.invoke(call(), {})
    assert "alert not kept" in caplog.text
    assert PRINCIPAL in caplog.text


async def test_whoever_leaves_early_is_told_of_all_the_same(alerts: KeyValueAlerts, clock: SetClock) -> None:
    alarm = Alarm(alerts, clock)
    asking = asyncio.ensure_future(SelfBackend([Memory()], alarm).invoke(call(), {}))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    await alarm.close()
    assert len(await alerts.latest()) == 1


async def test_a_key_at_a_foreign_listener_raises_an_alert(alerts: KeyValueAlerts, clock: SetClock) -> None:
    """EXE-5: who is at the listener is known; whose the key is, too. Nothing of the key itself is told."""
    alarm = Alarm(alerts, clock)
    key = AccessKey("AKIDSECRET", "very-secret", AGENT, "token")
    authenticator = Authenticator(Keyring(key), clock, alarm)
    for place in (THEIRS, None, MINE):
        claim = Claimed()
        try:
            await authenticator.find(claim, place)  # type: ignore[arg-type]
        except UnauthorizedException:
            assert place is not MINE
        else:
            assert place is MINE
    await alarm.close()
    kept = await alerts.latest()
    assert {(found.alert.kind, found.alert.session) for found in kept} == {
        (MISPLACED_KEY, THEIRS),
        (MISPLACED_KEY, None),
    }
    assert [found.alert.kind for found in await alerts.of_session(THEIRS)] == [MISPLACED_KEY]
    assert "AKIDSECRET" not in str(kept) and "very-secret" not in str(kept)


class Claimed:
    access_key_id = "AKIDSECRET"


class Keyring:
    def __init__(self, key: AccessKey) -> None:
        self.key = key

    def cached(self, access_key_id: str) -> AccessKey | None:
        return self.key

    async def find(self, access_key_id: str) -> AccessKey | None:
        return self.key

    async def begin_session(self, session: SessionRef, user: User | None, user_token: str | None = None) -> Any:
        raise NotImplementedError

    async def issue_for_session(self, session: SessionRef, user: User | None, user_token: str | None = None) -> Any:
        raise NotImplementedError

    async def end_session(self, session: SessionRef) -> None:
        raise NotImplementedError


async def test_operators_read_them_over_http(alerts: KeyValueAlerts, clock: SetClock, serving: Any) -> None:
    for _ in range(3):
        await alerts.raise_alert(alert(clock))
        clock.advance(60)
    async with serving(AlertsApp(alerts)) as url, aiohttp.ClientSession() as client:
        async with client.get(f"{url}/alerts?limit=2") as response:
            answer = await response.json()
        assert [found["at"][:19] for found in answer["alerts"]] == ["2026-11-23T12:02:00", "2026-11-23T12:01:00"]
        assert answer["alerts"][0]["session"] == {"runtime_id": "runtime-1", "session_id": "session-1"}
        for method, path, status in (
            ("GET", "/alerts/x", 404),
            ("POST", "/alerts", 405),
            ("GET", "/alerts?limit=0", 400),
            ("GET", "/alerts?limit=many", 400),
        ):
            async with client.request(method, url + path) as response:
                assert response.status == status
