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
from agentkeep.gateway.control.resources import StoredResources
from agentkeep.gateway.limits.rate_limits import RateLimits
from agentkeep.gateway.mcp.calls import ToolCalls
from agentkeep.gateway.mcp.endpoint import PLACE, GatewayEndpoint
from agentkeep.gateway.mcp.inbound import InboundAuthentication
from agentkeep.gateway.mcp.server import McpServer
from agentkeep.gateway.policy.decisions import PolicyDecisions
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

__all__ = ["Callers", "ToolGateway"]


class Store(KeyValueStore, CounterStore, Protocol):
    """Keeps both, as Valkey does."""


@dataclass(frozen=True, slots=True)
class Callers:
    """What proves who calls a gateway."""

    authenticator: Authenticator
    authorizers: Authorizers
    session_users: SessionUsers


class ToolGateway:
    """`resources`, `policies` and `lister` are what the control plane shares with the data path. `mounts`: where the
    applications belong. `start`, then `close`. Raises ValueError where the settings contradict themselves."""

    def __init__(
        self,
        store: Store,
        credentials: OutboundCredentials,
        settings: GatewaySettings,
        deployment: Deployment,
        clock: Clock,
    ) -> None:
        schemas = ArgumentSchemas()
        wire = TargetWire(AllowedAddresses(settings.allowed_target_hosts), most_bytes=settings.response_bytes)
        self.resources = StoredResources(store)
        self.policies = PolicyDecisions(self.resources, clock)
        self.lister = Targets(wire, TargetCredentials(credentials), schemas, listing_seconds=settings.listing_seconds)
        self._settings = settings
        self._deployment = deployment
        self._catalogue = Catalogue(store, settings)
        self._trail = AuditTrail(store, days=settings.audit_days, most_bytes=settings.audit_bytes)
        self._server = McpServer(
            ToolCalls(
                self.resources,
                self.policies,
                schemas,
                RateLimits(store),
                self._trail,
                self._catalogue,
                self.lister,
                clock,
            ),
            most_bytes=settings.request_bytes,
        )

    def mounts(self, callers: Callers, public_url: str) -> list[Mount]:
        authentication = InboundAuthentication(
            self.resources, callers.authenticator, callers.authorizers, callers.session_users, self._deployment
        )
        endpoint = GatewayEndpoint(
            self._server,
            authentication,
            self.resources,
            public_url=public_url,
            most_bytes=self._settings.request_bytes,
        )
        return [
            Mount("", endpoint, Access.PUBLIC, place=PLACE),
            Mount("", endpoint, Access.SESSION, place=PLACE),
            Mount("/catalogue", CatalogueApp(self._catalogue, self.resources), Access.OPERATOR),
            Mount("/audit", AuditApp(self._trail), Access.OPERATOR),
        ]

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.close()
