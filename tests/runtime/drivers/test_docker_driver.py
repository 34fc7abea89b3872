"""The docker driver under the contract of drivers, in an engine of the tests' own."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest
from docker_engine import DockerEngine, docker_engine  # noqa: F401 -- a fixture

from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Driver, VersionSpec
from agentkeep.testing.driver import AGENT, DriverContract, make_spec

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]


@pytest.fixture(scope="module")
async def driver(
    docker_engine: DockerEngine,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[DockerDriver]:
    driver = DockerDriver(tmp_path_factory.mktemp("state"), DockerDriverSettings(socket=docker_engine.socket))
    yield driver
    assert driver.environments == []
    assert docker_engine.docker("ps", "-aq") == ""
    await driver.close()


@pytest.fixture(scope="module")
def version(docker_engine: DockerEngine) -> VersionSpec:  # noqa: F811
    image = docker_engine.image("contract", {AGENT.name: AGENT.read_bytes()})
    return VersionSpec("contract", "1", image=image)


class TestDocker(DriverContract):
    async def test_an_entry_point_that_is_missing_is_told_before(self, driver: Driver, version: VersionSpec) -> None:
        """Of an image: the image itself. Nothing listens where it should come from."""
        missing = dataclasses.replace(version, runtime_id="missing", image="127.0.0.1:9/no-such:1")
        with pytest.raises(EnvironmentStartFailed, match=r"127\.0\.0\.1:9/no-such:1.*cannot be pulled: .*refused"):
            await driver.prepare(missing)
        with pytest.raises(EnvironmentStartFailed, match=r"no-such"):
            await driver.start(make_spec(missing))
