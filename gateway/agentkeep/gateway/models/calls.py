"""A model call from end to end: which provider, may it, how long, what it used.

The one place every model call of every session passes; budgets and guardrails attach here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from agentkeep.core.call import Call
from agentkeep.core.clock import Clock
from agentkeep.core.errors import ModelTimeoutException, ResourceNotFoundException, ValidationException
from agentkeep.core.ports import Usage
from agentkeep.gateway.models.metering import Meter, MeteredEvents
from agentkeep.gateway.models.provider import (
    Answer,
    AppliesGuardrails,
    CountsTokens,
    Document,
    Events,
    InvokesModels,
    Request,
)
from agentkeep.gateway.models.routing import ModelRoutes, Target

__all__ = ["ModelCalls"]

Result = TypeVar("Result")


class ModelCalls:
    """`answer_seconds` limits a whole answer, and the wait for a stream to be accepted; `gap_seconds` the silence
    between two events of a stream."""

    def __init__(
        self, routes: ModelRoutes, usage: Usage, clock: Clock, *, answer_seconds: float, gap_seconds: float
    ) -> None:
        self._routes = routes
        self._usage = usage
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._gap_seconds = gap_seconds

    async def converse(self, call: Call, request: Request) -> Document:
        target = self._target(request, guarded="guardrailConfig" in request)
        return await self._answer(call, target, request, target.provider.converse(target.model, request))

    async def converse_stream(self, call: Call, request: Request) -> MeteredEvents:
        target = self._target(request, guarded="guardrailConfig" in request)
        accepting = target.provider.converse_stream(target.model, request)
        stream, _ = await self._stream(call, target, request, accepting)
        return stream

    async def invoke_model(self, call: Call, request: Request) -> Document:
        target = self._target(request, guarded="guardrailIdentifier" in request)
        provider = _native(target)
        return await self._answer(call, target, request, provider.invoke_model(target.model, request))

    async def invoke_model_stream(self, call: Call, request: Request) -> tuple[MeteredEvents, Document]:
        """The stream, and the members of the response beside it."""
        target = self._target(request, guarded="guardrailIdentifier" in request)
        accepting = _native(target).invoke_model_with_response_stream(target.model, request)
        return await self._stream(call, target, request, accepting)

    async def count_tokens(self, request: Request) -> int:
        target = self._routes.resolve(request["modelId"])
        if not isinstance(target.provider, CountsTokens):
            raise ValidationException(
                f"The provided model doesn't support counting tokens: provider {target.provider.name!r} has no way to."
            )
        return await self._limited(target.provider.count_tokens(target.model, request["input"]))

    async def apply_guardrail(self, request: Request) -> Document:
        for provider in self._routes.providers:
            if isinstance(provider, AppliesGuardrails):
                return await self._limited(provider.apply_guardrail(request))
        raise ResourceNotFoundException(
            f"No guardrail {request['guardrailIdentifier']!r} here: guardrails are applied by Amazon Bedrock, and no "
            "model route of this deployment leads there. An operator can add one with AGENTKEEP_GATEWAY_ROUTES."
        )

    async def close(self) -> None:
        await self._routes.close()

    def _target(self, request: Request, *, guarded: bool) -> Target:
        target = self._routes.resolve(request["modelId"])
        # Fails closed: a guardrail asked for and not applied would be worse than no answer.
        if guarded and not isinstance(target.provider, AppliesGuardrails):
            raise ValidationException(
                f"The request asks for a guardrail, and provider {target.provider.name!r}, which answers for model "
                f"{request['modelId']!r}, cannot apply one. Leave the guardrail out, or route the model to Amazon "
                "Bedrock (AGENTKEEP_GATEWAY_ROUTES)."
            )
        return target

    async def _answer(self, call: Call, target: Target, request: Request, answering: Awaitable[Answer]) -> Document:
        meter = Meter(self._usage, self._clock, call, target.provider.name, request)
        async with _counted_if_abandoned(meter, target.model):
            answer = await self._limited(answering)
        await meter.answered(answer)
        return answer.document

    async def _stream(
        self, call: Call, target: Target, request: Request, accepting: Awaitable[Events]
    ) -> tuple[MeteredEvents, Document]:
        meter = Meter(self._usage, self._clock, call, target.provider.name, request)
        async with _counted_if_abandoned(meter, target.model):
            events = await self._limited(accepting)
        return meter.events(events, self._gap_seconds), events.headers

    async def _limited(self, answering: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await answering
        except TimeoutError:
            raise ModelTimeoutException(
                f"The model did not answer within {self._answer_seconds:g} s "
                "(AGENTKEEP_GATEWAY_ANSWER_SECONDS); nothing was kept of its answer."
            ) from None


@asynccontextmanager
async def _counted_if_abandoned(meter: Meter, model: str) -> AsyncIterator[None]:
    """A call given up on (the caller left, the time was over) went to the provider all the same: its input counts."""
    try:
        yield
    except (asyncio.CancelledError, ModelTimeoutException):
        await asyncio.shield(asyncio.ensure_future(meter.cut(model, 0)))
        raise


def _native(target: Target) -> InvokesModels:
    if isinstance(target.provider, InvokesModels):
        return target.provider
    raise ValidationException(
        f"Provider {target.provider.name!r} takes no native request bodies: call Converse or ConverseStream instead of "
        "InvokeModel."
    )
