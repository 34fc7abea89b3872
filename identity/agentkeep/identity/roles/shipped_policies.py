"""Policies that come with the platform, for roles to name. docs/development/roles.md says in a table what each allows.

None allows acting for users but the one that is called so: it is given by name, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentkeep.core.grants import ACT_FOR_USER, user_arn
from agentkeep.core.identifiers import Deployment
from agentkeep.wire.model import service

__all__ = ["SHIPPED", "shipped"]

_AGENTCORE: Final = "bedrock-agentcore"
_CONTROL: Final = "bedrock-agentcore-control"
_READS: Final = ("Get", "List")

_ADMINISTRATOR: Final = ("bedrock-agentcore:*", "bedrock:*", "agentkeep:Read*", "agentkeep:Write*")

#: Makes and changes what runs; deletes nothing that holds users' data, and reads and uses none of it.
_DEPLOYED: Final = (
    "AgentRuntime", "AgentRuntimeEndpoint", "Gateway", "GatewayTarget", "GatewayRateLimit", "PolicyEngine", "Policy",
    "WorkloadIdentity", "ApiKeyCredentialProvider", "Oauth2CredentialProvider",
)  # fmt: skip
_DEPLOYER: Final = (
    *(f"{verb}{kind}" for kind in _DEPLOYED for verb in ("Create", "Update", "Delete")),
    "CreateMemory", "UpdateMemory", "BatchPutGatewayRateLimits", "SynchronizeGatewayTargets", "PutResourcePolicy",
    "DeleteResourcePolicy", "TagResource", "UntagResource",
)  # fmt: skip
_DEPLOYER_MOUNTS: Final = (
    "ReadArtifacts", "WriteArtifacts", "ReadCatalogue", "WriteCatalogue", "ReadLogs", "ReadSessions", "ReadTraces",
    "ReadUsage",
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

#: Sees how everything is set up and who did what; neither what users said nor what agents printed.
_AUDITOR_MOUNTS: Final = (
    "ReadAuditRecords", "ReadAudit", "ReadAlerts", "ReadUsage", "ReadOperatorKeys", "ReadRoles", "ReadSessions",
    "ReadCatalogue",
)  # fmt: skip

SHIPPED: Final[Mapping[str, str]] = {
    "administrator": "everything but acting for users",
    "deployer": "makes and changes agents, gateways, memories and providers; neither uses them nor sees users' data",
    "application": "invokes agents, gateways and models, and uses memory and credentials",
    "auditor": "sees configuration, audit records and alerts, changes nothing",
    "acts-for-users": "acts for every user without the user's token, as far as the role's other policies go",
}


def shipped(name: str, deployment: Deployment) -> dict[str, Any]:
    """The policy's document in this deployment."""
    reads = tuple(one for one in service(_CONTROL).operation_names if one.startswith(_READS))
    resource = "*"
    actions: Sequence[str]
    match name:
        case "administrator":
            actions = _ADMINISTRATOR
        case "deployer":
            actions = (*_of_agentcore((*_DEPLOYER, *reads)), *_of_mounts(_DEPLOYER_MOUNTS))
        case "application":
            actions = (*_of_agentcore(_APPLICATION), *_MODELS)
        case "auditor":
            actions = (*_of_agentcore(reads), *_of_mounts(_AUDITOR_MOUNTS))
        case "acts-for-users":
            actions, resource = (ACT_FOR_USER,), user_arn(deployment.account, "*")
        case _:
            raise KeyError(name)
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": resource}
    return {"Version": "2012-10-17", "Statement": [statement]}


def _of_agentcore(operations: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{_AGENTCORE}:{operation}" for operation in operations)


def _of_mounts(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"agentkeep:{name}" for name in names)
