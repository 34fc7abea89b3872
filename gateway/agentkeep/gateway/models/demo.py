"""The demonstration's provider: a small deterministic planner in front of the local model.

The planner answers the turns it has rules for, and says so in the response (`additionalModelResponseFields`) and in the
usage record (model `demo-planner`); everything else the local model answers, under its own name. Token counts are the
local model's tokenizer's either way.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator

from agentkeep.gateway.models.local import LocalProvider
from agentkeep.gateway.models.planner import planned_reply
from agentkeep.gateway.models.provider import Answer, Document, Events, Request, TokenCounts

__all__ = ["PLANNER", "DemoProvider"]

PLANNER = "demo-planner"

#: In every planned response: who reads it must not take it for a model's.
DISCLOSURE: Document = {"agentkeep": {"answeredBy": PLANNER, "languageModel": False}}


class DemoProvider:
    name = "demo"

    def __init__(self, local: LocalProvider) -> None:
        self._local = local

    async def converse(self, model: str, request: Request) -> Answer:
        began = time.monotonic()
        reply = planned_reply(request.get("messages") or ())
        if reply is None:
            return await self._local.converse(model, request)
        tokens = await self._count(request, reply)
        document = {
            "output": {"message": {"role": "assistant", "content": [{"text": reply}]}},
            "stopReason": "end_turn",
            "usage": tokens.usage(),
            "metrics": {"latencyMs": _ms(began)},
            "additionalModelResponseFields": DISCLOSURE,
        }
        return Answer(document, PLANNER, tokens)

    async def converse_stream(self, model: str, request: Request) -> Events:
        began = time.monotonic()
        reply = planned_reply(request.get("messages") or ())
        if reply is None:
            return await self._local.converse_stream(model, request)
        tokens = await self._count(request, reply)
        return Events(PLANNER, _spoken(reply, tokens, began))

    async def count_tokens(self, model: str, input: Document) -> int:
        return await self._local.count_tokens(model, input)

    async def close(self) -> None:
        await self._local.close()

    async def _count(self, request: Request, reply: str) -> TokenCounts:
        sent = await self._local.count_tokens(PLANNER, {"converse": dict(request)})
        return TokenCounts(sent, await self._local.count_text(reply))


async def _spoken(reply: str, tokens: TokenCounts, began: float) -> AsyncGenerator[Document, None]:
    yield {"messageStart": {"role": "assistant"}}
    for word in re.findall(r"\S+\s*", reply):
        yield {"contentBlockDelta": {"delta": {"text": word}, "contentBlockIndex": 0}}
    yield {"contentBlockStop": {"contentBlockIndex": 0}}
    yield {"messageStop": {"stopReason": "end_turn", "additionalModelResponseFields": DISCLOSURE}}
    yield {"metadata": {"usage": tokens.usage(), "metrics": {"latencyMs": _ms(began)}}}


def _ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
