"""The docker driver when things end, or begin, at a bad moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from docker_engine import DockerEngine, docker_engine  # noqa: F401 -- a fixture

from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Environment, VersionSpec
from agentkeep.testing.driver import AGENT, Timing
from agentkeep.testing.driver_life import DriverLifeContract

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]


@pytest.fixture(scope="module")
def version(docker_engine: DockerEngine) -> VersionSpec:  # noqa: F811
    return VersionSpec("life", "1", image=docker_engine.image("contract", {AGENT.name: AGENT.read_bytes()}))


@pytest.fixture
def vanishing(docker_engine: DockerEngine) -> tuple[VersionSpec, Callable[[], None]]:  # noqa: F811
    """Its code is a little different, so that it is an image of its own."""
    image = docker_engine.image("vanishing", {AGENT.name: AGENT.read_bytes() + b"# vanishing\n"})

    def vanish() -> None:
        # By its id: the driver has given it a name of its own.
        docker_engine.docker("rmi", "-f", docker_engine.docker("image", "inspect", "-f", "{{.Id}}", image))

    return VersionSpec("vanishing", "1", image=image), vanish


@pytest.fixture
def lose(docker_engine: DockerEngine) -> Callable[[Environment], Awaitable[None]]:  # noqa: F811
    """Its container is taken away."""

    async def remove(environment: Environment) -> None:
        docker_engine.docker("rm", "-f", environment.id)

    return remove


class TestDockerLife(DriverLifeContract):
    timing = Timing(ready=60, lag=2, notice=20)

    @pytest.fixture
    async def opened(
        self,
        docker_engine: DockerEngine,  # noqa: F811
        tmp_path: Path,
    ) -> AsyncIterator[Callable[[], DockerDriver]]:
        drivers: list[DockerDriver] = []

        def open_one() -> DockerDriver:
            drivers.append(DockerDriver(tmp_path / "state", DockerDriverSettings(socket=docker_engine.socket)))
            return drivers[-1]

        yield open_one
        for driver in drivers:
            await driver.close()
        left = docker_engine.docker("ps", "-aq").split()
        if left:
            docker_engine.docker("rm", "-f", *left)
        assert not left
