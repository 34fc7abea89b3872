"""The process driver under the contract of drivers: with fork servers and cold, as root and as an ordinary user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.drivers.process.settings import ProcessDriverSettings
from agentkeep.testing.driver import DriverContract

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parents[3]
ORDINARY_USER = 3901


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


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the tests above ran as an ordinary user already")
def test_everything_holds_for_an_ordinary_user(request: pytest.FixtureRequest) -> None:
    """The same tests, run by another user. The platform's own interpreter may be out of that user's reach (under
    /root); the system's is taken then."""
    run = ["setpriv", f"--reuid={ORDINARY_USER}", f"--regid={ORDINARY_USER}", "--clear-groups"]
    candidates = (os.path.realpath(sys.executable), "/usr/bin/python3.11")
    # Asked of `test`, which runs as that user: setpriv itself still has root's powers when it executes a program.
    usable = [path for path in candidates if subprocess.run([*run, "test", "-x", path]).returncode == 0]
    if not usable or subprocess.run([*run, "test", "-r", str(ROOT / "pyproject.toml")]).returncode != 0:
        pytest.skip(f"NOT SHOWN: user {ORDINARY_USER} can reach neither a Python 3.11 nor this checkout")
    folder = Path(tempfile.mkdtemp(prefix="ordinary-user-"))  # pytest's own folders are closed to other users
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    shutil.chown(folder, ORDINARY_USER, ORDINARY_USER)
    planes = [str(path) for path in ROOT.iterdir() if (path / "agentkeep").is_dir()]
    packages = [entry for entry in sys.path if entry.endswith("site-packages")]
    commands = Path(__file__).with_name("test_process_commands.py")
    tests = [str(Path(__file__)), f"{commands}::TestForkServer", str(ROOT / "tests/isolation")]
    ran = subprocess.run(
        [*run, usable[0], "-m", "pytest", *tests, "-q", "-m", "not slow", f"--basetemp={folder}/tests"],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHONPATH": os.pathsep.join([*planes, *packages]),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stdout
    assert " passed" in ran.stdout
