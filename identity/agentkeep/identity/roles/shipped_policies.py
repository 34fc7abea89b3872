"""Policies that come with the platform, for roles to name. docs/development/roles.md says in a table what each allows.

None allows acting for users but the one that is called so: it is given by name, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentkeep.backend.actions import RESOURCES
from agentkeep.core.grants import ACT_FOR_USER, user_arn
from agentkeep.core.identifiers import Deployment
from agentkeep.wire.model import service

__all__ = ["SHIPPED", "shipped"]

_AGENTCORE: Final = "bedrock-agentcore"
_CONTROL: Final = "bedrock-agentcore-control"
_READS: Final = ("Get", "List")

_ADMINISTRATOR: Final = ("bedrock-agentcore:*", "bedrock:*", "iam:PassRole", "agentkeep:Read*", "agentkeep:Write*")

#: Makes and changes what runs; deletes nothing that holds users' data, and reads and uses none of it.
_DEPLOYED: Final = (
    "AgentRuntime", "AgentRuntimeEndpoint", "Gateway", "GatewayTarget", "GatewayRateLimit", "PolicyEngine", "Policy",
    "WorkloadIdentity", "ApiKeyCredentialProvider", "Oauth2CredentialProvider",
)  # fmt: skip
_DEPLOYER: Final = (
    *(f"{verb}{kind}" for kind in _DEPLOYED for verb in ("Create", "Update", "Delete")),
    "CreateMemory", "UpdateMemory", "BatchPutGatewayRateLimits", "SynchronizeGatewayTargets", "PutResourcePolicy",
    "DeleteResourcePolicy",
)  # fmt: skip
#: Not of memories: there tags say whose agents and which providers' users may come to the data.
_TAGS: Final = ("TagResource", "UntagResource")
_DEPLOYER_OURS: Final = (
    "ReadArtifacts", "WriteArtifacts", "ReadCatalogue", "WriteCatalogue", "ReadLogs", "ReadSessions", "ReadTraces",
    "ReadUsage", "ReadEnvironmentVariables",
)  # fmt: skip

#: Uses what is there. Users' data needs acts-for-users besides.
_APPLICATION: Final = (
    "InvokeAgentRuntime", "InvokeAgentRuntimeWithWebSocketStream", "GetAgentCard", "StopRuntimeSession",
    "InvokeAgentRuntimeForUser", "InvokeAgentRuntimeWithWebSocketStreamForUser", "GetAgentCardForUser",
    "InvokeGateway", "CreateEvent", "GetEvent", "ListEvents", "ListSessions", "ListMemoryRecords",
    "RetrieveMemoryRecords", "GetMemoryRecord", "IngestData", "GetWorkloadAccessToken", "GetWorkloadAccessTokenForJWT",
    "GetWorkloadAccessTokenForUserId", "GetResourceApiKey", "GetResourceOauth2Token", "CompleteResourceTokenAuth",
)  # fmt: skip
_MODELS: Final = ("bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream", "bedrock:CountTokens")

#: Sees how everything is set up and who did what; neither secrets, nor what users said, nor what agents printed.
_AUDITOR_OURS: Final = (
    "ReadAuditRecords", "ReadAudit", "ReadAlerts", "ReadUsage", "ReadOperatorKeys", "ReadRoles", "ReadSessions",
    "ReadCatalogue",
)  # fmt: skip

SHIPPED: Final[Mapping[str, str]] = {
    "administrator": "everything but acting for users",
    "deployer": "makes and changes agents, gateways, memories and providers, and sees what agents print; uses none",
    "application": "invokes agents, gateways and models, and uses memory and credentials",
    "auditor": "sees configuration without secrets, audit records and alerts; changes nothing",
    "acts-for-users": "acts for every user without the user's token, as far as the role's other policies go",
}


def shipped(name: str, deployment: Deployment) -> dict[str, Any]:
    """The policy's document in this deployment."""
    reads = tuple(one for one in service(_CONTROL).operation_names if one.startswith(_READS))
    match name:
        case "administrator":
            allowed = [_allow(_ADMINISTRATOR)]
        case "deployer":
            tagged = [deployment.arn(form.replace("{}", "*")) for form in RESOURCES if not form.startswith("memory/")]
            allowed = [
                _allow((*_of_agentcore((*_DEPLOYER, *reads)), *_ours(_DEPLOYER_OURS), "iam:PassRole")),
                _allow(_of_agentcore(_TAGS), tagged),
            ]
        case "application":
            allowed = [_allow((*_of_agentcore(_APPLICATION), *_MODELS))]
        case "auditor":
            allowed = [_allow((*_of_agentcore(reads), *_ours(_AUDITOR_OURS)))]
        case "acts-for-users":
            allowed = [_allow((ACT_FOR_USER,), user_arn(deployment.account, "*"))]
        case _:
            raise KeyError(name)
    return {"Version": "2012-10-17", "Statement": allowed}


def _allow(actions: Sequence[str], on: str | list[str] = "*") -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": on}


def _of_agentcore(operations: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{_AGENTCORE}:{operation}" for operation in operations)


def _ours(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"agentkeep:{name}" for name in names)
