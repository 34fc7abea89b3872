"""Several replicas of the runtime plane on one machine: the docker driver's part of it, in an engine of the tests' own.

The replicas and the session edge are in a network namespace beside the sessions', as their containers are in the
compose deployment: with the addresses they have there, under the rules of the firewall service.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from docker_engine import DockerEngine, docker_engine, remove_rules  # noqa: F401 -- a fixture

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.engine import Engine
from agentkeep.runtime.drivers.docker.network import BRIDGE, HOST, NETWORK, REPLICAS, SUBNET
from agentkeep.runtime.drivers.docker.session_edge import SessionEdge
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.testing.driver import AGENT, READY, Log, ask, make_spec, request

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]

NAMESPACE = "agentkeep-replicas"
LINK = "akreplicas"
CLONE_NEWNET = 0x40000000
CONNECTS = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 8080), timeout=1)
except OSError as error:
    print(type(error).__name__)
else:
    print("connected")
"""


def run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}: {ran.stderr}"


@contextlib.contextmanager
def beside_sessions() -> Iterator[None]:
    """This thread, in a namespace whose one link is at the sessions' bridge."""
    run("ip", "netns", "add", NAMESPACE)
    try:
        run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        run("ip", "link", "set", LINK, "master", BRIDGE, "up")
        inside = ("ip", "-n", NAMESPACE)
        for address in (next(REPLICAS.hosts()), "169.254.170.2"):
            run(*inside, "address", "add", f"{address}/{SUBNET.prefixlen}", "dev", "eth0")
        for link in ("lo", "eth0"):
            run(*inside, "link", "set", link, "up")
        with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{NAMESPACE}") as there:
            enter(there.fileno())
            try:
                yield
            finally:
                enter(here.fileno())
    finally:
        run("ip", "netns", "delete", NAMESPACE)


def enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Machine:
    """One on which replicas run."""

    def __init__(self, engine: DockerEngine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.sessions = folder / "sessions"
        self.report = folder / "report"
        self.version = VersionSpec("replicas", "1", image=engine.image("contract", {AGENT.name: AGENT.read_bytes()}))
        self.image = engine.image("reach", {"main.py": b""})  # any with python3: the driver says what it runs
        self.open: list[DockerDriver] = []

    def replica(self, name: str) -> DockerDriver:
        settings = DockerDriverSettings(
            socket=self.engine.socket,
            platform="container",
            sessions_folder=self.sessions,
            firewall_report=self.report,
            probe_image=self.image,
        )
        driver = DockerDriver(self.folder / name, settings, replica=name)
        self.open.append(driver)
        return driver

    def containers(self) -> set[str]:
        return set(self.engine.docker("ps", "-a", "--format", "{{.Names}}").split())


@pytest.fixture
async def machine(docker_engine: DockerEngine) -> AsyncIterator[Machine]:  # noqa: F811
    with TemporaryDirectory(prefix="ak") as name:  # a Unix socket's path is short
        machine = Machine(docker_engine, Path(name))
        machine.sessions.mkdir()
        environment = {**os.environ, "AGENTKEEP_RUNTIME_DOCKER_FIREWALL_REPORT": str(machine.report)}
        firewall = subprocess.Popen(
            [sys.executable, "-m", "agentkeep.runtime.drivers.docker.firewall_service"],
            env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not machine.report.exists():
                assert firewall.poll() is None
                await asyncio.sleep(0.05)
            docker_engine.docker(
                "network", "create", "--internal", "--label", "agentkeep=sessions",
                "--subnet", str(SUBNET), "--gateway", HOST, "--ip-range", str(REPLICAS),
                "-o", f"com.docker.network.bridge.name={BRIDGE}", "-o", "com.docker.network.bridge.enable_icc=false",
                "-o", "com.docker.network.bridge.enable_ip_masquerade=false", NETWORK,
            )  # fmt: skip
            with beside_sessions():
                edge = asyncio.create_task(SessionEdge(machine.sessions).serve())
                yield machine
                for driver in machine.open:
                    await driver.close()
                edge.cancel()
                await asyncio.wait([edge])
        finally:
            if left := docker_engine.docker("ps", "-aq").split():
                docker_engine.docker("rm", "-f", *left)
            docker_engine.docker("network", "rm", NETWORK)
            firewall.terminate()
            firewall.wait(30)
            remove_rules()
        assert not left


async def test_each_session_has_its_own_endpoint_whichever_replica_made_it(machine: Machine) -> None:
    """EXE-1, EXE-5: two replicas that start at once, and their sessions, which all ask the same address."""
    replicas = [machine.replica(name) for name in ("first", "second")]
    await asyncio.gather(*(replica.ready() for replica in replicas))
    specs = {f"endpoint of {number}": replicas[number % 2] for number in range(6)}
    started = await asyncio.gather(
        *(replica.start(make_spec(machine.version, endpoint=answer)) for answer, replica in specs.items())
    )
    assert len({one.place.address for one in started}) == len(started)
    answers = await asyncio.gather(*(ask(one, "endpoint", path="/") for one in started))
    assert answers == list(specs)
    assert [await replica.adopt() for replica in replicas] == [[], []]  # nothing of the other's is touched
    assert await asyncio.gather(*(ask(one, "endpoint", path="/") for one in started)) == answers
    await asyncio.gather(*(one.stop(0) for one in started))


async def test_a_dead_replicas_containers_go_on_with_a_survivor(machine: Machine) -> None:
    """EXE-6: the same process, with its endpoint and its log; what did not run is removed. Then the survivor dies, too,
    and a third has the session though the first made it."""
    first, second, third = (machine.replica(name) for name in ("first", "second", "third"))
    kept = await first.start(make_spec(machine.version, endpoint="first"))
    others = await second.start(make_spec(machine.version, endpoint="second's own"))
    assert await ask(kept, "endpoint", path="/") == "first"
    place = await ask(kept, "place")
    assert await second.take_over("first") == []  # it lives
    engine = Engine(machine.engine.socket)
    stopped = await first.start(make_spec(machine.version))
    await first.close()
    await engine.kill(stopped.id, "SIGKILL")  # ended while nobody was there
    await engine.close()
    again = machine.replica("first")
    (found,) = await second.take_over("first")
    assert found.id == kept.id
    assert await again.adopt() == []  # too late: it is another's
    assert machine.containers() == {kept.id, others.id}
    log = Log()
    await found.resume(make_spec(machine.version, endpoint="second").endpoint, log)
    assert await ask(found, "endpoint", path="/") == "second"
    assert await ask(found, "place") == place
    await ask(found, "write", text="still here\n")
    await log.shows("still here\n")
    fresh = await second.start(make_spec(machine.version, endpoint="fresh"))
    assert fresh.place.address not in (kept.place.address, others.place.address)
    await second.close()
    assert await third.take_over("first") == []
    taken = {one.id: one for one in await third.take_over("second")}
    assert taken.keys() == {kept.id, others.id, fresh.id}
    await taken[kept.id].resume(make_spec(machine.version, endpoint="third").endpoint, log)
    assert await ask(taken[kept.id], "endpoint", path="/") == "third"
    await asyncio.gather(*(one.stop(0) for one in taken.values()))
    assert machine.containers() == set()


async def test_a_replica_finds_its_own_again(machine: Machine) -> None:
    """EXE-6: after a restart, while another serves; also if what it shared with that is lost."""
    before, other = machine.replica("first"), machine.replica("other")
    kept = await before.start(make_spec(machine.version))
    await other.start(make_spec(machine.version))
    for path in machine.sessions.glob("169.254.*"):
        path.unlink()
    await before.close()
    after = machine.replica("first")
    (found,) = await after.adopt()
    assert found.id == kept.id
    await found.resume(make_spec(machine.version, endpoint="after").endpoint, lambda _: None)
    assert await ask(found, "endpoint", path="/") == "after"
    await asyncio.gather(*(one.stop(0) for driver in (after, other) for one in driver.environments))


async def test_sessions_reach_the_edge_and_nothing_else(machine: Machine) -> None:
    """EXE-5: neither the replica's own ports, nor another session's."""
    replica = machine.replica("first")
    one, another = [await replica.start(make_spec(machine.version, endpoint="here")) for _ in range(2)]
    assert (await request(another, "GET", "/ping", timeout=READY))[0] == 200
    assert await ask(one, "endpoint", path="/") == "here"
    server = await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", 8080)
    try:
        for address in (next(REPLICAS.hosts()), "169.254.170.2", HOST, another.place.address):
            tried = machine.engine.docker("exec", one.id, "python3", "-c", CONNECTS, str(address))
            assert tried == "TimeoutError", address
    finally:
        server.close()
    await asyncio.gather(one.stop(0), another.stop(0))


async def test_without_the_edge_no_session_starts(machine: Machine) -> None:
    """Fail closed, with what to do."""
    replica = machine.replica("first")
    await replica.ready()
    edge = next(task for task in asyncio.all_tasks() if "SessionEdge.serve" in repr(task.get_coro()))
    edge.cancel()
    await asyncio.wait([edge])
    with pytest.raises(SandboxUnavailable, match="docker compose up -d session-edge"):
        await replica.start(make_spec(machine.version))
