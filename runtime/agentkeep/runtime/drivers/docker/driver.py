"""The docker driver: a container for each session, on a machine whose Docker engine is the platform's to use.

See docs/development/docker-driver.md for the design and what it does not protect from.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from agentkeep.core.clock import Clock, SystemClock
from agentkeep.core.errors import DriverError, EnvironmentStartFailed
from agentkeep.runtime.drivers.docker.addresses import Addresses, Found, OwnAddresses
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
from agentkeep.runtime.drivers.docker.listener import EdgeListener, HostListener, SessionListener
from agentkeep.runtime.drivers.docker.network import LABEL
from agentkeep.runtime.drivers.docker.probe import probe
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.docker.shared_addresses import SharedAddresses, address_of
from agentkeep.runtime.drivers.driver import EnvironmentSpec, Finding, VersionSpec

__all__ = ["DockerDriver"]

logger = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds for removing what did not start
_SESSIONS = f"{LABEL}={SESSION}"


class DockerDriver:
    """`replica`: the name by which it finds its containers again, and others take them over; without one, it keeps one
    in `state_dir`, a folder of its own. One event loop. Containers outlive the driver: `close` leaves them."""

    name = "docker"

    def __init__(
        self,
        state_dir: Path,
        settings: DockerDriverSettings | None = None,
        clock: Clock | None = None,
        replica: str | None = None,
    ) -> None:
        self._replica = replica or _name_kept_in(state_dir)
        self._settings = settings or DockerDriverSettings()
        self._clock = clock or SystemClock()
        self._engine = Engine(self._settings.socket)
        self._images = Images(self._engine, self._settings.pull_timeout)
        self._isolation = isolation_of(self._engine, self._settings)
        self._listener, self._addresses = self._session_endpoints()
        self._living: dict[str, DockerEnvironment] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._ready: asyncio.Task[None] | None = None
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
        return await self._find_again(self._replica)

    async def take_over(self, replica: str) -> Sequence[DockerEnvironment]:
        """Those of a replica whose process lives, whatever its heartbeat, stay with it: it ends them when it learns
        that their sessions are not its own any more."""
        if self._settings.platform == "host":
            return ()  # it alone is on this machine
        return await self._find_again(replica)

    async def _find_again(self, owner: str) -> Sequence[DockerEnvironment]:
        """Containers that were `owner`'s and still run. Those of its that do not, and all that are nobody's, are
        removed."""
        await self._get_ready()
        found_again = []
        for found in await self._engine.containers(_SESSIONS):
            name, labels, address = found["Names"][0].removeprefix("/"), found["Labels"], address_of(found)
            if name in self._living:
                continue
            whose = await self._addresses.claim(address, labels.get(OWNER, ""), owner)
            if whose is Found.OTHERS:
                continue
            if whose is Found.NOBODYS:
                logger.info("removing container %s, which is nobody's", name)
                await self._engine.remove(name)
                continue
            port = labelled_port(labels)
            environment = self._environment(name, Place(address, port))
            if found["State"] == "running" and port:
                self._keep(environment)
                found_again.append(environment)
            else:
                logger.info("removing container %s, which has ended", name)
                await asyncio.wait([self._discard(environment)], timeout=_PATIENCE)
        return found_again

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
        await self._addresses.close()
        await self._engine.close()

    @property
    def environments(self) -> Sequence[DockerEnvironment]:
        return list(self._living.values())

    async def _get_ready(self) -> None:
        """Raises SandboxUnavailable."""
        if self._closed:
            raise DriverError("the docker driver is closed")
        if self._ready is None or (self._ready.done() and self._ready.exception() is not None):
            self._ready = asyncio.create_task(self._make_ready())
        await asyncio.shield(self._ready)

    async def _make_ready(self) -> None:
        await self._isolation.ensure()
        await self._addresses.start()
        self._listener.start()
        try:
            await self._isolation.prove()
        except BaseException:
            await self._listener.close()
            raise

    def _session_endpoints(self) -> tuple[SessionListener, Addresses]:
        if self._settings.platform == "host":
            return HostListener(), OwnAddresses()
        folder = self._settings.sessions_folder
        return EdgeListener(folder), SharedAddresses(folder, self._replica, self._engine, _SESSIONS)

    async def _image(self, version: VersionSpec) -> Image:
        if version.image is None:
            raise EnvironmentStartFailed("this version is a code bundle; the docker driver runs images")
        return await self._images.get(version)

    async def _start(self, spec: EnvironmentSpec) -> DockerEnvironment:
        await self._get_ready()
        image = await self._image(spec.version)
        await self._isolation.ensure()
        place = Place(await self._addresses.take(), spec.version.port)
        environment = self._environment(new_name(), place)
        body = configuration(spec, image, place.address, self._replica, self._settings)
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

    def _discard(self, environment: DockerEnvironment) -> asyncio.Task[None]:
        async def remove() -> None:
            await environment.remove()
            await self._addresses.give_back(environment.place.address)

        return self._see_to(remove(), f"removal of {environment.id}")

    def _keep(self, environment: DockerEnvironment) -> None:
        """Sees to the environment's end, whenever it comes."""

        async def finish() -> None:
            await environment.finish()
            del self._living[environment.id]
            await self._addresses.give_back(environment.place.address)

        self._living[environment.id] = environment
        self._see_to(finish(), f"end of {environment.id}")

    def _see_to(self, end: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(end, name=name)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task


def _name_kept_in(state_dir: Path) -> str:
    path = state_dir / "owner"
    if not path.exists():
        state_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8))
    return path.read_text()
