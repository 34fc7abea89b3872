"""Questions to a model, whose answers are documents of a known shape or failures with AgentCore's names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import jsonschema_rs
import orjson

from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AccessDeniedException,
    ModelNotReadyException,
    ModelTimeoutException,
    ResourceNotFoundException,
    ServiceError,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
    ThrottlingException,
    ValidationException,
)
from agentkeep.core.ports import Models, Question

__all__ = ["INTERNAL_ERROR", "Asking", "BadAnswer", "ExtractionFailed"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: Makes of a document that follows the schema what is asked for. Raises BadAnswer.
Parse = Callable[[Any], T]

_PREFIX: Final = "CUSTOM_MODEL_BEDROCK_"
_MODEL_ERROR: Final = _PREFIX + "MODEL_ERROR"
INTERNAL_ERROR: Final = _PREFIX + "INTERNAL_ERROR"
#: AgentCore's codes (developer guide, "Redrive failed extraction jobs"). What is not named: the model failed.
_REASONS: Final[tuple[tuple[type[ServiceError], str], ...]] = (
    (ThrottlingException, _PREFIX + "THROTTLING"),
    (ModelTimeoutException, _PREFIX + "MODEL_TIMEOUT"),
    (ModelNotReadyException, _PREFIX + "MODEL_NOT_READY"),
    (ServiceUnavailableException, _PREFIX + "SERVICE_UNAVAILABLE"),
    (AccessDeniedException, _PREFIX + "ACCESS_DENIED"),
    (ResourceNotFoundException, _PREFIX + "RESOURCE_NOT_FOUND"),
    (ValidationException, _PREFIX + "VALIDATION_EXCEPTION"),
    (ServiceQuotaExceededException, "LTM_RATE_EXCEEDED"),
)
#: What asking again soon does not change.
_FINAL: Final = (
    AccessDeniedException,
    ResourceNotFoundException,
    ValidationException,
    ServiceQuotaExceededException,
)
#: Seconds before it is asked again, doubled each time; and where the provider asks for patience.
_PAUSE: Final = 1.0
_PATIENCE: Final = 2.0
_BUSY: Final = (ThrottlingException, ModelNotReadyException, ServiceUnavailableException)


class ExtractionFailed(Exception):
    """`reason`: a code of AgentCore's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadAnswer(Exception):
    """Says what is wrong with it, and nothing of what is in it."""


class Asking:
    """`attempts`: how often one question is asked at most; `seconds`: how long one answer may take."""

    def __init__(self, models: Models, clock: Clock, attempts: int, seconds: float) -> None:
        self._models = models
        self._clock = clock
        self._attempts = attempts
        self._seconds = seconds

    async def ask(self, question: Question, parse: Parse[T]) -> T:
        """Raises ExtractionFailed."""
        assert question.schema is not None
        pause = _PAUSE
        for attempt in range(1, self._attempts + 1):
            try:
                async with asyncio.timeout(self._seconds):
                    answer = await self._models.answer(question)
                return parse(_document(answer, question.schema))
            except TimeoutError:
                reason, why = _PREFIX + "MODEL_TIMEOUT", f"no answer within {self._seconds:g} s"
            except BadAnswer as error:
                reason, why = _MODEL_ERROR, f"an answer that cannot be used: {error}"
            except ServiceError as error:
                reason = next((code for kind, code in _REASONS if isinstance(error, kind)), _MODEL_ERROR)
                why = f"{type(error).__name__}: {error.message[:300]}"
                if isinstance(error, _FINAL):
                    break
                if isinstance(error, _BUSY):
                    pause = max(pause, _PATIENCE)
            if attempt == self._attempts:
                break
            logger.info("model %r for %s gave %s; it is asked again", question.model_id, question.purpose, why)
            await self._clock.sleep(pause)
            pause *= 2
        logger.warning("model %r for %s failed (%s): %s", question.model_id, question.purpose, reason, why)
        raise ExtractionFailed(reason)


def _document(answer: str, schema: Mapping[str, Any]) -> Any:
    text = answer.strip()
    if text.startswith("```") and text.endswith("```"):  # some models cannot help it
        text = text.removesuffix("```").partition("\n")[2]
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadAnswer("it is no JSON") from None
    try:
        jsonschema_rs.validate(dict(schema), document)
    except jsonschema_rs.ValidationError as error:
        raise BadAnswer(f"it does not follow the schema, at /{'/'.join(map(str, error.instance_path))}") from None
    return document
