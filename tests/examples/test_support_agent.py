"""The example agent as it is, in its own process, with the platform's memory and models behind it over HTTP.

Sessions, sandbox and runtime are left out here; the end-to-end tests have them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import pytest
from session_stack import DEPLOYMENT, SessionStack, session_stack

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.gateway.plane import gateway_plane
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.memory.plane import MemoryPlane
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore

EXAMPLE = Path(__file__).parents[2] / "examples" / "support_agent"
RUNTIME_ID = "support_agent-0123456789"
SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"

TOLD = "My name is Alice and my order is A-1001. It has not arrived."
ASKED = "What is my order number?"


@dataclass
class Platform:
    stack: SessionStack
    usage: KeyValueUsage
    budgets: SessionBudgets
    memory_id: str


@pytest.fixture
async def platform(store: ValkeyKeyValueStore, tmp_path: Path) -> AsyncIterator[Platform]:
    clock = SystemClock()
    records = SqliteSearchStore(tmp_path / "records.db", dimensions=None)
    usage = KeyValueUsage(store)
    budgets = SessionBudgets(store, clock, default=1_000_000)
    gateway = gateway_plane(GatewaySettings(), usage, budgets, clock)
    memory = MemoryPlane(store, DEPLOYMENT, clock, records, key_service=LocalKeyService(secrets.token_bytes(32)))
    async with session_stack(store, [gateway, *memory.operations]) as stack:
        operator = await stack.operator()

        def create() -> str:
            with closing(boto3.client("bedrock-agentcore-control", **operator)) as client:
                return str(client.create_memory(name="conversations", eventExpiryDuration=30)["memory"]["id"])

        yield Platform(stack, usage, budgets, await asyncio.to_thread(create))
    await gateway.close()
    await records.close()


@dataclass
class Agent:
    url: str
    session: SessionRef

    async def leave(self, user: str) -> str:
        """What the agent says when the user leaves."""
        return "".join(await self.send({"end": True}, bearer(user)))

    async def ask(self, prompt: str, headers: dict[str, str] | None = None, **payload: Any) -> list[Any]:
        return await self.send({"prompt": prompt, **payload}, headers)

    async def send(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> list[Any]:
        """What the agent streams, piece by piece."""
        sent = {SESSION_HEADER: self.session.session_id, **(headers or {})}
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{self.url}/invocations", json=payload, headers=sent) as response,
        ):
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            return [
                json.loads(line.removeprefix(b"data: "))
                async for line in response.content
                if line.startswith(b"data: ")
            ]


@asynccontextmanager
async def agent(platform: Platform, user: str, session_id: str | None = None) -> AsyncIterator[Agent]:
    """The agent's process, with the environment a session gives it."""
    session = SessionRef(RUNTIME_ID, session_id or f"session-{secrets.token_hex(16)}")
    url = await platform.stack.listen(session)
    credentials = await platform.stack.credentials(session, User(user))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"import main; main.app.run(port={port}, host='127.0.0.1')"),
        cwd=EXAMPLE,
        env={
            "PATH": os.environ["PATH"],
            "MEMORY_ID": platform.memory_id,
            "AWS_REGION": DEPLOYMENT.region,
            "AWS_DEFAULT_REGION": DEPLOYMENT.region,
            "AWS_ENDPOINT_URL_BEDROCK_AGENTCORE": url,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": url,
            "AWS_EC2_METADATA_DISABLED": "true",
            **{name.upper(): value for name, value in credentials.items()},
        },
    )
    try:
        async with aiohttp.ClientSession() as client, asyncio.timeout(60):
            while True:
                assert process.returncode is None, "the agent ended"
                try:
                    async with client.get(f"http://127.0.0.1:{port}/ping") as response:
                        assert response.status == 200
                        break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.1)
        yield Agent(f"http://127.0.0.1:{port}", session)
    finally:
        process.terminate()
        await process.wait()


def bearer(user: str) -> dict[str, str]:
    """A token as the runtime passes it on; it has verified it."""
    claims = base64.urlsafe_b64encode(json.dumps({"sub": user}).encode()).decode().rstrip("=")
    return {"Authorization": f"Bearer e30.{claims}.signature"}


def test_names_no_platform_but_agentcore() -> None:
    for path in EXAMPLE.iterdir():
        if path.is_file():
            assert "agentkeep" not in path.read_text().lower()


def test_pins_what_is_tested() -> None:
    for line in (EXAMPLE / "requirements.txt").read_text().splitlines():
        name, _, pinned = line.partition("==")
        assert version(name) == pinned


@pytest.mark.slow
async def test_its_second_turn_knows_the_first(platform: Platform) -> None:
    """MEM-1: from the thread in memory, in another process too; MEM-2: nobody else's."""
    async with agent(platform, "alice") as first:
        told = await first.ask(TOLD, bearer("alice"))
        assert len(told) > 3, "the answer is streamed"
        assert "".join(told) == "Nice to meet you, Alice. I have noted your order A-1001. How can I help?"
        assert "".join(await first.ask(ASKED, bearer("alice"))) == "Your order number is A-1001."
        session_id = first.session.session_id
        records = await platform.usage.of_session(first.session)
    assert [(record.user_id, record.provider, record.estimated) for record in records] == [("alice", "demo", False)] * 2
    # The second turn's input holds the first turn's: the conversation was sent.
    assert records[1].input_tokens > records[0].input_tokens

    async with agent(platform, "alice", session_id) as again:
        assert "".join(await again.ask("And what is my name?", bearer("alice"))) == "Your name is Alice."

    async with agent(platform, "bob", session_id) as other:
        # The same session id under another user is another thread.
        assert "have not told me" in "".join(await other.ask(ASKED, actor_id="bob"))
        # And naming somebody else in the payload is refused by the platform, not by the agent.
        [refusal] = await other.ask(ASKED, actor_id="alice")
        assert "AccessDenied" in refusal["error"]
        [nobody] = await other.ask(ASKED)
        assert "no user" in nobody["error"]


@pytest.mark.slow
async def test_facts_are_kept_at_the_end_and_recalled_in_the_next_session(platform: Platform) -> None:
    """MEM-3: what a model call chose, when the user leaves; nothing before. MEM-2: recalled for him alone."""
    alice, bob = bearer("alice"), bearer("bob")
    async with agent(platform, "alice") as first:
        await first.ask("Hello, my name is Alice. I prefer deliveries in the evening.", alice)
        assert await facts(platform, "alice") == []
        left = await first.leave("alice")
        assert left == "Good-bye! I will remember: Hello, my name is Alice. I prefer deliveries in the evening."
        assert await facts(platform, "alice") == ["Hello, my name is Alice.", "I prefer deliveries in the evening."]

    async with agent(platform, "alice") as second:
        assert "".join(await second.ask("Do you remember my name?", alice)) == "Your name is Alice."
        # What was known before is not kept twice.
        await second.ask("Hello, my name is Alice. I have a dog.", alice)
        assert await second.leave("alice") == "Good-bye! I will remember: I have a dog."

    async with agent(platform, "bob") as other:
        assert "have not told me" in "".join(await other.ask("Do you remember my name?", bob))
        assert await other.leave("bob") == "Good-bye!"
    assert await facts(platform, "bob") == []


async def facts(platform: Platform, user: str) -> list[str]:
    operator = await platform.stack.operator()

    def listed() -> list[str]:
        with closing(boto3.client("bedrock-agentcore", **operator)) as client:
            answer = client.list_memory_records(memoryId=platform.memory_id, namespace=f"/facts/{user}/")
        return sorted(record["content"]["text"] for record in answer["memoryRecordSummaries"])

    return await asyncio.to_thread(listed)


@pytest.mark.slow
async def test_a_spent_budget_is_a_graceful_answer(platform: Platform) -> None:
    """OBS-3: the agent turns the platform's refusal into words; in the conversation and when the user leaves."""
    async with agent(platform, "alice") as spender:
        await spender.ask(TOLD, bearer("alice"))
        used = (await platform.budgets.standing(spender.session)).used
        await platform.budgets.open(spender.session, used)
        for answer in ("".join(await spender.ask(ASKED, bearer("alice"))), await spender.leave("alice")):
            assert answer.startswith("I have reached the limit of this conversation")
        assert (await platform.budgets.standing(spender.session)).used == used
        assert len(await platform.usage.of_session(spender.session)) == 1
