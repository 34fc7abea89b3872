"""Serves one plane until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

import uvloop

from agentkeep.distributed.secrets import Secrets
from agentkeep.distributed.service import Compose, Service
from agentkeep.distributed.settings import ServiceSettings, load
from agentkeep.service.log import start_log

__all__ = ["serve"]

logger = logging.getLogger(__name__)

#: The services that each needs, to start and to be ready. Without a circle: identity needs nobody.
NEEDS: Final[Mapping[str, Sequence[str]]] = {
    "identity": (),
    "observability": ("identity",),
    "memory": ("identity",),
    "gateway": ("identity", "observability"),
    "runtime": ("identity", "observability"),
}


def serve(plane: str, settings: ServiceSettings) -> int:
    """The exit status. Raises SettingsInvalid, SecretsMissing, and what `Service.start` raises."""
    start_log(settings.log_level)
    root = import_module(f"agentkeep.distributed.{plane}")
    for each in root.SETTINGS:
        load(each)
    compose: Compose = root.compose
    return uvloop.run(_run(Service(plane, settings, Secrets(settings.secrets, plane), compose, NEEDS[plane])))


async def _run(service: Service) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    starting, stop = asyncio.create_task(service.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()  # it waits for something that is not there
        await asyncio.wait((starting,))
        return 0
    starting.result()
    # What was made so far stays for good: collections need not look at it again.
    gc.collect()
    gc.freeze()
    await stop
    logger.info("stopping")
    await service.stop()
    return 0
