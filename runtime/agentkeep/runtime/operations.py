"""The runtime plane's operations: translate, call the domain, translate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

from agentkeep.core.alarm import Alarm
from agentkeep.core.call import Call, CallerKind, SessionRef, allow
from agentkeep.core.clock import Clock
from agentkeep.core.data_keys import DataKeys
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service import KeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.core.pages import page
from agentkeep.core.permissions import READ_VARIABLES, may_besides
from agentkeep.core.ports import Audit, Authorizers, Budget, Keys, MemorySessions, WorkloadTokens
from agentkeep.runtime.agents.artifacts import ArtifactStore
from agentkeep.runtime.agents.documents import Documents
from agentkeep.runtime.agents.rules import check_settings
from agentkeep.runtime.agents.tags import check_tags
from agentkeep.runtime.drivers.driver import Driver
from agentkeep.runtime.invocations import in_process
from agentkeep.runtime.invocations.commands import DEFAULT_TIMEOUT, Commands
from agentkeep.runtime.parts import EndpointFactory, Parts
from agentkeep.runtime.records import DEFAULT_ENDPOINT, Status
from agentkeep.runtime.replicas.table import Place
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.storage.interface import KeyValueStore
from agentkeep.wire.types import bedrock_agentcore as data
from agentkeep.wire.types import bedrock_agentcore_control as control

__all__ = ["RuntimePlane"]

#: Members of CreateAgentRuntime and UpdateAgentRuntime that are not settings of the version.
_NOT_SETTINGS: Final = frozenset({"agentRuntimeName", "agentRuntimeId", "clientToken", "tags"})


class RuntimePlane:
    """Beside the operations: `invocations` for the pump, `bearers` for the service, `credentials_app` for session
    listeners (at `environment.CREDENTIALS_PATH`), and for operators `admin_app` (/sessions, /logs) and `artifacts_app`
    (/artifacts); `protected_resources` for everybody (at `protected_resources.PLACE`). `egress`: a route of the front,
    by which sessions reach hosts outside."""

    name: Final = "runtime"
    arn_kinds: Final = frozenset({"runtime", "runtime-endpoint"})

    def __init__(
        self,
        store: KeyValueStore,
        deployment: Deployment,
        clock: Clock,
        driver: Driver,
        artifacts: ArtifactStore,
        keys: Keys,
        authorizers: Authorizers,
        workload_tokens: WorkloadTokens,
        budget: Budget,
        endpoint_factory: EndpointFactory,
        settings: RuntimeSettings,
        data_dir: Path,
        alarm: Alarm | None = None,
        place: Place | None = None,
        logs_dir: Path | None = None,
        listener_token: Callable[[SessionRef], str] | None = None,
        memory_sessions: MemorySessions | None = None,
        audit: Audit | None = None,
        *,
        key_service: KeyService,
        key_settings: KeySettings | None = None,
        rewrite_store: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`data_dir`: a folder of this plane's own; a replica keeps its bundles there, and sessions' logs where
        there is no `logs_dir`, which replicas may share. `place`: of this replica among others; None: it is alone.
        `listener_token`: says to another through which session's listener a request came. `memory_sessions`: who is to
        know that a session has ended; None: nobody.
        `audit`: where it is on record for whom operators invoke; None: the log alone.
        `key_service`: wraps the keys of what is sealed; the same for all replicas. `rewrite_store`: has the store
        forget what was overwritten; called when something is sealed that lay there in clear."""
        self._parts = parts = Parts(
            store,
            deployment,
            clock,
            driver,
            artifacts,
            keys,
            authorizers,
            workload_tokens,
            budget,
            endpoint_factory,
            settings,
            data_dir,
            alarm,
            place,
            logs_dir or data_dir / "logs",
            listener_token,
            memory_sessions,
            audit,
            DataKeys(key_service, clock, key_settings),
            rewrite_store,
        )
        self._deployment = deployment
        self._settings = settings
        self._authorizers = authorizers
        self._documents = Documents(parts.catalogue)
        self.invocations = parts.invocations
        self.forwarding = parts.forwarding
        self._commands = Commands(parts.invocations, clock, settings.session_commands)
        self.bearers = parts.bearers
        self.credentials_app = parts.credentials_app
        self.egress = parts.egress
        self.session_users = parts.session_users
        self.admin_app = parts.admin_app
        self.artifacts_app = parts.artifacts_app
        self.protected_resources = parts.protected_resources

    async def start(self) -> None:
        """Ends what a platform before left half done, and takes up what it left to do."""
        await self._parts.start()

    def runtime_id(self, runtime: str) -> str:
        """The id in an ARN or id. Raises ResourceNotFoundException if it is not of here."""
        return self._parts.targets.runtime_id(runtime, None)

    async def stop(self) -> None:
        """Ends every session of this process."""
        await self._parts.stop()

    # Agent runtimes and versions.

    async def create_agent_runtime(
        self, call: Call, request: control.CreateAgentRuntimeRequest
    ) -> control.CreateAgentRuntimeResponse:
        settings = await self._checked(request)
        check_tags(request.get("tags", {}))
        runtime = await self._parts.runtimes.create(
            request["agentRuntimeName"], settings, request.get("tags", {}), call.idempotency
        )
        identity = await self._parts.provisioning.identity(runtime)
        return self._documents.created(runtime, 1, identity)

    async def update_agent_runtime(
        self, call: Call, request: control.UpdateAgentRuntimeRequest
    ) -> control.UpdateAgentRuntimeResponse:
        runtime, number = await self._parts.runtimes.update(
            request["agentRuntimeId"], await self._checked(request), call.idempotency
        )
        return self._documents.updated(runtime, number)

    async def _checked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        settings = {name: value for name, value in request.items() if name not in _NOT_SETTINGS}
        settings = check_settings(
            settings,
            self._deployment,
            self._settings.public_url,
            images=self._settings.docker,
            bundles=self._settings.process,
            memory=self._settings.session_memory,
        )
        authorizer = settings.get("authorizerConfiguration", {}).get("customJWTAuthorizer")
        if authorizer is not None:
            await self._authorizers.check(authorizer)
        return settings

    async def get_agent_runtime(
        self, call: Call, request: control.GetAgentRuntimeRequest
    ) -> control.GetAgentRuntimeResponse:
        number = request.get("agentRuntimeVersion")
        runtime, version = await self._parts.runtimes.get(request["agentRuntimeId"], int(number) if number else None)
        arn = self._parts.catalogue.runtime_arn(runtime.id)
        shown = runtime.status is not Status.DELETING  # else their keys may be erased already
        variables = (
            await self._parts.variables.open(version) if shown and may_besides(call.caller, READ_VARIABLES, arn) else {}
        )
        return self._documents.runtime(runtime, version, variables)

    async def list_agent_runtimes(
        self, call: Call, request: control.ListAgentRuntimesRequest
    ) -> control.ListAgentRuntimesResponse:
        found, token = await page(request, self._parts.runtimes.page, lambda stored: stored.record.id)
        versions = await asyncio.gather(
            *(self._parts.catalogue.find_version(stored.record.id, stored.record.version) for stored in found)
        )
        documents = [
            self._documents.listed_runtime(stored.record, version.record if version else None)
            for stored, version in zip(found, versions, strict=True)
        ]
        return {"agentRuntimes": documents, **_next(token)}

    async def list_agent_runtime_versions(
        self, call: Call, request: control.ListAgentRuntimeVersionsRequest
    ) -> control.ListAgentRuntimeVersionsResponse:
        runtime_id = request["agentRuntimeId"]
        runtime = (await self._parts.catalogue.runtime(runtime_id)).record
        found, token = await page(
            request,
            lambda after, limit: self._parts.catalogue.versions(runtime_id, after, limit),
            lambda stored: f"{stored.record.number:05d}",
        )
        documents = [self._documents.listed_version(runtime, stored.record) for stored in found]
        return {"agentRuntimes": documents, **_next(token)}

    async def delete_agent_runtime(
        self, call: Call, request: control.DeleteAgentRuntimeRequest
    ) -> control.DeleteAgentRuntimeResponse:
        runtime_id, number = request["agentRuntimeId"], request.get("agentRuntimeVersion")
        answer: control.DeleteAgentRuntimeResponse = {"status": "DELETING", "agentRuntimeId": runtime_id}
        if number is None:
            await self._parts.runtimes.delete(runtime_id, call.idempotency)
            return answer
        await self._parts.runtimes.delete_version(runtime_id, int(number), call.idempotency)
        answer["agentRuntimeVersion"] = number
        return answer

    # Endpoints.

    async def create_agent_runtime_endpoint(
        self, call: Call, request: control.CreateAgentRuntimeEndpointRequest
    ) -> control.CreateAgentRuntimeEndpointResponse:
        check_tags(request.get("tags", {}))
        endpoint = await self._parts.endpoints.create(
            request["agentRuntimeId"],
            request["name"],
            _number(request),
            request.get("description"),
            request.get("tags", {}),
            call.idempotency,
        )
        return self._documents.created_endpoint(endpoint)

    async def update_agent_runtime_endpoint(
        self, call: Call, request: control.UpdateAgentRuntimeEndpointRequest
    ) -> control.UpdateAgentRuntimeEndpointResponse:
        endpoint = await self._parts.endpoints.update(
            request["agentRuntimeId"],
            request["endpointName"],
            _number(request),
            request.get("description"),
            call.idempotency,
        )
        return self._documents.updated_endpoint(endpoint)

    async def get_agent_runtime_endpoint(
        self, call: Call, request: control.GetAgentRuntimeEndpointRequest
    ) -> control.GetAgentRuntimeEndpointResponse:
        endpoint = await self._parts.endpoints.get(request["agentRuntimeId"], request["endpointName"])
        return self._documents.endpoint(endpoint)

    async def delete_agent_runtime_endpoint(
        self, call: Call, request: control.DeleteAgentRuntimeEndpointRequest
    ) -> control.DeleteAgentRuntimeEndpointResponse:
        runtime_id, name = request["agentRuntimeId"], request["endpointName"]
        await self._parts.endpoints.delete(runtime_id, name, call.idempotency)
        return {"status": "DELETING", "agentRuntimeId": runtime_id, "endpointName": name}

    async def list_agent_runtime_endpoints(
        self, call: Call, request: control.ListAgentRuntimeEndpointsRequest
    ) -> control.ListAgentRuntimeEndpointsResponse:
        found, token = await page(
            request,
            lambda after, limit: self._parts.endpoints.page(request["agentRuntimeId"], after, limit),
            lambda stored: stored.record.name,
        )
        documents = [self._documents.listed_endpoint(stored.record) for stored in found]
        return {"runtimeEndpoints": documents, **_next(token)}

    # Tags and resource policies.

    async def tag_resource(self, call: Call, request: control.TagResourceRequest) -> control.TagResourceResponse:
        await self._parts.tags.add(request["resourceArn"], request["tags"])
        return {}

    async def untag_resource(self, call: Call, request: control.UntagResourceRequest) -> control.UntagResourceResponse:
        await self._parts.tags.remove(request["resourceArn"], request["tagKeys"])
        return {}

    async def list_tags_for_resource(
        self, call: Call, request: control.ListTagsForResourceRequest
    ) -> control.ListTagsForResourceResponse:
        return {"tags": await self._parts.tags.of(request["resourceArn"])}

    async def put_resource_policy(
        self, call: Call, request: control.PutResourcePolicyRequest
    ) -> control.PutResourcePolicyResponse:
        arn, policy = request["resourceArn"], request["policy"]
        runtime_id, _ = await self._parts.tags.resource(arn)
        _, version = await self._parts.runtimes.get(runtime_id, None)
        takes_tokens = "customJWTAuthorizer" in version.settings.get("authorizerConfiguration", {})
        await self._parts.policies.put(arn, policy, jwt=takes_tokens)
        self._parts.targets.changed(runtime_id)
        return {"policy": policy}

    async def get_resource_policy(
        self, call: Call, request: control.GetResourcePolicyRequest
    ) -> control.GetResourcePolicyResponse:
        await self._parts.tags.resource(request["resourceArn"])
        policy = await self._parts.policies.get(request["resourceArn"])
        return {} if policy is None else {"policy": policy}

    async def delete_resource_policy(
        self, call: Call, request: control.DeleteResourcePolicyRequest
    ) -> control.DeleteResourcePolicyResponse:
        runtime_id, _ = await self._parts.tags.resource(request["resourceArn"])
        await self._parts.policies.delete(request["resourceArn"])
        self._parts.targets.changed(runtime_id)
        return {}

    # Sessions.

    @allow(CallerKind.SESSION, CallerKind.USER)
    async def invoke_agent_runtime(
        self, call: Call, request: data.InvokeAgentRuntimeRequest
    ) -> data.InvokeAgentRuntimeResponse:
        return await in_process.invoke(self.invocations, call, request)

    @allow(CallerKind.SESSION, CallerKind.USER)
    async def get_agent_card(self, call: Call, request: data.GetAgentCardRequest) -> data.GetAgentCardResponse:
        return await in_process.agent_card(self.invocations, call, request)

    @allow(CallerKind.SESSION, CallerKind.USER)
    async def invoke_agent_runtime_command(
        self, call: Call, request: data.InvokeAgentRuntimeCommandRequest
    ) -> data.InvokeAgentRuntimeCommandResponse:
        body = request["body"]
        asked = in_process.invocation_request(call, request, call.operation)
        running = await self._commands.run(asked, body["command"], body.get("timeout", DEFAULT_TIMEOUT))
        return running.answer(request)

    @allow(CallerKind.SESSION, CallerKind.USER)
    async def stop_runtime_session(
        self, call: Call, request: data.StopRuntimeSessionRequest
    ) -> data.StopRuntimeSessionResponse:
        session_id = request["runtimeSessionId"]
        qualifier = request.get("qualifier") or DEFAULT_ENDPOINT
        await self.invocations.stop(call.caller, request["agentRuntimeArn"], qualifier, session_id, call.idempotency)
        return {"runtimeSessionId": session_id, "statusCode": 200}


def _number(request: Mapping[str, Any]) -> int | None:
    number = request.get("agentRuntimeVersion")
    return int(number) if number is not None else None


class _Next(TypedDict, total=False):
    nextToken: str


def _next(token: str | None) -> _Next:
    return {"nextToken": token} if token is not None else {}
