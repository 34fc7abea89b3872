"""The example agent's tools: a real gateway in front of the real order service, with policies and limits."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tool_stack import ToolStack

from agentkeep.core.call import SessionRef, User

AGENT = Path(__file__).parents[2] / "examples" / "support_agent"
STATUS, REFUND = "orders___get_order_status", "orders___request_refund"
SESSION = SessionRef("support_agent-0123456789", "session-" + "0" * 32)
SMALL = (
    f'permit(principal, action == AgentCore::Action::"{REFUND}", resource == AgentCore::Gateway::"GATEWAY_ARN") '
    "when { context.input.amount <= 50 };"
)
LOOK_UP = f'permit(principal, action == AgentCore::Action::"{STATUS}", resource == AgentCore::Gateway::"GATEWAY_ARN");'
PASS_ON = [{"credentialProviderType": "JWT_PASSTHROUGH"}]

Connect = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def connect(stack: ToolStack, order_service: Any, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """The agent's tools in a session of a user's, by name."""

    async def connect(user: str, *policies: str, token_of: str | None = None, **options: Any) -> dict[str, Any]:
        made = await stack.gateway({"orders": order_service.target}, policies, credentials=PASS_ON, **options)
        url = await stack.listen(SESSION, User(user, stack.issuer.url))
        gateway = agent_module("gateway")
        monkeypatch.setattr(gateway, "GATEWAY_URL", f"{url}/gateways/{made.id}/mcp")
        tools = await gateway.gateway_tools(f"Bearer {await stack.token(token_of or user)}")
        return {tool.name: tool for tool in tools}

    return connect


def agent_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"support_agent_{name}", AGENT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """As a tool node calls it."""
    return {"type": "tool_call", "id": "1", "name": name, "args": arguments}


async def test_tools_act_as_the_user(connect: Connect, order_service: Any) -> None:
    """GOV-1, GOV-4"""
    tools = await connect("alice", LOOK_UP, SMALL)
    assert set(tools) == {STATUS, REFUND}
    answer = await tools[STATUS].ainvoke(call(STATUS, order_id="A-1001"))
    assert (answer.status, '"status":"shipped"' in answer.content.replace(" ", "")) == ("success", True)
    answer = await tools[STATUS].ainvoke(call(STATUS, order_id="B-2002"))
    assert answer.status == "error"
    assert "no order B-2002" in answer.content
    assert {seen["customer"] for seen in order_service.calls} == {"alice"}


async def test_a_tool_no_policy_allows_is_not_there(connect: Connect) -> None:
    assert set(await connect("bob", LOOK_UP)) == {STATUS}
    assert await connect("bob") == {}


async def test_a_refusal_is_an_answer_for_the_model(connect: Connect, order_service: Any) -> None:
    """GOV-3: what was refused and why; nothing crashes, nothing is called."""
    tools = await connect("alice", LOOK_UP, SMALL)
    answer = await tools[REFUND].ainvoke(call(REFUND, order_id="A-1002", amount=89, reason="it is broken"))
    assert answer.status == "error"
    assert "not allowed due to policy" in answer.content
    answer = await tools[STATUS].ainvoke(call(STATUS, order_id="nonsense"))
    assert answer.status == "error"
    assert "ValidationException" in answer.content
    assert order_service.calls == []


async def test_a_rate_limit_is_an_answer_for_the_model(connect: Connect) -> None:
    entry = {"dimensions": {"toolName": STATUS}, "requests": [{"rate": 1, "period": "minute"}]}
    tools = await connect("alice", LOOK_UP, limits=[(["toolName"], [entry])])
    answers = [await tools[STATUS].ainvoke(call(STATUS, order_id="A-1001")) for _ in range(3)]
    assert "error" in [answer.status for answer in answers]
    assert "Rate limit" in answers[-1].content


async def test_without_a_users_token_there_are_no_tools(connect: Connect) -> None:
    await connect("alice", LOOK_UP)
    assert await agent_module("gateway").gateway_tools("") == []


async def test_another_users_token_is_refused(connect: Connect) -> None:
    """IDN-2: in a session of Alice's, nobody is Bob."""
    with pytest.raises(BaseExceptionGroup) as refused:
        await connect("alice", LOOK_UP, token_of="bob")
    assert "not of the user" in str(leaf(refused.value))


def leaf(error: BaseException) -> BaseException:
    return leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
