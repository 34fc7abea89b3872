"""The demonstration's rules: deterministic, and only ever from the messages given."""

from __future__ import annotations

import time
from typing import Any

import pytest
from model_stand_ins import says

from agentkeep.gateway.models.planner import Reply, ToolUse, plan

ALICE = says("My name is Alice and my order is A-1001.")
NOTED = {"role": "assistant", "content": [{"text": "Your order number is Z-9999."}]}


@pytest.mark.parametrize(
    ("messages", "reply"),
    [
        ([ALICE], "Nice to meet you, Alice. I have noted your order A-1001. How can I help?"),
        ([says("I'm Bob. I ordered B-2002")], "Nice to meet you, Bob. I have noted your order B-2002. How can I help?"),
        ([says("It is about C-3003")], "Thank you. I have noted your order C-3003. How can I help?"),
        ([ALICE, NOTED, says("What is my order number?")], "Your order number is A-1001."),
        ([ALICE, NOTED, says("which order was it again?")], "Your order number is A-1001."),
        ([ALICE, NOTED, says("Do you remember my name?")], "Your name is Alice."),
        ([ALICE, says("What is my name and my order number?")], "Your name is Alice. Your order number is A-1001."),
        (
            [ALICE, says("Another is B-2002"), says("Which order numbers do you have?")],
            "Your order numbers are A-1001 and B-2002.",
        ),
        # What only the assistant said, or nobody, is not known: the thread is the one source.
        ([NOTED, says("What is my order number?")], "You have not told me an order number in this conversation."),
        ([says("What is my name?")], "You have not told me your name in this conversation."),
        ([says("I'm looking for a present")], None),
        ([says("Why is the sky blue?")], None),
        ([ALICE, NOTED], None),
        ([], None),
        ([{"role": "user", "content": [{"image": {}}]}], None),
    ],
)
def test_replies(messages: list[dict[str, Any]], reply: str | None) -> None:
    assert plan({"messages": messages}) == (None if reply is None else Reply(reply))


def test_what_the_system_prompt_knows_is_known() -> None:
    system = [{"text": "From earlier conversations:\n- My name is Alice and my order is A-1001."}]
    asked = {"messages": [says("What is my name, and my order?")], "system": system}
    assert plan(asked) == Reply("Your name is Alice. Your order number is A-1001.")


def tool(name: str, description: str, required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }
    return {"toolSpec": {"name": name, "description": description, "inputSchema": {"json": schema}}}


ID = {"type": "string", "pattern": r"^[A-Z]-\d{4}$", "description": "The number of the order."}
STATUS = tool("orders___get_order_status", "Status of an order: where it is, when it comes", order_id=ID)
REFUND = tool(
    "orders___request_refund",
    "Request a refund: give money back for an order",
    order_id=ID,
    amount={"type": "integer", "description": "Euros to pay back."},
    reason={"type": "string", "maxLength": 60},
)
TOOLS = {"tools": [STATUS, REFUND, {"cachePoint": {"type": "default"}}]}


@pytest.mark.parametrize(
    ("texts", "name", "arguments"),
    [
        (["Where is my order A-1001?"], "get_order_status", {"order_id": "A-1001"}),
        ([ALICE["content"][0]["text"], "What is its status?"], "get_order_status", {"order_id": "A-1001"}),
        (["It is A-1001, no, B-2002", "When does it come? It is C-3003"], "get_order_status", {"order_id": "C-3003"}),
        (
            ["Please refund 89 euros for A-1002, because it arrived broken."],
            "request_refund",
            {"order_id": "A-1002", "amount": 89, "reason": "it arrived broken"},
        ),
        (
            ["A-1002 is broken", "I want my money back, 12.50 euros"],
            "request_refund",
            {"order_id": "A-1002", "amount": 12, "reason": "I want my money back, 12.50 euros"},
        ),
    ],
)
def test_a_tool_is_chosen_by_its_words_and_called_by_its_schema(
    texts: list[str], name: str, arguments: dict[str, Any]
) -> None:
    planned = plan({"messages": [*map(says, texts)], "toolConfig": TOOLS})
    assert isinstance(planned, ToolUse)
    assert (planned.name, planned.input) == (f"orders___{name}", arguments)


@pytest.mark.parametrize("text", ["Hello, my order is A-1001.", "What is my order number?", "Why is the sky blue?"])
@pytest.mark.parametrize("tools", [TOOLS, {"tools": [STATUS]}, {"tools": []}])
def test_words_that_tell_no_tool_from_another_choose_none(text: str, tools: dict[str, Any]) -> None:
    assert not isinstance(plan({"messages": [says(text)], "toolConfig": tools}), ToolUse)


def test_a_tool_that_is_not_given_is_not_called() -> None:
    asked = {"messages": [says("Please refund 89 euros for A-1002")], "toolConfig": {"tools": [STATUS]}}
    assert not isinstance(plan(asked), ToolUse)


def test_what_a_tool_lacks_is_asked_for_and_then_it_is_called() -> None:
    asked = says("Please refund my broken grinder")
    question = plan({"messages": [asked], "toolConfig": TOOLS})
    assert question == Reply("To do that I need: The number of the order; Euros to pay back.")
    said = {"role": "assistant", "content": [{"text": question.text}]}
    planned = plan({"messages": [asked, said, says("A-1002, 89 euros")], "toolConfig": TOOLS})
    assert isinstance(planned, ToolUse)
    assert (planned.name, planned.input["amount"]) == ("orders___request_refund", 89)


def result(content: dict[str, Any], **members: Any) -> list[dict[str, Any]]:
    use = {"toolUseId": "t1", "name": "orders___get_order_status", "input": {}}
    return [
        says("Where is my order A-1001?"),
        {"role": "assistant", "content": [{"toolUse": use}]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "t1", "content": [content], **members}}]},
    ]


@pytest.mark.parametrize(
    ("messages", "reply"),
    [
        (result({"text": '{"order_id": "A-1001", "total": 249}'}), "Get order status: order id A-1001, total 249."),
        (result({"json": {"found": [True, None]}}), "Get order status: found true null."),
        (result({"text": "on its way"}), "Get order status: on its way."),
        (
            result({"text": "Tool Execution Denied: by policy"}, status="error"),
            "I could not do that (get order status): Tool Execution Denied: by policy",
        ),
    ],
)
def test_results_are_reported(messages: list[dict[str, Any]], reply: str) -> None:
    assert plan({"messages": messages, "toolConfig": TOOLS}) == Reply(reply)


@pytest.mark.parametrize("choice", [{"any": {}}, {"tool": {"name": "Facts"}}])
def test_a_tool_that_must_be_used_is_filled(choice: dict[str, Any]) -> None:
    """Facts are extracted so: what the user stated of himself, in his words; no wishes, no questions, nothing twice."""
    facts = tool("Facts", "What to remember", facts={"type": "array", "items": {"type": "string"}})
    messages = [
        says("Hello, my name is Alice. Where is my order A-1001?"),
        {"role": "assistant", "content": [{"text": "My own name is a secret."}]},
        says("I prefer deliveries in the evening! Please refund my order. I prefer deliveries in the evening!"),
        says("What should you remember of me?"),
    ]
    planned = plan({"messages": messages, "toolConfig": {"tools": [facts], "toolChoice": choice}})
    assert isinstance(planned, ToolUse)
    assert planned.input == {"facts": ["Hello, my name is Alice.", "I prefer deliveries in the evening!"]}


@pytest.mark.parametrize("pattern", ["(", "[", "[z-a]", "(?<name", "^(?:$", "(W|WW)+"])
def test_patterns_of_another_dialect_match_nothing(pattern: str) -> None:
    asked = tool("lookup_status", "Status of things", key={"type": "string", "pattern": pattern})
    planned = plan({"messages": [says("What is the status?")], "toolConfig": {"tools": [asked]}})
    assert planned == Reply("To do that I need: key.")


def test_no_pattern_keeps_it_searching() -> None:
    asked = tool("lookup_status", "Status of things", key={"type": "string", "pattern": "a*a*a*a*b"})
    began = time.monotonic()
    plan({"messages": [says("What is the status of " + "a" * 100_000)], "toolConfig": {"tools": [asked]}})
    assert time.monotonic() - began < 5
