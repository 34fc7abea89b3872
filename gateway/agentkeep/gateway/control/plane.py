"""Puts the control side of the gateway plane together."""

from __future__ import annotations

from agentkeep.core.clock import Clock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Authorizers, WorkloadTokens
from agentkeep.gateway.control.gateways import Gateways
from agentkeep.gateway.control.operations import GatewayControl
from agentkeep.gateway.control.policies import Policies
from agentkeep.gateway.control.policy_engines import PolicyEngines
from agentkeep.gateway.control.policy_operations import PolicyControl
from agentkeep.gateway.control.rate_limits import GatewayRateLimits
from agentkeep.gateway.control.tags import Tags
from agentkeep.gateway.control.targets import GatewayTargets
from agentkeep.gateway.records import ToolLister
from agentkeep.storage.interface import KeyValueStore

__all__ = ["gateway_control"]


def gateway_control(
    store: KeyValueStore,
    deployment: Deployment,
    clock: Clock,
    lister: ToolLister,
    authorizers: Authorizers,
    workload_tokens: WorkloadTokens,
    public_url: str,
) -> tuple[GatewayControl, PolicyControl]:
    """The operations, to be given to the backend. `public_url`: where clients reach the platform."""
    return (
        GatewayControl(
            Gateways(store, deployment, clock, authorizers, workload_tokens, public_url),
            GatewayTargets(store, clock, lister),
            GatewayRateLimits(store, clock),
            Tags(store, deployment),
        ),
        PolicyControl(PolicyEngines(store, deployment, clock), Policies(store, deployment, clock)),
    )
