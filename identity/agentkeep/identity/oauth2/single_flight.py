"""One at a time: what many ask for at one moment is fetched once, in this process and, while a lease lasts, in all."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import orjson

from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ConditionFailed
from agentkeep.storage.interface import ABSENT, Delete, KeyValueStore, Put, partition

__all__ = ["LeasedFlight", "SingleFlight"]

Result = TypeVar("Result")

_LEASES: Final = partition("identity", "leases")
_WAIT: Final = 0.05  # seconds between two looks at another's lease


class SingleFlight:
    """In one process. The work is nobody's: a caller who leaves does not end it for the others."""

    def __init__(self) -> None:
        self._flying: dict[str, asyncio.Task[Any]] = {}

    async def share(self, name: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """What `work` returns or raises, this caller's or that of whoever came first under `name`."""
        task = self._flying.get(name)
        if task is None:
            task = asyncio.create_task(_run(work), name=name)
            self._flying[name] = task
            task.add_done_callback(lambda done: self._landed(name, done))
        await asyncio.wait([task])
        result: Result = task.result()
        return result

    async def close(self) -> None:
        for task in (flying := list(self._flying.values())):
            task.cancel()
        if flying:
            await asyncio.wait(flying)

    def _landed(self, name: str, task: asyncio.Task[Any]) -> None:
        del self._flying[name]
        if not task.cancelled():
            task.exception()  # looked at, even where every caller has left


class LeasedFlight:
    """Across replicas too: `work` begins when no other replica has the lease of its name. A lease is given up after
    `seconds`, whatever became of its holder; `work` should take less, and must bear being done twice."""

    def __init__(self, store: KeyValueStore, clock: Clock, seconds: float) -> None:
        self._store = store
        self._clock = clock
        self._life = timedelta(seconds=seconds)
        self._here = SingleFlight()

    async def share(self, name: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """`work` should look first whether another replica has done it already."""

        async def leased() -> Result:
            lease = await self._taken(name)
            try:
                return await work()
            finally:
                await self._give_up(name, lease)

        return await self._here.share(name, leased)

    async def close(self) -> None:
        await self._here.close()

    async def _taken(self, name: str) -> bytes:
        found: bytes | None = None
        while True:
            now = self._clock.now()
            if found is None or orjson.loads(found)["until"] <= epoch_ms(now):
                until = epoch_ms(now + self._life)
                lease = orjson.dumps({"holder": secrets.token_hex(8), "until": until})
                expected = ABSENT if found is None else found
                try:
                    await self._store.transact([Put(_LEASES, name, lease, expect=expected, expires_ms=until)])
                    return lease
                except ConditionFailed as error:
                    found = error.current
                    continue
            await self._clock.sleep(_WAIT)
            found = await self._store.get(_LEASES, name)

    async def _give_up(self, name: str, lease: bytes) -> None:
        try:
            await self._store.transact([Delete(_LEASES, name, expect=lease)])
        except ConditionFailed:
            pass  # it took too long, and another has the lease by now


async def _run(work: Callable[[], Awaitable[Result]]) -> Result:
    return await work()
