"""A driver as an orchestrator's API makes it: every call takes its time and may be turned away, an end is noticed late.
It runs another driver's real environments."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from agentkeep.core.errors import DriverThrottled
from agentkeep.runtime.drivers.driver import (
    AdoptedEnvironment,
    Connection,
    Driver,
    Environment,
    EnvironmentSpec,
    Execution,
    Exit,
    Finding,
    VersionSpec,
)

__all__ = ["SlowDriver", "SlowEnvironment"]


class Api:
    """`seconds` is the most one call takes; `turned_away` of all calls are, before anything has come of them."""

    def __init__(self, seconds: float, turned_away: float, seed: int) -> None:
        self._seconds = seconds
        self._turned_away = turned_away
        self._random = random.Random(seed)
        self.calls = 0
        self.refused = 0

    async def call(self) -> None:
        self.calls += 1
        await asyncio.sleep(self._random.uniform(0, self._seconds))
        if self._random.random() < self._turned_away:
            self.refused += 1
            raise DriverThrottled("ThrottlingException: Rate exceeded")

    async def insist(self) -> None:
        while True:
            try:
                await self.call()
                return
            except DriverThrottled:
                await asyncio.sleep(self._seconds / 4)


class SlowEnvironment:
    def __init__(self, environment: Environment, api: Api) -> None:
        self.inner = environment
        self._api = api

    @property
    def id(self) -> str:
        return self.inner.id

    async def connect(self, timeout: float, port: int | None = None) -> Connection:
        return await self.inner.connect(timeout, port)

    async def execute(self, line: str) -> Execution:
        return await self.inner.execute(line)

    async def stop(self, grace: float) -> Exit:
        await self._api.insist()
        return await self.inner.stop(grace)

    async def wait(self) -> Exit:
        ended = await self.inner.wait()
        await self._api.insist()
        return ended


class SlowDriver:
    name = "slow"

    def __init__(self, driver: Driver, *, seconds: float = 0.2, turned_away: float = 0.3, seed: int = 0) -> None:
        self._driver = driver
        self.api = Api(seconds, turned_away, seed)

    async def probe(self) -> Sequence[Finding]:
        return await self._driver.probe()

    async def prepare(self, version: VersionSpec) -> None:
        await self.api.call()
        await self._driver.prepare(version)

    async def start(self, spec: EnvironmentSpec) -> SlowEnvironment:
        await self.api.call()
        environment = await self._driver.start(spec)
        try:
            await self.api.insist()  # asked whether it runs by now
        except asyncio.CancelledError:
            await environment.stop(0)
            raise
        return SlowEnvironment(environment, self.api)

    async def adopt(self) -> Sequence[AdoptedEnvironment]:
        await self.api.call()
        return await self._driver.adopt()

    async def take_over(self, replica: str) -> Sequence[AdoptedEnvironment]:
        await self.api.call()
        return await self._driver.take_over(replica)

    async def retire(self, runtime_id: str, version: str) -> None:
        await self.api.call()
        await self._driver.retire(runtime_id, version)

    async def close(self) -> None:
        await self._driver.close()
