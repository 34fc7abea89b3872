"""The docker driver's part of `agentkeep doctor`: each thing a session needs is done once."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from agentkeep.core.errors import DriverError, SandboxUnavailable
from agentkeep.runtime.drivers.docker import container
from agentkeep.runtime.drivers.docker.container import new_name
from agentkeep.runtime.drivers.docker.engine import Engine, EngineError
from agentkeep.runtime.drivers.docker.images import Image
from agentkeep.runtime.drivers.docker.network import PROBES, SUBNET
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Finding, Severity

__all__ = ["NO_PROGRAM", "PROBE_IMAGE", "probe"]

NO_PROGRAM: Final = ("agentkeep-probe-has-no-program",)
PROBE_IMAGE: Final = ("agentkeep-probe", "latest")


async def probe(
    engine: Engine, get_ready: Callable[[], Awaitable[object]], settings: DockerDriverSettings
) -> Sequence[Finding]:
    findings = []
    try:
        version, info = await engine.version(), await engine.info()
    except DriverError as error:
        fix = "start the engine (systemctl start docker), or name its socket in AGENTKEEP_RUNTIME_DOCKER_SOCKET"
        return [Finding("Docker engine", Severity.ERROR, str(error), fix)]
    findings.append(Finding("Docker engine", Severity.OK, f"{version['Version']}, {info.get('OperatingSystem')}"))
    try:
        await get_ready()
    except (SandboxUnavailable, EngineError) as error:
        return [*findings, Finding("network of sessions", Severity.ERROR, str(error), _fix(str(error)))]
    findings.append(Finding("network of sessions", Severity.OK, f"{SUBNET}; reaches the session endpoint only"))
    findings.append(await _container(engine, settings))
    findings.extend(
        Finding(
            f"limit on {name}",
            Severity.WARNING,
            "the engine cannot enforce it on this machine",
            "boot with control groups for memory, pids and cpu (cgroup v2, or cgroup_enable=memory)",
        )
        for name, offered in (("memory", "MemoryLimit"), ("processes", "PidsLimit"), ("processors", "CpuCfsQuota"))
        if not info.get(offered)
    )
    return findings


async def _container(engine: Engine, settings: DockerDriverSettings) -> Finding:
    """A session's container of an image without a single file: it must fail at the very last step, where the program
    is to be executed, when everything that isolates it is in place."""
    check, name = "a container", new_name()
    try:
        await engine.import_image(_empty_archive(), *PROBE_IMAGE)
        try:
            image = await engine.image(":".join(PROBE_IMAGE)) or {}
            body = container.probe(NO_PROGRAM, {}, Image(image["Id"], "", frozenset()), PROBES[0], settings, init=False)
            await engine.create(name, body)
            await engine.start(name)
        finally:
            await engine.remove(name)
            await engine.remove_image(":".join(PROBE_IMAGE))
    except EngineError as error:
        if NO_PROGRAM[0] in str(error):
            return Finding(check, Severity.OK, "sealed, with its limits and its address; ready to execute a program")
        return Finding(check, Severity.ERROR, str(error), _fix(str(error)))
    except DriverError as error:
        return Finding(check, Severity.ERROR, str(error), _fix(str(error)))
    return Finding(check, Severity.ERROR, "a program that is not there was started", "see the engine's log")


def _empty_archive() -> bytes:
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode="w").close()
    return buffer.getvalue()


def _fix(reason: str) -> str:
    return reason.rpartition("; ")[2] if "; " in reason else "see the reason, and the engine's log"
