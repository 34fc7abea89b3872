"""What every driver must do. Subclass in a test module that gives two fixtures:

- `driver`: an open driver (of any scope; it is closed by whoever opened it);
- `version`: a version whose agent is `contract_agent.py` of this package, port 8080.

class TestMyDriver(DriverContract): ...

A driver that is slow says how slow, in `timing`; one whose calls may be turned away (DriverThrottled) is tested as
the platform runs it, in a `PatientDriver`. What becomes of environments when their platform or their host ends, and of
those that nobody has claimed yet, is in `driver_life.py`; commands are in `driver_commands.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.drivers.driver import Driver, Environment, EnvironmentSpec, Limits, Severity, VersionSpec

__all__ = [
    "AGENT",
    "Answer",
    "DriverContract",
    "Log",
    "Timing",
    "ask",
    "make_spec",
    "processes",
    "request",
]

AGENT = Path(__file__).with_name("contract_agent.py")
READY = 30.0  # seconds an agent may take to listen, on a loaded machine
LIMITS = Limits(memory=512 << 20, processes=64, open_files=512, cpus=2, disk=64 << 20)


@dataclass(frozen=True, slots=True)
class Timing:
    """What a driver is given, on a loaded machine. Seconds."""

    ready: float = READY  # for a new environment, until its agent listens
    lag: float = 0.0  # an agent may have run for so long when `start` returns
    notice: float = 5.0  # until what happened inside is known outside
    grace: float = 10.0  # for an agent that ends when it is asked


class Log:
    """Collects what an agent writes."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def __call__(self, piece: bytes) -> None:
        self.pieces.append(piece)

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode(errors="replace")

    async def shows(self, text: str, patience: float = 5.0) -> None:
        deadline = time.monotonic() + patience
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.text!r}"
            await asyncio.sleep(0.01)


class Answer(asyncio.Protocol):
    """A session endpoint that answers every request with one text."""

    def __init__(self, text: str = "") -> None:
        self._text = text.encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self._text)}\r\nConnection: close\r\n\r\n"
        self._transport.write(head.encode() + self._text)
        self._transport.close()


def make_spec(
    version: VersionSpec,
    environment: Mapping[str, str] | None = None,
    *,
    log: Callable[[bytes], None] = lambda _: None,
    endpoint: str = "",
    limits: Limits = LIMITS,
) -> EnvironmentSpec:
    return EnvironmentSpec(
        version=version,
        environment=environment or {},
        endpoint=lambda: Answer(endpoint),
        log=log,
        limits=limits,
    )


async def request(
    environment: Environment, method: str, path: str, body: bytes = b"", *, timeout: float = READY
) -> tuple[int, bytes]:
    """One HTTP request on a connection of its own. Reads by Content-Length: a daemon of the agent's may hold the
    connection open."""
    connection = await environment.connect(timeout)
    reader, writer = await asyncio.open_connection(sock=connection.socket)
    try:
        async with asyncio.timeout(timeout):
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:"))
            return int(head.split()[1]), await reader.readexactly(length)
    finally:
        writer.transport.abort()
        connection.release()


async def ask(environment: Environment, do: str, **arguments: Any) -> Any:
    """Has the contract's agent do something."""
    status, body = await request(environment, "POST", "/invocations", json.dumps({"do": do, **arguments}).encode())
    assert status == 200, body
    return json.loads(body)


def processes(marker: str) -> list[str]:
    """Command lines of this machine's processes that contain the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(line)
    return found


class DriverContract:
    timing = Timing()

    async def test_probe_finds_nothing_in_the_way(self, driver: Driver) -> None:
        findings = await driver.probe()
        assert findings
        wrong = [finding for finding in findings if finding.severity is Severity.ERROR]
        assert not wrong
        for finding in findings:
            assert finding.check
            assert finding.detail
            assert finding.fix or finding.severity is Severity.OK

    async def test_an_agent_serves_until_it_is_stopped(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-1, EXE-2: an environment of its own, an unmodified agent, gone afterwards."""
        await driver.prepare(version)
        environment = await driver.start(make_spec(version))
        try:
            assert environment.id
            assert await request(environment, "GET", "/ping") == (200, b'{"status": "Healthy"}')
        finally:
            ended = await environment.stop(0)
        assert await environment.wait() == ended
        with pytest.raises(EnvironmentStartFailed):
            await environment.connect(5)

    async def test_a_script_runs_as_main(self, driver: Driver, version: VersionSpec) -> None:
        environment = await driver.start(make_spec(version))
        try:
            place = await ask(environment, "place")
            assert place["name"] == "__main__"
            assert place["argv"][0].endswith("contract_agent.py")
            assert len(place["argv"]) == 1
            assert place["path"][0] == place["cwd"]
        finally:
            await environment.stop(0)

    @pytest.mark.parametrize("scenario", ["everywhere", "thread"])
    async def test_agents_listen_in_their_own_ways(self, driver: Driver, version: VersionSpec, scenario: str) -> None:
        """On all addresses; from a thread that outlives the main script."""
        environment = await driver.start(make_spec(version, environment={"SCENARIO": scenario}))
        try:
            assert (await request(environment, "GET", "/ping"))[0] == 200
        finally:
            await environment.stop(0)

    async def test_connect_waits_for_a_slow_agent(self, driver: Driver, version: VersionSpec) -> None:
        slow = {"SCENARIO": "slow", "SLOW_SECONDS": str(self.timing.lag + 0.7)}
        environment = await driver.start(make_spec(version, environment=slow))
        try:
            with pytest.raises(TimeoutError):
                await environment.connect(0.2)
            assert (await request(environment, "GET", "/ping"))[0] == 200
        finally:
            await environment.stop(0)

    async def test_an_agent_that_never_listens_is_a_timeout(self, driver: Driver, version: VersionSpec) -> None:
        environment = await driver.start(make_spec(version, environment={"SCENARIO": "silent"}))
        try:
            with pytest.raises(TimeoutError, match="8080"):
                await environment.connect(0.3)
        finally:
            await environment.stop(0)

    async def test_an_import_error_is_told_with_its_traceback(self, driver: Driver, version: VersionSpec) -> None:
        log = Log()
        environment = await driver.start(make_spec(version, environment={"SCENARIO": "import error"}, log=log))
        with pytest.raises(EnvironmentStartFailed) as failed:
            await environment.connect(self.timing.ready)
        ended = await environment.wait()
        assert ended.code == 1
        assert "1" in ended.reason
        assert "agentkeep_no_such_module" in failed.value.logs
        assert "Traceback" in log.text
        assert "contract_agent.py" in log.text

    async def test_an_entry_point_that_is_missing_is_told_before(self, driver: Driver, version: VersionSpec) -> None:
        missing = dataclasses.replace(version, runtime_id="missing", entry_point=("no_such.py",))
        with pytest.raises(EnvironmentStartFailed, match=r"no_such\.py"):
            await driver.prepare(missing)
        with pytest.raises(EnvironmentStartFailed, match=r"no_such\.py"):
            await driver.start(make_spec(missing))

    async def test_an_agent_that_leaves_by_itself(self, driver: Driver, version: VersionSpec) -> None:
        log = Log()
        environment = await driver.start(make_spec(version, environment={"SCENARIO": "exit"}, log=log))
        ended = await environment.wait()
        assert ended.code == 3
        assert log.text.endswith("leaving\nwithout a last newline")
        assert await environment.stop(5) == ended

    async def test_a_crash_ends_one_session_only(self, driver: Driver, version: VersionSpec) -> None:
        broken, other = await asyncio.gather(driver.start(make_spec(version)), driver.start(make_spec(version)))
        try:
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await ask(broken, "segfault")
            ended = await broken.wait()
            assert ended.code == -11
            assert "SIGSEGV" in ended.reason
            assert (await request(other, "GET", "/ping"))[0] == 200
        finally:
            await asyncio.gather(broken.stop(0), other.stop(0))

    async def test_the_log_gets_both_streams_in_whole_lines(self, driver: Driver, version: VersionSpec) -> None:
        log = Log()
        environment = await driver.start(make_spec(version, log=log))
        try:
            await ask(environment, "write", text="half a ")
            await ask(environment, "write", text="line\n")
            await ask(environment, "write", text="größer\n" * 20_000)
            await ask(environment, "write", text="an error\n", error=True)
            await log.shows("an error\n", self.timing.notice)
        finally:
            await environment.stop(0)
        assert "half a line\n" in log.text
        assert log.text.count("größer\n") == 20_000
        assert all(piece.endswith(b"\n") for piece in log.pieces)

    async def test_an_agent_is_asked_before_it_is_killed(self, driver: Driver, version: VersionSpec) -> None:
        log = Log()
        environment = await driver.start(make_spec(version, environment={"SCENARIO": "polite"}, log=log))
        assert (await request(environment, "GET", "/ping"))[0] == 200
        ended = await environment.stop(self.timing.grace)
        assert ended.code == 0
        assert "goodbye\n" in log.text

    async def test_an_agent_that_will_not_go_is_killed(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-3: a stuck session is ended."""
        log = Log()
        environment = await driver.start(make_spec(version, environment={"SCENARIO": "deaf"}, log=log))
        assert (await request(environment, "GET", "/ping"))[0] == 200
        ended = await environment.stop(0.3)
        assert ended.code in (-9, 137)
        assert "no\n" in log.text

    async def test_stopping_twice_and_from_many_places(self, driver: Driver, version: VersionSpec) -> None:
        environment = await driver.start(make_spec(version))
        ends = await asyncio.gather(*(environment.stop(grace) for grace in (5, 0.2, 0)), environment.wait())
        assert len(set(ends)) == 1
        assert await environment.stop(0) == ends[0]

    async def test_nothing_an_agent_forked_survives(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-3: nothing it held survives."""
        environment = await driver.start(make_spec(version))
        name = f"daemon-{environment.id}"
        await ask(environment, "daemon", name=name)
        assert processes(name)
        await environment.stop(0)
        assert not processes(name)

    async def test_the_environment_is_what_was_given(self, driver: Driver, version: VersionSpec) -> None:
        given = {"GREETING": "grüß dich", "LARGE": "x" * 100_000, "EMPTY": ""}
        environment = await driver.start(make_spec(version, environment=given))
        try:
            seen = await ask(environment, "environment")
        finally:
            await environment.stop(0)
        assert {name: seen[name] for name in given} == given

    async def test_the_session_endpoint_knows_its_session(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-1: one address for all agents, and each reaches only its own."""
        started = [await driver.start(make_spec(version, endpoint=f"for {name}")) for name in ("a", "b")]
        try:
            answers = await asyncio.gather(*(ask(one, "endpoint", path="/whoami") for one in started))
        finally:
            await asyncio.gather(*(one.stop(0) for one in started))
        assert answers == ["for a", "for b"]

    async def test_many_connections(self, driver: Driver, version: VersionSpec) -> None:
        """More, at once and one after the other, than a driver may keep sockets for."""
        environment = await driver.start(make_spec(version))
        try:
            for _ in range(5):
                answers = await asyncio.gather(*(request(environment, "GET", "/ping") for _ in range(50)))
                assert {status for status, _ in answers} == {200}
        finally:
            await environment.stop(0)

    async def test_twenty_starts_at_once(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-1: each with its own environment."""
        names = [f"session-{number}" for number in range(20)]
        started = await asyncio.gather(
            *(driver.start(make_spec(version, {"NAME": name}, endpoint=name)) for name in names)
        )
        try:
            seen = await asyncio.gather(*(ask(one, "environment") for one in started))
            assert [one["NAME"] for one in seen] == names
            assert await asyncio.gather(*(ask(one, "endpoint", path="/") for one in started)) == names
            assert len({one.id for one in started}) == 20
        finally:
            await asyncio.gather(*(one.stop(0) for one in started))

    async def test_a_retired_version_lets_its_sessions_finish(self, driver: Driver, version: VersionSpec) -> None:
        """EXE-4: running sessions go on; a version may come back."""
        environment = await driver.start(make_spec(version))
        try:
            await driver.retire(version.runtime_id, version.version)
            assert (await request(environment, "GET", "/ping"))[0] == 200
        finally:
            await environment.stop(0)
        again = await driver.start(make_spec(version))
        try:
            assert (await request(again, "GET", "/ping"))[0] == 200
        finally:
            await again.stop(0)

    async def test_adopting_finds_living_environments_only(self, driver: Driver) -> None:
        for environment in await driver.adopt():
            await environment.stop(0)
