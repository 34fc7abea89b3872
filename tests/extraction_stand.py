"""A model for extraction, as a provider's server on loopback; and a memory plane that asks it through the gateway.

The model is a simple one: of each message it makes a fact by dropping its first word ("I like tea" -> "like tea"), and
it updates what begins with the same word.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from agentkeep.core.clock import Clock
from agentkeep.core.errors import AgentkeepError
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service import KeyService
from agentkeep.gateway.models.routing import parse_rules
from agentkeep.gateway.plane import gateway_plane
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.memory.plane import MemoryPlane
from agentkeep.memory.settings import MemorySettings
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search import SearchStore

Answer = dict[str, Any] | str


class ModelStand:
    """`asked`: purpose, data by mark, and the system text of each question. `does`: answers in place of the rules."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[Any]], str]] = []
        self.does: Callable[[str, dict[str, list[Any]]], Answer] = answer
        self.waits: asyncio.Event | None = None
        self.status = 200

    async def handle(self, request: web.Request) -> web.Response:
        asked = await request.json()
        system, prompt = (message["content"] for message in asked["messages"])
        purpose, data = asked["response_format"]["json_schema"]["name"], marked(prompt)
        self.asked.append((purpose, data, system))
        if self.waits is not None:
            await self.waits.wait()
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        said = self.does(purpose, data)
        message = {"role": "assistant", "content": said if isinstance(said, str) else json.dumps(said)}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


def marked(prompt: str) -> dict[str, list[Any]]:
    """The documents between the prompt's marks."""
    found = re.findall(r"<(\w+)>\n(.*?)\n?</\1>", prompt, re.DOTALL)
    return {mark: [json.loads(line) for line in lines.splitlines()] for mark, lines in found}


def answer(purpose: str, data: dict[str, list[Any]]) -> Answer:
    if "summary" in data:
        before = [one["text"] for one in data["summary"]]
        return {"summary": " / ".join([*before, *(one["text"] for one in data["conversation"])])}
    if purpose == "extraction":
        return {
            "facts": [
                {"fact": one["text"].partition(" ")[2], "messages": [one["number"]]} for one in data["conversation"]
            ]
        }
    operations = []
    for fact in data["facts"]:
        same = [one for one in data["known"] if one["text"].split()[0] == fact["text"].split()[0]]
        operation = {"fact": fact["number"], "operation": "AddMemory", "record": None, "text": None}
        if any(one["text"] == fact["text"] for one in same):
            operation["operation"] = "SkipMemory"
        elif same:
            operation |= {"operation": "UpdateMemory", "record": same[0]["number"], "text": fact["text"]}
        operations.append(operation)
    return {"operations": operations}


@asynccontextmanager
async def serving(stand: ModelStand) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/v1/chat/completions", stand.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def extracting(
    store: KeyValueStore, search: SearchStore, clock: Clock, keys: KeyService, model_url: str | None, **settings: Any
) -> AsyncIterator[MemoryPlane]:
    """A replica of the memory service. `model_url` None: it has no model."""
    usage = KeyValueUsage(store)
    routes = GatewaySettings(routes=parse_rules("*=openai"), openai_url=model_url or "http://127.0.0.1:1/v1")
    gateway = gateway_plane(routes, usage, SessionBudgets(store, clock, default=None), clock)
    given = {"extraction_model": "stand" if model_url is not None else "", "extraction_debounce": 0.0, **settings}
    plane = MemoryPlane(
        store,
        Deployment("eu-west-1", "123456789012"),
        clock,
        search,
        settings=MemorySettings(**given),
        key_service=keys,
        models=gateway.answers,
    )
    try:
        yield plane
    finally:
        await plane.close()
        await gateway.close()


async def settled(plane: MemoryPlane) -> None:
    """Extracts all that is due; what another replica is at is waited for."""
    for _ in range(50):
        try:
            await plane.extraction.worker.settle()
        except AgentkeepError:
            await asyncio.sleep(0.02)
        else:
            return
    raise AssertionError("extraction does not settle")
