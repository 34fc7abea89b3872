"""The gateway plane's operations: the models a session may call."""

from __future__ import annotations

from typing import cast

from agentkeep.core.call import Call, CallerKind, allow
from agentkeep.gateway.models.answers import ModelAnswers
from agentkeep.gateway.models.calls import ModelCalls
from agentkeep.wire.types import bedrock_runtime as wire

__all__ = ["GatewayPlane"]


class GatewayPlane:
    """Operations of bedrock-runtime, named as in boto3. Whoever calls is metered; a session's use counts as its own.

    Requests and responses are the domain's too: a model call is passed on in Bedrock's own shapes. `answers`: the port
    `Models`, for the platform's own work.
    """

    name = "gateway"
    arn_kinds: frozenset[str] = frozenset()

    def __init__(self, models: ModelCalls) -> None:
        self._models = models
        self.answers = ModelAnswers(models)

    @allow(CallerKind.SESSION)
    async def converse(self, call: Call, request: wire.ConverseRequest) -> wire.ConverseResponse:
        return cast(wire.ConverseResponse, await self._models.converse(call, request))

    @allow(CallerKind.SESSION)
    async def converse_stream(self, call: Call, request: wire.ConverseStreamRequest) -> wire.ConverseStreamResponse:
        return cast(wire.ConverseStreamResponse, {"stream": await self._models.converse_stream(call, request)})

    @allow(CallerKind.SESSION)
    async def invoke_model(self, call: Call, request: wire.InvokeModelRequest) -> wire.InvokeModelResponse:
        return cast(wire.InvokeModelResponse, await self._models.invoke_model(call, request))

    @allow(CallerKind.SESSION)
    async def invoke_model_with_response_stream(
        self, call: Call, request: wire.InvokeModelWithResponseStreamRequest
    ) -> wire.InvokeModelWithResponseStreamResponse:
        stream, headers = await self._models.invoke_model_stream(call, request)
        return cast(wire.InvokeModelWithResponseStreamResponse, {"body": stream, **headers})

    @allow(CallerKind.SESSION)
    async def count_tokens(self, call: Call, request: wire.CountTokensRequest) -> wire.CountTokensResponse:
        return {"inputTokens": await self._models.count_tokens(request)}

    @allow(CallerKind.SESSION)
    async def apply_guardrail(self, call: Call, request: wire.ApplyGuardrailRequest) -> wire.ApplyGuardrailResponse:
        return cast(wire.ApplyGuardrailResponse, await self._models.apply_guardrail(request))

    async def close(self) -> None:
        await self._models.close()
