"""The demonstration's provider: a small deterministic planner in front of the local model.

The planner answers the turns it has rules for, and says so in the response (`additionalModelResponseFields`) and in the
usage record (model `demo-planner`); everything else the local model answers, under its own name. Token counts are the
local model's tokenizer's either way.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from agentkeep.gateway.models.local import MAX_TOKENS, LocalProvider
from agentkeep.gateway.models.planner import Reply, ToolUse, plan
from agentkeep.gateway.models.provider import Answer, Document, Events, Request, TokenCounts

__all__ = ["PLANNER", "DemoProvider"]

PLANNER: Final = "demo-planner"

#: In every planned response: who reads it must not take it for a model's.
DISCLOSURE: Final[Document] = {"agentkeep": {"answeredBy": PLANNER, "languageModel": False}}


@dataclass(frozen=True, slots=True)
class _Planned:
    """What is said or done, within the answer's limit, and what it counts."""

    content: Reply | ToolUse
    stop_reason: str
    tokens: TokenCounts
    began: float

    @property
    def metadata(self) -> Document:
        return {"usage": self.tokens.usage(), "metrics": {"latencyMs": round((time.monotonic() - self.began) * 1000)}}


class DemoProvider:
    name = "demo"
    answer_tokens = MAX_TOKENS

    def __init__(self, local: LocalProvider) -> None:
        self._local = local

    async def converse(self, model: str, request: Request) -> Answer:
        planned = await self._plan(request)
        if planned is None:
            return await self._local.converse(model, request)
        document = {
            "output": {"message": {"role": "assistant", "content": [_block(planned.content)]}},
            "stopReason": planned.stop_reason,
            **planned.metadata,
            "additionalModelResponseFields": DISCLOSURE,
        }
        return Answer(document, PLANNER, planned.tokens)

    async def converse_stream(self, model: str, request: Request) -> Events:
        planned = await self._plan(request)
        if planned is None:
            return await self._local.converse_stream(model, request)
        return Events(PLANNER, _spoken(planned))

    async def count_tokens(self, model: str, input: Document) -> int:
        """Tools included: their descriptions are read too."""
        if "converse" not in input:
            return await self._local.count_tokens(model, input)
        conversation = {name: part for name, part in input["converse"].items() if name != "toolConfig"}
        counted = await self._local.count_tokens(model, {"converse": conversation})
        if tools := (input["converse"].get("toolConfig") or {}).get("tools"):
            counted += await self._local.count_text(json.dumps(tools))
        return counted

    async def close(self) -> None:
        await self._local.close()

    async def _plan(self, request: Request) -> _Planned | None:
        began = time.monotonic()
        content = plan(request)
        if content is None:
            return None
        limit = (request.get("inferenceConfig") or {}).get("maxTokens", self.answer_tokens)
        sent = await self.count_tokens(PLANNER, {"converse": dict(request)})
        stop_reason = "tool_use" if isinstance(content, ToolUse) else "end_turn"
        while (count := await self._local.count_text(_text(content))) > limit:
            stop_reason, content = "max_tokens", Reply(_shorter(_text(content), limit / count))
        return _Planned(content, stop_reason, TokenCounts(sent, count), began)


def _text(content: Reply | ToolUse) -> str:
    return content.text if isinstance(content, Reply) else json.dumps({content.name: content.input})


def _shorter(text: str, share: float) -> str:
    return text[: min(len(text) - 1, int(len(text) * share))]


def _block(content: Reply | ToolUse) -> dict[str, Any]:
    if isinstance(content, Reply):
        return {"text": content.text}
    return {"toolUse": {"toolUseId": content.id, "name": content.name, "input": dict(content.input)}}


async def _spoken(planned: _Planned) -> AsyncGenerator[Document, None]:
    content = planned.content
    yield {"messageStart": {"role": "assistant"}}
    if isinstance(content, ToolUse):
        start = {"toolUse": {"toolUseId": content.id, "name": content.name}}
        yield {"contentBlockStart": {"start": start, "contentBlockIndex": 0}}
        delta = {"toolUse": {"input": json.dumps(content.input)}}
        yield {"contentBlockDelta": {"delta": delta, "contentBlockIndex": 0}}
    else:
        for word in re.findall(r"\S+\s*", content.text):
            yield {"contentBlockDelta": {"delta": {"text": word}, "contentBlockIndex": 0}}
    yield {"contentBlockStop": {"contentBlockIndex": 0}}
    yield {"messageStop": {"stopReason": planned.stop_reason, "additionalModelResponseFields": DISCLOSURE}}
    yield {"metadata": planned.metadata}
