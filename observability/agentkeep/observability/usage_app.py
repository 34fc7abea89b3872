"""`GET /usage/{runtime_id}/{session_id}`: what a session's model calls used and cost, and what is left of its budget.

For operators, and the command line.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from agentkeep.core.call import SessionRef
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.prices import Cost, Prices, money
from agentkeep.observability.usage import KeyValueUsage, UsageTotals
from agentkeep.service.asgi import Receive, Scope, Send, path_parts, respond

__all__ = ["UsageApp"]


class UsageApp:
    """An ASGI application. It checks no caller: mount it behind the check that lets operators through."""

    def __init__(self, usage: KeyValueUsage, budgets: SessionBudgets, prices: Prices) -> None:
        self._usage = usage
        self._budgets = budgets
        self._prices = prices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match path_parts(scope, 4):
            case ["usage", runtime_id, session_id] if runtime_id and session_id:
                session = SessionRef(runtime_id, session_id)
            case _:
                await respond(send, 404, {"message": "GET /usage/{runtime_id}/{session_id}"})
                return
        if scope["method"] != "GET":
            await respond(send, 405, {"message": "Only GET"}, ((b"allow", b"GET"),))
            return
        records = await self._usage.of_session(session)
        costs = await asyncio.to_thread(lambda: [self._prices.cost(record) for record in records])
        calls = [
            {member: value for member, value in asdict(record).items() if member != "session"}
            | {"cost_usd": money(cost) if cost is not None else None}
            for record, cost in zip(records, costs, strict=True)
        ]
        total = Cost.of(costs)
        standing = await self._budgets.standing(session)
        answer = {
            "session": asdict(session),
            "totals": asdict(UsageTotals.of(records)) | total.members(),
            "budget": {"tokens": standing.budget, "used": standing.used, "left": standing.left},
            "calls": calls,
        }
        await respond(send, 200, answer)
