"""Operations on policy engines and policies, named as in boto3. Operators' only. Tags are GatewayControl's."""

from __future__ import annotations

from typing import Any, cast

from agentkeep.core.call import Call
from agentkeep.core.pages import page
from agentkeep.gateway.control import documents
from agentkeep.gateway.control.policies import Policies
from agentkeep.gateway.control.policy_engines import PolicyEngines
from agentkeep.gateway.records import PolicyRecord
from agentkeep.wire.types import bedrock_agentcore_control as wire

__all__ = ["PolicyControl"]

#: What summaries leave out.
_ENGINE_DETAILS = ("description", "statusReasons")
_POLICY_DETAILS = ("description", "definition", "statusReasons")


class PolicyControl:
    name = "gateway"
    arn_kinds: frozenset[str] = frozenset()

    def __init__(self, engines: PolicyEngines, policies: Policies) -> None:
        self._engines = engines
        self._policies = policies

    # Policy engines.

    async def create_policy_engine(
        self, call: Call, request: wire.CreatePolicyEngineRequest
    ) -> wire.CreatePolicyEngineResponse:
        engine = await self._engines.create(request, call.idempotency)
        return cast(wire.CreatePolicyEngineResponse, documents.engine(engine, "CREATING"))

    async def get_policy_engine(self, call: Call, request: wire.GetPolicyEngineRequest) -> wire.GetPolicyEngineResponse:
        engine = (await self._engines.stored(request["policyEngineId"])).record
        return cast(wire.GetPolicyEngineResponse, documents.engine(engine))

    async def update_policy_engine(
        self, call: Call, request: wire.UpdatePolicyEngineRequest
    ) -> wire.UpdatePolicyEngineResponse:
        engine = await self._engines.update(request["policyEngineId"], request)
        return cast(wire.UpdatePolicyEngineResponse, documents.engine(engine, "UPDATING"))

    async def delete_policy_engine(
        self, call: Call, request: wire.DeletePolicyEngineRequest
    ) -> wire.DeletePolicyEngineResponse:
        engine = await self._engines.delete(request["policyEngineId"])
        return cast(wire.DeletePolicyEngineResponse, documents.engine(engine, "DELETING"))

    async def list_policy_engines(
        self, call: Call, request: wire.ListPolicyEnginesRequest
    ) -> wire.ListPolicyEnginesResponse:
        return cast(wire.ListPolicyEnginesResponse, await self._listed_engines(request))

    async def get_policy_engine_summary(
        self, call: Call, request: wire.GetPolicyEngineSummaryRequest
    ) -> wire.GetPolicyEngineSummaryResponse:
        engine = (await self._engines.stored(request["policyEngineId"])).record
        answer = documents.without(documents.engine(engine), *_ENGINE_DETAILS)
        return cast(wire.GetPolicyEngineSummaryResponse, answer)

    async def list_policy_engine_summaries(
        self, call: Call, request: wire.ListPolicyEngineSummariesRequest
    ) -> wire.ListPolicyEngineSummariesResponse:
        return cast(wire.ListPolicyEngineSummariesResponse, await self._listed_engines(request, *_ENGINE_DETAILS))

    # Policies.

    async def create_policy(self, call: Call, request: wire.CreatePolicyRequest) -> wire.CreatePolicyResponse:
        policy = await self._policies.create(request["policyEngineId"], request, call.idempotency)
        return cast(wire.CreatePolicyResponse, self._policy(policy, "CREATING"))

    async def get_policy(self, call: Call, request: wire.GetPolicyRequest) -> wire.GetPolicyResponse:
        policy = (await self._policies.stored(request["policyEngineId"], request["policyId"])).record
        return cast(wire.GetPolicyResponse, self._policy(policy))

    async def update_policy(self, call: Call, request: wire.UpdatePolicyRequest) -> wire.UpdatePolicyResponse:
        policy = await self._policies.update(request["policyEngineId"], request["policyId"], request)
        return cast(wire.UpdatePolicyResponse, self._policy(policy, "UPDATING"))

    async def delete_policy(self, call: Call, request: wire.DeletePolicyRequest) -> wire.DeletePolicyResponse:
        policy = await self._policies.delete(request["policyEngineId"], request["policyId"])
        return cast(wire.DeletePolicyResponse, self._policy(policy, "DELETING"))

    async def list_policies(self, call: Call, request: wire.ListPoliciesRequest) -> wire.ListPoliciesResponse:
        return cast(wire.ListPoliciesResponse, await self._listed_policies(request))

    async def get_policy_summary(
        self, call: Call, request: wire.GetPolicySummaryRequest
    ) -> wire.GetPolicySummaryResponse:
        policy = (await self._policies.stored(request["policyEngineId"], request["policyId"])).record
        answer = documents.without(self._policy(policy), *_POLICY_DETAILS)
        return cast(wire.GetPolicySummaryResponse, answer)

    async def list_policy_summaries(
        self, call: Call, request: wire.ListPolicySummariesRequest
    ) -> wire.ListPolicySummariesResponse:
        return cast(wire.ListPolicySummariesResponse, await self._listed_policies(request, *_POLICY_DETAILS))

    # Inside.

    def _policy(self, policy: PolicyRecord, status: str | None = None) -> dict[str, Any]:
        return documents.policy(policy, self._policies.arn(policy), status)

    async def _listed_engines(
        self, request: wire.ListPolicyEnginesRequest | wire.ListPolicyEngineSummariesRequest, *left_out: str
    ) -> dict[str, Any]:
        items, token = await page(request, self._engines.page, lambda engine: engine.id)
        answer = {"policyEngines": [documents.without(documents.engine(one), *left_out) for one in items]}
        return answer if token is None else answer | {"nextToken": token}

    async def _listed_policies(
        self, request: wire.ListPoliciesRequest | wire.ListPolicySummariesRequest, *left_out: str
    ) -> dict[str, Any]:
        engine_id, scope = request["policyEngineId"], request.get("targetResourceScope")
        items, token = await page(
            request,
            lambda after, limit: self._policies.page(engine_id, scope, after, limit),
            lambda policy: policy.id,
        )
        answer = {"policies": [documents.without(self._policy(one), *left_out) for one in items]}
        return answer if token is None else answer | {"nextToken": token}
