"""The service model's documents, from records: `CreateGatewayResponse` and its kin.

A record is at rest by the time it is stored; an operation that the service answers before it is done says so by its
`status` (CREATING, UPDATING), and what became of it is what Get says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentkeep.gateway.records import (
    GatewayRecord,
    PolicyEngineRecord,
    PolicyRecord,
    RateLimitRecord,
    TargetRecord,
)

__all__ = ["engine", "gateway", "gateway_summary", "policy", "rate_limit", "target", "target_summary", "without"]


#: IDN-5: such a gateway may be made and configured, as by scripts that secure it afterwards; its tools are nobody's.
_NOBODY: Final = (
    "authorizerType NONE: nobody unauthenticated calls tools here, so nobody is served. Secure the gateway by "
    "UpdateGateway with AWS_IAM (SigV4) or CUSTOM_JWT"
)


def gateway(record: GatewayRecord, url: str, status: str | None = None) -> dict[str, Any]:
    return {
        **({"statusReasons": [_NOBODY]} if record.authorizer_type == "NONE" else {}),
        **record.document,
        "gatewayArn": record.arn,
        "gatewayId": record.id,
        "gatewayUrl": url,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
        "status": status or record.status,
        "name": record.name,
        "authorizerType": record.authorizer_type,
    }


def gateway_summary(record: GatewayRecord) -> dict[str, Any]:
    return {
        "gatewayId": record.id,
        "name": record.name,
        "status": record.status,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
        "authorizerType": record.authorizer_type,
        **_present(record.document, "description", "protocolType"),
    }


def target(record: TargetRecord, gateway_arn: str, status: str | None = None) -> dict[str, Any]:
    answer = {
        **record.document,
        "gatewayArn": gateway_arn,
        "targetId": record.id,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
        "status": status or record.status,
        "name": record.name,
        "targetConfiguration": record.configuration,
        "credentialProviderConfigurations": list(record.credentials),
        "protocolType": "MCP",
    }
    if status is not None:
        answer.pop("statusReasons", None)
    if record.synchronized_at is not None:
        answer["lastSynchronizedAt"] = record.synchronized_at
    return answer


def target_summary(record: TargetRecord) -> dict[str, Any]:
    server = "mcpServer" in record.configuration["mcp"]
    answer = {
        "targetId": record.id,
        "name": record.name,
        "status": record.status,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
        "targetType": "MCP_SERVER" if server else "OPEN_API_SCHEMA",
        **_present(record.document, "description"),
    }
    if server:
        answer["listingMode"] = "DEFAULT"
    if record.synchronized_at is not None:
        answer["lastSynchronizedAt"] = record.synchronized_at
    return answer


def rate_limit(record: RateLimitRecord) -> dict[str, Any]:
    return {
        **record.document,
        "rateLimitId": record.id,
        "gatewayIdentifier": record.gateway_id,
        "dimensionKeys": list(record.dimension_keys),
        "entries": list(record.entries),
        "status": "ACTIVE",
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
    }


def engine(record: PolicyEngineRecord, status: str | None = None) -> dict[str, Any]:
    return {
        "statusReasons": [],
        **record.document,
        "policyEngineId": record.id,
        "policyEngineArn": record.arn,
        "name": record.name,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
        "status": status or record.status,
    }


def policy(record: PolicyRecord, arn: str, status: str | None = None) -> dict[str, Any]:
    answer = {
        **record.document,
        "policyId": record.id,
        "name": record.name,
        "policyEngineId": record.engine_id,
        "policyArn": arn,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
        "status": status or record.status,
        "enforcementMode": record.enforcement,
    }
    if status is not None:
        answer["statusReasons"] = []
    return answer


def without(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A document's summary."""
    return {name: value for name, value in document.items() if name not in names}


def _present(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: document[name] for name in names if name in document}
