"""Model answers for the platform's own work: the port `Models`.

A question goes the way of every model call, so it is routed, limited, traced, metered and paid for like an agent's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, Final

from agentkeep.core.call import Call, Caller, CallerKind, User
from agentkeep.core.errors import ModelErrorException, ValidationException
from agentkeep.core.ports import Question
from agentkeep.gateway.models.calls import ModelCalls
from agentkeep.gateway.models.provider import Document

__all__ = ["ModelAnswers"]

_WHOLE: Final = frozenset({"end_turn", "stop_sequence"})


class ModelAnswers:
    def __init__(self, models: ModelCalls) -> None:
        self._models = models
        #: Models that were seen to refuse a schema.
        self._without_schema: set[str] = set()

    async def answer(self, question: Question) -> str:
        request: Document = {
            "modelId": question.model_id,
            "system": [{"text": question.system}],
            "messages": [{"role": "user", "content": [{"text": question.prompt}]}],
            "inferenceConfig": {"maxTokens": question.max_tokens},
        }
        if question.schema is None:
            return _text(await self._models.converse(_call(question), request))
        if question.model_id not in self._without_schema:
            try:
                constrained = {**request, "outputConfig": _format(question.purpose, question.schema)}
                return _text(await self._models.converse(_call(question), constrained))
            except ValidationException:
                pass  # not every model can be held to a schema; if it was something else, it is refused again
        answer = _text(await self._models.converse(_call(question), _told(request, question)))
        self._without_schema.add(question.model_id)
        return answer


def _call(question: Question) -> Call:
    user = User(question.user_id) if question.user_id is not None else None
    caller = Caller(CallerKind.OPERATOR, f"platform/{question.purpose}", user=user, session=question.session)
    return Call("bedrock-runtime", "Converse", caller, str(uuid.uuid4()))


def _format(purpose: str, schema: Mapping[str, Any]) -> Document:
    described = {"name": purpose, "schema": json.dumps(schema)}
    return {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": described}}}


def _told(request: Document, question: Question) -> Document:
    """The schema in words, for a model that cannot be held to one."""
    wanted = json.dumps(question.schema)
    asked = f"Answer with one JSON document and nothing else. It must follow this JSON Schema:\n{wanted}"
    return {**request, "system": [*request["system"], {"text": asked}]}


def _text(answer: Document) -> str:
    """Raises ModelErrorException for an answer that is not whole."""
    reason = answer["stopReason"]
    if reason not in _WHOLE:
        raise ModelErrorException(f"The model did not finish its answer: {reason}")
    content = answer["output"]["message"]["content"]
    return "".join(block["text"] for block in content if "text" in block)
