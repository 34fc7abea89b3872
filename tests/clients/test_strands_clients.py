"""Strands, unmodified, on memory: its session manager with short-term and long-term memory, over HTTP."""

import uuid
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from memory_service import REGION, MemoryService

with warnings.catch_warnings():  # the clients' own use of what their libraries deprecate is not ours to mend
    warnings.simplefilter("ignore")
    from bedrock_agentcore.memory.integrations.strands.config import AgentCoreMemoryConfig, RetrievalConfig
    from bedrock_agentcore.memory.integrations.strands.session_manager import AgentCoreMemorySessionManager
    from strands import Agent, tool
    from strands.models.model import Model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("environment"),
]


class Scripted(Model):
    """A model provider that says what it was asked, and calls a tool where it is told to. `asked`: each time, the
    texts of all messages."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def update_config(self, **model_config: Any) -> None: ...

    def get_config(self) -> dict[str, Any]:
        return {"model_id": "scripted"}

    def structured_output(self, *args: Any, **rest: Any) -> AsyncGenerator[dict[str, Any], None]:
        raise NotImplementedError

    async def stream(self, messages: Any, tool_specs: Any = None, *args: Any, **rest: Any) -> AsyncIterator[Any]:
        texts = [block["text"] for message in messages for block in message["content"] if "text" in block]
        self.asked.append(texts)
        results = [block for block in messages[-1]["content"] if "toolResult" in block]
        yield {"messageStart": {"role": "assistant"}}
        if texts[-1].startswith("weigh") and not results:
            use = {"toolUseId": f"use-{uuid.uuid4().hex[:8]}", "name": "weigh"}
            yield {"contentBlockStart": {"start": {"toolUse": use}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": '{"thing": "goose"}'}}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "tool_use"}}
            return
        yield {"contentBlockStart": {"start": {}}}
        yield {"contentBlockDelta": {"delta": {"text": f"You said: {texts[-1]}"}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}


@tool
def weigh(thing: str) -> str:
    """What a thing weighs."""
    return f"A {thing} weighs 4 kg."


def _agent(memory: str, actor: str, session: str, **config: Any) -> tuple[Agent, Scripted, Any]:
    """As another process would have it: a session manager of its own."""
    settings = AgentCoreMemoryConfig(memory_id=memory, actor_id=actor, session_id=session, **config)
    manager = AgentCoreMemorySessionManager(settings, region_name=REGION)
    model = Scripted()
    agent = Agent(model=model, tools=[weigh], session_manager=manager, agent_id="assistant", callback_handler=None)
    return agent, model, manager


def _texts(agent: Agent) -> list[str]:
    return [block["text"] for message in agent.messages for block in message["content"] if "text" in block]


def test_a_conversation_goes_on_in_another_process(memory: str) -> None:
    """MEM-1. Messages, tool calls and the agent's state; users and sessions are apart."""
    agent, _, _ = _agent(memory, "alice", "s")
    agent("hello, I am Alice")
    agent("weigh the goose")
    agent.state.set("mood", {"good": True, "level": 3})
    agent("good-bye")
    said = _texts(agent)
    assert "You said: weigh the goose" in said

    again, model, _ = _agent(memory, "alice", "s")
    assert _texts(again) == said
    assert again.messages == agent.messages
    assert again.state.get("mood") == {"good": True, "level": 3}
    uses = [block for message in again.messages for block in message["content"] if "toolResult" in block]
    assert uses[0]["toolResult"]["content"] == [{"text": "A goose weighs 4 kg."}]
    again("and again")
    assert model.asked[0][: len(said)] == said

    for actor, session in (("alice", "other"), ("bob", "s")):
        assert _agent(memory, actor, session)[0].messages == []


def test_messages_that_are_sent_together(memory: str) -> None:
    """What a turn says is buffered, sent as few events, and arrives in its order."""
    agent, _, manager = _agent(memory, "alice", "s", batch_size=10, default_metadata={"place": "Graz"})
    with manager:
        agent("one")
        agent("two")
    assert manager.pending_message_count() == 0
    again, _, _ = _agent(memory, "alice", "s")
    assert _texts(again) == ["one", "You said: one", "two", "You said: two"]


def test_what_is_known_of_the_user_is_in_the_prompt(service: MemoryService, data: Any, memory: str) -> None:
    """MEM-2. Long-term records of the namespaces that the manager is configured with, of its actor only."""
    facts = {"alice": "Alice is allergic to peanuts.", "bob": "Bob eats peanuts daily."}
    data.batch_create_memory_records(
        memoryId=memory,
        records=[
            {
                "requestIdentifier": actor,
                "namespaces": [f"/facts/{actor}/"],
                "content": {"text": fact},
                "timestamp": datetime.now(UTC),
            }
            for actor, fact in facts.items()
        ],
    )
    retrieval = {"/facts/{actorId}/": RetrievalConfig(top_k=3, relevance_score=0.1)}
    agent, model, _ = _agent(memory, "alice", "s", retrieval_config=retrieval)
    agent("May I eat peanuts?")
    assert model.asked[0][0] == f"<user_context>{facts['alice']}</user_context>"
    assert not any("Bob" in text for text in model.asked[0])
