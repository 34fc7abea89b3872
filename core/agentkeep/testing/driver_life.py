"""What every driver must do when things end, or begin, at a bad moment. Subclass beside `DriverContract`, with these
fixtures:

- `opened`: opens a driver; all that one test opens share one state, as a platform and its next start do. No other
  driver of the same state lives meanwhile; whoever gives the fixture closes what was opened;
- `version`: as for `DriverContract`;
- `lose`: takes an environment's host away from it, without asking the driver;
- `vanishing`: a version that can be prepared, and what takes its code (bundle or image) away.

class TestLife(DriverLifeContract): ...
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.drivers.driver import Driver, Environment, EnvironmentSpec, VersionSpec
from agentkeep.testing.driver import LIMITS, Answer, Log, Timing, ask, make_spec, processes, request

__all__ = ["DriverLifeContract"]

AT_ONCE = 20

Opened = Callable[[], Driver]
Lose = Callable[[Environment], Awaitable[None]]
Vanishing = tuple[VersionSpec, Callable[[], None]]


class Closed(asyncio.Protocol):
    """The session endpoint of an environment that is nobody's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).abort()


def leaving_a_daemon(version: VersionSpec) -> tuple[EnvironmentSpec, str]:
    """An agent that leaves, first of all, a process by whose name it is found out whether anything is left."""
    name = f"daemon-{secrets.token_hex(8)}"
    return make_spec(version, {"SCENARIO": "daemon", "NAME": name}), name


class DriverLifeContract:
    timing = Timing()

    async def is_ready(self, environment: Environment) -> bool:
        return (await request(environment, "GET", "/ping", timeout=self.timing.ready))[0] == 200

    # Before it is anybody's.

    async def test_one_started_ahead_is_bound_later(self, opened: Opened, version: VersionSpec) -> None:
        """EXE-1: healthy while it is nobody's, its session endpoint closed; then its session's, the endpoint and what
        it writes."""
        driver = opened()
        owners: dict[int, str] = {}
        logs = [Log(), Log()]

        def spec(number: int) -> EnvironmentSpec:
            def endpoint() -> asyncio.Protocol:
                return Answer(owners[number]) if number in owners else Closed()

            def log(data: bytes) -> None:
                if number in owners:
                    logs[number](data)

            return EnvironmentSpec(version=version, environment={}, endpoint=endpoint, log=log, limits=LIMITS)

        ahead = await asyncio.gather(driver.start(spec(0)), driver.start(spec(1)))
        try:
            assert [await self.is_ready(each) for each in ahead] == [True, True]
            assert [await ask(each, "try_endpoint", path="/credentials") for each in ahead] == [None, None]
            owners[0] = "alice"
            assert await ask(ahead[0], "endpoint", path="/") == "alice"
            assert await ask(ahead[1], "try_endpoint", path="/") is None
            owners[1] = "bob"
            assert await ask(ahead[1], "endpoint", path="/") == "bob"
            for each, name in zip(ahead, ("alice", "bob"), strict=True):
                await ask(each, "write", text=f"for {name}\n")
            await logs[0].shows("for alice\n", self.timing.notice)
            await logs[1].shows("for bob\n", self.timing.notice)
            assert "alice" not in logs[1].text
        finally:
            await asyncio.gather(*(each.stop(0) for each in ahead))

    # Starting.

    async def test_the_same_thing_started_twice_is_two(self, opened: Opened, version: VersionSpec) -> None:
        """A start that is asked for again, its answer lost, makes another; neither stands in the other's way."""
        driver, spec = opened(), make_spec(version)
        one, other = await asyncio.gather(driver.start(spec), driver.start(spec))
        try:
            assert one.id != other.id
            assert await self.is_ready(one)
            await one.stop(0)
            assert await self.is_ready(other)
            with pytest.raises(EnvironmentStartFailed):
                await one.connect(self.timing.notice)
        finally:
            await asyncio.gather(one.stop(0), other.stop(0))

    @pytest.mark.parametrize("part", [0.0, 0.1, 0.4, 0.8])
    async def test_a_start_that_is_given_up_leaves_nothing(
        self, opened: Opened, version: VersionSpec, part: float
    ) -> None:
        """EXE-3. `part` of what a start takes has gone by."""
        driver = opened()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await (await driver.start(make_spec(version))).stop(0)
        whole = loop.time() - began
        spec, name = leaving_a_daemon(version)
        starting = asyncio.ensure_future(driver.start(spec))
        await asyncio.sleep(part * whole)
        starting.cancel()
        try:
            await (await starting).stop(0)  # it was faster
        except asyncio.CancelledError:
            pass
        assert not processes(name)
        again = await driver.start(make_spec(version))
        assert await self.is_ready(again)
        await again.stop(0)

    async def test_one_stopped_before_it_listens(self, opened: Opened, version: VersionSpec) -> None:
        """Whoever waits for it is told, and does not wait on."""
        driver = opened()
        environment = await driver.start(make_spec(version, {"SCENARIO": "silent"}))
        waiting = asyncio.ensure_future(environment.connect(self.timing.ready))
        await asyncio.sleep(0.05)
        ended = await environment.stop(0)
        with pytest.raises(EnvironmentStartFailed):
            async with asyncio.timeout(self.timing.notice):
                await waiting
        assert await environment.wait() == ended

    async def test_code_that_has_gone_is_told(self, opened: Opened, vanishing: Vanishing) -> None:
        """A bundle or image that was there when the version was prepared."""
        version, vanish = vanishing
        driver = opened()
        await driver.prepare(version)
        vanish()
        with pytest.raises(EnvironmentStartFailed) as failed:
            await driver.start(make_spec(version))
        assert str(failed.value)

    async def test_another_port_of_the_agent(self, opened: Opened, version: VersionSpec) -> None:
        driver = opened()
        environment = await driver.start(make_spec(version, {"SCENARIO": "two ports"}))
        try:
            for port in (9191, None):
                connection = await environment.connect(self.timing.ready, port)
                connection.socket.close()
                connection.release()
            with pytest.raises(TimeoutError, match="9192"):
                await environment.connect(0.3, 9192)
        finally:
            await environment.stop(0)

    # Ending.

    async def test_twenty_stops_at_once(self, opened: Opened, version: VersionSpec) -> None:
        """EXE-3: each asked for twice; nothing is left of any."""
        driver = opened()
        specs = [leaving_a_daemon(version) for _ in range(AT_ONCE)]
        started = await asyncio.gather(*(driver.start(spec) for spec, _ in specs))
        assert all(await asyncio.gather(*(self.is_ready(each) for each in started)))
        assert all(processes(name) for _, name in specs)
        ends = await asyncio.gather(*(each.stop(0) for each in [*started, *started]))
        assert ends[:AT_ONCE] == ends[AT_ONCE:]
        assert not [name for _, name in specs if processes(name)]

    async def test_a_lost_host_is_noticed(self, opened: Opened, version: VersionSpec, lose: Lose) -> None:
        """EXE-6: the environment is gone, which everybody is told, and the next one starts."""
        driver = opened()
        spec, name = leaving_a_daemon(version)
        lost = await driver.start(spec)
        assert await self.is_ready(lost)
        await lose(lost)
        async with asyncio.timeout(self.timing.ready):
            ended = await lost.wait()
        assert ended.reason
        assert ended.code != 0
        assert await lost.stop(0) == ended
        with pytest.raises(EnvironmentStartFailed):
            await lost.connect(self.timing.notice)
        assert not processes(name)
        again = await driver.start(make_spec(version))
        assert await self.is_ready(again)
        await again.stop(0)

    async def test_after_a_restart_nothing_is_unknown(self, opened: Opened, version: VersionSpec) -> None:
        """EXE-6: what outlived the platform is found, under its old id, and can be used and ended; the rest is gone."""
        before = opened()
        specs = [leaving_a_daemon(version) for _ in range(2)]
        started = [await before.start(spec) for spec, _ in specs]
        assert all([await self.is_ready(each) for each in started])
        await before.close()
        after = opened()
        found = {each.id: each for each in await after.adopt()}
        assert set(found) <= {each.id for each in started}
        assert not await after.adopt(), "found twice"
        for each, (_, name) in zip(started, specs, strict=True):
            if each.id not in found:
                assert not processes(name)
                continue
            adopted, log = found[each.id], Log()
            assert await ask(adopted, "try_endpoint", path="/") is None
            await adopted.resume(lambda: Answer("again"), log)
            assert await ask(adopted, "endpoint", path="/") == "again"
            await ask(adopted, "write", text="still here\n")
            await log.shows("still here\n", self.timing.notice)
            await adopted.stop(0)
            assert not processes(name)
        new = await after.start(make_spec(version))
        assert await self.is_ready(new)
        await new.stop(0)

    async def test_a_platform_that_ends_while_starting(self, opened: Opened, version: VersionSpec) -> None:
        before = opened()
        await before.prepare(version)
        specs = [leaving_a_daemon(version) for _ in range(5)]
        starting = [asyncio.ensure_future(before.start(spec)) for spec, _ in specs]
        await asyncio.sleep(0.05)
        for each in starting:
            each.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        await before.close()
        after = opened()
        for adopted in await after.adopt():
            await adopted.stop(0)
        assert not [name for _, name in specs if processes(name)]
