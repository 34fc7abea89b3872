"""`python -m agentkeep.runtime.drivers.docker.firewall_service`: keeps the rules of sessions' network in force.

For where the platform is a container, and so has no power over the machine's firewall. It runs in the machine's network
namespace with CAP_NET_ADMIN and nothing else, answers nobody, and reports to a file that the runtime plane reads.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.firewall import PLATFORM_IN_CONTAINER, Firewall
from agentkeep.runtime.drivers.docker.isolation import write_report
from agentkeep.runtime.drivers.docker.network import check_bridge_filtering
from agentkeep.runtime.drivers.docker.program import until_told
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings

__all__ = ["keep"]

logger = logging.getLogger(__name__)

PERIOD: Final = 1.0  # seconds between looks


async def keep(report: Path) -> None:
    """Until cancelled. The rules stay when it ends: sessions may not have."""
    firewall = Firewall(PLATFORM_IN_CONTAINER)
    last: str | None = None
    while True:
        problem = ""
        try:
            await asyncio.to_thread(check_bridge_filtering)
            await firewall.ensure()
        except SandboxUnavailable as error:
            problem = str(error)
        await asyncio.to_thread(write_report, report, problem)
        if problem != last:
            if problem:
                logger.error("sessions cannot be isolated: %s", problem)
            else:
                logger.info("the rules of sessions' network are in force")
            last = problem
        await asyncio.sleep(PERIOD)


if __name__ == "__main__":
    asyncio.run(until_told(keep(DockerDriverSettings().firewall_report)))
