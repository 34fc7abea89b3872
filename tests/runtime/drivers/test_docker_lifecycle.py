"""The docker driver beyond the contract: containers that outlive it, images that stay what they were, limits, rules."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from docker_engine import DockerEngine, docker_engine, remove_rules  # noqa: F401 -- a fixture

from agentkeep.core.errors import CapacityReached, EnvironmentStartFailed, SandboxUnavailable
from agentkeep.runtime.drivers.docker.addresses import Found, OwnAddresses
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.firewall import is_in_force
from agentkeep.runtime.drivers.docker.network import NETWORK, check_bridge_filtering
from agentkeep.runtime.drivers.docker.output import Output
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Severity, VersionSpec
from agentkeep.testing.driver import AGENT, LIMITS, Answer, Log, ask, make_spec, request

needs_engine = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]


class Engine:
    """What the tests below share: the engine, a place for drivers' state, the agent's version."""

    def __init__(self, engine: DockerEngine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        image = engine.image("contract", {AGENT.name: AGENT.read_bytes()})
        self.version = VersionSpec("lifecycle", "1", image=image)
        self.open: list[DockerDriver] = []

    def driver(self, name: str = "state", **settings: Any) -> DockerDriver:
        driver = DockerDriver(self.folder / name, DockerDriverSettings(socket=self.engine.socket, **settings))
        self.open.append(driver)
        return driver

    def inspect(self, name: str) -> Any:
        return json.loads(self.engine.docker("inspect", name))[0]


@pytest.fixture
async def around(docker_engine: DockerEngine, tmp_path: Path) -> AsyncIterator[Engine]:  # noqa: F811
    around = Engine(docker_engine, tmp_path)
    yield around
    for driver in around.open:
        await driver.close()
    assert docker_engine.docker("ps", "-aq") == ""


class TestWithAnEngine:
    pytestmark = needs_engine

    async def test_a_container_outlives_the_platform_and_is_found_again(self, around: Engine) -> None:
        """EXE-6: the session endpoint and the log come back with it."""
        before = around.driver()
        kept = await before.start(make_spec(around.version, endpoint="before"))
        assert await ask(kept, "endpoint", path="/") == "before"
        place = await ask(kept, "place")
        await before.close()
        after = around.driver()
        (found,) = await after.adopt()
        assert found.id == kept.id
        log = Log()
        await found.resume(lambda: Answer("after"), log)
        assert await ask(found, "endpoint", path="/") == "after"
        assert await ask(found, "place") == place  # the same process
        await ask(found, "write", text="still here\n")
        await log.shows("still here\n")
        other = await after.start(make_spec(around.version, endpoint="other's"))
        assert other.place.address != found.place.address
        assert await ask(other, "endpoint", path="/") == "other's"
        assert await after.adopt() == []
        await asyncio.gather(found.stop(0), other.stop(0))

    async def test_another_platforms_containers_are_removed(self, around: Engine) -> None:
        """There is one session endpoint on a machine: whoever has it, the others are gone."""
        lost = await around.driver("first").start(make_spec(around.version))
        await around.open[0].close()
        second = around.driver("second")
        assert await second.adopt() == []
        assert lost.id not in around.engine.docker("ps", "-a", "--format", "{{.Names}}")

    async def test_two_platforms_at_once_are_refused(self, around: Engine) -> None:
        await around.driver("first").adopt()
        with pytest.raises(SandboxUnavailable, match=r"169\.254\.170\.2:80 .*only one"):
            await around.driver("second").adopt()

    async def test_what_a_container_is_given(self, around: Engine) -> None:
        """EXE-5: sealed as `container.py` says, seen from the engine."""
        environment = await around.driver().start(make_spec(around.version))
        try:
            made = around.inspect(environment.id)
            host = made["HostConfig"]
            assert host["ReadonlyRootfs"] and not host["Privileged"] and not host["Binds"] and not made["Mounts"]
            assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
            assert "no-new-privileges" in host["SecurityOpt"]
            assert any(option.startswith("seccomp={") for option in host["SecurityOpt"])
            assert (host["Memory"], host["MemorySwap"]) == (LIMITS.memory, LIMITS.memory)
            assert (host["PidsLimit"], host["NanoCpus"]) == (LIMITS.processes, 2_000_000_000)
            assert list(made["NetworkSettings"]["Networks"]) == [NETWORK]
            assert not host["PortBindings"]
            user, _, group = made["Config"]["User"].partition(":")
            assert user == group and int(user) > 100_000
            status = Path(f"/proc/{made['State']['Pid']}/status").read_text()
            assert f"Uid:\t{user}\t{user}\t{user}\t{user}" in status
            assert "CapBnd:\t0000000000000000" in status and "Seccomp:\t2" in status
        finally:
            await environment.stop(0)

    async def test_an_image_that_names_a_user_keeps_it(self, around: Engine) -> None:
        image = around.engine.image("contract-user", {AGENT.name: AGENT.read_bytes()}, user="agent")
        named = dataclasses.replace(around.version, runtime_id="named", image=image)
        environment = await around.driver().start(make_spec(named))
        try:
            assert around.inspect(environment.id)["Config"]["User"] == "agent"
            assert (await request(environment, "GET", "/ping"))[0] == 200
        finally:
            await environment.stop(0)

    async def test_root_is_the_operators_choice(self, around: Engine) -> None:
        environment = await around.driver(image_root=True).start(make_spec(around.version))
        try:
            assert around.inspect(environment.id)["Config"]["User"] == ""
            assert (
                "CapEff:\t0000000000000000"
                in Path(f"/proc/{around.inspect(environment.id)['State']['Pid']}/status").read_text()
            )
        finally:
            await environment.stop(0)

    async def test_a_version_keeps_its_image_when_the_tag_moves(self, around: Engine) -> None:
        """EXE-4: a version is what it was, until it is retired."""
        tag = "agentkeep-test/moving:1"
        around.engine.docker("tag", around.version.image or "", tag)
        moving = dataclasses.replace(around.version, runtime_id="moving", image=tag)
        await around.driver("a").prepare(moving)
        await around.open[0].close()
        other = around.engine.image("contract-other", {AGENT.name: AGENT.read_bytes() + b"# other\n"})
        around.engine.docker("tag", other, tag)
        driver = around.driver("b")
        before = await driver.start(make_spec(moving))
        first = around.inspect(before.id)["Image"]
        await before.stop(0)
        await driver.retire("moving", "1")
        after = await driver.start(make_spec(moving))
        second = around.inspect(after.id)["Image"]
        await after.stop(0)
        assert first == around.inspect(around.version.image or "")["Id"]
        assert second == around.inspect(other)["Id"]

    async def test_running_out_of_memory_is_told(self, around: Engine) -> None:
        """EXE-3"""
        code = b"import os\nheld = []\nwhile True:\n    held.append(os.urandom(1 << 20))\n"
        image = around.engine.image("greedy", {"main.py": code})
        version = dataclasses.replace(around.version, runtime_id="greedy", image=image)
        limits = dataclasses.replace(LIMITS, memory=64 << 20)
        environment = await around.driver().start(make_spec(version, limits=limits))
        ended = await environment.wait()
        assert ended.code == -9
        assert ended.reason == "out of memory: its limit is 64 MiB"

    async def test_a_container_that_somebody_removes_is_gone(self, around: Engine) -> None:
        environment = await around.driver().start(make_spec(around.version))
        around.engine.docker("rm", "-f", environment.id)
        await environment.wait()
        with pytest.raises(EnvironmentStartFailed, match="gone"):
            await environment.connect(5)

    async def test_rules_that_another_program_removed_come_back(self, around: Engine) -> None:
        """EXE-5: before the next session starts."""
        driver = around.driver()
        await driver.adopt()
        listing = lambda: subprocess.run(["iptables", "-S"], capture_output=True, text=True).stdout  # noqa: E731
        assert is_in_force(listing())
        remove_rules()
        assert not is_in_force(listing())
        subprocess.run(["iptables", "-I", "INPUT", "1", "-p", "udp", "--dport", "65001", "-j", "ACCEPT"], check=True)
        try:
            environment = await driver.start(make_spec(around.version))
            await environment.stop(0)
            assert is_in_force(listing())
        finally:
            subprocess.run(["iptables", "-D", "INPUT", "-p", "udp", "--dport", "65001", "-j", "ACCEPT"], check=True)

    async def test_a_network_that_was_pruned_comes_back(self, around: Engine) -> None:
        driver = around.driver()
        await driver.adopt()
        around.engine.docker("network", "rm", NETWORK)
        environment = await driver.start(make_spec(around.version, endpoint="here"))
        try:
            assert await ask(environment, "endpoint", path="/") == "here"
        finally:
            await environment.stop(0)

    async def test_an_oci_runtime_the_engine_lacks(self, around: Engine) -> None:
        driver = around.driver(oci_runtime="no-such-runtime")
        with pytest.raises(EnvironmentStartFailed, match="no-such-runtime"):
            await driver.start(make_spec(around.version))
        assert driver.environments == []
        findings = await driver.probe()
        assert [finding.check for finding in findings if finding.severity is Severity.ERROR] == ["a container"]

    async def test_a_start_that_is_cancelled_leaves_nothing(self, around: Engine) -> None:
        driver = around.driver()
        await driver.prepare(around.version)
        for delay in (0.0, 0.05, 0.2):
            starting = asyncio.create_task(driver.start(make_spec(around.version)))
            await asyncio.sleep(delay)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        assert around.engine.docker("ps", "-aq") == ""

    async def test_a_network_made_otherwise_is_refused(self, around: Engine) -> None:
        networks = around.engine.docker("network", "ls", "--format", "{{.Name}}").split()
        if NETWORK in networks:
            around.engine.docker("network", "rm", NETWORK)
        around.engine.docker("network", "create", NETWORK)
        try:
            with pytest.raises(SandboxUnavailable, match=f"docker network rm {NETWORK}"):
                await around.driver().adopt()
        finally:
            around.engine.docker("network", "rm", NETWORK)


async def test_without_an_engine_it_says_what_to_do(tmp_path: Path) -> None:
    driver = DockerDriver(tmp_path, DockerDriverSettings(socket=tmp_path / "none.sock"))
    with pytest.raises(SandboxUnavailable, match="AGENTKEEP_RUNTIME_DOCKER_SOCKET"):
        await driver.adopt()
    (finding,) = await driver.probe()
    assert finding.severity is Severity.ERROR and "start the engine" in finding.fix
    await driver.close()


def test_a_kernel_that_does_not_filter_bridges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="modprobe br_netfilter"):
        check_bridge_filtering(tmp_path / "missing")
    (tmp_path / "off").write_text("0\n")
    with pytest.raises(SandboxUnavailable):
        check_bridge_filtering(tmp_path / "off")


async def test_addresses_are_never_shared_and_used_again_late() -> None:
    addresses = OwnAddresses()
    taken = [await addresses.take() for _ in range(497)]
    assert len(set(taken)) == 497
    assert not {"169.254.170.2", "169.254.170.23", "169.254.171.240", "169.254.171.254"} & set(taken)
    with pytest.raises(CapacityReached, match="497 sessions are active"):
        await addresses.take()
    await addresses.give_back(taken[7])
    await addresses.give_back(taken[3])
    assert await addresses.take() == taken[7]
    assert await addresses.claim(taken[7], "me", "me") is Found.NOBODYS
    assert await addresses.claim(taken[3], "another", "me") is Found.NOBODYS
    assert await addresses.claim(taken[3], "me", "me") is Found.OURS


@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_output_is_put_together_whatever_the_pieces(piece: int) -> None:
    log, reader = Log(), asyncio.StreamReader()
    output = Output(log)
    frames = [(1, b"half "), (2, b"an error\n"), (1, b"a line\nand "), (1, b"the rest")]
    stream = b"".join(bytes([number, 0, 0, 0]) + len(text).to_bytes(4, "big") + text for number, text in frames)
    for at in range(0, len(stream), piece):
        reader.feed_data(stream[at : at + piece])
    reader.feed_eof()
    await output.follow(reader)
    assert log.pieces == [b"an error\n", b"half a line\n", b"and the rest"]
    assert output.tail.endswith(b"the rest")
