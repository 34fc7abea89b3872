"""The process driver when things end, or begin, at a bad moment; and the whole contract, of a driver whose calls are
slow and may be turned away."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from slow_driver import SlowDriver

from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import DriverThrottled
from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.patient import PatientDriver
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.drivers.process.settings import ProcessDriverSettings
from agentkeep.testing.driver import DriverContract, Timing, make_spec
from agentkeep.testing.driver_life import DriverLifeContract

pytestmark = pytest.mark.sandbox


def parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


@pytest.fixture
def lose() -> Callable[[Any], Awaitable[None]]:
    """An environment's host is its fork server: killed from outside."""

    async def kill(environment: Any) -> None:
        environment = getattr(environment, "inner", environment)
        os.kill(parent(environment.pid), signal.SIGKILL)

    return kill


@pytest.fixture
def vanishing(version: VersionSpec, tmp_path: Path) -> tuple[VersionSpec, Callable[[], None]]:
    assert version.bundle is not None
    bundle = tmp_path / "vanishing"
    shutil.copytree(version.bundle, bundle)
    return dataclasses.replace(version, runtime_id="vanishing", bundle=bundle), lambda: shutil.rmtree(bundle)


Drivers = list[ProcessDriver]


@pytest.fixture
async def drivers() -> AsyncIterator[Drivers]:
    drivers: Drivers = []
    yield drivers
    left = [each for driver in drivers for each in driver.environments]
    for driver in drivers:
        await driver.close()
    assert left == []


class TestForkServer(DriverLifeContract):
    @pytest.fixture
    def opened(self, drivers: Drivers, tmp_path: Path) -> Callable[[], ProcessDriver]:
        def open_one() -> ProcessDriver:
            drivers.append(ProcessDriver(tmp_path / "state"))
            return drivers[-1]

        return open_one


class TestCold(DriverLifeContract):
    @pytest.fixture
    def opened(self, drivers: Drivers, tmp_path: Path) -> Callable[[], ProcessDriver]:
        def open_one() -> ProcessDriver:
            drivers.append(ProcessDriver(tmp_path / "state", ProcessDriverSettings(fork_servers=False)))
            return drivers[-1]

        return open_one


SLOW = Timing(ready=60, lag=2, notice=15)


def slow(driver: ProcessDriver) -> PatientDriver:
    """As the platform runs one that may be turned away."""
    return PatientDriver(SlowDriver(driver), SystemClock(), within=60)


@pytest.mark.slow
class TestSlowAndTurnedAway(DriverContract):
    timing = SLOW

    @pytest.fixture(scope="class")
    async def driver(self, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PatientDriver]:
        inner = ProcessDriver(tmp_path_factory.mktemp("state"))
        yield slow(inner)
        assert inner.environments == []
        await inner.close()


@pytest.mark.slow
class TestLifeSlowAndTurnedAway(DriverLifeContract):
    timing = SLOW

    @pytest.fixture
    def opened(self, drivers: Drivers, tmp_path: Path) -> Callable[[], PatientDriver]:
        def open_one() -> PatientDriver:
            drivers.append(ProcessDriver(tmp_path / "state"))
            return slow(drivers[-1])

        return open_one


async def test_every_call_of_a_driver_is_tried_again(version: VersionSpec, tmp_path: Path) -> None:
    """Those that a driver may be turned away from, each at least once."""
    inner = ProcessDriver(tmp_path / "state")
    slow_one = SlowDriver(inner, seconds=0.01, turned_away=0.5)
    driver = PatientDriver(slow_one, SystemClock(), within=60)
    try:
        await driver.prepare(version)
        assert await driver.adopt() == ()
        assert await driver.take_over("another") == ()
        await (await driver.start(make_spec(version))).stop(0)
        await driver.retire(version.runtime_id, version.version)
        assert slow_one.api.refused >= 1
        never = PatientDriver(SlowDriver(inner, seconds=0.01, turned_away=1.0), SystemClock(), within=0.5)
        for call in (never.prepare(version), never.adopt(), never.take_over("another"), never.retire("x", "1")):
            with pytest.raises(DriverThrottled):
                await call
    finally:
        await inner.close()
