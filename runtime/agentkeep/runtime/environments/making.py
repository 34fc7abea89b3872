"""Environments made: of a version that is prepared, started by the driver, answering /ping, warmed up.

Whose they are is not known here: a session's from the start, or nobody's yet (`warm_pool.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from agentkeep.core.errors import DependencyError, EnvironmentStartFailed, ServiceError
from agentkeep.runtime.agents.prepared import PreparedVersion
from agentkeep.runtime.drivers.driver import Driver, Environment, EnvironmentSpec, Limits
from agentkeep.runtime.environments.health import ping, supports_ping
from agentkeep.runtime.environments.late_binding import LateBinding
from agentkeep.runtime.records import DEFAULT_ENDPOINT, Version
from agentkeep.runtime.settings import RuntimeSettings

__all__ = ["Environments", "VariablesOf"]

START_POLL_SECONDS = 0.02
#: For the answer of one that has waited in a pool: it has answered before.
STILL_THERE_SECONDS = 1.0

#: The environment variables of a session: of (version, endpoint name). Nothing of the session itself is in them.
VariablesOf = Callable[[Version, str], Awaitable[Mapping[str, str]]]


class Environments:
    def __init__(self, driver: Driver, variables_of: VariablesOf, settings: RuntimeSettings) -> None:
        self._driver = driver
        self._variables_of = variables_of
        self._settings = settings

    async def make(
        self,
        prepared: PreparedVersion,
        endpoint_name: str,
        endpoint: Callable[[], asyncio.Protocol],
        log: Callable[[bytes], None],
    ) -> Environment:
        """One that is ready for its first turn. Nothing is left of one that does not get there, or when this is
        cancelled. Raises EnvironmentStartFailed, SandboxUnavailable, DriverThrottled; and KeyServiceUnavailable,
        KeyRefused where its variables cannot be opened."""
        starting = asyncio.create_task(self.start(prepared, endpoint_name, endpoint, log))
        try:
            try:
                async with asyncio.timeout(self._settings.start_timeout):
                    environment = await asyncio.shield(starting)
                    await self.until_healthy(environment, prepared)
            except TimeoutError:
                limit = self._settings.start_timeout
                raise EnvironmentStartFailed(f"the agent did not answer within {limit:g} seconds") from None
            await self.warm_up(environment, prepared)
        except BaseException:
            await asyncio.shield(asyncio.create_task(_undo(starting)))
            raise
        return environment

    async def try_warm_up(self, prepared: PreparedVersion) -> None:
        """Whether the version's warm-up hook works, in an environment of which nothing is left. Raises
        EnvironmentStartFailed (with what the agent wrote), SandboxUnavailable, DriverThrottled."""
        binding = LateBinding()
        try:
            environment = await self.make(prepared, DEFAULT_ENDPOINT, binding.endpoint, binding.log)
        except EnvironmentStartFailed as error:
            raise EnvironmentStartFailed(str(error), error.logs or binding.output) from None
        await environment.stop(0)

    async def start(
        self,
        prepared: PreparedVersion,
        endpoint_name: str,
        endpoint: Callable[[], asyncio.Protocol],
        log: Callable[[bytes], None],
    ) -> Environment:
        """One that need not listen yet. Not to be cancelled: what a driver has begun it finishes, and then it is
        stopped."""
        settings = self._settings
        variables = await self._variables_of(prepared.version, endpoint_name)
        return await self._driver.start(
            EnvironmentSpec(
                version=prepared.spec,
                environment=variables,
                endpoint=endpoint,
                log=log,
                limits=Limits(
                    memory=settings.session_memory,
                    processes=settings.session_processes,
                    open_files=settings.session_open_files,
                    cpus=settings.session_cpus,
                    disk=settings.session_disk,
                ),
            )
        )

    async def until_healthy(self, environment: Environment, prepared: PreparedVersion) -> None:
        """Within the caller's time limit. Raises EnvironmentStartFailed if the environment ends."""
        settings = self._settings
        while True:
            if await self._answers(environment, prepared, settings.connect_timeout, settings.ping_timeout):
                return
            await asyncio.sleep(START_POLL_SECONDS)

    async def is_healthy(self, environment: Environment, prepared: PreparedVersion) -> bool:
        """Whether one that was healthy still is."""
        try:
            return await self._answers(environment, prepared, STILL_THERE_SECONDS, STILL_THERE_SECONDS)
        except EnvironmentStartFailed:
            return False

    async def _answers(
        self, environment: Environment, prepared: PreparedVersion, connect_timeout: float, ping_timeout: float
    ) -> bool:
        try:
            connection = await environment.connect(connect_timeout)
            if not supports_ping(prepared.settings.protocol):
                connection.socket.close()
                connection.release()
                return True
            return await ping(connection, ping_timeout) is not None
        except (OSError, TimeoutError):
            return False  # OSError: it listens, and does not speak

    async def warm_up(self, environment: Environment, prepared: PreparedVersion) -> None:
        """Runs the version's warm-up hook, if it has one. Raises EnvironmentStartFailed."""
        if prepared.settings.warm_up is not None:
            await prepared.settings.warm_up.run(environment)


async def _undo(starting: asyncio.Task[Environment]) -> None:
    try:
        environment = await starting
    except (DependencyError, ServiceError):
        return  # then the driver has left nothing, or was not asked
    await environment.stop(0)
