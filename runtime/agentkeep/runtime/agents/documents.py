"""The service model's documents, from records: `CreateAgentRuntimeOutput` and its kin. Absent members are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from agentkeep.runtime.agents.catalogue import Catalogue
from agentkeep.runtime.agents.sealed_variables import VARIABLES
from agentkeep.runtime.records import AgentRuntime, Endpoint, Version
from agentkeep.wire.types import bedrock_agentcore_control as control

__all__ = ["ECHOED", "Documents"]

#: Members of the request that GetAgentRuntime gives back.
ECHOED: Final = (
    "agentRuntimeArtifact",
    "roleArn",
    "networkConfiguration",
    "description",
    "authorizerConfiguration",
    "requestHeaderConfiguration",
    "protocolConfiguration",
    "lifecycleConfiguration",
    "hooksConfiguration",
    "metadataConfiguration",
    "environmentVariables",
    "filesystemConfigurations",
    "capacityProviderConfiguration",
    "platformVersion",
    "allowedPorts",
    "resourceConfigurations",
)


class Documents:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def created(self, runtime: AgentRuntime, number: int, identity: str) -> control.CreateAgentRuntimeResponse:
        return {
            "agentRuntimeArn": self._catalogue.runtime_arn(runtime.id),
            "agentRuntimeId": runtime.id,
            "agentRuntimeVersion": str(number),
            "workloadIdentityDetails": {"workloadIdentityArn": identity},
            "createdAt": runtime.created_at,
            "status": runtime.status.value,
        }

    def updated(self, runtime: AgentRuntime, number: int) -> control.UpdateAgentRuntimeResponse:
        answer: control.UpdateAgentRuntimeResponse = {
            "agentRuntimeArn": self._catalogue.runtime_arn(runtime.id),
            "agentRuntimeId": runtime.id,
            "agentRuntimeVersion": str(number),
            "createdAt": runtime.created_at,
            "lastUpdatedAt": runtime.updated_at,
            "status": runtime.status.value,
        }
        if runtime.workload_identity_arn:
            answer["workloadIdentityDetails"] = {"workloadIdentityArn": runtime.workload_identity_arn}
        return answer

    def runtime(
        self, runtime: AgentRuntime, version: Version, variables: Mapping[str, str]
    ) -> control.GetAgentRuntimeResponse:
        """Of the newest version the status is the runtime's (it may be DELETING); of an older one its own.
        `variables`: the version's, opened."""
        record = runtime if version.number == runtime.version else version
        settings = {**version.settings, VARIABLES: variables} if variables else version.settings
        echoed = {name: settings[name] for name in ECHOED if name in settings}
        # What was stored is what the model let in, so it is what the model says.
        answer = cast(
            control.GetAgentRuntimeResponse,
            {
                "agentRuntimeArn": self._catalogue.runtime_arn(runtime.id),
                "agentRuntimeId": runtime.id,
                "agentRuntimeVersion": str(version.number),
                "agentRuntimeName": runtime.name,
                "createdAt": record.created_at,
                "lastUpdatedAt": record.updated_at,
                "status": record.status.value,
                **echoed,
            },
        )
        if runtime.workload_identity_arn:
            answer["workloadIdentityDetails"] = {"workloadIdentityArn": runtime.workload_identity_arn}
        if record.failure_reason:
            answer["failureReason"] = record.failure_reason
        return answer

    def listed_runtime(self, runtime: AgentRuntime, version: Version | None) -> control.AgentRuntime:
        return {
            "agentRuntimeArn": self._catalogue.runtime_arn(runtime.id),
            "agentRuntimeId": runtime.id,
            "agentRuntimeVersion": str(runtime.version),
            "agentRuntimeName": runtime.name,
            "description": _description(version),
            "lastUpdatedAt": runtime.updated_at,
            "status": runtime.status.value,
        }

    def listed_version(self, runtime: AgentRuntime, version: Version) -> control.AgentRuntime:
        return {
            "agentRuntimeArn": self._catalogue.runtime_arn(runtime.id),
            "agentRuntimeId": runtime.id,
            "agentRuntimeVersion": str(version.number),
            "agentRuntimeName": runtime.name,
            "description": _description(version),
            "lastUpdatedAt": version.updated_at,
            "status": version.status.value,
        }

    def created_endpoint(self, endpoint: Endpoint) -> control.CreateAgentRuntimeEndpointResponse:
        return {
            "agentRuntimeEndpointArn": self._catalogue.endpoint_arn(endpoint.runtime_id, endpoint.name),
            "agentRuntimeArn": self._catalogue.runtime_arn(endpoint.runtime_id),
            "agentRuntimeId": endpoint.runtime_id,
            "endpointName": endpoint.name,
            "targetVersion": str(endpoint.target),
            "status": endpoint.status.value,
            "createdAt": endpoint.created_at,
        }

    def updated_endpoint(self, endpoint: Endpoint) -> control.UpdateAgentRuntimeEndpointResponse:
        answer: control.UpdateAgentRuntimeEndpointResponse = {
            "agentRuntimeEndpointArn": self._catalogue.endpoint_arn(endpoint.runtime_id, endpoint.name),
            "agentRuntimeArn": self._catalogue.runtime_arn(endpoint.runtime_id),
            "targetVersion": str(endpoint.target),
            "status": endpoint.status.value,
            "createdAt": endpoint.created_at,
            "lastUpdatedAt": endpoint.updated_at,
        }
        if endpoint.live is not None:
            answer["liveVersion"] = str(endpoint.live)
        return answer

    def endpoint(self, endpoint: Endpoint) -> control.GetAgentRuntimeEndpointResponse:
        answer = cast(control.GetAgentRuntimeEndpointResponse, self.listed_endpoint(endpoint))
        if endpoint.failure_reason:
            answer["failureReason"] = endpoint.failure_reason
        return answer

    def listed_endpoint(self, endpoint: Endpoint) -> control.AgentRuntimeEndpoint:
        answer: control.AgentRuntimeEndpoint = {
            "name": endpoint.name,
            "id": endpoint.id,
            "agentRuntimeEndpointArn": self._catalogue.endpoint_arn(endpoint.runtime_id, endpoint.name),
            "agentRuntimeArn": self._catalogue.runtime_arn(endpoint.runtime_id),
            "targetVersion": str(endpoint.target),
            "status": endpoint.status.value,
            "createdAt": endpoint.created_at,
            "lastUpdatedAt": endpoint.updated_at,
        }
        if endpoint.live is not None:
            answer["liveVersion"] = str(endpoint.live)
        if endpoint.description:
            answer["description"] = endpoint.description
        return answer


def _description(version: Version | None) -> str:
    """Listings must have one."""
    return str(version.settings.get("description", "")) if version is not None else ""
