"""What tests of the process driver share."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.testing.driver import AGENT

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))

MakeVersion = Callable[..., VersionSpec]


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory) -> VersionSpec:
    """The contract's agent, without dependencies."""
    bundle = tmp_path_factory.mktemp("bundle") / "agent"
    bundle.mkdir(mode=0o755)
    shutil.copy(AGENT, bundle)
    return VersionSpec("contract", "1", bundle=bundle, entry_point=(AGENT.name,))


@pytest.fixture
def make_version(tmp_path: Path) -> MakeVersion:
    """Versions of agents given as text."""

    def make(name: str = "agent", *, entry_point: tuple[str, ...] = ("main.py",), **files: str) -> VersionSpec:
        bundle = tmp_path / name
        bundle.mkdir(mode=0o755)
        for stem, text in files.items():
            (bundle / f"{stem}.py").write_text(text)
        return VersionSpec(name, "1", bundle=bundle, entry_point=entry_point)

    return make


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ProcessDriver]:
    driver = ProcessDriver(tmp_path / "state")
    yield driver
    await driver.close()
