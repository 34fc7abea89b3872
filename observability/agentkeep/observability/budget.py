"""The token budget of each session, on the counters: reserved before a model call, settled after it.

One counter for each session says what is spent and set aside; no call gets through that could take it over the budget,
whatever the number of calls at once and of replicas.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

import orjson

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ServiceQuotaExceededException
from agentkeep.core.ports import Reservation
from agentkeep.storage.counters import Counter, CounterStore
from agentkeep.storage.interface import KeyValueStore, Put, partition

__all__ = ["BudgetStore", "SessionBudgets", "Standing"]

#: What a budget is kept for after its session's last model call: longer than any session lives.
KEPT: Final = timedelta(days=30)
_LIMIT: Final = "tokens"


class BudgetStore(KeyValueStore, CounterStore, Protocol):
    """What budgets are kept in."""


@dataclass(frozen=True, slots=True)
class Standing:
    """`budget`: None, there is none. `used`: settled and set aside, tokens."""

    budget: int | None
    used: int

    @property
    def left(self) -> int | None:
        return None if self.budget is None else max(0, self.budget - self.used)


class SessionBudgets:
    """The port `Budget`. `default`: the budget of sessions that were opened with no other; None, they have none."""

    def __init__(self, store: BudgetStore, clock: Clock, *, default: int | None) -> None:
        self._store = store
        self._clock = clock
        self._default = default

    async def open(self, session: SessionRef, tokens: int | None) -> None:
        expires_ms = epoch_ms(self._clock.now() + KEPT)
        await self._store.transact([Put(_place(session), _LIMIT, orjson.dumps(tokens), expires_ms=expires_ms)])

    async def reserve(self, session: SessionRef, input_tokens: int, output_tokens: int) -> Reservation | None:
        budget = await self._budget(session)
        if budget is None:
            return None
        tokens = input_tokens + output_tokens
        keep_ms = KEPT // timedelta(milliseconds=1)
        exceeded = await self._store.take([Counter(_place(session), tokens, budget, keep_ms=keep_ms)])
        if exceeded is not None:
            raise ServiceQuotaExceededException(_refusal(Standing(budget, exceeded.value), input_tokens, output_tokens))
        return Reservation(secrets.token_hex(8), session, tokens)

    async def settle(self, reservation: Reservation, tokens: int) -> None:
        await self._store.give_back(_place(reservation.session), reservation.tokens - tokens, reservation.id)

    async def standing(self, session: SessionRef) -> Standing:
        return Standing(await self._budget(session), await self._store.value(_place(session)))

    async def _budget(self, session: SessionRef) -> int | None:
        value = await self._store.get(_place(session), _LIMIT)
        if value is None:
            return self._default
        opened: int | None = orjson.loads(value)
        return opened


def _place(session: SessionRef) -> str:
    """The session's partition, and its counter's key."""
    return partition("budget", session.runtime_id, session.session_id)


def _refusal(standing: Standing, input_tokens: int, output_tokens: int) -> str:
    fits = (standing.left or 0) - input_tokens
    if 0 < fits < output_tokens:
        advice = f"It was not cut short; a call that asks for an answer of {fits} tokens or less would fit."
    else:
        advice = "End the conversation gracefully, or begin a new session."
    return (
        f"The token budget of this session is reached: {standing.used:,} of {standing.budget:,} tokens are used or "
        f"set aside for calls under way, and this call may use {input_tokens + output_tokens:,} ({input_tokens:,} of "
        f"input, {output_tokens:,} of output). The model was not called. {advice}"
    )
