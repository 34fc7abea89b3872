"""The platform is killed: nothing it started is left, and the next one finds nothing half-owned."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentkeep.runtime.drivers.process.cgroups import Cgroups
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.testing.driver import AGENT

pytestmark = pytest.mark.sandbox

PLATFORM = """
import asyncio, json, sys
from pathlib import Path
from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.testing.driver import ask, make_spec

async def main():
    driver = ProcessDriver(Path(sys.argv[1]))
    version = VersionSpec("killed", "1", bundle=Path(sys.argv[2]), entry_point=("contract_agent.py",))
    started = [await driver.start(make_spec(version)) for number in range(3)]
    for one in started:
        await ask(one, "daemon", name=sys.argv[3])
    print("ready", flush=True)
    number = 3
    while True:  # killed at any moment: sessions are being born and ended
        one = await driver.start(make_spec(version))
        await one.stop(0)
        number += 1

asyncio.run(main())
"""


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_nothing_survives_the_platform(tmp_path: Path) -> None:
    """EXE-3, EXE-6: killed with living sessions, daemons of theirs, and births under way: all gone within a second."""
    marker = f"orphan-{os.getpid()}-{time.monotonic_ns()}"
    bundle = tmp_path / "bundle"
    bundle.mkdir(mode=0o755)
    (bundle / AGENT.name).write_bytes(AGENT.read_bytes())
    platform = subprocess.Popen(
        [sys.executable, "-c", PLATFORM, str(tmp_path / "state"), str(bundle), marker], stdout=subprocess.PIPE
    )
    assert platform.stdout is not None
    try:
        assert platform.stdout.readline() == b"ready\n"
        await asyncio.sleep(0.3)
        started = descendants(platform.pid)
        assert len(started) >= 1 + 1 + 3 * 2  # bubblewrap, the fork server, three agents with a daemon each
    finally:
        platform.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        platform.wait()
        platform.stdout.close()
    while left := [pid for pid in started if alive(pid)]:
        assert time.monotonic() - killed < 1, f"still alive: {left}"
        await asyncio.sleep(0.005)
    assert not [line for line in _command_lines() if marker in line]

    groups = await asyncio.to_thread(Cgroups.find)
    of_the_killed = [folder for place in set(groups._places.values()) for folder in place.glob(f"{platform.pid}-*")]
    assert bool(of_the_killed) == bool(groups.controllers)
    driver = ProcessDriver(tmp_path / "state")
    assert await driver.adopt() == ()
    await driver.close()
    assert not [folder for folder in of_the_killed if folder.exists()]


def _command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                lines.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return lines
