"""What must hold before a session starts, for each of the two places where the platform may run."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, Protocol

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.container import new_name, probe
from agentkeep.runtime.drivers.docker.engine import Engine
from agentkeep.runtime.drivers.docker.firewall import Firewall
from agentkeep.runtime.drivers.docker.images import Image, find_image
from agentkeep.runtime.drivers.docker.listener import PORT as ENDPOINT_PORT
from agentkeep.runtime.drivers.docker.network import (
    HOST,
    NETWORK,
    PLATFORM,
    PROBES,
    REPLICAS,
    check_bridge_filtering,
    check_network,
    ensure_network,
)
from agentkeep.runtime.drivers.docker.output import Output
from agentkeep.runtime.drivers.docker.reach import CLOSED, LISTENING, OPEN, PORT, PROGRAM
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.docker.shared_addresses import alone

__all__ = ["Isolation", "isolation_of", "read_report", "write_report"]

logger = logging.getLogger(__name__)

STALE: Final = 10.0  # seconds: the firewall service writes its report every second
_EDGE_PATIENCE: Final = 5.0  # seconds
_PATIENCE: Final = 30.0  # seconds for a probe to come up and say what it reached


class Isolation(Protocol):
    async def ensure(self) -> None:
        """Before each start: sees to it, or that others do. Cheap. Raises SandboxUnavailable, EngineError."""

    async def prove(self) -> None:
        """Once, when the session endpoint listens. Raises SandboxUnavailable, EngineError."""


def isolation_of(engine: Engine, settings: DockerDriverSettings) -> Isolation:
    if settings.platform == "container":
        return _PlatformInContainer(engine, settings)
    return _PlatformOnHost(engine)


class _PlatformOnHost:
    """It makes the network, and keeps the firewall's rules itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._firewall = Firewall()

    async def ensure(self) -> None:
        await ensure_network(self._engine)  # somebody may have pruned it, or the rules
        await asyncio.to_thread(check_bridge_filtering)
        await self._firewall.ensure()

    async def prove(self) -> None:
        """It reads the rules themselves, before each start."""


class _PlatformInContainer:
    """It has no power over either: it reads what the firewall service reports, and tries what sessions can reach."""

    def __init__(self, engine: Engine, settings: DockerDriverSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def ensure(self) -> None:
        await check_network(self._engine, gateway=HOST, given_out=REPLICAS)
        await asyncio.to_thread(read_report, self._settings.firewall_report)
        await _edge_listens()

    async def prove(self) -> None:
        """Two containers like sessions': one listens, the other reaches the session edge and nothing else."""
        image = await find_image(self._engine, self._settings.probe_image, self._settings.pull_timeout)
        async with alone(self._settings.sessions_folder / "probes"):  # there are but two addresses for them
            await self._prove(image)

    async def _prove(self, image: Image) -> None:
        names = new_name(), new_name()
        own = _own_address()
        try:
            for name, address, peer, stay in zip(names, PROBES, reversed(PROBES), ("120", "0"), strict=True):
                variables = {"PLATFORM": PLATFORM, "CLOSED": f"{HOST},{own},{peer}", "STAY": stay}
                await self._engine.create(name, probe(PROGRAM, variables, image, address, self._settings))
            # The one that is reached for listens before the other reaches.
            await self._run(names[0], LISTENING)
            await _connects(PROBES[0])
            reached = await self._run(names[1])
        finally:
            await asyncio.gather(*(self._engine.remove(name) for name in names))
        problems = [line for line in reached.splitlines() if line not in (f"{OPEN} {PLATFORM}:80", LISTENING)]
        if problems != [CLOSED]:
            raise SandboxUnavailable(
                f"sessions are not isolated on this machine; a container like theirs: {'; '.join(problems)}"
            )
        logger.info("a container like a session's reaches %s:80 and nothing else", PLATFORM)

    async def _run(self, name: str, until: str | None = None) -> str:
        """Starts it; what it writes, to its end, or until it has written that."""
        written = Output(lambda _: None)
        async with self._engine.output(name) as reader:
            following = asyncio.create_task(written.follow(reader))
            try:
                await self._engine.start(name)
                async with asyncio.timeout(_PATIENCE):
                    while not following.done():
                        if until is not None and until in written.tail.decode(errors="replace"):
                            break
                        await asyncio.wait([following], timeout=0.02)
            except TimeoutError:
                raise SandboxUnavailable(
                    f"the probe of isolation did not end within {_PATIENCE:g} s: {written.tail.decode()!r}"
                ) from None
            finally:
                following.cancel()
                await asyncio.wait([following])
        return written.tail.decode(errors="replace")


async def _edge_listens() -> None:
    try:
        async with asyncio.timeout(_EDGE_PATIENCE):
            _, writer = await asyncio.open_connection(PLATFORM, ENDPOINT_PORT)
    except OSError as error:
        raise SandboxUnavailable(
            f"the session edge does not answer at {PLATFORM}:{ENDPOINT_PORT} ({error or 'no answer'}); start it: "
            "docker compose up -d session-edge"
        ) from None
    writer.transport.abort()


def _own_address() -> str:
    """Of this process on the network of sessions. Raises SandboxUnavailable."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((HOST, ENDPOINT_PORT))  # sends nothing
        address = str(probe.getsockname()[0])
    if IPv4Address(address) not in REPLICAS:
        raise SandboxUnavailable(
            f"the runtime plane reaches sessions from {address}, which is not of {REPLICAS}; put its container on the "
            f"network {NETWORK} without an address of its own choice"
        )
    return address


async def _connects(address: str) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(address, PORT)
    except OSError as error:
        raise SandboxUnavailable(
            f"the platform does not reach containers on the network of sessions ({error or 'no answer'}); see the "
            "firewall service's log"
        ) from None
    writer.close()


def write_report(path: Path, problem: str) -> None:
    """Of the firewall service; empty: the rules are in force. Its time is the machine's since boot. Blocking."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"at": time.clock_gettime(time.CLOCK_BOOTTIME), "problem": problem}))
    fresh.replace(path)


def read_report(path: Path) -> None:
    """Raises SandboxUnavailable unless the rules were in force a moment ago. Blocking."""
    try:
        report = json.loads(path.read_text())
        age, problem = time.clock_gettime(time.CLOCK_BOOTTIME) - float(report["at"]), str(report["problem"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SandboxUnavailable(
            f"the firewall service has reported nothing at {path} ({type(error).__name__}); start it: "
            "docker compose up -d firewall"
        ) from None
    if problem:
        raise SandboxUnavailable(f"the firewall service cannot isolate sessions: {problem}")
    if not 0 <= age < STALE:
        raise SandboxUnavailable(
            f"the firewall service was last heard of {age:.0f} s ago; start it: docker compose up -d firewall"
        )
