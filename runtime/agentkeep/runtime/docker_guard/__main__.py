"""`python -m agentkeep.runtime.docker_guard`: the only process that has the engine's socket."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from agentkeep.runtime.docker_guard.guard import DockerGuard
from agentkeep.runtime.docker_guard.names import AllowedImages
from agentkeep.runtime.docker_guard.settings import DockerGuardSettings
from agentkeep.runtime.drivers.docker.engine import Engine
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Limits
from agentkeep.runtime.settings import RuntimeSettings

logger = logging.getLogger(__name__)


@asynccontextmanager
async def serving(settings: DockerGuardSettings, driver: DockerDriverSettings, most: Limits) -> AsyncIterator[None]:
    """Its socket is for the process's user and group."""
    engine = Engine(settings.engine)
    guard = DockerGuard(engine, AllowedImages(settings.images), most, driver)
    # A client that leaves ends what it has asked for. A body may be 1 MiB, which is `BaseRequest`'s own limit.
    runner = web.ServerRunner(web.Server(guard.handle, handler_cancellation=True), access_log=None)
    await runner.setup()
    try:
        settings.listen.parent.mkdir(parents=True, exist_ok=True)
        await web.UnixSite(runner, str(settings.listen)).start()
        settings.listen.chmod(0o660)
        yield
    finally:
        await runner.cleanup()
        await engine.close()


async def _serve() -> None:
    settings, runtime = DockerGuardSettings(), RuntimeSettings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    most = Limits(
        memory=runtime.session_memory,
        processes=runtime.session_processes,
        open_files=runtime.session_open_files,
        cpus=runtime.session_cpus,
        disk=runtime.session_disk,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with serving(settings, DockerDriverSettings(), most):
        logger.info("before %s, at %s; images: %s", settings.engine, settings.listen, settings.images or "none")
        await stopping.wait()


if __name__ == "__main__":
    asyncio.run(_serve())
