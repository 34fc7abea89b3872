"""The process driver under the contract of drivers, with fork servers and cold."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest

from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.drivers.process.settings import ProcessDriverSettings
from agentkeep.testing.driver import AGENT, DriverContract

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> VersionSpec:
    bundle = tmp_path_factory.mktemp("bundle") / "agent"
    bundle.mkdir(mode=0o755)
    shutil.copy(AGENT, bundle)
    return VersionSpec("contract", "1", bundle=bundle, entry_point=(AGENT.name,))


class TestForkServer(DriverContract):
    @pytest.fixture(scope="class")
    async def driver(self, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessDriver]:
        driver = ProcessDriver(tmp_path_factory.mktemp("state"))
        yield driver
        assert driver.environments == []
        await driver.close()


class TestCold(DriverContract):
    @pytest.fixture(scope="class")
    async def driver(self, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessDriver]:
        driver = ProcessDriver(tmp_path_factory.mktemp("state"), ProcessDriverSettings(fork_servers=False))
        yield driver
        assert driver.environments == []
        await driver.close()
