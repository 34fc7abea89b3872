"""The runtime service: agents, their sessions, and the listeners through which sessions reach all other planes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from agentkeep.core.call import SessionRef
from agentkeep.core.key_settings import KeySettings
from agentkeep.distributed.readiness import Check
from agentkeep.distributed.service import Composed, Service
from agentkeep.distributed.settings import ServiceSettings, load
from agentkeep.runtime.agents.artifacts import FolderArtifactStore
from agentkeep.runtime.drivers.by_artifact import DriverByArtifact
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Driver
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.drivers.process.settings import ProcessDriverSettings
from agentkeep.runtime.environments.variables import CREDENTIALS_PATH
from agentkeep.runtime.invocations.protected_resources import PLACE as PROTECTED_RESOURCES
from agentkeep.runtime.operations import RuntimePlane
from agentkeep.runtime.pump import InvocationRoute
from agentkeep.runtime.replicas.relay import ReplicaRelay
from agentkeep.runtime.replicas.slots import Slot
from agentkeep.runtime.replicas.table import Place
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.service.asgi import App
from agentkeep.service.authentication import Authenticator
from agentkeep.service.direct import DirectRoute
from agentkeep.service.mounts import Access, Mount
from agentkeep.service.ports.catalogue import BUDGET, MEMORY_SESSIONS, SESSION_USERS, WORKLOAD_TOKENS
from agentkeep.service.relay import SessionRelay

__all__ = ["SETTINGS", "compose"]

_ANY: Final = ("0.0.0.0", "::", "")  # noqa: S104
#: Checked before the service waits for anything.
SETTINGS: Final = (RuntimeSettings, ProcessDriverSettings, DockerDriverSettings, KeySettings)


async def compose(service: Service) -> Composed:
    settings = load(RuntimeSettings)
    if "public_url" not in settings.model_fields_set:
        settings = settings.model_copy(update={"public_url": service.settings.public_url})
    service.data.mkdir(parents=True, exist_ok=True)
    slot = Slot.take(service.data)
    service.on_exit_call(slot.release)
    place = _place(service, settings, slot)
    driver = _driver(service, settings, slot)
    service.on_exit(driver.close)

    def session_endpoint(session: SessionRef) -> Callable[[], asyncio.Protocol]:
        return service.front.protocol(session)

    key_settings = load(KeySettings)
    key_service = key_settings.services(service.secrets.data_key, service.data / "keys")
    service.on_exit(key_service.close)
    keys = service.keys()
    plane = RuntimePlane(
        service.store,
        service.deployment,
        service.clock,
        driver,
        FolderArtifactStore(service.data / "artifacts"),
        keys,
        service.authorizers(),
        service.port(WORKLOAD_TOKENS),
        service.port(BUDGET),
        session_endpoint,
        settings,
        slot.folder / "runtime",
        service.alarm,
        place,
        service.data / "runtime" / "logs",
        lambda session: service.credentials.token(service.name, session),
        service.port(MEMORY_SESSIONS),
        service.audit,
        key_service=key_service,
        key_settings=key_settings,
    )
    relays: list[SessionRelay | ReplicaRelay] = []

    def relayed(application: App) -> App:
        to_replicas = ReplicaRelay(application, service.router, plane.forwarding, plane.runtime_id)
        relay = SessionRelay(service.name, to_replicas, service.router, service.credentials, service.settings.urls)
        relays.extend((to_replicas, relay))
        return relay

    def routes(authenticator: Authenticator) -> list[DirectRoute]:
        route = InvocationRoute(plane.invocations, authenticator)
        service.on_exit_call(route.close)
        return [route, plane.egress]

    async def start() -> None:
        for relay in relays:
            await relay.start()
            service.on_exit(relay.close)
        await plane.start()

    return Composed(
        (plane,),
        keys,
        mounts=[
            Mount("/artifacts", plane.artifacts_app, Access.OPERATOR, settings.bundle_limit),
            Mount("/sessions", plane.admin_app, Access.OPERATOR),
            Mount("/logs", plane.admin_app, Access.OPERATOR),
            Mount(CREDENTIALS_PATH, plane.credentials_app, Access.SESSION),
            Mount("/runtimes", plane.protected_resources, Access.PUBLIC, place=PROTECTED_RESOURCES),
        ],
        ports={SESSION_USERS: plane.session_users},
        bearers=plane.bearers,
        routes=routes,
        around=relayed,
        start=start,
        stop=plane.stop,
    )


def _place(service: Service, settings: RuntimeSettings, slot: Slot) -> Place:
    """Where other replicas reach this one: at a given host; where it listens, if that is one address; or else at the
    address from which it speaks to the store, which all of them reach."""
    own = service.settings
    host = settings.replica_host or (own.service_host if own.service_host not in _ANY else _address_towards(own))
    if host is None or 0 in (own.service_port, own.service_internal_port):
        return Place(slot.name, slot=slot)
    host = f"[{host}]" if ":" in host else host
    return Place(slot.name, f"{host}:{own.service_port}", f"{host}:{own.service_internal_port}", slot)


def _address_towards(settings: ServiceSettings) -> str | None:
    """None: the store is a socket of this machine's."""
    store = urlsplit(settings.store_url.get_secret_value())
    if store.scheme == "unix" or store.hostname is None:
        return None
    try:
        found = socket.getaddrinfo(store.hostname, store.port or 6379, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _driver(service: Service, settings: RuntimeSettings, slot: Slot) -> Driver:
    process = ProcessDriver(slot.folder / "driver", clock=service.clock) if settings.process else None
    docker = DockerDriver(slot.folder / "docker", clock=service.clock, replica=slot.name) if settings.docker else None
    if docker is not None:
        service.checks["isolation of sessions"] = _isolated(docker)
    if process is not None and docker is not None:
        return DriverByArtifact(process, docker)
    found = process or docker
    assert found is not None, "settings leave one"
    return found


def _isolated(driver: DockerDriver) -> Check:
    """It takes up what it is asked for the first time, in the background: the answer may be a later question's."""

    async def check() -> bool:
        await driver.ready()
        return True

    return check
