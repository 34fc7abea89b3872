"""Puts the data path of tools together: gateways' URLs, and what shows operators the catalogue and the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agentkeep.core.clock import Clock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Authorizers, OutboundCredentials, SessionUsers
from agentkeep.gateway.audit.app import AuditApp
from agentkeep.gateway.audit.trail import AuditTrail
from agentkeep.gateway.catalogue.app import CatalogueApp
from agentkeep.gateway.catalogue.entries import Catalogue
from agentkeep.gateway.limits.rate_limits import RateLimits
from agentkeep.gateway.mcp.calls import Policies, ToolCalls
from agentkeep.gateway.mcp.endpoint import PLACE, GatewayEndpoint
from agentkeep.gateway.mcp.inbound import InboundAuthentication
from agentkeep.gateway.mcp.server import McpServer
from agentkeep.gateway.records import Resources
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.gateway.targets.addresses import AllowedAddresses
from agentkeep.gateway.targets.arguments import ArgumentSchemas
from agentkeep.gateway.targets.credentials import TargetCredentials
from agentkeep.gateway.targets.targets import Targets
from agentkeep.gateway.targets.wire import TargetWire
from agentkeep.service.authentication import Authenticator
from agentkeep.service.mounts import Access, Mount
from agentkeep.storage.counters import CounterStore
from agentkeep.storage.interface import KeyValueStore

__all__ = ["Callers", "ToolGateway", "targets"]


class Store(KeyValueStore, CounterStore, Protocol):
    """Keeps both, as Valkey does."""


@dataclass(frozen=True, slots=True)
class Callers:
    """What proves who calls a gateway."""

    authenticator: Authenticator
    authorizers: Authorizers
    session_users: SessionUsers


def targets(settings: GatewaySettings, credentials: OutboundCredentials, schemas: ArgumentSchemas) -> Targets:
    """Raises ValueError where the settings name no network or host."""
    wire = TargetWire(AllowedAddresses(settings.allowed_target_hosts), most_bytes=settings.response_bytes)
    return Targets(wire, TargetCredentials(credentials), schemas, listing_seconds=settings.listing_seconds)


class ToolGateway:
    """`mounts`: where its applications belong. `start`, then `close`."""

    def __init__(
        self,
        store: Store,
        resources: Resources,
        policies: Policies,
        callers: Callers,
        targets: Targets,
        schemas: ArgumentSchemas,
        settings: GatewaySettings,
        deployment: Deployment,
        clock: Clock,
        *,
        public_url: str,
    ) -> None:
        catalogue = Catalogue(store, settings)
        trail = AuditTrail(store, days=settings.audit_days, most_bytes=settings.audit_bytes)
        calls = ToolCalls(resources, policies, schemas, RateLimits(store), trail, catalogue, targets, clock)
        self._server = McpServer(calls, most_bytes=settings.request_bytes)
        authentication = InboundAuthentication(
            resources, callers.authenticator, callers.authorizers, callers.session_users, deployment
        )
        endpoint = GatewayEndpoint(
            self._server, authentication, resources, public_url=public_url, most_bytes=settings.request_bytes
        )
        self.mounts = (
            Mount("", endpoint, Access.PUBLIC, place=PLACE),
            Mount("", endpoint, Access.SESSION, place=PLACE),
            Mount("/catalogue", CatalogueApp(catalogue, resources), Access.OPERATOR),
            Mount("/audit", AuditApp(trail), Access.OPERATOR),
        )

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.close()
