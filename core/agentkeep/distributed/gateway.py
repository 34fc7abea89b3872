"""The gateway service: the only way out of a session, to models and tools."""

from __future__ import annotations

from typing import Final

from agentkeep.distributed.service import Composed, Service
from agentkeep.distributed.settings import SettingsInvalid, load
from agentkeep.gateway.control.plane import gateway_control
from agentkeep.gateway.plane import gateway_plane
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.gateway.tools import Callers, ToolGateway
from agentkeep.service.authentication import Authenticator
from agentkeep.service.ports.catalogue import (
    BUDGET,
    MODELS,
    OUTBOUND_CREDENTIALS,
    SESSION_USERS,
    USAGE,
    WORKLOAD_TOKENS,
)

__all__ = ["SETTINGS", "compose"]

#: Checked before the service waits for anything.
SETTINGS: Final = (GatewaySettings,)


async def compose(service: Service) -> Composed:
    settings = load(GatewaySettings)
    keys = service.keys()
    tools = ToolGateway(service.store, service.port(OUTBOUND_CREDENTIALS), settings, service.deployment, service.clock)
    service.on_exit(tools.close)
    try:
        plane = gateway_plane(settings, service.port(USAGE), service.port(BUDGET), service.clock)
    except ValueError as error:
        raise SettingsInvalid(str(error)) from None
    service.on_exit(plane.close)
    authorizers, public_url = service.authorizers(), service.settings.public_url
    control = gateway_control(
        service.store,
        service.deployment,
        service.clock,
        tools.lister,
        authorizers,
        service.port(WORKLOAD_TOKENS),
        public_url,
    )
    callers = Callers(Authenticator(keys, service.clock, service.alarm), authorizers, service.port(SESSION_USERS))
    return Composed(
        (plane, *control),
        keys,
        mounts=tools.mounts(callers, public_url),
        ports={MODELS: plane.answers},
        start=tools.start,
    )
