"""What the process driver does at the edges of a session's and a fork server's life."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import signal
from pathlib import Path

import pytest

from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import DriverError, EnvironmentStartFailed, SandboxUnavailable
from agentkeep.runtime.drivers.driver import ConnectionsInUse, Limits, VersionSpec
from agentkeep.runtime.drivers.process import bubblewrap, environment, memory_watch, seccomp
from agentkeep.runtime.drivers.process.cgroups import Cgroups
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.drivers.process.evidence import NotSealed
from agentkeep.runtime.drivers.process.settings import ProcessDriverSettings
from agentkeep.testing.driver import LIMITS, Log, ask, make_spec, processes, request

pytestmark = pytest.mark.sandbox


class SkippingClock(SystemClock):
    """Real time, and what the test adds to it."""

    def __init__(self) -> None:
        self.added = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.added

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        while self.monotonic() < until:
            await asyncio.sleep(0.01)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def control_groups() -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/agentkeep/{os.getpid()}-*")]


async def until(condition: object, patience: float = 10.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_hundred_sessions_leave_no_trace(driver: ProcessDriver, version: VersionSpec) -> None:
    """EXE-3: no process, control group, network namespace or descriptor is left."""

    async def one(number: int) -> None:
        started = await driver.start(make_spec(version, endpoint="yes"))
        assert await ask(started, "endpoint", path="/") == "yes"
        await started.stop(0)

    await one(0)
    await asyncio.sleep(0.1)
    before = descriptors()
    for batch in range(10):
        await asyncio.gather(*(one(10 * batch + number) for number in range(10)))
    await asyncio.sleep(0.1)
    assert descriptors() == before
    assert control_groups() == []
    assert driver.environments == []


@pytest.mark.parametrize("delay", [0, 0.002, 0.005, 0.01, 0.02, 0.04])
async def test_a_cancelled_start_leaves_nothing(driver: ProcessDriver, version: VersionSpec, delay: float) -> None:
    await (await driver.start(make_spec(version))).stop(0)
    before = descriptors()
    starting = [asyncio.create_task(driver.start(make_spec(version))) for number in range(4)]
    await asyncio.sleep(delay)
    for start in starting:
        start.cancel()
    for result in await asyncio.gather(*starting, return_exceptions=True):
        if not isinstance(result, BaseException):
            await result.stop(0)
    await until(lambda: not driver.environments)
    assert descriptors() == before
    assert control_groups() == []


async def test_cancelling_one_start_does_not_cancel_the_fork_server_of_others(
    driver: ProcessDriver, version: VersionSpec
) -> None:
    first = asyncio.create_task(driver.start(make_spec(version)))
    second = asyncio.create_task(driver.start(make_spec(version)))
    await asyncio.sleep(0.05)
    first.cancel()
    assert (await request(await second, "GET", "/ping"))[0] == 200


async def test_a_session_that_is_not_sealed_gets_no_secret(
    driver: ProcessDriver, version: VersionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail closed: when the evidence is not as expected nothing runs, nothing is left."""

    def refuse(*_: object) -> None:
        raise NotSealed("the test says so")

    await driver.prepare(version)
    before = descriptors()
    monkeypatch.setattr(environment, "inspect_session", refuse)
    log = Log()
    with pytest.raises(SandboxUnavailable, match="the test says so"):
        await driver.start(make_spec(version, log=log))
    assert (descriptors(), log.pieces, driver.environments, control_groups()) == (before, [], [], [])


async def test_a_hanging_birth_is_given_up(
    driver: ProcessDriver, version: VersionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.prepare(version)
    server = await driver._servers.get(version)
    assert server._process is not None
    monkeypatch.setattr(environment, "HANDSHAKE_TIMEOUT", 0.3)
    os.kill(server._process.pid, 0)
    inside = int(Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children").read_text())
    os.kill(inside, signal.SIGSTOP)
    try:
        with pytest.raises(EnvironmentStartFailed, match="not sealed within"):
            await driver.start(make_spec(version))
    finally:
        os.kill(inside, signal.SIGCONT)
    await until(lambda: not driver.environments)
    monkeypatch.undo()
    started = await driver.start(make_spec(version))
    assert (await request(started, "GET", "/ping"))[0] == 200


async def test_sessions_end_with_their_fork_server_and_the_next_gets_a_new_one(
    driver: ProcessDriver, version: VersionSpec
) -> None:
    started = await asyncio.gather(*(driver.start(make_spec(version)) for number in range(3)))
    server = await driver._servers.get(version)
    signal.pidfd_send_signal(server._pidfd, signal.SIGKILL)
    async with asyncio.timeout(5):
        ends = [await one.wait() for one in started]
    assert {(end.code, end.reason) for end in ends} == {(-9, "its fork server ended")}
    again = await driver.start(make_spec(version))
    assert (await request(again, "GET", "/ping"))[0] == 200


async def test_a_worn_fork_server_is_replaced_and_lives_on_for_its_sessions(
    tmp_path: Path, version: VersionSpec
) -> None:
    driver = ProcessDriver(tmp_path, ProcessDriverSettings(fork_server_sessions=2))
    try:
        old = [await driver.start(make_spec(version)) for number in range(2)]
        first = await driver._servers.get(version)
        await until(lambda: driver._servers._current[version].result() is not first)
        fresh = await driver.start(make_spec(version))
        assert fresh._server is not first
        assert first.alive
        for one in old:
            assert (await request(one, "GET", "/ping"))[0] == 200
            await one.stop(0)
        await until(lambda: not first.alive)
        assert (await request(fresh, "GET", "/ping"))[0] == 200
    finally:
        await driver.close()


async def test_fork_servers_age_and_idle_ones_end(tmp_path: Path, version: VersionSpec) -> None:
    """EXE-8: nothing runs when nothing is asked."""
    clock = SkippingClock()
    driver = ProcessDriver(tmp_path, ProcessDriverSettings(fork_server_age=3600, fork_server_idle=600), clock)
    try:
        await driver.prepare(version)
        first = await driver._servers.get(version)
        clock.added += 3601
        assert await driver._servers.get(version) is first
        await until(lambda: driver._servers._current.get(version) and not first.alive)
        second = await driver._servers.get(version)
        assert second is not first
        clock.added += 700
        await until(lambda: not second.alive)
        assert not driver._servers._current
    finally:
        await driver.close()


async def test_closing_ends_everything(tmp_path: Path, version: VersionSpec) -> None:
    before = descriptors()
    driver = ProcessDriver(tmp_path)
    started = [await driver.start(make_spec(version)) for number in range(3)]
    await ask(started[0], "daemon", name="left-by-close-test")
    late = asyncio.create_task(driver.start(make_spec(version)))
    await asyncio.sleep(0)
    await driver.close()
    assert {(await one.wait()).reason for one in started} == {"the platform ended"}
    assert not processes("left-by-close-test")
    for result in await asyncio.gather(late, return_exceptions=True):
        if not isinstance(result, BaseException):
            await result.wait()
    assert descriptors() == before
    with pytest.raises(DriverError):
        await driver.start(make_spec(version))


async def test_more_memory_than_allowed(driver: ProcessDriver, make_version: object, version: VersionSpec) -> None:
    """The session ends, and says why; with control groups at once, without within a look of the watch."""
    assert callable(make_version)
    greedy = make_version(main="import time\nheld = []\nwhile True:\n    held.append(bytearray(b'x' * (8 << 20)))\n")
    limits = dataclasses.replace(LIMITS, memory=128 << 20)
    started = await driver.start(make_spec(greedy, limits=limits))
    async with asyncio.timeout(20):
        ended = await started.wait()
    # As an ordinary user without control groups the process itself may meet its own limit first: MemoryError.
    assert (ended.code, "out of memory" in ended.reason) in [(-9, True), (1, False)], ended
    other = await driver.start(make_spec(version))
    assert (await request(other, "GET", "/ping"))[0] == 200


async def test_processes_that_are_too_much_together(
    driver: ProcessDriver, make_version: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without control groups: the watch ends the largest process, as the kernel would, and the agent lives."""
    assert callable(make_version)
    monkeypatch.setattr(Cgroups, "find", lambda: Cgroups({}, frozenset()))
    monkeypatch.setattr(memory_watch, "INTERVAL", 0.05)
    code = """
import subprocess, sys, time
hold = "import time; held = bytearray(80 << 20); held[::4096] = b'x' * (80 << 8); time.sleep(60)"
children = [subprocess.Popen([sys.executable, "-c", hold]) for _ in range(2)]
while all(child.poll() is None for child in children):
    time.sleep(0.01)
print("ended:", *(child.returncode for child in children if child.returncode is not None))
"""
    log = Log()
    limits = dataclasses.replace(LIMITS, memory=128 << 20)
    started = await driver.start(make_spec(make_version(main=code), log=log, limits=limits))
    assert (await started.wait()).code == 0
    assert log.text == "ended: -9\n"


async def test_every_open_file_counts(driver: ProcessDriver, make_version: object) -> None:
    """Limits are the specification's."""
    assert callable(make_version)
    code = "import resource as r\nprint(*(r.getrlimit(k)[0] for k in (r.RLIMIT_NPROC, r.RLIMIT_NOFILE, r.RLIMIT_CORE)))"
    log = Log()
    limits = Limits(memory=256 << 20, processes=33, open_files=77, cpus=0.5, disk=8 << 20)
    await (await driver.start(make_spec(make_version(main=code), log=log, limits=limits))).wait()
    assert log.text == "33 77 0\n"


async def test_connections_are_so_many_and_who_waits_gets_the_next(driver: ProcessDriver, version: VersionSpec) -> None:
    """EXE-6: a wait in vain is told apart from an agent that does not listen."""
    started = await driver.start(make_spec(version))
    held = [await started.connect(60) for _ in range(environment.CONNECTIONS)]
    with pytest.raises(ConnectionsInUse):
        await started.connect(0.05)
    waiting = asyncio.create_task(started.connect(60))
    await asyncio.sleep(0)
    for one in held[:1]:
        one.socket.close()
        one.release()
    held[0] = await waiting
    for one in held:
        one.socket.close()
        one.release()
    await started.stop(0)


async def test_machines_that_cannot_sandbox_are_told_what_to_install(
    driver: ProcessDriver, version: VersionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="apt install bubblewrap"):
        await driver.prepare(version)
    assert any("apt install bubblewrap" in finding.fix for finding in await driver.probe())
    with pytest.raises(SandboxUnavailable, match="apt install bubblewrap"):
        await driver.start(make_spec(version))


async def test_a_sandbox_that_fails_is_an_error_not_a_weaker_sandbox(
    driver: ProcessDriver, version: VersionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that the kernel refuses: the step is named, by the probe with its fix."""
    monkeypatch.setattr(seccomp, "filters", lambda: (b"\xff" * 8,))
    with pytest.raises(SandboxUnavailable, match="failed seccomp"):
        await driver.start(make_spec(version))
    failed = [finding for finding in await driver.probe() if finding.severity == "error"]
    assert [finding.check for finding in failed] == ["the system call filter"], failed
    assert failed[0].fix


async def test_a_dependency_folder_that_is_missing(driver: ProcessDriver, version: VersionSpec, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentStartFailed, match="not there"):
        await driver.prepare(dataclasses.replace(version, dependencies=tmp_path / "nowhere"))


@pytest.mark.parametrize("entry_point", [(), ("../main.py",), ("/bin/sh",), ("a.py", "b.py"), ("a", "b", "c")])
async def test_entry_points_that_make_no_sense(
    driver: ProcessDriver, version: VersionSpec, entry_point: tuple[str, ...]
) -> None:
    with pytest.raises(EnvironmentStartFailed, match="entry point"):
        await driver.prepare(dataclasses.replace(version, entry_point=entry_point))


async def test_images_need_another_driver(driver: ProcessDriver) -> None:
    with pytest.raises(EnvironmentStartFailed, match="docker driver"):
        await driver.prepare(VersionSpec("image", "1", image="agent:latest"))
