"""The Valkey server of embedded mode: how it lives and dies."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from agentkeep.core.errors import StoreUnavailable
from agentkeep.embedded.valkey import EmbeddedValkey

PLATFORM = """
import asyncio, sys
from pathlib import Path
from agentkeep.embedded.valkey import EmbeddedValkey

async def main():
    async with EmbeddedValkey(Path(sys.argv[1])) as valkey:
        print(valkey.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def start_platform(folder: Path) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    platform = subprocess.Popen([sys.executable, "-c", PLATFORM, str(folder)], stdout=subprocess.PIPE)
    assert platform.stdout is not None
    with platform.stdout as output:
        return platform, psutil.Process(int(output.readline()))


def wait_gone(process: psutil.Process, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.01)


async def test_only_its_owner_can_reach_it(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "valkey"
    async with EmbeddedValkey(folder) as valkey:
        server = psutil.Process(valkey.pid)
        assert [c for c in server.net_connections() if c.family.name != "AF_UNIX"] == []
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(valkey.socket_path.stat().st_mode) & 0o077 == 0
        for file in folder.rglob("*"):
            if file.is_file():
                assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
        async with Redis.from_url(valkey.url) as redis:
            assert (await redis.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
            assert (await redis.config_get("appendfsync"))["appendfsync"] == "always"
    assert not server.is_running()
    assert not valkey.socket_path.exists()


async def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    async with EmbeddedValkey(folder) as valkey:
        runtime = valkey.socket_path.parent
        assert len(str(valkey.socket_path)) < 108
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
        async with Redis.from_url(valkey.url) as redis:
            await redis.set("a", "1")
    assert not runtime.exists()
    async with EmbeddedValkey(folder) as valkey, Redis.from_url(valkey.url) as redis:
        assert await redis.get("a") == b"1"


async def test_a_folder_has_one_platform(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path) as valkey:
        with pytest.raises(StoreUnavailable, match=rf"in use by another platform \(process {os.getpid()}\)"):
            await EmbeddedValkey(tmp_path).start()
        async with Redis.from_url(valkey.url) as redis:
            assert await redis.ping()


async def test_it_says_why_it_does_not_start(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path) as valkey, Redis.from_url(valkey.url) as redis:
        await redis.set("a", "1")
    (broken,) = (tmp_path / "appendonlydir").glob("*.manifest")
    broken.write_text("nonsense\n")
    with pytest.raises(StoreUnavailable, match="manifest"):
        await EmbeddedValkey(tmp_path).start()


async def test_it_is_started_again(tmp_path: Path) -> None:
    async with EmbeddedValkey(tmp_path) as valkey, Redis.from_url(valkey.url) as redis:
        await redis.set("a", "1")
        killed = valkey.pid
        os.kill(killed, signal.SIGKILL)
        while valkey.pid == killed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert await redis.get("a") == b"1"


def test_it_dies_with_the_platform_and_lets_the_next_one_start(tmp_path: Path) -> None:
    """EXE-6: after kill -9 of the platform nothing is left running, and the next start needs no hand."""
    for _ in range(2):
        platform, server = start_platform(tmp_path)
        assert server.is_running()
        platform.kill()
        platform.wait()
        successor = EmbeddedValkey(tmp_path)
        successor.start_and_wait()
        wait_gone(server)
        successor.stop_and_wait()


def test_an_interrupt_of_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    platform, server = start_platform(tmp_path)
    assert os.getsid(server.pid) != os.getsid(platform.pid)
    platform.send_signal(signal.SIGTERM)
    platform.wait()
    wait_gone(server)


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The kernel's parent-death signal is tied to the forking thread, which must not be a passing one."""
    valkey = EmbeddedValkey(tmp_path)
    thread = threading.Thread(target=valkey.start_and_wait)
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert psutil.Process(valkey.pid).status() != psutil.STATUS_ZOMBIE
    valkey.stop_and_wait()


def test_a_stale_socket_folder_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    platform, server = start_platform(folder)
    runtime = (folder / "runtime").readlink()
    platform.kill()
    platform.wait()
    wait_gone(server)
    successor = EmbeddedValkey(folder)
    successor.start_and_wait()
    successor.stop_and_wait()
    assert not runtime.exists()
