"""The demonstration's rules: what a support assistant answers, from nothing but the messages it was given.

No language model, and never said to be one. Deterministic, so that a demonstration can be checked. And since it knows
only the messages, a right answer on a second turn shows that the conversation was kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["planned_reply"]

NAME = re.compile(r"\b(?:[Mm]y name is|[Cc]all me)\s+(\w[\w'-]*)|\bI(?: am|'m)\s+([A-Z][\w'-]+)")
ORDER = re.compile(r"\b[A-Z]{1,3}-\d{3,}\b")
ASKS = re.compile(r"\b(?:what|which|tell me|remind me|do you (?:know|remember)|repeat)\b", re.IGNORECASE)
ASKS_ORDER = re.compile(r"\border\b", re.IGNORECASE)
ASKS_NAME = re.compile(r"\b(?:my name|who am i|who i am)\b", re.IGNORECASE)


def planned_reply(messages: Sequence[dict[str, Any]]) -> str | None:
    """The reply to the last user message where a rule fits it: facts told are confirmed, facts asked for are answered
    from what the user told in these messages, or said not to be known. None: no rule fits."""
    told = list(_user_texts(messages))
    if not told or messages[-1]["role"] != "user":
        return None
    latest = told[-1]
    names = [name for text in told for name in _names(text)]
    orders = list(dict.fromkeys(order for text in told for order in ORDER.findall(text)))
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


def _user_texts(messages: Sequence[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        if message["role"] == "user":
            text = "\n".join(block["text"] for block in message["content"] if "text" in block)
            if text:
                yield text
