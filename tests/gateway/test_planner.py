"""The demonstration's rules: deterministic, and only ever from the messages given."""

from __future__ import annotations

import pytest
from model_stand_ins import says

from agentkeep.gateway.models.planner import planned_reply

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
def test_replies(messages: list[dict[str, object]], reply: str | None) -> None:
    assert planned_reply(messages) == reply
