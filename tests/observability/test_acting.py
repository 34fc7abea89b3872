"""Acting for users: only with a key issued for it, and on record before it is answered (IDN-2, MEM-5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from agentkeep.core.acting import PERIOD, TRUSTED, ActingForUsers
from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import AccessDeniedException, StoreUnavailable
from agentkeep.core.ports import AuditRecord
from agentkeep.testing.clock import SetClock

APP = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/app", "AKIAAPP", acts_for_users=True)
ADMIN = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/admin", "AKIAADMIN")
AGENT = Caller(CallerKind.SESSION, "arn:agent", user=User("alice"), session=SessionRef("r", "s"))
MEMORY = "memory notes-0123456789"


class Store:
    """What a store of audit records does: it takes a moment, and may be away."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []
        self.away = False

    async def record(self, record: AuditRecord) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("away")
        self.records.append(record)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> SetClock:
    return SetClock(datetime(2026, 11, 23, 12, tzinfo=UTC))


@pytest.fixture
async def acting(store: Store, clock: SetClock) -> AsyncIterator[ActingForUsers]:
    acting = ActingForUsers(store, clock)
    yield acting
    store.away = False
    await acting.close()


async def test_a_key_that_was_not_issued_for_it_may_not(acting: ActingForUsers, store: Store) -> None:
    """The refusal names what is missing and the command that grants it."""
    granted_by = "agentkeep keys create NAME --acts-for-users"
    with pytest.raises(AccessDeniedException, match=granted_by):
        await acting.admit(ADMIN, "ListEvents", MEMORY, "alice")
    with pytest.raises(AccessDeniedException, match=granted_by):
        acting.admitted(ADMIN, "ListEvents", MEMORY, "alice")
    assert store.records == []


async def test_the_first_is_on_record_at_once_and_the_rest_once_a_minute(
    acting: ActingForUsers, store: Store, clock: SetClock
) -> None:
    assert not acting.admitted(APP, "ListEvents", MEMORY, "alice")
    await acting.admit(APP, "ListEvents", MEMORY, "alice")
    [first] = store.records
    assert (first.kind, first.principal, first.user_id, first.count) == ("acted-for-user", APP.principal, "alice", 1)
    assert first.details == {"operation": "ListEvents", "resource": MEMORY, "access-key": "AKIAAPP"}
    clock.advance(1)
    for _ in range(5):
        assert acting.admitted(APP, "ListEvents", MEMORY, "alice")
    for operation, resource, user in (("GetEvent", MEMORY, "alice"), ("ListEvents", "memory m", "alice")):
        assert not acting.admitted(APP, operation, resource, user)
    assert not acting.admitted(APP, "ListEvents", MEMORY, "bob")
    assert len(store.records) == 1
    await acting.flush()
    assert [(record.count, record.at.second) for record in store.records] == [(1, 0), (5, 1)]
    clock.advance(PERIOD)
    await acting.flush()  # nothing came in a minute: the next is the first again
    assert not acting.admitted(APP, "ListEvents", MEMORY, "alice")
    assert len(store.records) == 2


async def test_many_at_once_are_one_first_and_the_others_counted(acting: ActingForUsers, store: Store) -> None:
    await asyncio.gather(*(acting.admit(APP, "CreateEvent", MEMORY, "alice") for _ in range(50)))
    assert [record.count for record in store.records] == [1]
    await acting.flush()
    assert [record.count for record in store.records] == [1, 49]


async def test_what_cannot_be_put_on_record_does_not_happen(
    acting: ActingForUsers, store: Store, clock: SetClock
) -> None:
    """Fails closed: at once for what is new, and for what was known when its count could not be written for long."""
    await acting.admit(APP, "ListEvents", MEMORY, "alice")
    store.away = True
    with pytest.raises(StoreUnavailable):
        await acting.admit(APP, "ListEvents", MEMORY, "bob")
    await acting.admit(APP, "ListEvents", MEMORY, "alice")
    with pytest.raises(StoreUnavailable):
        await acting.flush()
    clock.advance(TRUSTED)
    with pytest.raises(StoreUnavailable):
        await acting.admit(APP, "ListEvents", MEMORY, "alice")
    store.away = False
    await acting.admit(APP, "ListEvents", MEMORY, "alice")
    await acting.flush()
    assert [record.count for record in store.records] == [1, 1, 1]  # the first, the one after the outage, the counted


async def test_what_was_counted_is_written_at_the_end(store: Store, clock: SetClock) -> None:
    acting = ActingForUsers(store, clock)
    for _ in range(3):
        await acting.admit(APP, "ListEvents", MEMORY, "alice")
    await acting.close()
    assert [record.count for record in store.records] == [1, 2]


async def test_others_need_no_such_key(acting: ActingForUsers) -> None:
    """A session's user was proved: the gate holds it to that one."""
    await acting.admit(AGENT, "ListEvents", MEMORY, "alice")
