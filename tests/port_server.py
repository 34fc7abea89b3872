"""One service calling another's ports over a real connection, both in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from joserfc.jwk import OKPKey

from agentkeep.core.clock import Clock, SystemClock
from agentkeep.service.asgi import App, Receive, Scope, Send, respond
from agentkeep.service.credentials import ServiceCredentials, TrustedServices
from agentkeep.service.front import Front, Server
from agentkeep.service.internal import INTERNAL_LIMITS, InternalApplication
from agentkeep.service.ownership import PLANES
from agentkeep.service.ports.catalogue import Port
from agentkeep.service.ports.client import Peers
from agentkeep.service.ports.server import PortsApp

KEYS = {plane: OKPKey.generate_key("Ed25519", {"kid": plane}) for plane in PLANES}


def credentials(service: str, clock: Clock | None = None, key: OKPKey | None = None) -> ServiceCredentials:
    return ServiceCredentials(service, key or KEYS[service], clock or SystemClock())


def trusted(audience: str, clock: Clock | None = None) -> TrustedServices:
    public = {plane: [OKPKey.import_key(key.as_dict(private=False))] for plane, key in KEYS.items()}
    return TrustedServices(audience, public, clock or SystemClock())


async def nothing_missing() -> Sequence[str]:
    return ()


async def whose(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that says for whose listener it takes a request."""
    await respond(send, 200, {"session": str(scope.get("agentkeep.session"))})


@dataclass
class PortServer:
    server: Server
    internal: InternalApplication
    url: str


@asynccontextmanager
async def serving(
    plane: str, ports: Mapping[Port[Any], object], application: App = whose, clock: Clock | None = None
) -> AsyncIterator[PortServer]:
    """The internal listener of `plane`."""
    internal = InternalApplication(trusted(plane, clock), nothing_missing)
    internal.serve(application, PortsApp(ports))
    server = Server(Front(internal, limits=INTERNAL_LIMITS))
    await server.start()
    try:
        yield PortServer(server, internal, server.url)
    finally:
        await server.stop(drain=0)
        await server.front.close()


@asynccontextmanager
async def calling(service: str, url: str, clock: Clock | None = None) -> AsyncIterator[Peers]:
    """`service`, for which all others are at `url`."""
    peers = Peers(credentials(service, clock), dict.fromkeys(PLANES, url))
    await peers.start()
    try:
        yield peers
    finally:
        await peers.close()
