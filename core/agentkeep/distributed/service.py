"""The life of one service: what all five have, around the one plane that each serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import Plane, SelfBackend
from agentkeep.core import telemetry_export
from agentkeep.core.alarm import Alarm
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Keys
from agentkeep.distributed.readiness import Check, Readiness, store_check
from agentkeep.distributed.secrets import Secrets
from agentkeep.distributed.settings import ServiceSettings
from agentkeep.service.application import Application, Bearers
from agentkeep.service.asgi import App
from agentkeep.service.authentication import Authenticator
from agentkeep.service.direct import DirectRoute
from agentkeep.service.front import Front, Server
from agentkeep.service.internal import INTERNAL_LIMITS, InternalApplication
from agentkeep.service.mounts import Mount
from agentkeep.service.ports.caches import CachedAuthorizers, CachedKeys
from agentkeep.service.ports.catalogue import ALERTS, AUDIT, AUTHORIZERS, KEYS, Port
from agentkeep.service.ports.client import Peers
from agentkeep.service.ports.server import PortsApp
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

__all__ = ["Compose", "Composed", "Service"]

logger = logging.getLogger(__name__)

P = TypeVar("P")

#: Seconds for which a service believes what identity told it of a key or a token; identity's own memory is as long.
CACHE_SECONDS: Final = 2.0


async def _nothing() -> None:
    return None


@dataclass
class Composed:
    """A plane's operations (perhaps none, perhaps in several objects), and what of it is served where.

    `keys`: who calls. `routes` are made with the authenticator. `around`: what clients and sessions meet before the
    application. `alarm`: where alerts are kept here. `start` and `stop` frame the plane's own life, `stop` after the
    answers under way have ended.
    """

    operations: Sequence[Plane]
    keys: Keys
    mounts: Sequence[Mount] = ()
    ports: Mapping[Port[Any], object] = field(default_factory=dict)
    trusted_mounts: Mapping[bytes, App] = field(default_factory=dict)
    trusted_bearers: Mapping[bytes, bytes] = field(default_factory=dict)
    bearers: Bearers | None = None
    routes: Callable[[Authenticator], Sequence[DirectRoute]] = lambda _: ()
    around: Callable[[App], App] = lambda application: application
    alarm: Alarm | None = None
    start: Callable[[], Awaitable[None]] = _nothing
    stop: Callable[[], Awaitable[None]] = _nothing


#: A plane's composition root.
Compose = Callable[["Service"], Awaitable[Composed]]


class Service:
    """One plane's process: `start`, then `stop`.

    `needs`: the services without whose ports this one cannot work; it waits for them, and is not ready without them.
    What a composition root makes and must be closed it gives to `on_exit`: what is made first is closed last.
    """

    def __init__(
        self, name: str, settings: ServiceSettings, secrets: Secrets, compose: Compose, needs: Sequence[str]
    ) -> None:
        self.name = name
        self.settings = settings
        self.secrets = secrets
        self.clock = SystemClock()
        self.deployment = Deployment(settings.region, settings.account)
        self.data = settings.service_data
        self.credentials = secrets.credentials(self.clock)
        self.peers = Peers(self.credentials, settings.urls)
        self.router = Router()
        self.checks: dict[str, Check] = {}
        self.audit = self.port(AUDIT)
        self.alarm = Alarm(self.port(ALERTS), self.clock, self.audit)
        self.front: Front
        self.store: ValkeyKeyValueStore
        self._compose = compose
        self._needs = needs
        self.search_password = secrets.search_password
        self._store_url = settings.store_url_with(secrets.store_password)
        self._trusted = secrets.trusted(self.clock)
        self._fingerprint_key = secrets.fingerprint_key
        self._exit = AsyncExitStack()
        self._readiness = Readiness(self.checks)
        self._internal = InternalApplication(self._trusted, self._readiness.missing)
        self._public_server: Server
        self._internal_server: Server

    # What composition roots use.

    @property
    def on_exit(self) -> Callable[..., Any]:
        return self._exit.push_async_callback

    @property
    def on_exit_call(self) -> Callable[..., Any]:
        """The same for what does not wait."""
        return self._exit.callback

    async def require(self, part: str, check: Check) -> None:
        """Readiness depends on `part` from now on. Returns when it answers."""
        self.checks[part] = check
        await self._readiness.wait()

    async def until_stored(self, step: Callable[[], Awaitable[None]]) -> None:
        """Takes `step`, which may be taken again, once the stores let it."""
        await self._readiness.until_stored(step)

    def port(self, port: Port[P]) -> P:
        """A client of another service's port."""
        return self.peers.port(port)

    def keys(self) -> CachedKeys:
        return CachedKeys(self.port(KEYS), self.clock, CACHE_SECONDS)

    def authorizers(self) -> CachedAuthorizers:
        return CachedAuthorizers(self.port(AUTHORIZERS), self.clock, CACHE_SECONDS)

    # Life.

    async def start(self) -> None:
        """Returns when it serves, however long what it needs takes to come up. Raises AgentkeepError or OSError with
        the reason; then nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        logger.info("the %s service is ready", self.name)

    async def _start(self) -> None:
        settings = self.settings
        if settings.otlp_endpoint is not None:
            telemetry = telemetry_export.start(f"agentkeep.{self.name}")
            self.on_exit(telemetry.stop)
        # Health first, so that whoever watches sees that it lives and what it waits for.
        internal = Front(self._internal, limits=INTERNAL_LIMITS)
        self.on_exit(internal.close)
        self._internal_server = Server(internal, settings.service_host, settings.service_internal_port)
        await self._internal_server.start()
        self.store = ValkeyKeyValueStore(self._store_url)
        self.on_exit(self.store.close)
        await self.peers.start()
        self.on_exit(self.peers.close)
        self.on_exit(self.alarm.close)
        self.checks["store"] = store_check(self.store)
        for service in self._needs:
            self.checks[service] = self._port_check(service)
        await self._readiness.wait()
        composed = await self._compose(self)
        alarm = composed.alarm or self.alarm
        authenticator = Authenticator(composed.keys, self.clock, alarm)
        application = composed.around(
            Application(
                self.router,
                Switch(SelfBackend(composed.operations, alarm)),
                authenticator,
                composed.mounts,
                composed.bearers,
                self._readiness.missing,
                self._fingerprint_key,
            )
        )
        self.front = Front(application, composed.routes(authenticator))
        self.on_exit(self.front.close)
        await self.front.start()
        await composed.start()
        self.on_exit(composed.stop)
        self._internal.serve(application, PortsApp(composed.ports), composed.trusted_mounts, composed.trusted_bearers)
        self._public_server = Server(self.front, settings.service_host, settings.service_port)
        await self._public_server.start()
        self._readiness.state = None

    def _port_check(self, service: str) -> Check:
        async def check() -> bool:
            return await self.peers.answers(service)

        return check

    async def stop(self) -> None:
        """Says that it is not ready, lets answers under way end, sessions' too, then closes what is below them. Ports
        are served until then: those answers may need them."""
        self._readiness.state = "stopping"
        seconds = self.settings.service_stop_timeout
        await asyncio.gather(self._public_server.stop(seconds), self._internal.drain(seconds))
        await self._internal_server.stop(1)
        await self._exit.aclose()
