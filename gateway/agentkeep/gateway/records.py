"""What the gateway plane knows of its resources, and where both its control plane and its data path read it.

Members without a meaning for the platform stay in `document`, as the service model shapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

__all__ = [
    "MCP_VERSIONS",
    "GatewayRecord",
    "PolicyEngineRecord",
    "PolicyRecord",
    "RateLimitRecord",
    "Resources",
    "TargetRecord",
    "Tool",
    "ToolLister",
]

#: The versions of the MCP protocol that gateways speak.
MCP_VERSIONS: Final = ("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    """`authorizer_type`: AWS_IAM, CUSTOM_JWT, ... `authorizer`: the model's customJWTAuthorizer, for CUSTOM_JWT.
    `policy_engine_id` None: no engine is attached, and nothing may be called. `policy_mode`: ENFORCE or LOG_ONLY."""

    id: str
    arn: str
    name: str
    status: str
    authorizer_type: str
    authorizer: Mapping[str, Any] | None
    policy_engine_id: str | None
    policy_mode: str | None
    created_at: datetime
    updated_at: datetime
    document: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of a target, without the target's name. Schemas are JSON Schema. `annotations` are MCP's."""

    name: str
    description: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """`configuration` is the model's targetConfiguration (an OpenAPI schema's text included), `credentials` its
    credentialProviderConfigurations. `tools` is what was listed when the target was made, updated or synchronised, at
    `synchronized_at`; a target whose last update or synchronisation failed keeps serving what it had, so that only a
    target without tools serves nothing, whatever its `status`."""

    gateway_id: str
    id: str
    name: str
    status: str
    configuration: Mapping[str, Any]
    credentials: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool]
    created_at: datetime
    updated_at: datetime
    document: Mapping[str, Any] = field(default_factory=dict)
    synchronized_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RateLimitRecord:
    """`entries` as the model shapes them."""

    gateway_id: str
    id: str
    dimension_keys: Sequence[str]
    entries: Sequence[Mapping[str, Any]]
    created_at: datetime
    updated_at: datetime
    document: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyEngineRecord:
    """A set of policies that gateways are attached to."""

    id: str
    arn: str
    name: str
    status: str
    created_at: datetime
    updated_at: datetime
    document: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """`statement` is Cedar: the last one that passed its checks. `enforcement`: ACTIVE or LOG_ONLY."""

    engine_id: str
    id: str
    name: str
    statement: str
    enforcement: str
    status: str
    created_at: datetime
    updated_at: datetime
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether decisions look at it: one whose update failed still decides as before, one that never passed its
        checks does not."""
        return self.status in ("ACTIVE", "UPDATE_FAILED")


class Resources(Protocol):
    """The data path's view of the control plane. Cheap to ask for each call: an answer may be kept in the process for
    as long as nothing of that gateway or engine has changed, in whichever replica."""

    async def gateway(self, gateway_id: str) -> GatewayRecord | None: ...

    async def targets(self, gateway_id: str) -> Sequence[TargetRecord]:
        """In the order they were made."""
        ...

    async def rate_limits(self, gateway_id: str) -> Sequence[RateLimitRecord]: ...

    async def policies(self, engine_id: str) -> tuple[str, Sequence[PolicyRecord]]:
        """All policies of an engine, and a revision that is another one whenever any of them is (what is prepared from
        them is kept by it)."""
        ...


class ToolLister(Protocol):
    """Asks a target which tools it has: an MCP server over the wire, an OpenAPI schema by reading it."""

    async def list_tools(self, target: TargetRecord) -> Sequence[Tool]:
        """All tools, in the target's order; `target.tools` is not looked at.

        Raises ValidationException where the configuration cannot ever work (a bad OpenAPI document: names what is
        wrong), which refuses the request; ServiceUnavailableException or a DependencyError where the target did not
        answer, which makes the target FAILED (or SYNCHRONIZE_UNSUCCESSFUL) with the reason, its known tools kept.
        """
        ...
