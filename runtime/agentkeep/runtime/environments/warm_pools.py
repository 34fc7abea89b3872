"""The warm pools of this replica: which there should be, how large, and what gives way when the replica is full.

wishes (settings, tags, live versions, demand) ──▶ fit every pool ──▶ start what is missing, as far as there is room
         ▲                                                                        │
         └──── something changed: a claim, an arrival, an update, a death, a look every few seconds ◀──┘
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import orjson

from agentkeep.core.clock import Clock
from agentkeep.core.errors import DependencyError
from agentkeep.runtime.agents.catalogue import TAGS, Catalogue
from agentkeep.runtime.agents.prepared import PreparedVersions
from agentkeep.runtime.environments.making import Environments
from agentkeep.runtime.environments.warm_pool import Pooled, WarmPool
from agentkeep.runtime.environments.warm_pool_sizes import WARM_POOL_TAG, Demand, PoolSize, pool_size
from agentkeep.runtime.records import Status, Version
from agentkeep.runtime.settings import RuntimeSettings

__all__ = ["WarmPools"]

log = logging.getLogger(__name__)

#: How often pools are looked at without anything having happened.
LOOK_SECONDS = 5.0
#: How long another replica's change, of a version or a tag, may go unnoticed: where there is a pool, and elsewhere.
READ_POOLED_SECONDS = 10.0
READ_SECONDS = 60.0

_Key = tuple[str, int, str]  # runtime id, version, endpoint


@dataclass(frozen=True, slots=True)
class _Wish:
    version: Version
    endpoint: str
    size: PoolSize

    @property
    def key(self) -> _Key:
        return self.version.runtime_id, self.version.number, self.endpoint


class WarmPools:
    """`sessions`: how many this replica has. They and what waits in pools are together at most `max_sessions`."""

    def __init__(
        self,
        catalogue: Catalogue,
        prepared: PreparedVersions,
        environments: Environments,
        clock: Clock,
        settings: RuntimeSettings,
        sessions: Callable[[], int],
    ) -> None:
        self._catalogue = catalogue
        self._prepared = prepared
        self._environments = environments
        self._clock = clock
        self._settings = settings
        self._sessions = sessions
        self._pools: dict[_Key, WarmPool] = {}
        self._draining: list[WarmPool] = []
        self._wishes: dict[str, list[_Wish]] = {}  # of a runtime that was read, perhaps none
        self._demand: dict[tuple[str, str], Demand] = {}
        self._to_read: set[str] = set()
        self._read_all_at = 0.0
        self._read_pooled_at = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unreadable = False

    # Their life.

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="warm-pools")

    async def stop(self) -> None:
        """Nothing is left of what was started ahead when this returns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._drained(list(self._pools))

    def changed(self, runtime_id: str) -> None:
        """A version, an endpoint or a tag of this runtime has changed."""
        self._to_read.add(runtime_id)
        self._wake.set()

    async def drain(self, runtime_id: str) -> None:
        """Nothing is left of a runtime that is deleted, and nothing more is started, when this returns."""
        self._wishes[runtime_id] = []
        await self._drained([key for key in self._pools if key[0] == runtime_id])
        self.changed(runtime_id)

    async def _drained(self, keys: Iterable[_Key]) -> None:
        for key in keys:
            self._drain(key)
        for pool in list(self._draining):
            await pool.drained()

    def _drain(self, key: _Key) -> None:
        pool = self._pools.pop(key)
        pool.drain()
        self._draining.append(pool)

    # Claiming.

    def take(self, version: Version, endpoint: str) -> Pooled | None:
        """A session begins: one that waits for it, if there is one. It is the caller's, to bind, put back or
        discard."""
        if version.runtime_id not in self._wishes:
            self._to_read.add(version.runtime_id)
        self._demand.setdefault((version.runtime_id, endpoint), Demand()).arrived(self._clock.monotonic())
        self._wake.set()
        return self.another(version, endpoint)

    def another(self, version: Version, endpoint: str) -> Pooled | None:
        """In place of one that was taken and turned out to be dead."""
        pool = self._pools.get((version.runtime_id, version.number, endpoint))
        return None if pool is None else pool.take()

    @property
    def count(self) -> int:
        """Environments that wait or are being started."""
        return sum(pool.ready + pool.starting for pool in (*self._pools.values(), *self._draining))

    def give_way(self) -> asyncio.Task[None] | None:
        """Ends an environment nobody has claimed, of the largest pool, so that a session has its place: the task that
        does; None if there is none."""
        for pool in sorted(self._pools.values(), key=lambda pool: pool.ready, reverse=True):
            if (ending := pool.give_way()) is not None:
                return ending
        return None

    def describe(self, runtime_id: str | None) -> list[dict[str, object]]:
        """Of one runtime, or of all, for operators."""
        wishes = {wish.key: wish for of_runtime in self._wishes.values() for wish in of_runtime}
        return [
            {
                "agentRuntimeId": key[0],
                "agentRuntimeVersion": str(key[1]),
                "endpoint": key[2],
                "ready": pool.ready,
                "starting": pool.starting,
                "wanted": self._size(wishes[key], pool) if key in wishes else 0,
                "problem": pool.problem or None,
            }
            for key, pool in sorted(self._pools.items())
            if runtime_id in (None, key[0])
        ]

    # Keeping them as they should be.

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._read()
                self._unreadable = False
            except DependencyError as error:
                # The pools stay as they are: sessions are claimed from them all the same.
                if not self._unreadable:
                    log.warning("what warm pools there should be cannot be read: %s", error)
                self._unreadable = True
            try:
                self._fit()
            except Exception:
                log.exception("the warm pools could not be looked after")
            await self._until_woken()

    async def _until_woken(self) -> None:
        soonest = min((pool.next_attempt for pool in self._pools.values() if pool.next_attempt), default=LOOK_SECONDS)
        waits = [
            asyncio.ensure_future(self._wake.wait()),
            asyncio.ensure_future(self._clock.sleep(min(soonest, LOOK_SECONDS))),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _read(self) -> None:
        now = self._clock.monotonic()
        if now >= self._read_all_at:
            known = set(self._wishes)
            async for runtime in self._catalogue.all_runtimes():
                known.discard(runtime.record.id)
                self._to_read.add(runtime.record.id)
            self._to_read |= known  # they may have gone
            self._read_all_at = now + READ_SECONDS
        if now >= self._read_pooled_at:
            self._to_read |= {runtime_id for runtime_id, wishes in self._wishes.items() if wishes}
            self._read_pooled_at = now + READ_POOLED_SECONDS
        while self._to_read:
            runtime_id = self._to_read.pop()
            try:
                wishes = await self._wishes_of(runtime_id)
            except BaseException:
                self._to_read.add(runtime_id)
                raise
            if wishes is None:
                self._wishes.pop(runtime_id, None)
            else:
                self._wishes[runtime_id] = wishes

    async def _wishes_of(self, runtime_id: str) -> list[_Wish] | None:
        """None: there is no such runtime."""
        runtime = await self._catalogue.find_runtime(runtime_id)
        if runtime is None:
            return None
        if runtime.record.status is Status.DELETING:
            return []
        wishes = []
        default = pool_size(self._settings.warm_pool)
        endpoints = [stored.record async for stored in self._catalogue.all_endpoints(runtime_id)]
        names = [self._catalogue.endpoint_arn(runtime_id, endpoint.name) for endpoint in endpoints]
        of_runtime, *of_endpoints = [
            _tagged(tags)
            for tags in await self._catalogue.store.get_many(TAGS, [self._catalogue.runtime_arn(runtime_id), *names])
        ]
        for endpoint, own in zip(endpoints, of_endpoints, strict=True):
            size = own or of_runtime or default
            if size.most == 0 or endpoint.live is None or endpoint.status is Status.DELETING:
                continue
            version = await self._catalogue.find_version(runtime_id, endpoint.live)
            if version is not None:
                wishes.append(_Wish(version.record, endpoint.name, size))
        return wishes

    def _fit(self) -> None:
        wishes = {wish.key: wish for of_runtime in self._wishes.values() for wish in of_runtime}
        for key in [key for key in self._pools if key not in wishes]:
            self._drain(key)
        self._draining = [pool for pool in self._draining if not pool.is_drained]
        missing: list[WarmPool] = []
        for key, wish in wishes.items():
            pool = self._pools.get(key) or self._made(wish)
            missing += [pool] * pool.fit(self._size(wish, pool), self._settings.warm_pool_max_age)
        room = self._settings.max_sessions - self._sessions() - self.count
        starting = sum(pool.starting for pool in self._pools.values())
        # The emptiest first, so that one large pool does not keep the others waiting.
        missing.sort(key=lambda pool: pool.ready)
        for pool in missing[: max(0, min(room, self._settings.warm_pool_starts - starting))]:
            pool.start()
        self._forget_old_demand()

    def _made(self, wish: _Wish) -> WarmPool:
        pool = WarmPool(
            wish.version, wish.endpoint, self._prepared, self._environments, self._clock, changed=self._wake.set
        )
        self._pools[wish.key] = pool
        return pool

    def _size(self, wish: _Wish, pool: WarmPool) -> int:
        if not wish.size.follows_demand:
            return wish.size.most
        demand = self._demand.get((wish.version.runtime_id, wish.endpoint))
        if demand is None:
            return 0
        needed = demand.size(self._clock.monotonic(), pool.start_seconds, self._settings.warm_pool_idle)
        return min(needed, wish.size.most)

    def _forget_old_demand(self) -> None:
        now = self._clock.monotonic()
        for key, demand in list(self._demand.items()):
            if demand.size(now, 1.0, self._settings.warm_pool_idle) == 0:
                del self._demand[key]


def _tagged(tags: bytes | None) -> PoolSize | None:
    if tags is None or (text := orjson.loads(tags).get(WARM_POOL_TAG)) is None:
        return None
    return pool_size(text)
