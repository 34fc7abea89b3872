"""What it costs to decide whether a tool may be called.

One process, one core, a real Valkey. `decide` is asked as a tool call asks it, with the read that proves the copies in
the process current; `evaluate` is the same without that read, so the difference is the store's. `visible` is for a
listing of all tools, a tool.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop
from _history import keep

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.gateway.control import layout
from agentkeep.gateway.control.resources import StoredResources
from agentkeep.gateway.policy.decisions import PolicyDecisions
from agentkeep.gateway.records import (
    GatewayRecord,
    PolicyEngineRecord,
    PolicyRecord,
    RateLimitRecord,
    Resources,
    TargetRecord,
    Tool,
)
from agentkeep.storage.interface import Put
from agentkeep.storage.records import encode
from agentkeep.storage.valkey import ValkeyKeyValueStore

CALLS = 2000
ROUNDS = 5
ENGINE = "rules-0123456789"
ARN = Deployment().arn("gateway/shop-0123456789")
SCHEMA = {
    "type": "object",
    "properties": {"order": {"type": "string"}, "amount": {"type": "number"}, "count": {"type": "integer"}},
    "required": ["order", "amount"],
}
WHO = (
    'principal is AgentCore::OAuthUser && principal.hasTag("agentkeep:agent") && '
    'principal.getTag("agentkeep:agent") == "support-0123456789"'
)
ARGUMENTS = {"order": "A-1001", "amount": 9.5, "count": 2}
CLAIMS = {f"claim{number}": f"value {number}" for number in range(12)}
ALICE = Caller(
    CallerKind.SESSION,
    "arn:aws:sts::000000000000:assumed-role/support-0123456789/s",
    "ASIA",
    User("alice", "https://issuer", CLAIMS),
    SessionRef("support-0123456789", "s"),
)


class Held:
    """`Resources` answered from memory: the engine's share without the store's."""

    def __init__(
        self, gateway: GatewayRecord, targets: Sequence[TargetRecord], policies: Sequence[PolicyRecord]
    ) -> None:
        self._gateway, self._targets, self._policies = gateway, targets, policies

    async def gateway(self, gateway_id: str) -> GatewayRecord | None:
        return self._gateway

    async def targets(self, gateway_id: str) -> Sequence[TargetRecord]:
        return self._targets

    async def rate_limits(self, gateway_id: str) -> Sequence[RateLimitRecord]:
        return ()

    async def policies(self, engine_id: str) -> tuple[str, Sequence[PolicyRecord]]:
        return "1", self._policies


def permit(tool: int, condition: str) -> str:
    return (
        f'permit(principal, action == AgentCore::Action::"Orders___tool{tool}", '
        f'resource == AgentCore::Gateway::"{ARN}") when {{ {condition} }};'
    )


async def measure(work: Callable[[], Awaitable[Any]], calls: int = CALLS) -> tuple[float, float]:
    """Microseconds of one, by the clock and of this process's CPU: medians of rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            await work()
        rounds.append(((time.perf_counter() - began) / calls * 1e6, (time.process_time() - cpu) / calls * 1e6))
    clock, spent = zip(*rounds, strict=True)
    return round(statistics.median(clock), 1), round(statistics.median(spent), 1)


async def run(store: ValkeyKeyValueStore) -> dict[str, Any]:
    clock = SystemClock()
    now = clock.now()
    gateway = GatewayRecord("shop-0123456789", ARN, "shop", "READY", "AWS_IAM", None, ENGINE, "ENFORCE", now, now)
    engine = PolicyEngineRecord(ENGINE, "arn", "rules", "ACTIVE", now, now)
    figures: dict[str, Any] = {}
    for label, policies, condition in (
        ("1 policy, by agent", 1, WHO),
        ("1 policy, by agent and arguments", 1, f'{WHO} && context.input.amount.lessThan(decimal("10.0"))'),
        ("1000 policies, by agent and arguments", 1000, f'{WHO} && context.input.amount.lessThan(decimal("10.0"))'),
    ):
        tools = [Tool(f"tool{number}", "", SCHEMA) for number in range(max(100, policies))]
        target = TargetRecord(gateway.id, "t" * 10, "Orders", "READY", {}, [], tools, now, now)
        made = [
            PolicyRecord(ENGINE, f"p{n:04}", f"p{n}", permit(n, condition), "ACTIVE", "ACTIVE", now, now)
            for n in range(policies)
        ]
        await store.delete_partition(layout.policies(ENGINE))
        await store.transact(
            [
                Put(layout.GATEWAYS, gateway.id, encode(gateway)),
                Put(layout.ENGINES, ENGINE, encode(engine)),
                Put(layout.targets(gateway.id), target.id, encode(target)),
                *(Put(layout.policies(ENGINE), one.id, encode(one)) for one in made),
                layout.revise(layout.gateway_revision(gateway.id)),
                layout.revise(layout.engine_revision(ENGINE)),
            ]
        )
        stored: Resources = StoredResources(store)
        names = [f"Orders___{tool.name}" for tool in tools]
        found = figures[label] = {}
        for name, resources in (("decide us", stored), ("evaluate us", Held(gateway, [target], made))):
            decisions = PolicyDecisions(resources, clock)
            began = time.process_time()
            first = await decisions.decide(gateway, ALICE, "Orders", "tool0", ARGUMENTS)
            found.setdefault("first decision ms of CPU", round((time.process_time() - began) * 1000, 1))
            assert first.allowed, first.reason
            found[name], found[f"{name} of CPU"] = await measure(
                lambda decisions=decisions: decisions.decide(gateway, ALICE, "Orders", "tool0", ARGUMENTS)  # type: ignore[misc]
            )
            if name == "evaluate us":
                await decisions.visible(gateway, ALICE, names)
                _, listing = await measure(
                    lambda decisions=decisions, names=names: decisions.visible(gateway, ALICE, names),  # type: ignore[misc]
                    max(1, CALLS // len(names)),
                )
                found["visible us of CPU a tool"] = round(listing / len(names), 1)
        print(f"{label:40}", ", ".join(f"{name} {value}" for name, value in found.items()))
    return figures


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedValkey(Path(folder), appendfsync="no") as valkey:
            store = ValkeyKeyValueStore(valkey.url)
            try:
                keep("policy", await run(store))
            finally:
                await store.close()


if __name__ == "__main__":
    uvloop.run(main())
