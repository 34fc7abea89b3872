"""Who of several replicas lives, who is whose heir, and what a replica that was declared dead still does: nothing."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import RetryableConflictException
from agentkeep.runtime.records import EndReason, SessionState
from agentkeep.runtime.replicas.slots import Slot
from agentkeep.runtime.replicas.table import Place, Replicas
from agentkeep.runtime.sessions.table import LeaseLost, OwnedElsewhere, SessionTable

LEASE = 8.0


def _id() -> str:
    return str(uuid.uuid4())


async def _until(condition: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def _replica(store: Any, clock: Any, name: str, slot: Slot | None = None) -> Replicas:
    replica = Replicas(store, clock, name, LEASE, "127.0.0.1:1", "127.0.0.1:2", slot)
    await replica.register()
    return replica


def _table(replica: Replicas, store: Any, clock: Any) -> SessionTable:
    return SessionTable(store, clock, replica, retention=3600)


async def _die(clock: Any, dead: Replicas, *living: Replicas) -> list[list[str]]:
    """`dead` beats no more, for as long as it takes; whose heirs the living are in the end."""
    found: list[list[str]] = []
    for _ in range(7):
        for replica in living:
            await replica.keep()
        found = list(await asyncio.gather(*(replica.observe() for replica in living)))
        await clock.move(LEASE / 5)
    return found


async def test_only_silence_for_a_whole_lease_is_death(store: Any, clock: Any) -> None:
    """EXE-6."""
    one, other = await _replica(store, clock, "one"), await _replica(store, clock, "other")
    for _ in range(20):  # it beats late, but in time
        await clock.move(LEASE * 0.9)
        await one.keep()
        assert await other.observe() == []
        assert one.holds()
    await clock.move(LEASE * 0.95)
    assert await other.observe() == []
    assert one.holds()
    await clock.move(LEASE * 0.1)
    assert not one.holds(), "its lease has run out before anybody may say so"
    assert await other.observe() == ["one"]


async def test_the_dead_have_exactly_one_heir(store: Any, clock: Any) -> None:
    """EXE-6. Nine look at once; and when the heir dies as well, one of the others has both."""
    dead = await _replica(store, clock, "dead")
    living = [await _replica(store, clock, f"living-{number}") for number in range(9)]
    found = await _die(clock, dead, *living)
    assert sorted(map(len, found)) == [0] * 8 + [1]
    heir = living[[bool(names) for names in found].index(True)]
    assert (await living[0].responsible("dead")).name == heir.name
    left = [replica for replica in living if replica is not heir]
    inherited = [names for names in await _die(clock, heir, *left) if names]
    assert sorted(name for names in inherited for name in names) == ["dead", heir.name]


async def test_a_replica_that_was_declared_dead_writes_nothing(store: Any, clock: Any) -> None:
    """EXE-6. Not even with what it began before; and says so, before anything else, to whoever keeps its sessions."""
    one, other = await _replica(store, clock, "one"), await _replica(store, clock, "other")
    table = _table(one, store, clock)
    ref = SessionRef("agent", _id())
    record, unended = await table.claim(ref, None, 1, "DEFAULT")
    assert not unended
    lost: list[bool] = []
    one.when_lost(lambda: lost.append(one.holds()))
    assert await _die(clock, one, other) == [["one"]]
    with pytest.raises(LeaseLost):
        await table.ready(record, "environment")
    with pytest.raises(RetryableConflictException):
        await table.claim(SessionRef("agent", _id()), None, 1, "DEFAULT")
    with pytest.raises(RetryableConflictException):
        await _table(other, store, clock).claim(ref, None, 1, "DEFAULT")  # its heir looks after it first
    await other.forget("one")
    await one.confirm()
    assert lost == [False]
    assert one.holds()
    await table.claim(SessionRef("agent", _id()), None, 1, "DEFAULT")


async def test_a_registration_waits_for_the_heir(store: Any, clock: Any) -> None:
    one, other = await _replica(store, clock, "one"), await _replica(store, clock, "other")
    await _die(clock, one, other)
    again = asyncio.create_task(_replica(store, clock, "one"))
    await asyncio.sleep(0.5)
    assert not again.done()
    await other.forget("one")
    assert (await again).holds()


async def test_a_session_of_the_living_is_theirs(store: Any, clock: Any) -> None:
    one, other, third = [await _replica(store, clock, name) for name in ("one", "other", "third")]
    ref = SessionRef("agent", _id())
    await _table(one, store, clock).claim(ref, None, 1, "DEFAULT")
    for asked in (other, third):
        with pytest.raises(OwnedElsewhere) as elsewhere:
            await _table(asked, store, clock).claim(ref, None, 1, "DEFAULT")
        assert elsewhere.value.replica.public == "127.0.0.1:1"
    claims = await asyncio.gather(
        *(_table(replica, store, clock).claim(SessionRef("agent", "new"), None, 1, "D") for replica in (one, other)),
        return_exceptions=True,
    )
    assert sorted(isinstance(claim, OwnedElsewhere) for claim in claims) == [False, True]


def test_slots_of_one_volume(tmp_path: Path) -> None:
    """Names are unlike, folders too; who ends gives his slot back, and others see that."""
    first, second = Slot.take(tmp_path), Slot.take(tmp_path)
    assert first.name != second.name
    assert (first.folder, second.folder) == (tmp_path, tmp_path / "replicas" / "2")
    assert not first.has_ended(second.lock)
    assert not second.has_ended(first.lock)
    name = first.name
    first.release()
    assert second.has_ended(first.lock)
    assert not second.has_ended("another-volume/1")
    again = Slot.take(tmp_path)
    assert again.name == name
    assert not second.has_ended(again.lock)
    again.release()
    second.release()


def test_a_platform_from_before_there_were_slots_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "replica").write_text("replica-0123")
    slot = Slot.take(tmp_path)
    assert slot.name == "replica-0123"
    slot.release()


async def test_a_free_lock_is_proof(store: Any, clock: Any, tmp_path: Path) -> None:
    """EXE-6. No lease is waited for."""
    slots = Slot.take(tmp_path), Slot.take(tmp_path)
    one = await _replica(store, clock, "one", slots[0])
    other = await _replica(store, clock, "other", slots[1])
    assert not await other.suspect("one")
    assert await other.observe() == []
    slots[0].release()
    assert await other.suspect("one")
    assert await other.observe() == ["one"]
    with pytest.raises(RetryableConflictException):
        await _table(one, store, clock).claim(SessionRef("agent", _id()), None, 1, "DEFAULT")
    slots[1].release()


@pytest.fixture
def replica(platform: Any) -> Any:
    """The platform, as one of several replicas."""
    platform.place = Place("this-one", "127.0.0.1:1", "127.0.0.1:2")
    return platform


async def test_what_was_lost_is_ended_here_and_left_alone_there(replica: Any, store: Any, clock: Any) -> None:
    """EXE-6. Frozen beyond its lease, a replica serves no turn of a session that another has taken, ends its
    environment, and neither its new environment's keys nor its record."""
    await replica.restart()
    runtime_id, session_id = await replica.create(), _id()
    ref = SessionRef(runtime_id, session_id)
    (await replica.begin(runtime_id, session_id, user_id="alice")).end()
    (agent,) = replica.driver.living
    parts = replica.plane._parts
    await parts.heartbeat.stop()  # frozen
    other = await _replica(store, clock, "other")
    (inherited,) = await _die(clock, parts.replicas, other)
    assert "this-one" in inherited
    request = replica.request(runtime_id, session_id, user_id="alice")
    assert replica.plane.invocations.begin_now(request) is None
    table = _table(other, store, clock)
    await table.stopped((await table.find(ref)).record, EndReason.REPLICA_LOST)
    await other.forget("this-one")
    theirs, _ = await table.claim(ref, User("alice"), 1, "DEFAULT")
    theirs = await table.ready(theirs, "there")
    keys = await replica.identity.keys.issue_for_session(ref, User("alice"))
    with pytest.raises(OwnedElsewhere):
        await replica.plane.invocations.begin(request)
    await _until(lambda: agent.is_gone and parts.sessions.live(ref) is None)
    assert (await table.find(ref)).record == theirs
    assert await replica.identity.keys.find(keys.access_key_id) is not None


async def test_an_heir_goes_on_with_what_lives(replica: Any, store: Any, clock: Any) -> None:
    """EXE-6. Driver permitting: the environment is the same, and its session is this replica's; the rest is ended."""
    await replica.restart()
    runtime_id, lives, dies = await replica.create(), _id(), _id()
    (await replica.begin(runtime_id, _id())).end()
    (environment,) = replica.driver.living
    dead = await _replica(store, clock, "dead")
    table = _table(dead, store, clock)
    claimed, _ = await table.claim(SessionRef(runtime_id, lives), User("alice"), 1, "DEFAULT")
    await table.ready(claimed, environment.id)
    await table.claim(SessionRef(runtime_id, dies), User("alice"), 1, "DEFAULT")
    replica.driver.adoptable["dead"] = [environment]
    parts = replica.plane._parts
    for _ in range(8):
        await clock.move(LEASE / 5)
    await _until(lambda: parts.sessions.live(SessionRef(runtime_id, lives)) is not None)
    turn = await replica.begin(runtime_id, lives, user_id="alice")
    assert turn.environment_id == environment.id
    turn.end()
    record = (await table.find(SessionRef(runtime_id, lives))).record
    assert (record.owner, record.fence) == ("this-one", claimed.fence + 1)
    async with asyncio.timeout(10):
        while (ended := (await table.find(SessionRef(runtime_id, dies))).record).state is not SessionState.STOPPED:
            await asyncio.sleep(0.01)
    assert ended.end_reason is EndReason.REPLICA_LOST
    async with asyncio.timeout(10):
        while await parts.replicas.find("dead") is not None:
            await asyncio.sleep(0.01)
