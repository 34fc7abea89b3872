"""The service model's documents, from records: `CreateAgentRuntimeOutput` and its kin. Absent members are left out."""

from __future__ import annotations

from typing import Any, Final

from agentkeep.runtime.catalogue import Catalogue
from agentkeep.runtime.records import AgentRuntime, Endpoint, Version

__all__ = ["Documents"]

#: Members of the request that GetAgentRuntime gives back.
_ECHOED: Final = (
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

Document = dict[str, Any]


class Documents:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def _runtime(self, runtime: AgentRuntime, number: int) -> Document:
        return {
            "agentRuntimeArn": self._catalogue.runtime_arn(runtime.id),
            "agentRuntimeId": runtime.id,
            "agentRuntimeVersion": str(number),
        }

    @staticmethod
    def _identity(arn: str | None) -> Document:
        return {"workloadIdentityDetails": {"workloadIdentityArn": arn}} if arn else {}

    def created(self, runtime: AgentRuntime, number: int, identity: str) -> Document:
        return {
            **self._runtime(runtime, number),
            **self._identity(identity),
            "createdAt": runtime.created_at,
            "status": runtime.status.value,
        }

    def updated(self, runtime: AgentRuntime, number: int) -> Document:
        return {
            **self._runtime(runtime, number),
            **self._identity(runtime.workload_identity_arn),
            "createdAt": runtime.created_at,
            "lastUpdatedAt": runtime.updated_at,
            "status": runtime.status.value,
        }

    def runtime(self, runtime: AgentRuntime, version: Version) -> Document:
        """Of the newest version the status is the runtime's (it may be DELETING); of an older one its own."""
        newest = version.number == runtime.version
        reason = runtime.failure_reason if newest else version.failure_reason
        return {
            **self._runtime(runtime, version.number),
            "agentRuntimeName": runtime.name,
            "createdAt": version.created_at if not newest else runtime.created_at,
            "lastUpdatedAt": version.updated_at if not newest else runtime.updated_at,
            "status": (runtime.status if newest else version.status).value,
            **self._identity(runtime.workload_identity_arn),
            **({"failureReason": reason} if reason else {}),
            **{name: version.settings[name] for name in _ECHOED if name in version.settings},
        }

    def listed_runtime(self, runtime: AgentRuntime, version: Version | None) -> Document:
        description = version.settings.get("description", "") if version else ""
        return {
            **self._runtime(runtime, runtime.version),
            "agentRuntimeName": runtime.name,
            "description": description,
            "lastUpdatedAt": runtime.updated_at,
            "status": runtime.status.value,
        }

    def listed_version(self, runtime: AgentRuntime, version: Version) -> Document:
        return {
            **self._runtime(runtime, version.number),
            "agentRuntimeName": runtime.name,
            "description": version.settings.get("description", ""),
            "lastUpdatedAt": version.updated_at,
            "status": version.status.value,
        }

    def _endpoint(self, endpoint: Endpoint) -> Document:
        return {
            "agentRuntimeEndpointArn": self._catalogue.endpoint_arn(endpoint.runtime_id, endpoint.name),
            "agentRuntimeArn": self._catalogue.runtime_arn(endpoint.runtime_id),
            "targetVersion": str(endpoint.target),
            "status": endpoint.status.value,
            "createdAt": endpoint.created_at,
            **({"liveVersion": str(endpoint.live)} if endpoint.live is not None else {}),
        }

    def created_endpoint(self, endpoint: Endpoint) -> Document:
        document = self._endpoint(endpoint)
        document.pop("liveVersion", None)
        return document | {"agentRuntimeId": endpoint.runtime_id, "endpointName": endpoint.name}

    def updated_endpoint(self, endpoint: Endpoint) -> Document:
        return self._endpoint(endpoint) | {"lastUpdatedAt": endpoint.updated_at}

    def endpoint(self, endpoint: Endpoint) -> Document:
        reason = {"failureReason": endpoint.failure_reason} if endpoint.failure_reason else {}
        return self.listed_endpoint(endpoint) | reason

    def listed_endpoint(self, endpoint: Endpoint) -> Document:
        return {
            **self._endpoint(endpoint),
            "name": endpoint.name,
            "id": endpoint.id,
            "lastUpdatedAt": endpoint.updated_at,
            **({"description": endpoint.description} if endpoint.description else {}),
        }
