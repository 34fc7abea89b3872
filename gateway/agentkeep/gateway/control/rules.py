"""What a gateway or target may be made of here. What cannot be honoured yet is refused by name rather than ignored: an
interceptor or a key of one's own that is silently not there is worse than none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentkeep.core.errors import FieldError, ValidationException
from agentkeep.core.ports import Authorizers
from agentkeep.gateway.policy.schema import RESERVED_TARGET_NAMES
from agentkeep.gateway.records import MCP_VERSIONS

__all__ = ["check_gateway", "check_target", "invalid"]

_NOT_YET: Final = "is not supported by agentkeep yet; leave it out"

_GATEWAY_NOT_YET: Final = (
    "kmsKeyArn",
    "interceptorConfigurations",
    "customTransformConfiguration",
    "domainOverride",
    "wafConfiguration",
)
_MCP_NOT_YET: Final = ("searchType", "sessionConfiguration")

_TARGET_NOT_YET: Final = ("metadataConfiguration", "privateEndpoint", "certificateConfigurations")
_MCP_SERVER_NOT_YET: Final = ("mcpToolSchema", "resourcePriority")
_KINDS: Final = "use mcp.mcpServer or mcp.openApiSchema"
_CREDENTIALS: Final = {"API_KEY": "apiKeyCredentialProvider", "JWT_PASSTHROUGH": None}


def invalid(*faults: FieldError) -> ValidationException:
    """Raised with every fault named."""
    return ValidationException("; ".join(f"{name} {message}" for name, message in faults), fields=faults)


async def check_gateway(request: Mapping[str, Any], authorizers: Authorizers) -> None:
    """Of a CreateGateway or UpdateGateway request. Raises ValidationException."""
    faults = [FieldError(name, _NOT_YET) for name in _GATEWAY_NOT_YET if request.get(name) is not None]
    mcp = (request.get("protocolConfiguration") or {}).get("mcp") or {}
    place = "protocolConfiguration.mcp"
    faults += [FieldError(f"{place}.{name}", _NOT_YET) for name in _MCP_NOT_YET if mcp.get(name) is not None]
    if (mcp.get("streamingConfiguration") or {}).get("enableResponseStreaming"):
        faults.append(FieldError(f"{place}.streamingConfiguration.enableResponseStreaming", _NOT_YET))
    if unknown := [version for version in mcp.get("supportedVersions") or () if version not in MCP_VERSIONS]:
        faults.append(
            FieldError(f"{place}.supportedVersions", f"has {', '.join(unknown)}; known are {', '.join(MCP_VERSIONS)}")
        )
    configured = (request.get("authorizerConfiguration") or {}).get("customJWTAuthorizer")
    match request["authorizerType"]:
        case "CUSTOM_JWT" if configured is None:
            faults.append(FieldError("authorizerConfiguration", "must have a customJWTAuthorizer with CUSTOM_JWT"))
        case "CUSTOM_JWT":
            pass
        case "AWS_IAM" | "NONE" if request.get("authorizerConfiguration"):
            faults.append(FieldError("authorizerConfiguration", "is for authorizerType CUSTOM_JWT; leave it out"))
        case (
            "AWS_IAM" | "NONE"
        ):  # nobody is served by a gateway with NONE (mcp/inbound.py), which says so (documents.py)
            pass
        case other:
            faults.append(FieldError("authorizerType", f"{other} {_NOT_YET}: use AWS_IAM (SigV4) or CUSTOM_JWT"))
    if faults:
        raise invalid(*faults)
    if configured is not None:
        await authorizers.check(configured)


def check_target(request: Mapping[str, Any]) -> None:
    """Of a CreateGatewayTarget or UpdateGatewayTarget request. Raises ValidationException."""
    faults = [FieldError(name, _NOT_YET) for name in _TARGET_NOT_YET if request.get(name) is not None]
    name = request.get("name")
    if not name:
        faults.append(FieldError("name", "is required: tools are called by it (name___tool)"))
    elif name in RESERVED_TARGET_NAMES:
        faults.append(FieldError("name", f"{name} is reserved: policies call all tools by it; choose another"))
    faults += _configuration(request["targetConfiguration"])
    faults += _credentials(request.get("credentialProviderConfigurations") or ())
    if faults:
        raise invalid(*faults)


def _configuration(configuration: Mapping[str, Any]) -> list[FieldError]:
    place = "targetConfiguration"
    for protocol in configuration:
        if protocol != "mcp":
            return [FieldError(f"{place}.{protocol}", f"is not supported by agentkeep yet; {_KINDS}")]
    kinds = configuration.get("mcp") or {}
    match kinds:
        case {"mcpServer": server}:
            faults = [
                FieldError(f"{place}.mcp.mcpServer.{name}", _NOT_YET)
                for name in _MCP_SERVER_NOT_YET
                if server.get(name) is not None
            ]
            if server.get("listingMode", "DEFAULT") != "DEFAULT":
                faults.append(
                    FieldError(
                        f"{place}.mcp.mcpServer.listingMode",
                        "DYNAMIC is not supported by agentkeep yet; use DEFAULT, and SynchronizeGatewayTargets when "
                        "the server's tools have changed",
                    )
                )
            return faults
        case {"openApiSchema": {"inlinePayload": _}}:
            return []
        case {"openApiSchema": _}:
            return [
                FieldError(
                    f"{place}.mcp.openApiSchema.s3",
                    "is not supported by agentkeep yet; give the document itself as inlinePayload",
                )
            ]
    named = ", ".join(f"{place}.mcp.{kind}" for kind in kinds) or f"{place}.mcp"
    return [FieldError(named, f"is not supported by agentkeep yet; {_KINDS}")]


def _credentials(configurations: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    faults: list[FieldError] = []
    for index, one in enumerate(configurations, 1):
        place = f"credentialProviderConfigurations.{index}.member"
        kind = one["credentialProviderType"]
        if kind not in _CREDENTIALS:
            faults.append(
                FieldError(
                    f"{place}.credentialProviderType",
                    f"{kind} is not supported by agentkeep yet; use {' or '.join(_CREDENTIALS)}, or leave out "
                    "credentialProviderConfigurations",
                )
            )
            continue
        wanted, given = _CREDENTIALS[kind], one.get("credentialProvider") or {}
        if wanted is not None and wanted not in given:
            faults.append(FieldError(f"{place}.credentialProvider", f"must have {wanted} with {kind}"))
        if wanted is None and given:
            faults.append(FieldError(f"{place}.credentialProvider", f"must be left out with {kind}"))
    return faults
