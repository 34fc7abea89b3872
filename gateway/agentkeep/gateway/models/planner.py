"""The demonstration's rules: what a support assistant answers or does, from nothing but the request it was given.

No language model, and never said to be one. Deterministic, so that a demonstration can be checked. It knows the
conversation, the system prompt and the tools' schemas, as a model would; so a right answer on a second turn shows that
the conversation was kept, and a right call that the tool's description reached it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentkeep.gateway.models.planner_tools import ToolUse, chosen_tool, missing, report, told_tool

__all__ = ["Reply", "ToolUse", "plan"]

NAME = re.compile(r"\b(?:[Mm]y name is|[Cc]all me)\s+(\w[\w'-]*)|\bI(?: am|'m)\s+([A-Z][\w'-]+)")
ORDER = re.compile(r"\b[A-Z]{1,3}-\d{3,}\b")
ASKS = re.compile(r"\b(?:what|which|tell me|remind me|do you (?:know|remember)|repeat)\b", re.IGNORECASE)
ASKS_ORDER = re.compile(r"\border\b", re.IGNORECASE)
ASKS_NAME = re.compile(r"\b(?:my name|who am i|who i am)\b", re.IGNORECASE)
#: How it asks for what a tool needs; the next turn then answers that question.
WANTING = "To do that I need"


@dataclass(frozen=True, slots=True)
class Reply:
    text: str


def plan(request: Mapping[str, Any]) -> Reply | ToolUse | None:
    """What is done next, where a rule fits: the result of a tool is reported; a tool that the last message asks for is
    called, or what it lacks asked for; facts told are confirmed, and facts asked for answered from what the user told.
    None: no rule fits."""
    messages: Sequence[Mapping[str, Any]] = request.get("messages") or ()
    if not messages or messages[-1]["role"] != "user":
        return None
    if results := [block["toolResult"] for block in messages[-1]["content"] if "toolResult" in block]:
        return Reply(" ".join(report(_called(messages, result["toolUseId"]), result) for result in results))
    told = list(_user_texts(messages))
    tools = request.get("toolConfig") or {}
    if use := told_tool(tools, told):
        return use
    if not told:
        return None
    if wanted := chosen_tool(tools, _question(messages, told)):
        lacking = missing(wanted, told)
        return Reply(f"{WANTING}: {lacking}.") if lacking else ToolUse.of(wanted, told)
    facts = _facts(_system_texts(request), told)
    return Reply(facts) if facts else None


def _question(messages: Sequence[Mapping[str, Any]], told: Sequence[str]) -> str:
    """What the user wants now: the last text; with the one before, where it answers a question of ours."""
    asked = next((text for text in reversed(list(_texts(messages[:-1], "assistant")))), "")
    return " ".join(told[-2:] if asked.startswith(WANTING) else told[-1:])


def _facts(known: Sequence[str], told: Sequence[str]) -> str | None:
    """Of names and orders. `known`: from elsewhere than this conversation."""
    latest = told[-1]
    sources = [*known, *told]
    names = [name for text in sources for name in _names(text)]
    orders = list(dict.fromkeys(order for text in sources for order in ORDER.findall(text)))
    if ASKS.search(latest) and not ORDER.search(latest):
        replies = []
        if ASKS_NAME.search(latest):
            replies.append(
                f"Your name is {names[-1]}." if names else "You have not told me your name in this conversation."
            )
        if ASKS_ORDER.search(latest):
            replies.append(_orders(orders))
        if replies:
            return " ".join(replies)
    new_names, new_orders = _names(latest), ORDER.findall(latest)
    if new_names or new_orders:
        greeting = f"Nice to meet you, {new_names[-1]}." if new_names else "Thank you."
        noted = f" I have noted your order {' and '.join(new_orders)}." if new_orders else ""
        return f"{greeting}{noted} How can I help?"
    return None


def _orders(orders: Sequence[str]) -> str:
    match orders:
        case []:
            return "You have not told me an order number in this conversation."
        case [order]:
            return f"Your order number is {order}."
    return f"Your order numbers are {' and '.join(orders)}."


def _names(text: str) -> list[str]:
    return [given or called for given, called in NAME.findall(text)]


def _called(messages: Sequence[Mapping[str, Any]], tool_use_id: str) -> str:
    """The name of the tool whose result this is."""
    for message in reversed(messages):
        for block in message["content"]:
            if "toolUse" in block and block["toolUse"]["toolUseId"] == tool_use_id:
                return str(block["toolUse"]["name"])
    return "the tool"


def _user_texts(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return _texts(messages, "user")


def _system_texts(request: Mapping[str, Any]) -> list[str]:
    return [block["text"] for block in request.get("system") or () if "text" in block]


def _texts(messages: Sequence[Mapping[str, Any]], role: str) -> Iterator[str]:
    for message in messages:
        if message["role"] == role:
            text = "\n".join(block["text"] for block in message["content"] if "text" in block)
            if text:
                yield text
