"""What a model call may use at most, set aside of its session's budget before it is made, and settled after it.

The bounds hold for any tokenizer: no token is shorter than a byte. They are generous, so where they do not fit, the
provider is asked to count, if it can. A call whose use nobody told is settled by its bound: a budget is never passed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import AgentkeepError, ServiceError, ServiceQuotaExceededException
from agentkeep.core.ports import Budget, Reservation
from agentkeep.gateway.models.provider import BoundsAnswers, CountsTokens, Request
from agentkeep.gateway.models.routing import Target

__all__ = ["Bounds", "Spending", "bounded", "bounds_of", "reserve"]

logger = logging.getLogger(__name__)

#: What a model is told beyond the request's own text: its template, a provider's instructions for tools.
_TEMPLATE_TOKENS: Final = 64
_TOOL_TOKENS: Final = 600
#: Pictures count by their size on the canvas, not by their bytes; no model of today counts more for one.
_IMAGE_TOKENS: Final = 5000
_READ_BY_MODELS: Final = ("messages", "system", "toolConfig", "outputConfig", "promptVariables", "body")

#: How native bodies, and fields passed on to a model, call the limit of an answer; at the top or in one of the groups.
_LIMITS: Final = frozenset(
    {"max_tokens", "maxTokens", "max_completion_tokens", "max_new_tokens", "max_gen_len"}
    | {"max_tokens_to_sample", "maxTokenCount"}
)
_GROUPS: Final = ("inferenceConfig", "textGenerationConfig")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Tokens. `named`: the request itself, or the provider, limits the answer to `output`; else `output` must be asked
    for."""

    input: int
    output: int
    named: bool


def bounds_of(target: Target, request: Request, answer_tokens: int) -> Bounds:
    """`answer_tokens`: where neither the request nor the provider limits the answer."""
    named = list(_limits(request))
    if isinstance(target.provider, BoundsAnswers):
        named = named or [target.provider.answer_tokens]
    return Bounds(_input_bound(request), max(named, default=answer_tokens), bool(named))


def bounded(request: Request, bounds: Bounds) -> Request:
    """The request with a limit of its answer. A native body stays as it is: how it would say so is the model's own."""
    if bounds.named or "body" in request:
        return request
    return {**request, "inferenceConfig": {**(request.get("inferenceConfig") or {}), "maxTokens": bounds.output}}


class Spending:
    """What was set aside for one model call; nothing, where no session calls or it has no budget."""

    def __init__(self, budget: Budget, reservation: Reservation | None = None, input_tokens: int = 0) -> None:
        self._budget = budget
        self._reservation = reservation
        self._input_tokens = input_tokens

    @property
    def limited(self) -> bool:
        return self._reservation is not None

    async def settle(self, tokens: int) -> None:
        """The call used `tokens`. What cannot be settled stays spent."""
        if self._reservation is None:
            return
        try:
            await self._budget.settle(self._reservation, tokens)
        except AgentkeepError:
            logger.exception("reservation %s was not settled and stays spent", self._reservation.id)

    async def settle_uncounted(self, produced: int) -> None:
        """Nobody counted; `produced`: bytes of its answer that were seen."""
        if self._reservation is not None:
            await self.settle(min(self._reservation.tokens, self._input_tokens + produced))


async def reserve(
    budget: Budget, session: SessionRef | None, target: Target, request: Request, bounds: Bounds
) -> Spending:
    """Raises ServiceQuotaExceededException: the session's budget has no room for the call."""
    if session is None:
        return Spending(budget)
    try:
        return Spending(budget, await _reserved(budget, session, bounds.input, bounds.output), bounds.input)
    except ServiceQuotaExceededException:
        counted = await _counted(target, request)
        if counted is None or counted >= bounds.input:
            raise
    return Spending(budget, await _reserved(budget, session, counted, bounds.output), counted)


async def _reserved(budget: Budget, session: SessionRef, input_tokens: int, output_tokens: int) -> Reservation | None:
    reserving = asyncio.ensure_future(budget.reserve(session, input_tokens, output_tokens))
    try:
        return await asyncio.shield(reserving)
    except asyncio.CancelledError:
        # The caller left before the model was called: nothing was used.
        with suppress(AgentkeepError):
            await Spending(budget, await reserving).settle(0)
        raise


async def _counted(target: Target, request: Request) -> int | None:
    """The request's tokens as the provider counts them; None where it cannot."""
    if not isinstance(target.provider, CountsTokens):
        return None
    asked = {"invokeModel": {"body": request["body"]}} if "body" in request else {"converse": _conversation(request)}
    try:
        return await target.provider.count_tokens(target.model, asked)
    except ServiceError as error:
        logger.info("provider %s did not count: %s", target.provider.name, error)
        return None


def _conversation(request: Request) -> dict[str, Any]:
    return {name: request[name] for name in ("messages", "system", "toolConfig") if request.get(name)}


def _input_bound(request: Request) -> int:
    read = {name: request[name] for name in _READ_BY_MODELS if request.get(name)}
    return _TEMPLATE_TOKENS + (_TOOL_TOKENS if "toolConfig" in read else 0) + _size(read)


def _size(value: object) -> int:
    """Bytes of a document as JSON, what it costs by the byte; its pictures by the piece."""
    match value:
        case bytes():
            return len(value)
        case Mapping():
            if "image" in value:
                return _IMAGE_TOKENS + sum(_size(part) for name, part in value.items() if name != "image")
            return 2 + sum(_size(str(name)) + 2 + _size(part) for name, part in value.items())
        case list() | tuple():
            return 2 + sum(1 + _size(part) for part in value)
    return len(json.dumps(value, default=str))


def _limits(request: Request) -> Iterable[int]:
    """Every limit of its answer that a request names; the model follows one of them."""
    documents: list[Any] = [request, request.get("additionalModelRequestFields")]
    if "body" in request:
        try:
            documents.append(json.loads(request["body"]))
        except ValueError:
            pass
    for document in documents:
        if isinstance(document, Mapping):
            for group in (document, *(document.get(name) for name in _GROUPS)):
                if isinstance(group, Mapping):
                    yield from (group[name] for name in _LIMITS & group.keys() if _is_limit(group[name]))


def _is_limit(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
