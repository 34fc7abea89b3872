"""What one replica takes on at one time, and what one user has: beyond it callers are refused, and nothing is made."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import RetryableConflictException, ServiceQuotaExceededException, ThrottlingException
from agentkeep.runtime.drivers.driver import ConnectionsInUse
from agentkeep.runtime.invocations.admission import StartSlots
from agentkeep.runtime.records import EndReason
from agentkeep.runtime.replicas.table import Replicas
from agentkeep.runtime.sessions.table import SessionTable


def _id() -> str:
    return str(uuid.uuid4())


async def _until(condition: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def rebuilt(platform: Any) -> Any:
    """The platform, anew, with other settings."""

    def make(**settings: Any) -> Any:
        for name, value in settings.items():
            setattr(platform.settings, name, value)
        platform.build()
        return platform

    return make


async def test_starts_at_once_are_bounded_and_so_is_who_waits(rebuilt: Any) -> None:
    """EXE-6. Two start, three wait in order, the rest hears at once that it should come again."""
    platform = rebuilt(starts_at_once=2, starts_waiting=3)
    runtime_id = await platform.create()
    starting, most, go = 0, 0, asyncio.Event()

    async def slow(spec: Any) -> None:
        nonlocal starting, most
        starting += 1
        most = max(most, starting)
        await go.wait()
        starting -= 1

    platform.driver.behaviour.start = slow
    calls = []
    for _ in range(12):
        calls.append(asyncio.create_task(platform.begin(runtime_id, _id())))
        await asyncio.sleep(0)
    await _until(lambda: starting == 2)
    await _until(lambda: sum(call.done() for call in calls) == 12 - 5)
    for call in calls:
        if call.done():
            assert isinstance(call.exception(), ThrottlingException)
    assert len(platform.driver.agents) == 2
    go.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    turns = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(turns) == 5
    assert most == 2
    for turn in turns:
        turn.end()
    # And what was refused is free to come again.
    await platform.begin(runtime_id, _id())


async def test_who_waits_too_long_is_told_to_come_again() -> None:
    slots = StartSlots(at_once=1, waiting=10, patience=0.05)
    async with slots.taken():
        with pytest.raises(ThrottlingException):
            async with slots.taken():
                pass
        assert slots.waiting == 0
    async with slots.taken():
        pass


async def test_a_start_that_waited_in_vain_leaves_nothing(rebuilt: Any) -> None:
    platform = rebuilt(starts_at_once=1, start_patience=0.1)
    runtime_id, late = await platform.create(), _id()
    go = asyncio.Event()

    async def slow(spec: Any) -> None:
        await go.wait()

    platform.driver.behaviour.start = slow
    first = asyncio.create_task(platform.begin(runtime_id, _id()))
    await _until(lambda: platform.driver.agents)
    with pytest.raises(ThrottlingException):
        await platform.begin(runtime_id, late)
    sessions = platform.plane._parts.sessions
    await _until(lambda: sessions.live(SessionRef(runtime_id, late)) is None)
    go.set()
    (await first).end()
    assert len([record async for record in platform.plane._parts.table.live()]) == 1
    (await platform.begin(runtime_id, late)).end()


async def test_stopping_a_session_that_waits_for_its_start(rebuilt: Any) -> None:
    platform = rebuilt(starts_at_once=1)
    runtime_id, waiting = await platform.create(), _id()
    go = asyncio.Event()

    async def slow(spec: Any) -> None:
        await go.wait()

    platform.driver.behaviour.start = slow
    first = asyncio.create_task(platform.begin(runtime_id, _id()))
    await _until(lambda: platform.driver.agents)
    second = asyncio.create_task(platform.begin(runtime_id, waiting))
    slots = platform.plane._parts.sessions._starts._slots
    await _until(lambda: slots.waiting == 1)
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=waiting)
    await asyncio.wait([second], timeout=20)
    assert second.done()
    assert second.exception() is not None
    assert slots.waiting == 0
    go.set()
    (await first).end()
    assert len(platform.driver.agents) == 1


async def test_invocations_at_once_are_bounded(rebuilt: Any) -> None:
    """EXE-6. Of a session and of the replica; each that ends makes room, and a refused one holds none."""
    platform = rebuilt(invocations=4, invocations_of_session=3)
    runtime_id, one, other = await platform.create(), _id(), _id()
    turns = [await platform.begin(runtime_id, one) for _ in range(3)]
    for _ in range(5):
        with pytest.raises(ThrottlingException, match="of this session"):
            await platform.begin(runtime_id, one)
    turns.append(await platform.begin(runtime_id, other))
    for _ in range(5):
        with pytest.raises(ThrottlingException, match="this replica"):
            await platform.begin(runtime_id, other)
    turns[0].end()
    turns[0].end()
    turns[0] = await platform.begin(runtime_id, other)
    with pytest.raises(ThrottlingException):
        await platform.begin(runtime_id, one)
    for turn in turns:
        turn.end()
    limits = platform.plane._parts.invocations._limits
    assert limits.under_way == 0
    sessions = platform.plane._parts.sessions
    assert [session.turns for session in sessions.all_live()] == [0, 0]


async def test_more_than_a_session_takes_wait_for_its_start(rebuilt: Any) -> None:
    platform = rebuilt(invocations_of_session=3)
    runtime_id, one = await platform.create(), _id()
    answers = await asyncio.gather(*(platform.begin(runtime_id, one) for _ in range(10)), return_exceptions=True)
    turns = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(turns) == 3
    assert all(isinstance(answer, ThrottlingException) for answer in answers if answer not in turns)
    assert platform.plane._parts.invocations._limits.under_way == 3
    for turn in turns:
        turn.end()
    (await platform.begin(runtime_id, one)).end()


async def test_refused_invocations_are_not_counted(rebuilt: Any) -> None:
    platform = rebuilt(invocations=2)
    runtime_id, one = await platform.create(), _id()
    (await platform.begin(runtime_id, one, user_id="ann")).end()
    for _ in range(6):
        with pytest.raises(Exception, match="another user"):
            await platform.begin(runtime_id, one, user_id="bob")
    assert platform.plane._parts.invocations._limits.under_way == 0


# Sessions of one user.


async def test_a_user_has_so_many_sessions_and_no_more(rebuilt: Any) -> None:
    """EXE-6. Twenty first calls at once of a user who may have four: four have one; other users have theirs."""
    platform = rebuilt(sessions_per_user=4)
    runtime_id = await platform.create()
    answers = await asyncio.gather(
        *(platform.begin(runtime_id, _id(), user_id="ann") for _ in range(20)), return_exceptions=True
    )
    turns = [answer for answer in answers if not isinstance(answer, BaseException)]
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert 1 <= len(turns) <= 4
    # Two that reached for one seat at a time too often are told to come again.
    assert {type(error) for error in refused} <= {ServiceQuotaExceededException, RetryableConflictException}
    while len(turns) < 4:
        turns.append(await platform.begin(runtime_id, _id(), user_id="ann"))
    with pytest.raises(ServiceQuotaExceededException, match="SESSIONS_PER_USER"):
        await platform.begin(runtime_id, _id(), user_id="ann")
    assert len(platform.driver.living) == 4
    await platform.begin(runtime_id, _id(), user_id="bob")
    await platform.begin(runtime_id, _id())  # nobody's
    # The sessions there are go on, and each that ends makes room for one.
    (await platform.begin(runtime_id, turns[0].session_id, user_id="ann")).end()
    for turn in turns[:2]:
        await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=turn.session_id)
    await platform.begin(runtime_id, turns[0].session_id, user_id="ann")
    await platform.begin(runtime_id, _id(), user_id="ann")
    with pytest.raises(ServiceQuotaExceededException):
        await platform.begin(runtime_id, _id(), user_id="ann")


async def test_the_limit_of_a_user_holds_over_replicas(store: Any, clock: Any) -> None:
    """EXE-6. Three replicas claim for one user at once; as many as are allowed succeed, whoever asks."""
    replicas = [Replicas(store, clock, f"replica-{n}", lease=30) for n in range(3)]
    tables = [SessionTable(store, clock, replica, retention=60, per_user=5) for replica in replicas]
    for replica in replicas:
        await replica.register()
    ann = User("ann", None, {})

    async def claim(number: int) -> Any:
        while True:
            try:
                return (await tables[number % 3].claim(SessionRef("agent", f"s-{number}"), ann, 1, "DEFAULT"))[0]
            except RetryableConflictException:
                continue
            except ServiceQuotaExceededException:
                return None

    records = [record for record in await asyncio.gather(*map(claim, range(30))) if record is not None]
    assert len(records) == 5
    assert len({record.seat for record in records}) == 5
    for record in records[:3]:
        await tables[0].stopped(record, EndReason.STOPPED)
        await tables[1].stopped(record, EndReason.STOPPED)  # twice does no harm
    again = [record for record in await asyncio.gather(*map(claim, range(100, 120))) if record is not None]
    assert len(again) == 3


async def test_a_dead_replicas_session_keeps_its_seat_when_it_is_taken(store: Any, clock: Any) -> None:
    """EXE-6. Whether its heir goes on with it or it is buried: one seat, and free in the end."""
    dead = SessionTable(store, clock, Replicas(store, clock, "replica-dead", lease=30), retention=60, per_user=2)
    heir = SessionTable(store, clock, Replicas(store, clock, "replica-heir", lease=30), retention=60, per_user=2)
    ann = User("ann", None, {})
    await dead.replicas.register()
    first, second = SessionRef("agent", "first"), SessionRef("agent", "second")
    for ref in (first, second):
        await dead.claim(ref, ann, 1, "DEFAULT")
    await dead.replicas.retire()
    await heir.replicas.register()
    taken, unended = await heir.claim(first, ann, 1, "DEFAULT")  # though no seat is free
    with pytest.raises(ServiceQuotaExceededException):
        await heir.claim(SessionRef("agent", "third"), ann, 1, "DEFAULT")
    assert unended
    async for record in heir.of_owner("replica-dead"):
        assert record.ref == second
        await heir.stopped(record, EndReason.PLATFORM_RESTARTED)
    await heir.claim(SessionRef("agent", "third"), ann, 1, "DEFAULT")
    await heir.stopped(taken, EndReason.STOPPED)
    await heir.claim(SessionRef("agent", "fourth"), ann, 1, "DEFAULT")
    with pytest.raises(ServiceQuotaExceededException):
        await heir.claim(SessionRef("agent", "fifth"), ann, 1, "DEFAULT")


async def test_more_turns_than_an_agent_takes_connections_are_told_to_come_again(platform: Any) -> None:
    """EXE-6: it is not the agent's failure."""
    runtime_id, one = await platform.create(), _id()
    turn = await platform.begin(runtime_id, one)

    async def exhausted(timeout: float, port: int | None = None) -> Any:
        raise ConnectionsInUse("32 connections to the agent are in use")

    platform.driver.agents[0].connect = exhausted
    with pytest.raises(ThrottlingException, match="32 connections"):
        await turn.connect()
    turn.end()
