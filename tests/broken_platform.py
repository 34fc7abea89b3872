"""The platform with a hole made into it, to see whether what looks for holes finds them.

`python tests/broken_platform.py HOLE up --port 0 --data-dir ...` is `agentkeep up` with one of `HOLES`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from platform_process import PlatformProcess, clean_environment

START_SECONDS = 60.0


class Shared:
    """One environment under another id. Stopping it leaves the environment as it is: it ends with the platform."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared
        self._stopped: asyncio.Event = asyncio.Event()
        self.id = f"shared-{uuid.uuid4()}"

    async def stop(self, grace: float) -> Any:
        self._stopped.set()
        return await self.wait()

    async def wait(self) -> Any:
        from agentkeep.runtime.drivers.driver import Exit

        await self._stopped.wait()
        return Exit(None, "stopped")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared, name)


def sessions_share_an_environment() -> None:
    """Whoever opens a session of an agent is given the one environment of its version."""
    from agentkeep.runtime.drivers.process.driver import ProcessDriver

    start = ProcessDriver.start
    made: dict[tuple[str, str], Any] = {}

    async def shared(self: ProcessDriver, spec: Any) -> Any:
        version = (spec.version.runtime_id, spec.version.version)
        if version not in made:
            made[version] = asyncio.ensure_future(start(self, spec))
        return Shared(await asyncio.shield(made[version]))

    ProcessDriver.start = shared  # type: ignore[assignment,method-assign]


def memory_is_open_to_all() -> None:
    """The memory plane takes agents for operators."""
    from agentkeep.memory import operations, partition

    operations.authorized_actor = partition.authorized_actor = lambda call: None  # type: ignore[assignment]


def memory_is_closed_to_all() -> None:
    """The memory plane refuses agents everything, their own user's events too: nothing leaks, and nothing is shown."""
    from agentkeep.core.call import CallerKind
    from agentkeep.core.errors import AccessDeniedException
    from agentkeep.memory import operations, partition

    known = partition.authorized_actor

    def refuse(call: Any) -> str | None:
        if call.caller.kind is CallerKind.SESSION:
            raise AccessDeniedException("closed")
        return known(call)

    operations.authorized_actor = partition.authorized_actor = refuse


HOLES: dict[str, Callable[[], None]] = {
    hole.__name__: hole for hole in (sessions_share_an_environment, memory_is_open_to_all, memory_is_closed_to_all)
}


@contextmanager
def broken_platform(hole: str, data_dir: Path) -> Iterator[PlatformProcess]:
    data_dir.mkdir(mode=0o700)
    log = data_dir / "platform.log"
    command = [sys.executable, __file__, hole, "up", "--port", "0", "--data-dir", str(data_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=clean_environment())
    deadline = time.monotonic() + START_SECONDS
    try:
        while not (data_dir / "platform.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert json.loads((data_dir / "platform.json").read_text())["pid"] == process.pid
        yield PlatformProcess(data_dir)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    HOLES[sys.argv.pop(1)]()
    from agentkeep.cli.main import main

    main()
