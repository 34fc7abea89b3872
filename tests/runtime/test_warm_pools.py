"""Warm pools: environments started ahead, claimed exactly once, never anybody's before, never used again."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    CapacityReached,
    DriverThrottled,
    EnvironmentStartFailed,
    ThrottlingException,
    ValidationException,
)
from agentkeep.runtime.environments.late_binding import LateBinding
from agentkeep.runtime.environments.warm_pool_sizes import WARM_POOL_TAG, Demand, PoolSize, pool_size
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.testing.driver import Answer


async def until(condition: Any, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def new_session_id() -> str:
    return str(uuid.uuid4())


def pools(platform: Any, runtime_id: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = platform.plane._parts.warm_pools.describe(runtime_id)
    return found


def ready(platform: Any) -> int:
    return sum(pool["ready"] for pool in pools(platform))


async def full(platform: Any, size: int) -> None:
    """Every place of the pools is taken, and nothing more is under way."""
    await until(lambda: ready(platform) == size and not any(pool["starting"] for pool in pools(platform)))


async def arn_of(platform: Any, runtime_id: str) -> str:
    found = await platform.call("get_agent_runtime", agentRuntimeId=runtime_id)
    return str(found["agentRuntimeArn"])


async def with_pool(platform: Any, size: str, **settings: Any) -> str:
    return str(await platform.create(tags={WARM_POOL_TAG: size}, **settings))


async def test_a_session_claims_what_waits_and_the_pool_is_filled_again(platform: Any) -> None:
    """EXE-1: used once, and gone with its session."""
    runtime_id, session_id = await with_pool(platform, "2"), new_session_id()
    await full(platform, 2)
    waiting = {agent.id for agent in platform.driver.living}
    assert all(agent.pings and not agent.requests for agent in platform.driver.living)

    turn = await platform.begin(runtime_id, session_id)
    turn.end()
    assert turn.environment_id in waiting
    await full(platform, 2)
    assert len(platform.driver.living) == 3
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    await full(platform, 2)
    assert turn.environment_id not in {agent.id for agent in platform.driver.living}


async def test_fifty_first_calls_and_five_that_wait(platform: Any) -> None:
    """EXE-1: fifty environments, each for one session."""
    runtime_id = await with_pool(platform, "5")
    await full(platform, 5)
    waiting = {agent.id for agent in platform.driver.living}
    turns = await asyncio.gather(*(platform.begin(runtime_id, new_session_id()) for _ in range(50)))
    used = [turn.environment_id for turn in turns]
    assert len(set(used)) == 50
    assert waiting <= set(used)
    for turn in turns:
        turn.end()
    await full(platform, 5)
    assert len({agent.id for agent in platform.driver.living} - set(used)) == 5


async def test_nothing_waits_unless_it_is_asked_for(platform: Any) -> None:
    """EXE-8."""
    runtime_id = await platform.create()
    turn = await platform.begin(runtime_id, new_session_id())
    turn.end()
    await platform.clock.move(120)
    assert len(platform.driver.agents) == 1
    assert pools(platform) == []


async def test_the_endpoints_tag_comes_before_the_runtimes_and_that_before_the_setting(platform: Any) -> None:
    platform.settings.warm_pool = "1"
    runtime_id = await platform.create()
    await full(platform, 1)
    arn = await arn_of(platform, runtime_id)
    await platform.call("tag_resource", resourceArn=arn, tags={WARM_POOL_TAG: "3"})
    await full(platform, 3)
    made = await platform.call(
        "create_agent_runtime_endpoint", agentRuntimeId=runtime_id, name="live", tags={WARM_POOL_TAG: "2"}
    )
    await full(platform, 5)
    assert {(pool["endpoint"], pool["ready"]) for pool in pools(platform, runtime_id)} == {("DEFAULT", 3), ("live", 2)}
    await platform.call("untag_resource", resourceArn=arn, tagKeys=[WARM_POOL_TAG])
    await platform.call("tag_resource", resourceArn=made["agentRuntimeEndpointArn"], tags={WARM_POOL_TAG: "0"})
    await full(platform, 1)
    await until(lambda: len(platform.driver.living) == 1)


async def test_an_update_drains_the_version_before(platform: Any) -> None:
    """EXE-4."""
    runtime_id = await with_pool(platform, "2")
    await full(platform, 2)
    old = {agent.id for agent in platform.driver.living}
    await platform.call("update_agent_runtime", agentRuntimeId=runtime_id, **platform.definition())
    await platform.ready(runtime_id)
    await until(lambda: [pool["agentRuntimeVersion"] for pool in pools(platform)] == ["2"])
    await full(platform, 2)
    await until(lambda: len(platform.driver.living) == 2)
    assert not old & {agent.id for agent in platform.driver.living}
    turn = await platform.begin(runtime_id, new_session_id())
    turn.end()
    assert turn.environment_id not in old


async def test_nothing_is_left_of_a_deleted_runtime(platform: Any) -> None:
    runtime_id = await with_pool(platform, "3")
    await full(platform, 3)
    await platform.call("delete_agent_runtime", agentRuntimeId=runtime_id)
    await until(lambda: not platform.driver.living)
    await until(lambda: pools(platform) == [])


async def test_nothing_is_left_when_the_platform_stops(platform: Any) -> None:
    await with_pool(platform, "3")
    await full(platform, 3)
    await platform.plane.stop()
    assert not platform.driver.living
    platform.build()
    await platform.plane.start()
    await full(platform, 3)


async def test_what_waited_for_a_platform_that_was_killed_is_ended_by_the_next(platform: Any) -> None:
    """A driver whose environments outlive the platform: no session names these."""
    runtime_id, session_id = await with_pool(platform, "2"), new_session_id()
    turn = await platform.begin(runtime_id, session_id)
    turn.end()
    await full(platform, 2)
    survivors = list(platform.driver.living)
    platform.driver.survivors = survivors
    await platform.restart()
    await full(platform, 2)
    kept = [agent for agent in survivors if not agent.is_gone]
    assert [agent.id for agent in kept] == [turn.environment_id]
    again = await platform.begin(runtime_id, session_id)
    again.end()
    assert again.environment_id == turn.environment_id


async def test_a_pool_follows_demand(platform: Any) -> None:
    """EXE-8: from nothing, to what is needed, to nothing."""
    platform.settings.warm_pool_idle = 60
    runtime_id = await with_pool(platform, "auto:4")
    await platform.clock.move(30)
    assert platform.driver.agents == []
    turns = [await platform.begin(runtime_id, new_session_id()) for _ in range(2)]
    await full(platform, 2)
    turns += [await platform.begin(runtime_id, new_session_id()) for _ in range(8)]
    await full(platform, 4)
    for turn in turns:
        turn.end()
    await platform.clock.move(platform.settings.warm_pool_idle + 10)
    await until(lambda: ready(platform) == 0)
    assert pools(platform)[0]["wanted"] == 0


def test_demand_is_the_busiest_stretch_of_a_starts_length() -> None:
    demand = Demand()
    for at in (0, 10, 10.5, 11, 11.2, 40):
        demand.arrived(at)
    assert demand.size(41, start_seconds=1, memory=600) == 3
    assert demand.size(41, start_seconds=30, memory=600) == 5
    assert demand.size(639, start_seconds=30, memory=600) == 1
    assert demand.size(641, start_seconds=30, memory=600) == 0


async def test_one_that_has_waited_too_long_is_replaced_without_a_gap(platform: Any) -> None:
    platform.settings.warm_pool_max_age = 60
    await with_pool(platform, "2")
    await full(platform, 2)
    old = {agent.id for agent in platform.driver.living}
    lowest = 2

    async def watch() -> None:
        nonlocal lowest
        while True:
            lowest = min(lowest, ready(platform))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await platform.clock.move(platform.settings.warm_pool_max_age + 10)
    await until(lambda: not old & {agent.id for agent in platform.driver.living})
    watching.cancel()
    assert lowest == 2
    await full(platform, 2)


@pytest.mark.parametrize("fault", ["dead", "deaf"])
async def test_a_claim_of_one_that_has_died_takes_the_next_or_starts_cold(platform: Any, fault: str) -> None:
    runtime_id = await with_pool(platform, "2")
    await full(platform, 2)
    platform.driver.behaviour.start = _cannot
    first, second = platform.driver.living
    if fault == "dead":
        first._gone.set_result(None)  # seen by whoever connects, and not yet by who waits for it
    else:
        first.behaviour.ping_status = 500
    turn = await platform.begin(runtime_id, new_session_id())
    turn.end()
    assert turn.environment_id == second.id
    platform.driver.behaviour.start = None
    turn = await platform.begin(runtime_id, new_session_id())
    turn.end()
    assert turn.environment_id not in (first.id, second.id)


async def _cannot(spec: Any) -> None:
    raise EnvironmentStartFailed("no more of these")


async def test_failing_to_start_ahead_is_told_and_backs_off_and_fails_nobody(platform: Any) -> None:
    attempts = 0

    async def fail(spec: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise EnvironmentStartFailed("out of luck\nand more")

    platform.driver.behaviour.start = fail
    runtime_id = await with_pool(platform, "3")
    await until(lambda: pools(platform, runtime_id) and pools(platform, runtime_id)[0]["problem"])
    assert pools(platform, runtime_id)[0]["problem"] == "out of luck"
    await platform.clock.move(60)
    assert 3 <= attempts <= 10  # two at once, then one by one, ever more rarely
    platform.driver.behaviour.start = None
    turn = await platform.begin(runtime_id, new_session_id())
    turn.end()
    await platform.clock.move(120)
    await full(platform, 3)
    assert pools(platform, runtime_id)[0]["problem"] is None


async def test_one_that_dies_while_it_waits_is_replaced_after_a_pause(platform: Any) -> None:
    await with_pool(platform, "1")
    await full(platform, 1)
    await platform.driver.living[0].crash("killed by signal 11")
    await until(lambda: pools(platform)[0]["problem"])
    assert "signal 11" in pools(platform)[0]["problem"]
    assert ready(platform) == 0
    await platform.clock.move(10)
    await full(platform, 1)


async def test_sessions_come_before_what_nobody_asked_for(platform: Any) -> None:
    """The limit holds for both together, and a session is never refused for the sake of a pool."""
    platform.settings.max_sessions = 4
    pooled = await with_pool(platform, "3", name="pooled")
    await full(platform, 3)
    other = await platform.create(name="other")
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(platform.driver.living))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    turns = [await platform.begin(other, new_session_id()) for _ in range(4)]
    await until(lambda: len(platform.driver.living) == 4)
    assert ready(platform) == 0
    for turn in turns:
        turn.end()
    sessions = platform.plane._parts.sessions
    for session in sessions.all_live()[:2]:
        await platform.call("stop_runtime_session", agentRuntimeArn=other, runtimeSessionId=session.ref.session_id)
    await platform.clock.move(10)
    await full(platform, 2)
    turn = await platform.begin(pooled, new_session_id())
    turn.end()
    watching.cancel()
    assert most <= 5  # one that gives way may still be ending


async def test_a_machine_that_is_full_has_room_when_the_pool_gives_way(platform: Any) -> None:
    other = await platform.create(name="other")
    await with_pool(platform, "1", name="pooled")
    await full(platform, 1)

    async def no_room_beside(spec: Any) -> None:
        if len(platform.driver.living) > 1:
            platform.driver.agents.pop()
            raise CapacityReached("no addresses are left")

    platform.driver.behaviour.start = no_room_beside
    turn = await platform.begin(other, new_session_id())
    turn.end()
    assert [agent.id for agent in platform.driver.living] == [turn.environment_id]


async def test_a_claim_that_comes_to_nothing_uses_nothing_up(platform: Any) -> None:
    """Another user's session id, after a restart that has forgotten its environment."""
    runtime_id, session_id = await with_pool(platform, "1"), new_session_id()
    turn = await platform.begin(runtime_id, session_id, user_id="alice")
    turn.end()
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    await full(platform, 1)
    waiting = [agent.id for agent in platform.driver.living]
    with pytest.raises(AccessDeniedException):
        await platform.begin(runtime_id, session_id, user_id="mallory")
    await full(platform, 1)
    assert [agent.id for agent in platform.driver.living] == waiting


async def test_stopping_a_session_that_is_claiming_leaves_nothing(platform: Any) -> None:
    runtime_id, session_id = await with_pool(platform, "1"), new_session_id()
    await full(platform, 1)
    await platform.call(
        "tag_resource", resourceArn=await arn_of(platform, runtime_id), tags={"agentkeep:session-token-budget": "5"}
    )
    beginning = asyncio.create_task(platform.begin(runtime_id, session_id))
    sessions = platform.plane._parts.sessions
    await until(lambda: sessions.live(SessionRef(runtime_id, session_id)))
    await platform.plane._parts._end_runtime(runtime_id)
    await asyncio.gather(beginning, return_exceptions=True)
    await platform.plane._parts._end_runtime(runtime_id)  # one that its caller was given in place of the ended one
    await until(lambda: sessions.count == 0)
    await full(platform, 1)
    await until(lambda: len(platform.driver.living) == 1)


# Late binding.


async def test_the_session_endpoint_answers_nobody_before_it_is_bound() -> None:
    binding = LateBinding()
    server = await asyncio.get_running_loop().create_server(binding.endpoint, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET /credentials HTTP/1.1\r\nHost: x\r\n\r\n")
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    assert await ask() == b""
    binding.log(b"early\n")
    lines: list[bytes] = []
    binding.bind(lambda: Answer("mine"), lines.append)
    assert (await ask()).endswith(b"mine")
    binding.log(b"late\n")
    assert lines == [b"early\n", b"late\n"]
    server.close()


def test_of_a_long_wait_the_last_words_are_kept() -> None:
    binding = LateBinding()
    for number in range(1000):
        binding.log(b"%0999d\n" % number)
    lines: list[bytes] = []
    binding.bind(asyncio.Protocol, lines.append)
    assert len(b"".join(lines)) <= 64 << 10
    assert lines[-1].endswith(b"999\n")


# Sizes.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", PoolSize(0)),
        ("7", PoolSize(7)),
        ("auto", PoolSize(10, follows_demand=True)),
        ("auto:3", PoolSize(3, follows_demand=True)),
        ("auto:0", PoolSize(0, follows_demand=True)),
    ],
)
def test_sizes(text: str, size: PoolSize) -> None:
    assert pool_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "many", "auto:", "auto:x", "3:auto", "101", "99999999999", "٣"])
async def test_a_size_that_is_none_is_refused(platform: Any, text: str) -> None:
    with pytest.raises(ValueError, match="warm pool"):
        pool_size(text)
    with pytest.raises(ValueError, match="warm pool"):
        RuntimeSettings(warm_pool=text)
    with pytest.raises(ValidationException, match="warm pool"):
        await with_pool(platform, text)


# A driver that is turned away.


async def test_a_start_that_is_turned_away_is_tried_again(platform: Any) -> None:
    refusals = 3

    async def busy(spec: Any) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            platform.driver.agents.pop()
            raise DriverThrottled("rate exceeded")

    runtime_id = await platform.create()
    platform.driver.behaviour.start = busy
    beginning = asyncio.create_task(platform.begin(runtime_id, new_session_id()))
    for _ in range(20):
        await platform.clock.move(0.2)
    turn = await beginning
    turn.end()
    assert refusals < 0


async def test_a_start_that_is_always_turned_away_is_a_throttling_error(platform: Any) -> None:
    async def busy(spec: Any) -> None:
        platform.driver.agents.pop()
        raise DriverThrottled("rate exceeded")

    runtime_id, session_id = await platform.create(), new_session_id()
    platform.driver.behaviour.start = busy
    beginning = asyncio.create_task(platform.begin(runtime_id, session_id, user_id="alice"))
    for _ in range(30):
        await platform.clock.move(0.1)
    with pytest.raises(ThrottlingException, match="rate exceeded"):
        await beginning
    platform.driver.behaviour.start = None
    turn = await platform.begin(runtime_id, session_id, user_id="alice")
    turn.end()
    assert platform.plane._parts.sessions.live(SessionRef(runtime_id, session_id)).user == User("alice")
