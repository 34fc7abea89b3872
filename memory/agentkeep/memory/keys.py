"""The keys of memories: each has a data key of its own, which lies wrapped in the store.

Made with the memory, erased first of all when it is deleted: what is left of it anywhere (in backups, in files that a
store rewrites later) is of no use from then on. A memory that was made before there were keys is given one when
something is first to be sealed; what was in clear there stays so, and can be read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from urllib.parse import unquote

import orjson

from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    ConditionFailed,
    DependencyError,
    KeyServiceUnavailable,
    ResourceNotFoundException,
    RetryableConflictException,
    ServiceError,
)
from agentkeep.core.key_service import Context, KeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.core.sealing import SealingKey
from agentkeep.storage.interface import ABSENT, Check, Delete, KeyValueStore, Put, partition

__all__ = ["MemoryKey", "MemoryKeys", "NewMemoryKey"]

logger = logging.getLogger(__name__)

_KEYS: Final = partition("memory", "keys")
_ATTEMPTS: Final = 3
#: Memories whose keys are kept unwrapped at the most.
_CACHED: Final = 10_000


class MemoryKey(SealingKey):
    """One memory's. `mixed`: there may be things in clear, from before the memory had a key."""

    __slots__ = ("_digests", "mixed")

    def __init__(self, key: bytes, mixed: bool = False) -> None:
        super().__init__(key)
        self.mixed = mixed
        self._digests = self.derive("digests")

    def digest(self, name: str, place: str) -> str:
        """Stands for the name where it is a key of the store: the same for the same name in the same place."""
        return blake2b(f"{len(place)}#{place}{name}".encode(), key=self._digests, digest_size=32).hexdigest()

    def __repr__(self) -> str:
        return "MemoryKey()"

    def equals(self, other: MemoryKey) -> bool:
        return (self._digests, self.mixed) == (other._digests, other.mixed)


@dataclass(frozen=True, slots=True)
class NewMemoryKey:
    """`write` is to be part of the transaction that makes the memory; if that does not happen, `MemoryKeys.discard`."""

    write: Put
    wrapped: bytes


@dataclass(slots=True)
class _Known:
    key: MemoryKey
    since: float


class MemoryKeys:
    """`present`: the check that a memory is there and not being deleted.

    Keys are remembered unwrapped. One that is older than `cache` seconds is asked for again in the background, and used
    meanwhile; while the key service does not answer, up to `outage` seconds. Then, or when the service refuses, it is
    gone: nothing is opened, and nothing stored.
    """

    def __init__(
        self,
        store: KeyValueStore,
        service: KeyService,
        clock: Clock,
        present: Callable[[str], Check],
        settings: KeySettings | None = None,
    ) -> None:
        self._store = store
        self._service = service
        self._clock = clock
        self._present = present
        self._settings = settings or KeySettings()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task[MemoryKey]] = {}

    async def of(self, memory_id: str) -> MemoryKey:
        """Waits for nothing while the key is known. Raises ResourceNotFoundException, KeyServiceUnavailable,
        KeyRefused."""
        known = self._known.get(memory_id)
        if known is not None:
            age = self._clock.monotonic() - known.since
            if age < self._settings.cache:
                return known.key
            asking = self._ask(memory_id)
            if age < self._settings.cache + self._settings.outage:
                return known.key
            return await asyncio.shield(asking)
        return await asyncio.shield(self._ask(memory_id))

    async def of_records(self, partition: str) -> MemoryKey:
        """By the name of a partition of a memory's records, or the beginning of it (`RecordScope`)."""
        return await self.of(unquote(partition.split("/")[2]))

    async def made_for(self, memory_id: str, arn: str | None) -> NewMemoryKey:
        """For a memory that is being made. `arn`: of the key of AWS KMS to wrap it under; None: the deployment's."""
        made = await self._service.generate(_context(memory_id), arn)
        return NewMemoryKey(Put(_KEYS, memory_id, _dump(made.wrapped, mixed=False), expect=ABSENT), made.wrapped)

    async def discard(self, new: NewMemoryKey) -> None:
        try:
            await self._service.erase(new.wrapped)
        except ServiceError as error:
            logger.warning("a data key that nothing is sealed under is left behind: %s", error)

    async def erase(self, memory_id: str) -> None:
        """Nothing sealed under it can be read any more when this returns. May be repeated. Raises
        KeyServiceUnavailable."""
        self._known.pop(memory_id, None)
        value = await self._store.get(_KEYS, memory_id)
        if value is not None:
            await self._service.erase(_load(value)[0])
            await self._store.transact([Delete(_KEYS, memory_id)])
        self._known.pop(memory_id, None)

    async def close(self) -> None:
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._known.clear()

    def _ask(self, memory_id: str) -> asyncio.Task[MemoryKey]:
        task = self._asking.get(memory_id)
        if task is None:
            task = self._asking[memory_id] = asyncio.create_task(self._fetch(memory_id))
            task.add_done_callback(lambda done: self._answered(memory_id, done))
        return task

    def _answered(self, memory_id: str, task: asyncio.Task[MemoryKey]) -> None:
        del self._asking[memory_id]
        if task.cancelled():
            return
        match task.exception():
            case None:
                key, known = task.result(), self._known.get(memory_id)
                if known is not None and known.key.equals(key):
                    key = known.key  # with what others keep for this very object
                self._known[memory_id] = _Known(key, self._clock.monotonic())
                self._known.move_to_end(memory_id)
                while len(self._known) > _CACHED:
                    self._known.popitem(last=False)
            case KeyServiceUnavailable() | DependencyError() as error:  # perhaps only for now
                logger.warning("the key of memory %s cannot be asked for: %s", memory_id, error)
            case _:
                self._known.pop(memory_id, None)

    async def _fetch(self, memory_id: str) -> MemoryKey:
        for _ in range(_ATTEMPTS):
            value = await self._store.get(_KEYS, memory_id)
            if value is None:
                value = await self._add(memory_id)
            if value is not None:
                wrapped, mixed = _load(value)
                return MemoryKey(await self._service.unwrap(wrapped, _context(memory_id)), mixed)
        raise RetryableConflictException(f"Memory {memory_id} is being changed: try again")

    async def _add(self, memory_id: str) -> bytes | None:
        """To a memory from before there were keys; None where somebody else was faster."""
        try:
            await self._store.transact([self._present(memory_id)])  # no key is made for what is not there
        except ConditionFailed:
            raise ResourceNotFoundException(f"Memory not found: {memory_id}") from None
        made = await self._service.generate(_context(memory_id))
        value = _dump(made.wrapped, mixed=True)
        try:
            await self._store.transact([self._present(memory_id), Put(_KEYS, memory_id, value, expect=ABSENT)])
        except ConditionFailed:
            await self._service.erase(made.wrapped)
            return None
        return value


def _context(memory_id: str) -> Context:
    return {"agentkeep:memory": memory_id}


def _dump(wrapped: bytes, *, mixed: bool) -> bytes:
    return orjson.dumps({"wrapped": wrapped.hex(), "mixed": mixed})


def _load(value: bytes) -> tuple[bytes, bool]:
    stored = orjson.loads(value)
    return bytes.fromhex(stored["wrapped"]), stored["mixed"]
