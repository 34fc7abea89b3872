"""MEM-3, MEM-4: memory is told of every session of a user's that has ended, however it ended."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import ConditionFailed, PlaneUnavailable, RuntimeClientError
from agentkeep.core.ports import EndedSession
from agentkeep.runtime.records import EndReason
from agentkeep.runtime.replicas.table import Place, Replicas
from agentkeep.runtime.sessions.ends import SessionEnds
from agentkeep.runtime.sessions.table import SessionTable
from agentkeep.storage.session_lives import SessionLives


class Told:
    """The other end of the port: keeps what it is told, while it is there."""

    def __init__(self) -> None:
        self.ended: list[EndedSession] = []
        self.away = False
        self.refused = 0

    async def session_ended(self, ended: EndedSession) -> None:
        if self.away:
            self.refused += 1
            raise PlaneUnavailable("the memory service does not answer")
        self.ended.append(ended)

    async def of(self, session_id: str, count: int = 1) -> list[EndedSession]:
        async with asyncio.timeout(20):
            while len(found := [each for each in self.ended if each.session.session_id == session_id]) < count:
                await asyncio.sleep(0.005)
        return found


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def runtime(platform: Any, told: Told) -> Any:
    """The platform, whose memory is `told`."""
    platform.memory = told
    await platform.restart()
    return platform


async def _begin(runtime: Any, user: str | None = "alice", **settings: Any) -> tuple[str, str]:
    runtime_id, session_id = await runtime.create(f"a{uuid.uuid4().hex[:8]}", **settings), str(uuid.uuid4())
    (await runtime.begin(runtime_id, session_id, user_id=user)).end()
    return runtime_id, session_id


async def _undelivered(runtime: Any) -> int:
    return len(await runtime.store.query("runtime/session-ends"))


async def test_however_it_ends(runtime: Any, told: Told, clock: Any) -> None:
    stopped = await _begin(runtime)
    await runtime.call("stop_runtime_session", agentRuntimeArn=stopped[0], runtimeSessionId=stopped[1])
    crashed = await _begin(runtime)
    await runtime.driver.living[0].crash("killed: out of memory")
    idle = await _begin(runtime, lifecycleConfiguration={"idleRuntimeSessionTimeout": 60})
    await clock.move(70)
    deleted = await _begin(runtime)
    await runtime.call("delete_agent_runtime", agentRuntimeId=deleted[0])
    for runtime_id, session_id in (stopped, crashed, idle, deleted):
        (ended,) = await told.of(session_id)
        assert (ended.session, ended.user, ended.fence) == (SessionRef(runtime_id, session_id), User("alice"), 1)
    async with asyncio.timeout(10):
        while await _undelivered(runtime):
            await asyncio.sleep(0.01)


async def test_a_session_that_did_not_start(runtime: Any, told: Told) -> None:
    runtime_id = await runtime.create()
    runtime.driver.behaviour.listen = asyncio.Event().wait
    session_id = str(uuid.uuid4())
    waiting = asyncio.create_task(runtime.begin(runtime_id, session_id, user_id="alice"))
    async with asyncio.timeout(10):
        while not runtime.driver.agents:
            await asyncio.sleep(0.01)
    await runtime.driver.agents[-1].crash("no such module")
    with pytest.raises(RuntimeClientError):
        await waiting
    runtime.driver.behaviour.listen = None
    await told.of(session_id)


async def test_nobodys_sessions_are_not_memorys(runtime: Any, told: Told) -> None:
    of_nobody, of_alice = await _begin(runtime, None), await _begin(runtime)
    for runtime_id, session_id in (of_nobody, of_alice):
        await runtime.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    await told.of(of_alice[1])
    assert [each.session.session_id for each in told.ended] == [of_alice[1]]


async def test_the_platforms_end_is_the_sessions(runtime: Any, told: Told) -> None:
    _, session_id = await _begin(runtime)
    await runtime.plane.stop()
    await told.of(session_id)
    assert await _undelivered(runtime) == 0
    await runtime.restart()


async def test_a_platform_that_was_killed_tells_at_its_next_start(runtime: Any, told: Told) -> None:
    """EXE-6. Both of those that lived and of those that had ended, and were not told."""
    told.away = True
    ended_before, lived = await _begin(runtime), await _begin(runtime)
    await runtime.call("stop_runtime_session", agentRuntimeArn=ended_before[0], runtimeSessionId=ended_before[1])
    told.away = False
    await runtime.restart()
    for _, session_id in (ended_before, lived):
        assert (await told.of(session_id))[0].user == User("alice")


async def test_memory_is_away_for_a_while(told: Told, clock: Any, store: Any) -> None:
    """MEM-3. Nothing is forgotten; memory is asked seldom, then."""
    ends = SessionEnds(store, clock, told)
    table = SessionTable(store, clock, Replicas(store, clock, "alone", lease=30), 3600, ends=ends)
    told.away = True
    ends.start()
    sessions = [f"session-{number}" for number in range(40)]
    for session_id in sessions:
        record, _ = await table.claim(SessionRef("agent", session_id), User("alice"), 1, "DEFAULT")
        await table.stopped(record, EndReason.IDLE)
    await _while(clock, lambda: told.refused < 16 * 8)
    before = told.refused
    for _ in range(20):
        await clock.move(30)
    assert before < told.refused <= before + 16 * 11
    told.away = False
    await _while(clock, lambda: len(told.ended) < 40)
    assert sorted(ended.session.session_id for ended in told.ended) == sorted(sessions)
    await ends.stop()


async def _while(clock: Any, condition: Any) -> None:
    async with asyncio.timeout(20):
        while condition():
            await clock.move(10)
            await asyncio.sleep(0.005)


async def test_the_heir_tells_of_what_the_dead_had(runtime: Any, told: Told, clock: Any, store: Any) -> None:
    """EXE-6. Its sessions that end with it, and those whose end it did not tell any more."""
    runtime.place = Place("this-one", "127.0.0.1:1", "127.0.0.1:2")
    await runtime.restart()
    dead = Replicas(store, clock, "dead", lease=30, public="127.0.0.1:3", internal="127.0.0.1:4")
    await dead.register()
    table = SessionTable(store, clock, dead, 3600, ends=SessionEnds(store, clock, told))
    runtime_id, ended, lived = await runtime.create(), str(uuid.uuid4()), str(uuid.uuid4())
    record, _ = await table.claim(SessionRef(runtime_id, ended), User("alice"), 1, "DEFAULT")
    await table.stopped(record, EndReason.IDLE)
    await table.claim(SessionRef(runtime_id, lived), User("alice"), 1, "DEFAULT")
    await _while(clock, lambda: len({each.session.session_id for each in told.ended}) < 2)
    assert {each.session.session_id for each in told.ended} == {ended, lived}


async def test_who_lives_is_known_in_writes_of_others(runtime: Any) -> None:
    """MEM-4. A condition that fails once a session begins, of that user and id, whatever the agent."""
    lives = SessionLives(runtime.store)
    one, session_id = await _begin(runtime)
    other = await runtime.create("other")
    assert await lives.none("alice", session_id) is None
    assert await lives.none("bob", session_id) is not None
    assert await lives.none("alice", session_id[:-1]) is not None
    (await runtime.begin(other, session_id, user_id="alice")).end()
    await runtime.call("stop_runtime_session", agentRuntimeArn=one, runtimeSessionId=session_id)
    assert await lives.none("alice", session_id) is None
    await runtime.call("stop_runtime_session", agentRuntimeArn=other, runtimeSessionId=session_id)
    condition = await lives.none("alice", session_id)
    assert condition is not None
    await runtime.store.transact([condition])
    (await runtime.begin(one, session_id, user_id="alice")).end()
    with pytest.raises(ConditionFailed):
        await runtime.store.transact([condition])
