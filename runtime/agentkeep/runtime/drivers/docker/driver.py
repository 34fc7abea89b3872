"""The docker driver: a container for each session, on a machine whose Docker engine is the platform's to use.

See docs/development/docker-driver.md for the design and what it does not protect from.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentkeep.core.clock import Clock, SystemClock
from agentkeep.core.errors import DriverError, EnvironmentStartFailed
from agentkeep.runtime.drivers.docker.container import (
    OWNER,
    SESSION,
    configuration,
    labelled_port,
    new_name,
)
from agentkeep.runtime.drivers.docker.engine import Engine, EngineError
from agentkeep.runtime.drivers.docker.environment import DockerEnvironment, Place
from agentkeep.runtime.drivers.docker.images import Image, Images
from agentkeep.runtime.drivers.docker.isolation import isolation_of
from agentkeep.runtime.drivers.docker.listener import SessionListener
from agentkeep.runtime.drivers.docker.network import LABEL, NETWORK, Addresses
from agentkeep.runtime.drivers.docker.probe import probe
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import EnvironmentSpec, Finding, VersionSpec

__all__ = ["DockerDriver"]

logger = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds for removing what did not start


class DockerDriver:
    """`state_dir`: a folder of its own, in which it keeps the name by which it finds its containers again. One event
    loop. Containers outlive the driver: `close` leaves them."""

    name = "docker"

    def __init__(
        self, state_dir: Path, settings: DockerDriverSettings | None = None, clock: Clock | None = None
    ) -> None:
        self._state_dir = state_dir
        self._settings = settings or DockerDriverSettings()
        self._clock = clock or SystemClock()
        self._engine = Engine(self._settings.socket)
        self._images = Images(self._engine, self._settings.pull_timeout)
        self._isolation = isolation_of(self._engine, self._settings)
        self._listener = SessionListener()
        self._addresses = Addresses()
        self._living: dict[str, DockerEnvironment] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._ready: asyncio.Task[str] | None = None
        self._closed = False
        self._problem = ""  # as it was last told

    async def probe(self) -> Sequence[Finding]:
        return await probe(self._engine, self._get_ready, self._settings)

    async def ready(self) -> None:
        """Whether a session could start now. Raises SandboxUnavailable, EngineError."""
        try:
            await self._get_ready()
            await self._isolation.ensure()
        except DriverError as error:
            if str(error) != self._problem:
                logger.error("no session can start: %s", error)
            self._problem = str(error)
            raise
        self._problem = ""

    async def prepare(self, version: VersionSpec) -> None:
        await self._get_ready()
        await self._image(version)

    async def start(self, spec: EnvironmentSpec) -> DockerEnvironment:
        starting = asyncio.create_task(self._start(spec))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # What the engine has begun it finishes: only then is it known what to end.
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                await starting.result().stop(0)
            raise

    async def adopt(self) -> Sequence[DockerEnvironment]:
        """Containers of ours that still run; others that bear our label are removed."""
        owner = await self._get_ready()
        adopted = []
        for found in await self._engine.containers(f"{LABEL}={SESSION}"):
            name = found["Names"][0].removeprefix("/")
            if name in self._living:
                continue
            environment = self._found_again(name, found, owner)
            if environment is None:
                logger.info("removing container %s, which is nobody's", name)
                await self._engine.remove(name)
            else:
                adopted.append(environment)
        return adopted

    async def retire(self, runtime_id: str, version: str) -> None:
        await self._get_ready()
        await self._images.retire(runtime_id, version)

    async def close(self) -> None:
        self._closed = True
        if self._ready is not None:
            await asyncio.gather(self._ready, return_exceptions=True)
        await self._listener.close()
        for environment in self._living.values():
            await environment.abandon()
        for task in self._ending:
            task.cancel()
        if self._ending:
            await asyncio.wait(self._ending)
        await self._engine.close()

    @property
    def environments(self) -> Sequence[DockerEnvironment]:
        return list(self._living.values())

    async def _get_ready(self) -> str:
        """The name of this driver's containers' owner. Raises SandboxUnavailable."""
        if self._closed:
            raise DriverError("the docker driver is closed")
        if self._ready is None or (self._ready.done() and self._ready.exception() is not None):
            self._ready = asyncio.create_task(self._make_ready())
        return await asyncio.shield(self._ready)

    async def _make_ready(self) -> str:
        await self._isolation.ensure()
        self._listener.start()
        try:
            await self._isolation.prove()
        except BaseException:
            await self._listener.close()
            raise
        return await asyncio.to_thread(_owner, self._state_dir)

    async def _image(self, version: VersionSpec) -> Image:
        if version.image is None:
            raise EnvironmentStartFailed("this version is a code bundle; the docker driver runs images")
        return await self._images.get(version)

    async def _start(self, spec: EnvironmentSpec) -> DockerEnvironment:
        owner = await self._get_ready()
        image = await self._image(spec.version)
        await self._isolation.ensure()
        place = Place(self._addresses.take(), spec.version.port)
        environment = self._environment(new_name(), place)
        body = configuration(spec, image, place.address, owner, self._settings)
        try:
            try:
                await self._engine.create(environment.id, body)
            except EngineError as error:
                if error.status != 404 or "image" not in str(error).lower():
                    raise
                self._images.forget(spec.version)  # somebody has removed it
                image = await self._image(spec.version)
                await self._engine.create(environment.id, body | {"Image": image.id})
            await environment.attach(spec.endpoint, spec.log)
            await self._engine.start(environment.id)
        except BaseException as error:
            # The engine may be away for long: what is left of it is then removed when it is back.
            await asyncio.wait([self._discard(environment)], timeout=_PATIENCE)
            if isinstance(error, EngineError):
                raise environment.failure(f"the engine did not start the container: {error}") from error
            raise
        self._keep(environment)
        return environment

    def _environment(self, name: str, place: Place) -> DockerEnvironment:
        return DockerEnvironment(name, place, engine=self._engine, listener=self._listener, clock=self._clock)

    def _found_again(self, name: str, found: dict[str, Any], owner: str) -> DockerEnvironment | None:
        labels = found["Labels"]
        try:
            if labels[OWNER] != owner or found["State"] != "running":
                return None
            address = found["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
            place = Place(address, labelled_port(labels))
            self._addresses.claim(address)
        except (KeyError, ValueError):
            return None
        environment = self._environment(name, place)
        self._keep(environment)
        return environment

    def _discard(self, environment: DockerEnvironment) -> asyncio.Task[None]:
        def removed(task: asyncio.Task[None]) -> None:
            self._ending.discard(task)
            if not task.cancelled():
                self._addresses.give_back(environment.place.address)

        task = asyncio.create_task(environment.remove(), name=f"removal of {environment.id}")
        self._ending.add(task)
        task.add_done_callback(removed)
        return task

    def _keep(self, environment: DockerEnvironment) -> None:
        """Sees to the environment's end, whenever it comes."""

        def ended(task: asyncio.Task[None]) -> None:
            self._ending.discard(task)
            if not task.cancelled():
                del self._living[environment.id]
                self._addresses.give_back(environment.place.address)

        self._living[environment.id] = environment
        task = asyncio.create_task(environment.finish(), name=f"end of {environment.id}")
        self._ending.add(task)
        task.add_done_callback(ended)


def _owner(state_dir: Path) -> str:
    path = state_dir / "owner"
    if not path.exists():
        state_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8))
    return path.read_text()
