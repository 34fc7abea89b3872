"""What a budget adds to a model call, and that it holds: reservations one after the other, and many at once.

One process, a real Valkey over a Unix socket, its file synced as the platform has it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import uvloop
from _history import keep

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import ServiceQuotaExceededException
from agentkeep.core.ports import Reservation
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.observability.budget import SessionBudgets
from agentkeep.storage.valkey import ValkeyKeyValueStore

CALLS = 1000
AT_ONCE = 64
FITTING = 10


async def one_after_the_other(budgets: SessionBudgets) -> dict[str, float]:
    session = SessionRef("helper-1234567890", "one")
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        reservation = await budgets.reserve(session, 500, 500)
        assert reservation is not None
        await budgets.settle(reservation, 300)
        took.append((time.perf_counter() - began) * 1000)
    assert (await budgets.standing(session)).used == CALLS * 300
    figures = {"reserve_and_settle_p50_ms": statistics.median(took), "p99_ms": statistics.quantiles(took, n=100)[98]}
    print(f"reserve and settle: p50 {figures['reserve_and_settle_p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms")
    return figures


async def many_at_once(budgets: SessionBudgets) -> None:
    """Against a budget for ten."""
    session = SessionRef("helper-1234567890", "many")
    await budgets.open(session, FITTING * 1000 + 999)
    began = time.perf_counter()
    answers = await asyncio.gather(
        *(budgets.reserve(session, 500, 500) for _ in range(AT_ONCE)), return_exceptions=True
    )
    took = (time.perf_counter() - began) * 1000
    ran = sum(isinstance(answer, Reservation) for answer in answers)
    refused = sum(isinstance(answer, ServiceQuotaExceededException) for answer in answers)
    standing = await budgets.standing(session)
    print(f"{AT_ONCE} at once, budget for {FITTING}: {ran} ran, {refused} refused, {standing.used:,} of "
          f"{standing.budget:,} tokens set aside, in {took:.1f} ms")  # fmt: skip
    assert (ran, refused) == (FITTING, AT_ONCE - FITTING)
    assert standing.budget is not None
    assert standing.used <= standing.budget


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedValkey(Path(folder)) as valkey:
            store = ValkeyKeyValueStore(valkey.url)
            budgets = SessionBudgets(store, SystemClock(), default=10**9)
            figures = await one_after_the_other(budgets)
            await many_at_once(budgets)
            await store.close()
    keep("budget", figures)


if __name__ == "__main__":
    uvloop.run(main())
