"""A model call from end to end: which provider, may it, how long, what it used.

The one place every model call of every session passes. What it may use at most is set aside of the session's budget
before any provider hears of it; guardrails attach here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from agentkeep.core.call import Call
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    ModelTimeoutException,
    ResourceNotFoundException,
    ServiceError,
    ServiceQuotaExceededException,
    ValidationException,
)
from agentkeep.core.ports import Budget, Usage
from agentkeep.core.telemetry import step
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
from agentkeep.gateway.models.spending import Bounds, Spending, bounded, bounds_of, reserve

__all__ = ["ModelCalls"]

Result = TypeVar("Result")
#: Calls a provider's model with a request.
Ask = Callable[[str, Request], Awaitable[Result]]


class ModelCalls:
    """`answer_seconds` limits a whole answer, and the wait for a stream to be accepted; `gap_seconds` the silence
    between two events of a stream. `answer_tokens`: what an answer may have under a budget where its request names no
    limit."""

    def __init__(
        self,
        routes: ModelRoutes,
        usage: Usage,
        budget: Budget,
        clock: Clock,
        *,
        answer_seconds: float,
        gap_seconds: float,
        answer_tokens: int,
    ) -> None:
        self._routes = routes
        self._usage = usage
        self._budget = budget
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._gap_seconds = gap_seconds
        self._answer_tokens = answer_tokens

    async def converse(self, call: Call, request: Request) -> Document:
        target = self._target(request, guarded="guardrailConfig" in request)
        return await self._answer(call, target, request, target.provider.converse)

    async def converse_stream(self, call: Call, request: Request) -> MeteredEvents:
        target = self._target(request, guarded="guardrailConfig" in request)
        stream, _ = await self._stream(call, target, request, target.provider.converse_stream)
        return stream

    async def invoke_model(self, call: Call, request: Request) -> Document:
        target = self._target(request, guarded="guardrailIdentifier" in request)
        return await self._answer(call, target, request, _native(target).invoke_model)

    async def invoke_model_stream(self, call: Call, request: Request) -> tuple[MeteredEvents, Document]:
        """The stream, and the members of the response beside it."""
        target = self._target(request, guarded="guardrailIdentifier" in request)
        return await self._stream(call, target, request, _native(target).invoke_model_with_response_stream)

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

    async def _answer(self, call: Call, target: Target, request: Request, ask: Ask[Answer]) -> Document:
        bounds = bounds_of(target, request, self._answer_tokens)
        spending = await self._reserve(call, target, request, bounds)
        meter = Meter(self._usage, self._clock, call, target.provider.name, request, spending)
        async with _accounted(meter, spending, target.model):
            answer = await self._limited(_ask(ask, target, request, bounds, spending))
        await _to_its_end(meter.answered(answer))
        return answer.document

    async def _stream(
        self, call: Call, target: Target, request: Request, ask: Ask[Events]
    ) -> tuple[MeteredEvents, Document]:
        bounds = bounds_of(target, request, self._answer_tokens)
        spending = await self._reserve(call, target, request, bounds)
        meter = Meter(self._usage, self._clock, call, target.provider.name, request, spending)
        async with _accounted(meter, spending, target.model):
            events = await self._limited(_ask(ask, target, request, bounds, spending))
        return meter.events(events, self._gap_seconds), events.headers

    async def _reserve(self, call: Call, target: Target, request: Request, bounds: Bounds) -> Spending:
        """Fails closed: what cannot be set aside is not spent."""
        session, user = call.caller.session, call.caller.user
        try:
            return await self._limited(reserve(self._budget, session, target, request, bounds))
        except ServiceQuotaExceededException:
            model = {"gen_ai.request.model": request["modelId"]}
            with step("gateway", "BudgetReached", session, user.id if user else None, model):
                raise

    async def _limited(self, answering: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await answering
        except TimeoutError:
            raise ModelTimeoutException(
                f"The model did not answer within {self._answer_seconds:g} s "
                "(AGENTKEEP_GATEWAY_ANSWER_SECONDS); nothing was kept of its answer."
            ) from None


async def _ask(ask: Ask[Result], target: Target, request: Request, bounds: Bounds, spending: Spending) -> Result:
    """Under a budget an answer has a limit. A provider whose own is lower may refuse to be told it; then its own
    holds."""
    limited = bounded(request, bounds) if spending.limited else request
    if limited is not request:
        try:
            return await ask(target.model, limited)
        except ValidationException:
            pass
    return await ask(target.model, request)


@asynccontextmanager
async def _accounted(meter: Meter, spending: Spending, model: str) -> AsyncIterator[None]:
    """A call given up on (the caller left, the time was over) went to the provider all the same: its input counts, and
    all that was set aside for it stays spent. One that the provider refused used nothing."""
    try:
        yield
    except (asyncio.CancelledError, ModelTimeoutException) as error:
        meter.span.fail(error)
        await _to_its_end(meter.cut(model, None))
        raise
    except ServiceError as error:
        meter.span.failed(error)
        await _to_its_end(spending.settle(0))
        raise


async def _to_its_end(accounting: Coroutine[Any, Any, None]) -> None:
    """In a task of its own: a client that leaves cancels us, and what was used must be counted all the same."""
    await asyncio.shield(asyncio.ensure_future(accounting))


def _native(target: Target) -> InvokesModels:
    if isinstance(target.provider, InvokesModels):
        return target.provider
    raise ValidationException(
        f"Provider {target.provider.name!r} takes no native request bodies: call Converse or ConverseStream instead of "
        "InvokeModel."
    )
