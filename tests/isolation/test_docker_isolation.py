"""Sessions in containers: what each plants, no other finds; what lies outside, none reaches."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from attacked_sessions import host_port, leaks  # noqa: F401 -- a fixture
from docker_engine import DockerEngine, docker_engine, remove_rules  # noqa: F401 -- a fixture

from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.environment import DockerEnvironment
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Environment, VersionSpec
from agentkeep.testing.driver import make_spec, request
from agentkeep.verify.bundle import probe_files
from agentkeep.verify.host import own_addresses
from agentkeep.verify.probe.attack import masked

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]

SESSIONS = 20


@pytest.fixture(scope="module")
async def driver(
    docker_engine: DockerEngine,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[DockerDriver]:
    driver = DockerDriver(tmp_path_factory.mktemp("state"), DockerDriverSettings(socket=docker_engine.socket))
    yield driver
    await driver.close()


@pytest.fixture(scope="module")
def version(docker_engine: DockerEngine) -> VersionSpec:  # noqa: F811
    return VersionSpec("isolation", "1", image=docker_engine.image("isolation", probe_files()))


async def ask(environment: Environment, **payload: Any) -> Any:
    status, body = await request(environment, "POST", "/invocations", json.dumps(payload).encode(), timeout=200)
    assert status == 200, body
    return json.loads(body)


async def test_sessions_in_containers_leak_nothing(
    driver: DockerDriver,
    version: VersionSpec,
    host_port: int,  # noqa: F811
    docker_engine: DockerEngine,  # noqa: F811
) -> None:
    """EXE-1, EXE-5: neither the internet, another session, the host's ports, the metadata address nor the Docker
    socket; and the attempts of every sandbox. See agentkeep.verify.probe."""
    neighbours = [await driver.start(make_spec(version, {"TOKEN": "x"})) for _ in range(2)]
    around = {
        "addresses": [one.place.address for one in neighbours],
        "places": [f"{address}:{host_port}" for address in ("169.254.170.2", *own_addresses())],
        "files": [str(docker_engine.socket)],
    }
    beginning = f"secret-{secrets.token_hex(8)}-"
    names = [f"session-{n}-{secrets.token_hex(8)}" for n in range(SESSIONS)]
    tokens = [beginning + secrets.token_hex(16) for _ in names]
    for neighbour in neighbours:  # they listen: what fails to reach them is not their being slow
        assert (await request(neighbour, "GET", "/ping", timeout=90))[0] == 200
    started: list[DockerEnvironment] = []
    planted: list[Any] = []
    try:
        for number, (name, token) in enumerate(zip(names, tokens, strict=True)):
            # Names fail either way; sooner with these options.
            given = {"TOKEN": token, "NAME": name, "RES_OPTIONS": "timeout:1 attempts:1"}
            session = await driver.start(make_spec(version, given))
            started.append(session)
            own = {"name": name, "port": 22000 + number, "key": 0x5C000000 + number, "secret": masked(token)}
            planted.append(await ask(session, do="plant", **own))

        async def attack(number: int) -> Any:
            others = [other for other in range(SESSIONS) if other != number]
            target = {
                "names": [names[other] for other in others],
                "pids": [os.getpid(), docker_engine.daemon.pid],
                "ports": [22000 + other for other in others],
                "keys": [0x5C000000 + other for other in others],
                "secrets": [masked(tokens[other]) for other in others],
                "own": planted[number]["own"],
                **around,
            }
            return await ask(started[number], do="attack", where=["container"], target=target)

        results = await asyncio.gather(*(attack(number) for number in range(SESSIONS)))
    finally:
        await asyncio.gather(*(one.stop(0) for one in (*started, *neighbours)))
    assert leaks(results) == {}
    assert all(len(result) >= 38 for result in results)
    users = {one["uid"] for one in planted}
    assert len(users) == SESSIONS and min(users) >= 0x69000000  # no user of the host's, nor another session's


async def test_a_container_uses_up_only_what_is_its_own(driver: DockerDriver, version: VersionSpec) -> None:
    """EXE-1: processes, disk, descriptors, memory end at the session's limits; it and its neighbour live."""
    greedy = await driver.start(make_spec(version, {"TOKEN": "x"}))
    neighbour = await driver.start(make_spec(version, {"TOKEN": "x"}))
    try:
        results = await ask(greedy, do="use up")
        assert results
        assert dict.fromkeys(results, True) == results
        for session in (greedy, neighbour):
            assert (await request(session, "GET", "/ping"))[0] == 200
    finally:
        await asyncio.gather(greedy.stop(0), neighbour.stop(0))


async def test_without_our_rules_the_hosts_ports_are_open(
    driver: DockerDriver,
    version: VersionSpec,
    host_port: int,  # noqa: F811
) -> None:
    """Else failing to reach them would prove nothing about the rules."""
    session = await driver.start(make_spec(version, {"TOKEN": "x"}))
    name, target = "ports_of_the_host", {"places": [f"169.254.170.2:{host_port}"]}
    try:
        refused = await ask(session, do="attack", where=["container"], target=target, only=[name])
        assert refused[name]["outcome"][0] == "failed"
        remove_rules()
        reached = await ask(session, do="attack", where=["container"], target=target, only=[name])
        assert reached[name]["outcome"][0] == "succeeded"
    finally:
        await session.stop(0)
