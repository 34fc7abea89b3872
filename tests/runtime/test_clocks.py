"""Wall clocks that jump, forward and back: sessions count by time that passes, whatever day it is said to be."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from agentkeep.core.call import SessionRef
from agentkeep.runtime.records import EndReason, SessionState
from agentkeep.runtime.replicas.table import Replicas

DAY = 86_400.0
FORWARD_AND_BACK = pytest.mark.parametrize("jump", [3 * DAY, -3 * DAY], ids=["forward", "back"])


def _id() -> str:
    return str(uuid.uuid4())


def _session(platform: Any, runtime_id: str, session_id: str) -> Any:
    return platform.plane._parts.sessions.live(SessionRef(runtime_id, session_id))


async def _until(condition: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@FORWARD_AND_BACK
async def test_a_session_lives_as_long_as_it_may(platform: Any, clock: Any, jump: float) -> None:
    """EXE-3, EXE-6: it is not ended by the jump, and not kept by it."""
    runtime_id, session_id = await platform.create(lifecycleConfiguration={"idleRuntimeSessionTimeout": 60}), _id()
    (await platform.begin(runtime_id, session_id)).end()
    clock.jump(jump)
    await clock.move(30)
    assert _session(platform, runtime_id, session_id).state is SessionState.READY
    (await platform.begin(runtime_id, session_id)).end()
    assert len(platform.driver.agents) == 1
    await clock.move(75)
    await _until(lambda: _session(platform, runtime_id, session_id) is None)
    record = (await platform.plane._parts.table.find(SessionRef(runtime_id, session_id))).record
    assert record.end_reason is EndReason.IDLE
    assert platform.driver.living == []


@FORWARD_AND_BACK
async def test_a_session_begins_and_begins_again(platform: Any, clock: Any, jump: float) -> None:
    """EXE-6: claims, fences and stops do not ask for the day."""
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id, user_id="ann")).end()
    clock.jump(jump)
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    clock.jump(-jump)
    (await platform.begin(runtime_id, session_id, user_id="ann")).end()
    clock.jump(jump)
    await platform.restart()
    (await platform.begin(runtime_id, session_id, user_id="ann")).end()
    assert len(platform.driver.living) == 1


async def test_an_agent_whose_clock_is_ahead_is_idle_in_the_end(platform: Any, clock: Any) -> None:
    """EXE-8: after the clock was set back, its word of when it was last busy lies in the future."""
    runtime_id, session_id = await platform.create(lifecycleConfiguration={"idleRuntimeSessionTimeout": 60}), _id()
    (await platform.begin(runtime_id, session_id)).end()
    before = clock.now().timestamp()
    platform.driver.agents[0].behaviour.changed = lambda: before
    clock.jump(-3 * DAY)
    await clock.move(200)
    await _until(lambda: _session(platform, runtime_id, session_id) is None)


@FORWARD_AND_BACK
async def test_no_replica_is_declared_dead_by_a_jump(store: Any, clock: Any, jump: float) -> None:
    """EXE-6: neither by a clock of its own that jumps, nor by another's; one that is silent for a lease is."""
    one, other = (
        Replicas(store, clock, name, lease=30, public=f"{name}:80", internal=f"{name}:81") for name in ("one", "other")
    )
    await one.register()
    await other.register()
    assert await one.observe() == []
    clock.jump(jump)
    assert await one.observe() == []
    assert one.holds()
    assert other.holds()
    await clock.move(20)
    await other.keep()
    await one.keep()
    assert await one.observe() == []
    await clock.move(20)
    await one.keep()
    assert await one.observe() == []  # `other` has beaten meanwhile
    clock.jump(-jump)
    await clock.move(20)
    await one.keep()
    assert await one.observe() == ["other"]
    assert not other.holds()
