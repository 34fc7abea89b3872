"""The whole path on one deployment, whichever it is: users sign in, an agent acts as each of them, in sessions of their
own, calls governed tools, remembers, stays within its budget; and every step is looked up from outside.

`Scenario(deployment).run()`; then `wrong` says what was not as it should be.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployment import Deployment, Refused
from shop import REFUND, STATUS, THRIFTY, THRIFTY_TOKENS, Shop, set_up

TRACE_SECONDS = 20.0
LIMIT_REACHED = "reached the limit of this conversation"


@dataclass(frozen=True)
class Turn:
    """What a user says, and what the answer must hold; or the user leaves."""

    says: str
    expects: str
    ends: bool = False

    @property
    def payload(self) -> dict[str, Any]:
        return {"end": True} if self.ends else {"prompt": self.says}


ALICE = (
    Turn("Hello, my name is Alice. I prefer deliveries in the evening.", "Alice"),
    Turn("Where is my order A-1001?", "shipped"),
    Turn("Please refund 89 euros for order A-1002, because the grinder arrived broken.", "R-A-1002"),
    Turn("(leaves)", "Good-bye", ends=True),
)
BOB = (
    Turn("Hi! Call me Bob. Where is my order B-2002?", "delivered"),
    Turn("Please refund 420 euros for order B-2002, because I changed my mind.", "policy"),
    Turn("And where is order A-1001?", "no order A-1001"),
)
#: In her next session the agent knows what she told in the one before; and nobody else does.
ALICE_AGAIN = (Turn("Do you remember my name?", "Alice"),)
BOB_AGAIN = (Turn("Do you remember my name?", "not told me"),)
TALKATIVE = tuple(Turn(f"Where is my order A-100{1 + n % 2}?", "") for n in range(12))


class Scenario:
    def __init__(self, deployment: Deployment, show: Callable[[str], None] = print) -> None:
        self.deployment = deployment
        self.show = show
        self.wrong: list[str] = []
        self.shop: Shop

    def run(self) -> None:
        began = time.monotonic()
        self.heading("Set up the shop: memory, gateway, order service as its target, policies, agent")
        self.shop = set_up(self.deployment)
        self.show(f"  agent {self.shop.runtime_arn}")
        self.show(f"  ready in {time.monotonic() - began:.1f} s")

        alice = self.talk("alice", ALICE)
        self.intrude(alice)
        bob = self.talk("bob", BOB)
        self.tools(alice, bob)
        self.audit(alice, bob)
        alice_again = self.talk("alice", ALICE_AGAIN)
        self.talk("bob", BOB_AGAIN)
        self.memory()
        thrifty = self.spend()
        self.use(alice, thrifty)
        self.trace(alice, bob, alice_again, thrifty)
        self.printed("What one session did: agentkeep trace", "trace", alice)
        self.printed(
            "Who may call what: agentkeep catalogue show", "catalogue", "show", "--gateway", self.shop.gateway_id
        )

    # Conversations.

    def talk(self, user: str, turns: tuple[Turn, ...]) -> str:
        session = str(uuid.uuid4())
        self.heading(f"{user.capitalize()} talks to the agent, in session {session}")
        for turn in turns:
            self.check(turn.expects in self.say(user, session, turn), f"the answer should hold {turn.expects!r}")
        return session

    def say(self, user: str, session: str, turn: Turn, qualifier: str = "DEFAULT") -> str:
        began = time.monotonic()
        try:
            answer = self.deployment.invoke(self.shop.runtime_arn, user, session, turn.payload, qualifier)
        except Refused as refused:
            answer = f"({refused})"
        self.show(f"  {user}: {turn.says}")
        self.show(f"  agent: {answer}   [{time.monotonic() - began:.2f} s]")
        return answer

    def intrude(self, session: str) -> None:
        self.heading("Bob tries to speak in Alice's session")
        try:
            self.deployment.invoke(self.shop.runtime_arn, "bob", session, {"prompt": "What is my name?"})
        except Refused as refused:
            self.show(f"  refused: {refused}")
            self.check(refused.status == 403, "he should have been refused with 403")
        else:
            self.check(False, "he should have been refused")

    def spend(self) -> str:
        """Asks until the budget stops it; the agent then says so, in words of its own, and the platform's count never
        passes the budget."""
        session = str(uuid.uuid4())
        self.heading(f"Alice talks where a session has {THRIFTY_TOKENS:,} tokens, in session {session}")
        for number, turn in enumerate(TALKATIVE, 1):
            answer = self.say("alice", session, turn, THRIFTY)
            if LIMIT_REACHED in answer:
                self.check(number > 1, "the first turn should fit the budget")
                break
        else:
            self.check(False, "the budget should have stopped her")
        return session

    # What others saw of it.

    def tools(self, alice: str, bob: str) -> None:
        self.heading("What the order service saw")
        calls = self.deployment.order_calls()
        for call in calls:
            self.show(
                f"  {call['customer']}: {call['operation']} {call['order_id']}{'' if call['known'] else ' (not his)'}"
            )
        seen = {(call["customer"], call["operation"], call["order_id"], call["known"]) for call in calls}
        self.check(
            ("alice", "get_order_status", "A-1001", True) in seen, "Alice's question should have come as Alice's"
        )
        self.check(("alice", "request_refund", "A-1002", True) in seen, "Alice's refund should have come as Alice's")
        self.check(("bob", "get_order_status", "B-2002", True) in seen, "Bob's question should have come as Bob's")
        self.check(
            not any(customer == "bob" and operation == "request_refund" for customer, operation, *_ in seen),
            "Bob's refund should never have come: the policy refused it",
        )

    def audit(self, alice: str, bob: str) -> None:
        self.heading("What the audit trail says")
        of_alice, of_bob = (
            self.deployment.operate("GET", f"/audit?session={session}")["calls"] for session in (alice, bob)
        )
        for record in of_alice + of_bob:
            self.show(
                f"  {record['user']}: {record['tool']} {record['decision']} {record['status']} ({record['auditLevel']})"
            )
        outcomes = [(record["tool"], record["status"]) for record in of_alice]
        self.check(
            outcomes == [(STATUS, "SUCCEEDED"), (REFUND, "SUCCEEDED")], "Alice's two calls should be in the trail"
        )
        refund = next((record for record in of_alice if record["tool"] == REFUND), {})
        self.check(refund.get("arguments", {}).get("amount") == 89, "a high-impact call's arguments should be kept")
        self.check(refund.get("riskClass") == "high-impact", "the refund should be high-impact")
        outcomes = [(record["tool"], record["decision"], record["status"]) for record in of_bob]
        expected = [(STATUS, "ALLOW", "SUCCEEDED"), (REFUND, "DENY", "REFUSED"), (STATUS, "ALLOW", "TOOL_ERROR")]
        self.check(outcomes == expected, f"Bob's calls should be {expected}")
        agents = {(record["user"], record["agentRuntimeId"]) for record in of_alice + of_bob}
        self.check(
            agents == {("alice", self.shop.runtime_id), ("bob", self.shop.runtime_id)},
            "each call should bear its user and agent",
        )

    def memory(self) -> None:
        self.heading("What the memory keeps")
        client = self.deployment.client("bedrock-agentcore")
        for user in ("alice", "bob"):
            listed = client.list_memory_records(memoryId=self.shop.memory_id, namespace=f"/facts/{user}/")
            facts = [record["content"]["text"] for record in listed["memoryRecordSummaries"]]
            self.show(f"  {user}: {' '.join(facts) or 'nothing'}")
            told = any("evening" in fact for fact in facts)
            self.check(told == (user == "alice"), "only what Alice told should be kept, and as hers")

    def use(self, alice: str, thrifty: str) -> None:
        self.heading("What it used")
        for session in (alice, thrifty):
            used = self.deployment.operate("GET", f"/usage/{self.shop.runtime_id}/{session}")
            budget, totals = used["budget"], used["totals"]
            self.show(f"  session {session}: {totals['calls']} model calls, {totals['input_tokens']:,} tokens in, "
                      f"{totals['output_tokens']:,} out; {budget['left']:,} of {budget['tokens']:,} left")  # fmt: skip
            self.check(totals["calls"] > 0, "its model calls should be metered")
            counted = totals["input_tokens"] + totals["output_tokens"]
            self.check(counted <= budget["used"] <= budget["tokens"], "no session should use more than its budget")
            self.check(
                (session == thrifty) == (budget["tokens"] == THRIFTY_TOKENS), "the endpoint's tag should set the budget"
            )

    def trace(self, alice: str, bob: str, alice_again: str, thrifty: str) -> None:
        self.heading("What the traces hold")
        whole = {("model", "ok"), ("tool", "ok"), ("memory", "ok"), ("invocation", "ok")}
        self.traced(alice, whole, "Alice's trace should have invocations, model calls, tools and memory")
        self.traced(bob, {("tool", "refused")}, "Bob's trace should have the refused tool")
        self.traced(alice_again, {("memory", "ok")}, "recalling should be on the trace")
        self.traced(thrifty, {("budget", "refused")}, "the trace should say that the budget was reached")

    def traced(self, session: str, expected: set[tuple[str, str]], should: str) -> None:
        """Services send what they did in batches, so the newest may be on its way for a moment."""
        deadline = time.monotonic() + TRACE_SECONDS
        while True:
            events = self.deployment.operate("GET", f"/traces/{self.shop.runtime_id}/{session}")["events"]
            found = {(event["kind"], event["status"]) for event in events}
            if found >= expected or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        kinds = Counter(event["kind"] for event in events)
        self.show(f"  session {session}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
        self.check(found >= expected, should)

    # Telling.

    def printed(self, title: str, *command: str) -> None:
        self.heading(title)
        for line in self.deployment.command(*command).splitlines():
            self.show(f"  {line}")

    def heading(self, text: str) -> None:
        self.show(f"\n▸ {text}")

    def check(self, right: bool, should: str) -> None:
        if not right:
            self.wrong.append(should)
            self.show(f"  WRONG: {should}")
