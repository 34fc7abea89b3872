"""`agentkeep doctor`: tries what embedded mode needs of this machine."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from agentkeep.core.errors import AgentkeepError
from agentkeep.core.identifiers import Deployment
from agentkeep.embedded.settings import EmbeddedSettings
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.sts.rules import StsRulesInvalid
from agentkeep.identity.sts.setup import described
from agentkeep.runtime.drivers.by_artifact import DriverByArtifact
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.driver import Driver, Finding, Severity
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.egress.rules import EgressRulesInvalid
from agentkeep.runtime.egress.setup import described as described_egress
from agentkeep.runtime.settings import RuntimeSettings

__all__ = ["examine"]

_LEAST_FREE = 2 << 30


def examine(data_dir: Path) -> list[Finding]:
    """Every check, in the order in which a person would want to mend things."""
    logging.getLogger("agentkeep").setLevel(logging.CRITICAL)  # what is tried tells of itself in the findings
    return asyncio.run(_examine(data_dir))


async def _examine(data_dir: Path) -> list[Finding]:
    findings = [_python(), _disk(data_dir), _aws(), _egress()]
    with tempfile.TemporaryDirectory(prefix="agentkeep-doctor-") as folder:
        findings.append(await _valkey(Path(folder)))
        driver: Driver = ProcessDriver(Path(folder))
        if RuntimeSettings().docker:
            driver = DriverByArtifact(driver, DockerDriver(Path(folder)))
        try:
            findings += await driver.probe()
        finally:
            await driver.close()
    return findings


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        return Finding("Python", Severity.OK, found)
    return Finding("Python", Severity.ERROR, f"{found}; agentkeep is made for 3.11", "Install Python 3.11.")


def _disk(data_dir: Path) -> Finding:
    place = next(folder for folder in (data_dir.absolute(), *data_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    said = f"{free >> 30} GB free at {place}"
    if free >= _LEAST_FREE:
        return Finding("disk", Severity.OK, said)
    return Finding(
        "disk", Severity.WARNING, said, "Agents' packages and logs need room: free some, or choose another --data-dir."
    )


def _aws() -> Finding:
    settings = EmbeddedSettings()
    try:
        said = described(IdentitySettings(), Deployment(settings.region, settings.account))
    except StsRulesInvalid as error:
        return Finding("AWS", Severity.ERROR, str(error), "`agentkeep sts check-rules FILE` reads them again.")
    return Finding("AWS", Severity.OK, said)


def _egress() -> Finding:
    try:
        return Finding("egress", Severity.OK, described_egress(RuntimeSettings()))
    except EgressRulesInvalid as error:
        return Finding("egress", Severity.ERROR, str(error), "`agentkeep egress check-rules FILE` reads them again.")


async def _valkey(folder: Path) -> Finding:
    try:
        async with EmbeddedValkey(folder / "valkey"):
            return Finding("Valkey", Severity.OK, "started on a Unix socket, and stopped")
    except AgentkeepError as error:
        return Finding("Valkey", Severity.ERROR, str(error), "Install it with: pip install 'agentkeep[embedded]'")
