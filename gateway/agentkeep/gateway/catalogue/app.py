"""The catalogue, for operators: who may call what, with which limits, audited how.

GET /catalogue/{gatewayId}                     every tool of a gateway, with the policies that have a say
PUT /catalogue/{gatewayId}/{target}___{tool}   sets riskClass, auditLevel, timeoutSeconds, callsPerSession,
                                               callsPerMinute; what is left out is the default again
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from agentkeep.core.errors import ResourceNotFoundException, ServiceError, ValidationException
from agentkeep.gateway.catalogue.entries import Catalogue, full_name
from agentkeep.gateway.catalogue.prose import applies, sentence
from agentkeep.gateway.policy.language import parse
from agentkeep.gateway.records import GatewayRecord, PolicyRecord, Resources, TargetRecord, Tool
from agentkeep.service.asgi import ClientLeft, Receive, Scope, Send, path_parts, pieces, respond

__all__ = ["CatalogueApp"]

_MOST_BYTES: Final = 65_536


class CatalogueApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through."""

    def __init__(self, catalogue: Catalogue, resources: Resources) -> None:
        self._catalogue = catalogue
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            match scope["method"], path_parts(scope, 3):
                case "GET", ["catalogue", gateway_id] if gateway_id:
                    answer = await self._show(await self._gateway(gateway_id))
                case "PUT", ["catalogue", gateway_id, name] if name:
                    answer = await self._set(await self._gateway(gateway_id), name, receive)
                case _:
                    raise ResourceNotFoundException(
                        "GET /catalogue/{gatewayId} or PUT /catalogue/{gatewayId}/{target}___{tool}"
                    )
        except ServiceError as error:
            await respond(send, error.status, {"code": error.code, "message": error.message})
        except ClientLeft:
            pass
        else:
            await respond(send, 200, answer)

    async def _gateway(self, gateway_id: str) -> GatewayRecord:
        gateway = await self._resources.gateway(gateway_id)
        if gateway is None:
            raise ResourceNotFoundException(f"There is no gateway {gateway_id}")
        return gateway

    async def _tools(self, gateway: GatewayRecord) -> dict[str, tuple[TargetRecord, Tool]]:
        targets = await self._resources.targets(gateway.id)
        return {full_name(target.name, tool.name): (target, tool) for target in targets for tool in target.tools}

    async def _set(self, gateway: GatewayRecord, name: str, receive: Receive) -> dict[str, Any]:
        found = (await self._tools(gateway)).get(name)
        if found is None:
            raise ResourceNotFoundException(f"Gateway {gateway.id} has no tool {name}")
        body = b"".join([piece async for piece in pieces(receive)])
        try:
            request = orjson.loads(body[:_MOST_BYTES])
        except orjson.JSONDecodeError as error:
            raise ValidationException(f"The catalogue entry must be JSON: {error}", "CannotParse") from None
        entry = await self._catalogue.set(gateway.id, name, found[1], request)
        return {"tool": name, **entry.document()}

    async def _show(self, gateway: GatewayRecord) -> dict[str, Any]:
        tools = await self._tools(gateway)
        entries = await self._catalogue.entries(gateway.id, {name: tool for name, (_, tool) in tools.items()})
        policies: Sequence[PolicyRecord] = ()
        if gateway.policy_engine_id is not None:
            _, policies = await self._resources.policies(gateway.policy_engine_id)
        limits = await self._resources.rate_limits(gateway.id)
        return {
            "gatewayId": gateway.id,
            "name": gateway.name,
            "authorizerType": gateway.authorizer_type,
            "policyEngineId": gateway.policy_engine_id,
            "policyMode": gateway.policy_mode,
            "rateLimits": [
                {"rateLimitId": limit.id, "dimensionKeys": list(limit.dimension_keys), "entries": list(limit.entries)}
                for limit in limits
            ],
            "tools": [
                {
                    "tool": name,
                    "description": tool.description,
                    "inputSchema": dict(tool.input_schema),
                    **entries[name].document(),
                    "policies": _policies(policies, gateway, target, name),
                }
                for name, (target, tool) in tools.items()
            ],
        }


def _policies(
    policies: Sequence[PolicyRecord], gateway: GatewayRecord, target: TargetRecord, name: str
) -> list[dict[str, Any]]:
    """Those in force that have a say in calls of this tool."""
    shown = []
    for record in policies:
        if record.status != "ACTIVE":
            continue
        policy = parse(record.statement)
        if applies(policy, gateway.arn, target.name, name):
            shown.append(
                {
                    "policyId": record.id,
                    "name": record.name,
                    "effect": "permit" if policy.permits else "forbid",
                    "enforcement": record.enforcement,
                    "text": sentence(policy),
                }
            )
    return shown
