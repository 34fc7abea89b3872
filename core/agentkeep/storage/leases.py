"""Work that one process does at a time, of all that share the store; another goes on with it where that one dies.

A lease ends a while after its holder last renewed it. Who was stopped for longer than that cannot know it is too late:
so whatever it writes carries `Lease.check`, and fails.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ConditionFailed, StoreUnavailable
from agentkeep.storage.interface import ABSENT, Check, Delete, KeyValueStore, Put

__all__ = ["Lease", "LeaseLost", "Leases"]

logger = logging.getLogger(__name__)

_SECONDS: Final = 15.0


class LeaseLost(Exception):
    """Another may have the work by now."""


class Lease:
    """Held. `token` is unlike that of every other holding."""

    def __init__(self, store: KeyValueStore, clock: Clock, where: str, name: str, seconds: float) -> None:
        self._store = store
        self._clock = clock
        self._where = where
        self._name = name
        self._seconds = seconds
        self._token = secrets.token_hex(12).encode()

    @property
    def check(self) -> Check:
        """To be part of every write of the work's: it happens only while the lease is held."""
        return Check(self._where, self._name, self._token)

    async def renew(self) -> None:
        """Raises LeaseLost, StoreUnavailable."""
        try:
            await self._store.transact([Put(self._where, self._name, self._token, self._token, self._until())])
        except ConditionFailed:
            raise LeaseLost(self._name) from None

    async def _take(self) -> bool:
        try:
            await self._store.transact([Put(self._where, self._name, self._token, ABSENT, self._until())])
        except ConditionFailed:
            return False
        return True

    async def _give_up(self) -> None:
        try:
            await self._store.transact([Delete(self._where, self._name, expect=self._token)])
        except (ConditionFailed, StoreUnavailable):
            pass  # another's already, or it will end by itself

    async def _keep(self) -> None:
        while True:
            # Real time, whatever clock stands still: a lease tells that a process lives.
            await asyncio.sleep(self._seconds / 3)
            try:
                await self.renew()
            except LeaseLost:
                logger.warning("the lease %r was lost: another goes on with its work", self._name)
                return
            except StoreUnavailable as error:
                logger.warning("the lease %r could not be renewed: %s", self._name, error)

    def _until(self) -> int:
        return epoch_ms(self._clock.now()) + int(self._seconds * 1000)


class Leases:
    """`where`: the partition that holds them. `seconds`: how long after a holder's death another may begin."""

    def __init__(self, store: KeyValueStore, clock: Clock, where: str, seconds: float = _SECONDS) -> None:
        self._store = store
        self._clock = clock
        self._where = where
        self._seconds = seconds

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[Lease | None]:
        """Held, and renewed, until the block ends; None where another holds it. Raises StoreUnavailable."""
        lease = Lease(self._store, self._clock, self._where, name, self._seconds)
        if not await lease._take():
            yield None
            return
        keeping = asyncio.create_task(lease._keep(), name=f"lease {name}")
        try:
            yield lease
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await lease._give_up()
