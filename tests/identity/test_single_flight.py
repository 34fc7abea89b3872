"""Work that many ask for at one moment: done once, here and across replicas, whoever leaves or dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agentkeep.core.clock import SystemClock
from agentkeep.identity.oauth2.single_flight import LeasedFlight, SingleFlight
from agentkeep.storage.interface import Put
from agentkeep.storage.valkey import ValkeyKeyValueStore


def counted(log: list[str], name: str = "work", fails: bool = False) -> Callable[[], Any]:
    async def work() -> str:
        log.append(f"{name} begins")
        await asyncio.sleep(0.05)
        log.append(f"{name} ends")
        if fails:
            raise ValueError(name)
        return name

    return work


async def test_one_result_for_all() -> None:
    log: list[str] = []
    flight = SingleFlight()
    results = await asyncio.gather(*(flight.share("a", counted(log, f"a{n}")) for n in range(5)))
    assert results == ["a0"] * 5
    assert log == ["a0 begins", "a0 ends"]
    assert await flight.share("a", counted(log, "later")) == "later"
    both = await asyncio.gather(flight.share("a", counted(log, "a")), flight.share("b", counted(log, "b")))
    assert both == ["a", "b"]


async def test_one_failure_for_all() -> None:
    log: list[str] = []
    flight = SingleFlight()
    shares = [flight.share("a", counted(log, "a", fails=True)) for _ in range(3)]
    results = await asyncio.gather(*shares, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    assert log == ["a begins", "a ends"]


async def test_who_leaves_does_not_end_it_for_the_others() -> None:
    log: list[str] = []
    flight = SingleFlight()
    first = asyncio.create_task(flight.share("a", counted(log)))
    second = asyncio.create_task(flight.share("a", counted(log)))
    await asyncio.sleep(0.01)
    first.cancel()
    assert await second == "work"
    assert first.cancelled()
    # And with nobody left it ends by itself, failing or not.
    alone = asyncio.create_task(flight.share("a", counted(log, "alone", fails=True)))
    await asyncio.sleep(0.01)
    alone.cancel()
    await asyncio.sleep(0.1)
    assert log[-1] == "alone ends"
    # What is under way when the platform stops is ended.
    last = asyncio.create_task(flight.share("a", counted(log, "last")))
    await asyncio.sleep(0.01)
    await flight.close()
    with pytest.raises(asyncio.CancelledError):
        await last
    assert log[-1] == "last begins"


async def test_replicas_take_turns(store: ValkeyKeyValueStore) -> None:
    """Each looks first whether the work was done; here nobody does, so that turns show."""
    log: list[str] = []
    replicas = [LeasedFlight(store, SystemClock(), 5) for _ in range(3)]
    await asyncio.gather(*(replica.share("a", counted(log, str(n))) for n, replica in enumerate(replicas)))
    assert sorted(log) == sorted(f"{n} {what}" for n in range(3) for what in ("begins", "ends"))
    assert all(begin.split()[0] == end.split()[0] for begin, end in zip(log[::2], log[1::2], strict=True))
    with pytest.raises(ValueError, match="failing"):
        await replicas[0].share("a", counted(log, "failing", fails=True))
    async with asyncio.timeout(0.3):
        assert await replicas[1].share("a", counted(log, "next")) == "next", "a failure gives the lease up"


async def test_the_lease_of_a_dead_replica_ends(store: ValkeyKeyValueStore, clock: Any) -> None:
    log: list[str] = []
    dead, alive = LeasedFlight(store, clock, 20), LeasedFlight(store, clock, 20)
    lease = await dead._taken("a")  # and is never heard of again
    clock.move(19)
    waiting = asyncio.create_task(alive.share("a", counted(log)))
    assert await waiting == "work"
    assert log == ["work begins", "work ends"]
    # It comes back to life: another's lease is not its to give up.
    mine = await alive._taken("a")
    await dead._give_up("a", lease)
    assert await store.get("identity/leases", "a") == mine


async def test_a_lease_is_never_waited_for_for_ever(store: ValkeyKeyValueStore, clock: Any) -> None:
    """Whatever its holder wrote, it is over by the time it names."""
    other = LeasedFlight(store, clock, 20)
    await other._taken("a")
    kept = await store.get("identity/leases", "a")
    assert kept is not None
    await store.transact([Put("identity/leases", "a", kept)])  # as if the store did not end it
    clock.move(21)
    async with asyncio.timeout(2):
        assert await other.share("a", counted([])) == "work"
