"""Commands in sessions of the process driver, under the contract of drivers."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest

from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.testing.driver_commands import CommandContract

pytestmark = [pytest.mark.sandbox]


@pytest.fixture(scope="module")
async def driver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessDriver]:
    driver = ProcessDriver(tmp_path_factory.mktemp("state"))
    yield driver
    assert driver.environments == []
    await driver.close()


class TestForkServer(CommandContract):
    pass


class TestCold(CommandContract):
    @pytest.fixture
    def version(self, version: VersionSpec) -> VersionSpec:
        return dataclasses.replace(version, fork_server=False)
