"""The process driver: sessions as sealed processes of this machine, born of a fork server for each agent version.

See docs/development/process-driver.md for the design and what it does not protect from.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import resource
from collections.abc import Sequence
from pathlib import Path

from agentkeep.core.clock import Clock, SystemClock
from agentkeep.core.errors import DriverError
from agentkeep.runtime.drivers.driver import AdoptedEnvironment, EnvironmentSpec, Exit, Finding, VersionSpec
from agentkeep.runtime.drivers.process import bubblewrap
from agentkeep.runtime.drivers.process.cgroups import Cgroups
from agentkeep.runtime.drivers.process.command import check_entry_point
from agentkeep.runtime.drivers.process.environment import ProcessEnvironment, Surroundings
from agentkeep.runtime.drivers.process.fork_server import ForkServer
from agentkeep.runtime.drivers.process.fork_servers import ForkServers
from agentkeep.runtime.drivers.process.memory_watch import MemoryWatch
from agentkeep.runtime.drivers.process.privilege import HostIds, Mode, choose_mode
from agentkeep.runtime.drivers.process.probe import probe
from agentkeep.runtime.drivers.process.settings import ProcessDriverSettings
from agentkeep.runtime.drivers.process.tasks import in_thread

__all__ = ["ProcessDriver"]

logger = logging.getLogger(__name__)


class ProcessDriver:
    """`state_dir`: a folder of its own, for what sandboxes are shown of /etc. One event loop, whose thread must live as
    long as the driver: the sandboxes end with the thread that started them."""

    name = "process"

    def __init__(
        self, state_dir: Path, settings: ProcessDriverSettings | None = None, clock: Clock | None = None
    ) -> None:
        self._state_dir = state_dir
        self._settings = settings or ProcessDriverSettings()
        self._clock = clock or SystemClock()
        self._etc = state_dir / "etc"
        self._ids = HostIds()
        self._living: dict[str, ProcessEnvironment] = {}
        self._ending: set[asyncio.Task[Exit]] = set()
        self._servers = ForkServers(self._launch, self._settings, self._clock)
        self._ready: asyncio.Task[tuple[Mode, Cgroups]] | None = None
        self._watch: MemoryWatch | None = None
        self._closed = False

    async def probe(self) -> Sequence[Finding]:
        return await probe(self, self._state_dir / "probe")

    async def prepare(self, version: VersionSpec) -> None:
        await self._get_ready()
        await in_thread(check_entry_point, version)
        await self._servers.get(self._effective(version))

    async def start(self, spec: EnvironmentSpec) -> ProcessEnvironment:
        mode, cgroups = await self._get_ready()
        await in_thread(check_entry_point, spec.version)
        server = await self._servers.get(self._effective(spec.version))
        environment = await self._attempt(spec, server, mode, cgroups)
        if environment is None:  # the server had just died; the next one is new
            server = await self._servers.get(self._effective(spec.version))
            environment = await self._attempt(spec, server, mode, cgroups)
        assert environment is not None
        return environment

    async def adopt(self) -> Sequence[AdoptedEnvironment]:
        """None: they die with the platform. Removes the control groups that a killed platform left."""
        await self._get_ready()
        return ()

    async def take_over(self, replica: str) -> Sequence[AdoptedEnvironment]:
        """None: they died with their replica."""
        return ()

    async def retire(self, runtime_id: str, version: str) -> None:
        await self._servers.retire(runtime_id, version)

    async def close(self) -> None:
        self._closed = True
        for environment in list(self._living.values()):
            environment.kill("the platform ended")
        while self._ending:
            await asyncio.wait(self._ending)
        if self._watch is not None:
            await self._watch.close()
        await self._servers.close()
        if self._ready is not None:
            await asyncio.gather(self._ready, return_exceptions=True)

    @property
    def environments(self) -> Sequence[ProcessEnvironment]:
        """Those being born, living, or ending."""
        return list(self._living.values())

    async def describe(self) -> tuple[Mode, frozenset[str]]:
        mode, cgroups = await self._get_ready()
        return mode, cgroups.controllers

    async def _get_ready(self) -> tuple[Mode, Cgroups]:
        if self._closed:
            raise DriverError("the process driver is closed")
        if self._ready is None or (self._ready.done() and self._ready.exception() is not None):
            self._ready = asyncio.create_task(self._make_ready())
        return await asyncio.shield(self._ready)

    async def _make_ready(self) -> tuple[Mode, Cgroups]:
        mode = choose_mode()
        cgroups = await in_thread(self._settle)
        if "memory" not in cgroups.controllers:
            self._watch = MemoryWatch(lambda: self.environments, self._clock)
            logger.warning("no control group for memory: the limit on a session's memory is watched, not enforced")
        return mode, cgroups

    def _settle(self) -> Cgroups:
        self._state_dir.mkdir(parents=True, exist_ok=True)
        bubblewrap.write_etc(self._etc)
        cgroups = Cgroups.find()
        stale = cgroups.remove_stale()
        if stale:
            logger.info("removed the control groups of %d sessions of a platform that is gone", stale)
        # A session holds some forty descriptors here; the usual soft limit would end at twenty sessions.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return cgroups

    def _effective(self, version: VersionSpec) -> VersionSpec:
        return version if self._settings.fork_servers else dataclasses.replace(version, fork_server=False)

    async def _launch(self, version: VersionSpec) -> ForkServer:
        mode, _ = await self._get_ready()
        uid = self._ids.take() if mode is Mode.ROOT else None
        server = ForkServer(version, uid=uid, etc=self._etc)
        if uid is not None:
            server.ended.add_done_callback(lambda _: self._ids.give_back(uid))
        await server.start()
        return server

    async def _attempt(
        self, spec: EnvironmentSpec, server: ForkServer, mode: Mode, cgroups: Cgroups
    ) -> ProcessEnvironment | None:
        """A started environment, or None if its fork server turned out to be dead."""
        uid = self._ids.take() if mode is Mode.ROOT else None
        around = Surroundings(uid=uid, cgroups=cgroups, clock=self._clock, living=lambda: list(self._living.values()))
        environment = ProcessEnvironment(spec, server, around)
        self._living[environment.id] = environment
        try:
            await environment.begin()
        except BaseException as error:
            await asyncio.shield(self._end(environment, server, uid))
            if isinstance(error, DriverError) and not server.alive:
                return None
            raise
        self._end(environment, server, uid)
        if self._closed:
            environment.kill("the platform ended")
        return environment

    def _end(self, environment: ProcessEnvironment, server: ForkServer, uid: int | None) -> asyncio.Task[Exit]:
        """Sees to the environment's end, whenever it comes."""

        def ended(task: asyncio.Task[Exit]) -> None:
            self._ending.discard(task)
            del self._living[environment.id]
            if uid is not None:
                self._ids.give_back(uid)
            self._servers.released(server)

        task = asyncio.create_task(environment.finish(), name=f"end of {environment.id}")
        self._ending.add(task)
        task.add_done_callback(ended)
        return task
