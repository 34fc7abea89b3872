"""A driver whose machinery turns calls away at times, asked again until it lets them through."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from agentkeep.core.clock import Clock
from agentkeep.core.errors import DriverThrottled
from agentkeep.runtime.drivers.driver import (
    AdoptedEnvironment,
    Driver,
    Environment,
    EnvironmentSpec,
    Finding,
    VersionSpec,
)

__all__ = ["PatientDriver"]

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0


class PatientDriver:
    """Repeats what raised DriverThrottled, with pauses that double and vary, for at most `within` seconds; then the
    error is the caller's."""

    def __init__(self, driver: Driver, clock: Clock, within: float) -> None:
        self._driver = driver
        self._clock = clock
        self._within = within

    @property
    def name(self) -> str:
        return self._driver.name

    async def probe(self) -> Sequence[Finding]:
        return await self._driver.probe()

    async def prepare(self, version: VersionSpec) -> None:
        await self._repeat(lambda: self._driver.prepare(version))

    async def start(self, spec: EnvironmentSpec) -> Environment:
        return await self._repeat(lambda: self._driver.start(spec))

    async def adopt(self) -> Sequence[AdoptedEnvironment]:
        return await self._repeat(self._driver.adopt)

    async def take_over(self, replica: str) -> Sequence[AdoptedEnvironment]:
        return await self._repeat(lambda: self._driver.take_over(replica))

    async def retire(self, runtime_id: str, version: str) -> None:
        await self._repeat(lambda: self._driver.retire(runtime_id, version))

    async def close(self) -> None:
        await self._driver.close()

    async def _repeat(self, step: Callable[[], Awaitable[T]]) -> T:
        deadline = self._clock.monotonic() + self._within
        pause = FIRST_PAUSE
        while True:
            try:
                return await step()
            except DriverThrottled as error:
                # Those that were turned away together must not come back together.
                wait = pause * random.uniform(0.5, 1.5)  # noqa: S311
                if self._clock.monotonic() + wait >= deadline:
                    raise
                log.info("the driver was turned away (%s); asking again in %.1f s", error, wait)
                await self._clock.sleep(wait)
                pause = min(pause * 2, LONGEST_PAUSE)
