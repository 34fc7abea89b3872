"""Budgets of sessions on a real Valkey."""

from __future__ import annotations

import asyncio

import pytest

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import ServiceQuotaExceededException, StoreUnavailable
from agentkeep.core.ports import Reservation
from agentkeep.observability.budget import SessionBudgets, Standing
from agentkeep.storage.valkey import ValkeyKeyValueStore

SESSION = SessionRef("support-0123456789", "session-1")
OTHER = SessionRef("support-0123456789", "session-2")


@pytest.fixture
def budgets(store: ValkeyKeyValueStore) -> SessionBudgets:
    return SessionBudgets(store, SystemClock(), default=1000)


async def reserved(budgets: SessionBudgets, input_tokens: int, output_tokens: int) -> Reservation:
    reservation = await budgets.reserve(SESSION, input_tokens, output_tokens)
    assert reservation is not None
    return reservation


async def test_reserve_before_settle_after(budgets: SessionBudgets) -> None:
    """OBS-3: what was not used is free again, once."""
    reservation = await reserved(budgets, 100, 500)
    assert await budgets.standing(SESSION) == Standing(1000, 600)
    for _ in range(3):
        await budgets.settle(reservation, 250)
    standing = await budgets.standing(SESSION)
    assert (standing.used, standing.left) == (250, 750)
    assert await budgets.standing(OTHER) == Standing(1000, 0)


async def test_the_refusal_says_budget_use_and_demand(budgets: SessionBudgets) -> None:
    await reserved(budgets, 400, 500)
    with pytest.raises(ServiceQuotaExceededException) as refused:
        await budgets.reserve(SESSION, 100, 20)
    for told in ("900 of 1,000", "use 120", "100 of input", "20 of output", "not called", "new session"):
        assert told in refused.value.message
    assert await budgets.standing(SESSION) == Standing(1000, 900)


async def test_a_smaller_answer_that_would_fit_is_named_not_forced(budgets: SessionBudgets) -> None:
    await reserved(budgets, 400, 500)
    with pytest.raises(ServiceQuotaExceededException, match="answer of 70 tokens or less would fit"):
        await budgets.reserve(SESSION, 30, 500)
    await reserved(budgets, 30, 70)
    with pytest.raises(ServiceQuotaExceededException, match="begin a new session"):
        await budgets.reserve(SESSION, 1, 0)


async def test_more_used_than_reserved_is_owed(budgets: SessionBudgets) -> None:
    reservation = await reserved(budgets, 100, 800)
    await budgets.settle(reservation, 1200)
    standing = await budgets.standing(SESSION)
    assert (standing.used, standing.left) == (1200, 0)
    with pytest.raises(ServiceQuotaExceededException, match="1,200 of 1,000"):
        await budgets.reserve(SESSION, 1, 1)


async def test_what_nobody_settles_stays_spent(budgets: SessionBudgets) -> None:
    await reserved(budgets, 100, 800)
    assert (await budgets.standing(SESSION)).left == 100


async def test_a_session_may_be_opened_with_another_budget_or_none(budgets: SessionBudgets) -> None:
    await budgets.open(SESSION, 50)
    with pytest.raises(ServiceQuotaExceededException, match="0 of 50"):
        await budgets.reserve(SESSION, 40, 20)
    await reserved(budgets, 40, 10)
    await budgets.open(SESSION, 60)  # begun again: what it used counts on
    assert await budgets.standing(SESSION) == Standing(60, 50)
    await budgets.open(OTHER, None)
    assert await budgets.reserve(OTHER, 10**9, 10**9) is None
    assert (await budgets.standing(OTHER)).left is None


async def test_without_a_default_sessions_have_none(store: ValkeyKeyValueStore) -> None:
    budgets = SessionBudgets(store, SystemClock(), default=None)
    assert await budgets.reserve(SESSION, 1, 1) is None
    await budgets.open(SESSION, 0)
    with pytest.raises(ServiceQuotaExceededException):
        await budgets.reserve(SESSION, 1, 1)


async def test_of_64_at_once_exactly_those_that_fit(budgets: SessionBudgets) -> None:
    """OBS-3: 64 reservations at once against a budget for 10."""
    answers = await asyncio.gather(*(budgets.reserve(SESSION, 40, 60) for _ in range(64)), return_exceptions=True)
    got = [answer for answer in answers if isinstance(answer, Reservation)]
    refused = [answer for answer in answers if isinstance(answer, ServiceQuotaExceededException)]
    assert (len(got), len(refused)) == (10, 54)
    assert await budgets.standing(SESSION) == Standing(1000, 1000)
    await asyncio.gather(*(budgets.settle(reservation, 100 - n) for n, reservation in enumerate(got)))
    assert await budgets.standing(SESSION) == Standing(1000, 955)


async def test_without_its_store_nothing_is_reserved() -> None:
    """Fails closed."""
    store = ValkeyKeyValueStore("unix:///nowhere/valkey.sock", time_limit=0.2)
    with pytest.raises(StoreUnavailable):
        await SessionBudgets(store, SystemClock(), default=1000).reserve(SESSION, 1, 1)
    await store.close()
