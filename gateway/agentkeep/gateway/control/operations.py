"""Operations on gateways, their targets and rate limits, named as in boto3. Operators' only."""

from __future__ import annotations

from typing import cast

from agentkeep.core.call import Call
from agentkeep.core.pages import page
from agentkeep.gateway.control import documents
from agentkeep.gateway.control.gateways import Gateways
from agentkeep.gateway.control.rate_limits import GatewayRateLimits
from agentkeep.gateway.control.tags import Tags
from agentkeep.gateway.control.targets import GatewayTargets
from agentkeep.wire.types import bedrock_agentcore_control as wire

__all__ = ["GatewayControl"]


class GatewayControl:
    name = "gateway"
    arn_kinds = frozenset({"gateway", "policy-engine"})

    def __init__(self, gateways: Gateways, targets: GatewayTargets, rate_limits: GatewayRateLimits, tags: Tags) -> None:
        self._gateways = gateways
        self._targets = targets
        self._rate_limits = rate_limits
        self._tags = tags

    # Gateways.

    async def create_gateway(self, call: Call, request: wire.CreateGatewayRequest) -> wire.CreateGatewayResponse:
        gateway = await self._gateways.create(request, call.idempotency)
        url = self._gateways.url(gateway.id)
        return cast(wire.CreateGatewayResponse, documents.gateway(gateway, url, "CREATING"))

    async def get_gateway(self, call: Call, request: wire.GetGatewayRequest) -> wire.GetGatewayResponse:
        gateway = (await self._gateways.stored(request["gatewayIdentifier"])).record
        return cast(wire.GetGatewayResponse, documents.gateway(gateway, self._gateways.url(gateway.id)))

    async def update_gateway(self, call: Call, request: wire.UpdateGatewayRequest) -> wire.UpdateGatewayResponse:
        gateway = await self._gateways.update(request["gatewayIdentifier"], request)
        url = self._gateways.url(gateway.id)
        return cast(wire.UpdateGatewayResponse, documents.gateway(gateway, url, "UPDATING"))

    async def delete_gateway(self, call: Call, request: wire.DeleteGatewayRequest) -> wire.DeleteGatewayResponse:
        await self._gateways.delete(request["gatewayIdentifier"])
        return {"gatewayId": request["gatewayIdentifier"], "status": "DELETING"}

    async def list_gateways(self, call: Call, request: wire.ListGatewaysRequest) -> wire.ListGatewaysResponse:
        items, token = await page(request, self._gateways.page, lambda gateway: gateway.id)
        answer = {"items": [documents.gateway_summary(one) for one in items]}
        return cast(wire.ListGatewaysResponse, answer if token is None else answer | {"nextToken": token})

    # Targets.

    async def create_gateway_target(
        self, call: Call, request: wire.CreateGatewayTargetRequest
    ) -> wire.CreateGatewayTargetResponse:
        target = await self._targets.create(request["gatewayIdentifier"], request, call.idempotency)
        arn = self._gateways.arn(target.gateway_id)
        return cast(wire.CreateGatewayTargetResponse, documents.target(target, arn, "CREATING"))

    async def get_gateway_target(
        self, call: Call, request: wire.GetGatewayTargetRequest
    ) -> wire.GetGatewayTargetResponse:
        target = (await self._targets.stored(request["gatewayIdentifier"], request["targetId"])).record
        return cast(wire.GetGatewayTargetResponse, documents.target(target, self._gateways.arn(target.gateway_id)))

    async def update_gateway_target(
        self, call: Call, request: wire.UpdateGatewayTargetRequest
    ) -> wire.UpdateGatewayTargetResponse:
        target = await self._targets.update(request["gatewayIdentifier"], request["targetId"], request)
        arn = self._gateways.arn(target.gateway_id)
        return cast(wire.UpdateGatewayTargetResponse, documents.target(target, arn, "UPDATING"))

    async def delete_gateway_target(
        self, call: Call, request: wire.DeleteGatewayTargetRequest
    ) -> wire.DeleteGatewayTargetResponse:
        target = await self._targets.delete(request["gatewayIdentifier"], request["targetId"])
        return {
            "gatewayArn": self._gateways.arn(target.gateway_id),
            "targetId": target.id,
            "status": "DELETING",
        }

    async def list_gateway_targets(
        self, call: Call, request: wire.ListGatewayTargetsRequest
    ) -> wire.ListGatewayTargetsResponse:
        gateway_id = request["gatewayIdentifier"]
        items, token = await page(
            request, lambda after, limit: self._targets.page(gateway_id, after, limit), lambda target: target.id
        )
        answer = {"items": [documents.target_summary(one) for one in items]}
        return cast(wire.ListGatewayTargetsResponse, answer if token is None else answer | {"nextToken": token})

    async def synchronize_gateway_targets(
        self, call: Call, request: wire.SynchronizeGatewayTargetsRequest
    ) -> wire.SynchronizeGatewayTargetsResponse:
        gateway_id = request["gatewayIdentifier"]
        arn = self._gateways.arn(gateway_id)
        targets = [await self._targets.synchronize(gateway_id, target_id) for target_id in request["targetIdList"]]
        answer = {"targets": [documents.target(target, arn, "SYNCHRONIZING") for target in targets]}
        return cast(wire.SynchronizeGatewayTargetsResponse, answer)

    # Rate limits.

    async def create_gateway_rate_limit(
        self, call: Call, request: wire.CreateGatewayRateLimitRequest
    ) -> wire.CreateGatewayRateLimitResponse:
        limit = await self._rate_limits.create(request["gatewayIdentifier"], request, call.idempotency)
        return cast(wire.CreateGatewayRateLimitResponse, documents.rate_limit(limit))

    async def get_gateway_rate_limit(
        self, call: Call, request: wire.GetGatewayRateLimitRequest
    ) -> wire.GetGatewayRateLimitResponse:
        limit = (await self._rate_limits.stored(request["gatewayIdentifier"], request["rateLimitId"])).record
        return cast(wire.GetGatewayRateLimitResponse, documents.rate_limit(limit))

    async def update_gateway_rate_limit(
        self, call: Call, request: wire.UpdateGatewayRateLimitRequest
    ) -> wire.UpdateGatewayRateLimitResponse:
        limit = await self._rate_limits.update(request["gatewayIdentifier"], request["rateLimitId"], request)
        return cast(wire.UpdateGatewayRateLimitResponse, documents.rate_limit(limit))

    async def delete_gateway_rate_limit(
        self, call: Call, request: wire.DeleteGatewayRateLimitRequest
    ) -> wire.DeleteGatewayRateLimitResponse:
        await self._rate_limits.delete(request["gatewayIdentifier"], request["rateLimitId"])
        return {"rateLimitId": request["rateLimitId"], "status": "DELETING"}

    async def list_gateway_rate_limits(
        self, call: Call, request: wire.ListGatewayRateLimitsRequest
    ) -> wire.ListGatewayRateLimitsResponse:
        gateway_id = request["gatewayIdentifier"]
        items, token = await page(
            request, lambda after, limit: self._rate_limits.page(gateway_id, after, limit), lambda limit: limit.id
        )
        answer = {"rateLimits": [documents.rate_limit(one) for one in items]}
        return cast(wire.ListGatewayRateLimitsResponse, answer if token is None else answer | {"nextToken": token})

    async def batch_put_gateway_rate_limits(
        self, call: Call, request: wire.BatchPutGatewayRateLimitsRequest
    ) -> wire.BatchPutGatewayRateLimitsResponse:
        limits = await self._rate_limits.put_all(request["gatewayIdentifier"], request["rateLimits"], call.idempotency)
        answer = {"rateLimits": [documents.rate_limit(one) for one in limits]}
        return cast(wire.BatchPutGatewayRateLimitsResponse, answer)

    # Tags of gateways and policy engines.

    async def tag_resource(self, call: Call, request: wire.TagResourceRequest) -> wire.TagResourceResponse:
        await self._tags.add(request["resourceArn"], request["tags"])
        return {}

    async def untag_resource(self, call: Call, request: wire.UntagResourceRequest) -> wire.UntagResourceResponse:
        await self._tags.remove(request["resourceArn"], request["tagKeys"])
        return {}

    async def list_tags_for_resource(
        self, call: Call, request: wire.ListTagsForResourceRequest
    ) -> wire.ListTagsForResourceResponse:
        return {"tags": await self._tags.of(request["resourceArn"])}
