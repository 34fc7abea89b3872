"""Where the platform is a container beside its sessions: the firewall service, its report, and who believes it. The
whole, with sessions: tests/e2e/test_compose.py."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from docker_engine import DockerEngine, docker_engine, remove_rules  # noqa: F401 -- a fixture

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.firewall import PLATFORM_IN_CONTAINER, PLATFORM_ON_HOST, Firewall, is_in_force
from agentkeep.runtime.drivers.docker.firewall_service import keep
from agentkeep.runtime.drivers.docker.isolation import STALE, read_report, write_report
from agentkeep.runtime.drivers.docker.network import BRIDGE, HOST, NETWORK, REPLICAS, SUBNET
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings

needs_engine = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]


def listing() -> str:
    return subprocess.run(["iptables", "-S"], capture_output=True, text=True, check=True).stdout


async def until(report: Path, holds: str) -> None:
    async with asyncio.timeout(20):
        while not report.exists() or (json.loads(report.read_text())["problem"] or "in force") != holds:
            await asyncio.sleep(0.05)


class TestWithAnEngine:
    pytestmark = needs_engine

    @pytest.fixture
    async def report(self, docker_engine: DockerEngine, tmp_path: Path) -> AsyncIterator[Path]:  # noqa: F811
        report = tmp_path / "report"
        keeping = asyncio.create_task(keep(report))
        await until(report, "in force")
        yield report
        keeping.cancel()
        await asyncio.wait([keeping])
        remove_rules()

    async def test_the_firewall_service_keeps_the_rules(self, report: Path) -> None:
        """They are there before any network is; taken away, they come back before the report would be stale."""
        assert is_in_force(listing(), PLATFORM_IN_CONTAINER)
        for removal in (
            remove_rules,
            lambda: subprocess.run(["iptables", "-I", "DOCKER-USER", "1", "-i", BRIDGE, "-j", "ACCEPT"], check=True),
        ):
            removal()
            assert not is_in_force(listing(), PLATFORM_IN_CONTAINER)
            began = time.monotonic()
            while not is_in_force(listing(), PLATFORM_IN_CONTAINER):
                assert time.monotonic() - began < STALE
                await asyncio.sleep(0.05)
        read_report(report)

    async def test_one_form_replaces_the_other(self, report: Path) -> None:
        """The same machine may have been an embedded platform's, and may be again."""
        await Firewall(PLATFORM_ON_HOST).ensure()
        assert is_in_force(listing(), PLATFORM_ON_HOST)
        await Firewall(PLATFORM_IN_CONTAINER).ensure()
        assert is_in_force(listing(), PLATFORM_IN_CONTAINER)

    async def test_the_driver_wants_network_report_and_reach(
        self,
        report: Path,
        docker_engine: DockerEngine,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        """Each by itself stops it, with what to do. Here no session edge is, so nothing is reached."""
        settings = DockerDriverSettings(
            socket=docker_engine.socket,
            platform="container",
            firewall_report=report,
            probe_image="no-such:1",
            sessions_folder=tmp_path,
        )
        driver = DockerDriver(tmp_path / "state", settings)
        with pytest.raises(SandboxUnavailable, match="docker compose up"):
            await driver.ready()
        docker_engine.docker(
            "network", "create", "--internal", "--label", "agentkeep=sessions",
            "--subnet", str(SUBNET), "--gateway", HOST, "--ip-range", str(REPLICAS),
            "-o", f"com.docker.network.bridge.name={BRIDGE}", "-o", "com.docker.network.bridge.enable_icc=false",
            "-o", "com.docker.network.bridge.enable_ip_masquerade=false", NETWORK,
        )  # fmt: skip
        try:
            with pytest.raises(SandboxUnavailable, match=r"169\.254\.170\.2:80"):
                await driver.ready()
            settings.firewall_report.unlink()
            with pytest.raises(SandboxUnavailable, match=r"reported nothing|169\.254\.170\.2:80"):
                await driver.ready()
        finally:
            await driver.close()
            docker_engine.docker("network", "rm", NETWORK)


def test_a_report_counts_only_while_it_is_fresh_and_good(tmp_path: Path) -> None:
    report = tmp_path / "report"
    with pytest.raises(SandboxUnavailable, match="docker compose up -d firewall"):
        read_report(report)
    write_report(report, "")
    read_report(report)
    write_report(report, "no iptables here")
    with pytest.raises(SandboxUnavailable, match="no iptables here"):
        read_report(report)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for at in (now - STALE - 1, now + 60):
        report.write_text(json.dumps({"at": at, "problem": ""}))
        with pytest.raises(SandboxUnavailable, match="last heard of"):
            read_report(report)
    for text in ("", "[]", "{}", '{"at": "x", "problem": ""}', '{"at": 1'):
        report.write_text(text)
        with pytest.raises(SandboxUnavailable, match=r"reported nothing|last heard of"):
            read_report(report)


def test_rules_must_be_whole_and_first() -> None:
    """As `iptables -S` prints them."""
    rules = PLATFORM_IN_CONTAINER
    whole = [line for lines in (*rules.first.values(), *rules.chains.values()) for line in lines]
    assert is_in_force("\n".join(whole), rules)
    for left_out in whole:
        assert not is_in_force("\n".join(line for line in whole if line != left_out), rules)
    for chain in ("DOCKER-USER", "INPUT", "AGENTKEEP-FORWARD", "AGENTKEEP-SESSIONS"):
        assert not is_in_force("\n".join([f"-A {chain} -j ACCEPT", *whole]), rules)
