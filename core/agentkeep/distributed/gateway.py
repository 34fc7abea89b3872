"""The gateway service: the only way out of a session, to models and tools."""

from __future__ import annotations

from agentkeep.distributed.service import Composed, Service
from agentkeep.distributed.settings import load
from agentkeep.gateway.plane import gateway_plane
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.service.ports.catalogue import BUDGET, USAGE

__all__ = ["compose"]


async def compose(service: Service) -> Composed:
    plane = gateway_plane(load(GatewaySettings), service.port(USAGE), service.port(BUDGET), service.clock)
    service.on_exit(plane.close)
    return Composed(plane, service.keys())
