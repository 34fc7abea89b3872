"""Memory resources: what operators create, describe and delete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import orjson

from agentkeep.core.call import Idempotency
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ConflictException,
    FieldError,
    ResourceNotFoundException,
    ServiceError,
    ServiceQuotaExceededException,
    ValidationException,
)
from agentkeep.core.identifiers import Arn, Deployment, resource_id
from agentkeep.core.pages import place, token
from agentkeep.core.tags import merged, without
from agentkeep.memory.extraction.marks import Marking, marking
from agentkeep.memory.keys import MemoryKeys
from agentkeep.memory.namespace_keys import check_namespace_keys
from agentkeep.memory.strategies import Strategy, StrategyType, change, declare
from agentkeep.memory.tags import behaviour, check_tags
from agentkeep.storage.interface import (
    ABSENT,
    PRESENT,
    Check,
    Delete,
    KeyValueStore,
    Once,
    Put,
    Replayed,
    Write,
    partition,
)

__all__ = ["ISSUERS", "Live", "LiveMemories", "Memories", "Memory", "MemoryStatus", "not_found"]

_MEMORIES: Final = partition("memory", "memories")
_NAMES: Final = partition("memory", "names")
#: Memory id -> days events are kept, and whether they are extracted: what each event's write checks, apart from the
#: long description.
_LIVE: Final = partition("memory", "live")
#: Ids of those to which it matters, or once did, that a session has ended: what each end reads.
_HEEDING: Final = partition("memory", "heeding-session-ends")

#: Memory id -> the identity provider its users come from, where nobody says which (`admission.py`).
ISSUERS: Final = partition("memory", "issuers")

_ATTEMPTS: Final = 5
_MOST_STRATEGIES: Final = 6  # the service's quota
_MOST_INDEXED_KEYS: Final = 10
_CACHED: Final = 10_000


class MemoryStatus(StrEnum):
    """Active from its creation until its deletion, which may take a while."""

    ACTIVE = "ACTIVE"
    DELETING = "DELETING"


@dataclass(frozen=True, slots=True)
class Memory:
    """`event_expiry_days`: how long events live from their creation. `indexed_keys`, `namespace_keys` and
    `stream_delivery` are the service model's structures, kept as given."""

    id: str
    name: str
    event_expiry_days: int
    created_ms: int
    updated_ms: int
    status: MemoryStatus = MemoryStatus.ACTIVE
    description: str | None = None
    encryption_key_arn: str | None = None
    execution_role_arn: str | None = None
    strategies: Sequence[Strategy] = ()
    indexed_keys: Sequence[Mapping[str, Any]] = ()
    namespace_keys: Sequence[Mapping[str, Any]] | None = None
    stream_delivery: Mapping[str, Any] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, value: bytes) -> Memory:
        stored = orjson.loads(value)
        strategies = [
            Strategy(**{**one, "type": StrategyType(one["type"]), "namespaces": tuple(one["namespaces"])})
            for one in stored.pop("strategies")
        ]
        return cls(**{**stored, "status": MemoryStatus(stored["status"])}, strategies=strategies)

    @property
    def variables(self) -> list[str]:
        """The names its namespace templates may use besides the built-in ones."""
        return [key["key"] for key in self.namespace_keys or ()]


@dataclass(frozen=True, slots=True)
class Live:
    """What an event's write must know of its memory: how long it keeps events, and when they are extracted (None: never
    are). `check`: to be part of the write, which happens only while that is so."""

    days: int
    marking: Marking | None
    check: Check


class LiveMemories:
    """Which memories take events. Remembered, because each event's write proves it anew; so what is remembered may be
    old without harm."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._known: dict[str, bytes] = {}

    async def of(self, memory_id: str) -> Live:
        """Raises ResourceNotFoundException."""
        value = self._known.get(memory_id)
        if value is None:
            value = await self._read(memory_id)
        days, _, marking = value.decode().partition(" ")
        return Live(int(days), Marking(marking) if marking else None, Check(_LIVE, memory_id, value))

    async def require(self, memory_id: str) -> None:
        """Asks the store. Raises ResourceNotFoundException."""
        await self._read(memory_id)

    async def refresh(self, memory_id: str) -> None:
        """After a check failed. Raises ResourceNotFoundException."""
        self._known.pop(memory_id, None)
        await self._read(memory_id)

    @staticmethod
    def present(memory_id: str) -> Check:
        """To be part of a write: it happens only while the memory is live."""
        return Check(_LIVE, memory_id, PRESENT)

    async def made(self, once: Once) -> bytes | None:
        """The reference of the write that spent the token, None where it is not spent; does not spend it, for the
        condition is never met."""
        try:
            replayed = await self._store.transact([Check(_LIVE, "", PRESENT)], once=once)
        except ConditionFailed:
            return None
        return replayed.reference if replayed is not None else None

    async def _read(self, memory_id: str) -> bytes:
        value = await self._store.get(_LIVE, memory_id)
        if value is None:
            self._known.pop(memory_id, None)
            raise not_found(memory_id)
        if len(self._known) >= _CACHED:
            self._known.clear()
        self._known[memory_id] = value
        return value


class Memories:
    def __init__(self, store: KeyValueStore, deployment: Deployment, clock: Clock, keys: MemoryKeys) -> None:
        self._store = store
        self._deployment = deployment
        self._clock = clock
        self._keys = keys

    def arn(self, memory_id: str) -> str:
        return self._deployment.arn(f"memory/{memory_id}")

    def id_of(self, given: str) -> str:
        """The id in a request's memoryId or resourceArn: itself, or this deployment's ARN of it."""
        arn = Arn.parse(given)
        if arn is None:
            return given
        if str(arn) != self.arn(arn.id):
            raise not_found(given)
        return arn.id

    async def create(self, request: Mapping[str, Any], idempotency: Idempotency | None) -> Memory:
        """From a CreateMemoryInput. The memory's key is made in the same write."""
        now = epoch_ms(self._clock.now())
        name = request["name"]
        check_tags(request.get("tags", {}))
        memory = Memory(
            resource_id(name),
            name,
            request["eventExpiryDuration"],
            now,
            now,
            description=request.get("description"),
            encryption_key_arn=request.get("encryptionKeyArn"),
            execution_role_arn=request.get("memoryExecutionRoleArn"),
            indexed_keys=_unique(request.get("indexedKeys", []), "indexedKeys"),
            namespace_keys=request.get("namespaceKeys"),
            stream_delivery=request.get("streamDeliveryResources"),
            tags=merged({}, request.get("tags", {})),
        )
        memory = _with_strategies(memory, request.get("memoryStrategies", []), "memoryStrategies", now)
        key = await self._keys.made_for(memory.id, memory.encryption_key_arn)
        writes = [
            Put(_NAMES, name, memory.id.encode(), expect=ABSENT),
            Put(_MEMORIES, memory.id, memory.dump(), expect=ABSENT),
            *_index(memory),
            key.write,
        ]
        try:
            replayed = await self._store.transact(writes, once=self._once(idempotency, memory.id))
        except ConditionFailed:
            await self._keys.discard(key)
            message = f"Memory with name {name} already exists"
            raise ValidationException(message, "ResourceConflict", [FieldError("name", message)]) from None
        if replayed is None:
            return memory
        await self._keys.discard(key)
        return await self.get(replayed.reference.decode())

    async def get(self, memory_id: str) -> Memory:
        return (await self._read(memory_id))[0]

    async def page(self, size: int, next_token: str | None) -> tuple[list[Memory], str | None]:
        items = await self._store.query(_MEMORIES, after=place(next_token), limit=size + 1)
        more = token(items[size - 1].sort) if len(items) > size else None
        return [Memory.load(item.value) for item in items[:size]], more

    async def update(self, memory_id: str, request: Mapping[str, Any], idempotency: Idempotency | None) -> Memory:
        """From an UpdateMemoryInput."""
        return await self._change(memory_id, lambda memory: self._updated(memory, request), idempotency)

    async def start_deletion(self, memory_id: str, idempotency: Idempotency | None) -> None:
        """From when this returns no event is taken any more. To be repeated if it was begun before; `Erasure` ends it.

        Raises ResourceNotFoundException, but not for the repetition of a request that found the memory.
        """
        for _ in range(_ATTEMPTS):
            value = await self._store.get(_MEMORIES, memory_id)
            if value is None:
                if await self._was_done(idempotency, memory_id):
                    return
                raise not_found(memory_id)
            memory = replace(Memory.load(value), status=MemoryStatus.DELETING)
            writes: list[Write] = [
                Put(_MEMORIES, memory_id, memory.dump(), expect=value),
                Delete(_LIVE, memory_id),
                Delete(_HEEDING, memory_id),
            ]
            try:
                await self._store.transact(writes, once=self._once(idempotency, memory_id))
            except ConditionFailed:
                continue
            return
        raise _busy(memory_id)

    async def finish_deletion(self, memory_id: str) -> None:
        """The name is free again when this returns."""
        value = await self._store.get(_MEMORIES, memory_id)
        if value is not None:
            name = Memory.load(value).name
            await self._store.transact([Delete(_MEMORIES, memory_id), Delete(_NAMES, name), Delete(ISSUERS, memory_id)])

    async def deleting(self) -> list[str]:
        """Memories whose deletion was begun and not finished."""
        found: list[str] = []
        after: str | None = None
        while items := await self._store.query(_MEMORIES, after=after, limit=100):
            after = items[-1].sort
            found += [item.sort for item in items if Memory.load(item.value).status is MemoryStatus.DELETING]
        return found

    async def heeding_session_ends(self) -> list[str]:
        """The ids of memories whose tags say, or once did, that something is done when a session has ended."""
        found: list[str] = []
        after: str | None = None
        while items := await self._store.query(_HEEDING, after=after, limit=100):
            after = items[-1].sort
            found += [item.sort for item in items]
        return found

    async def tag(self, memory_id: str, tags: Mapping[str, str]) -> None:
        check_tags(tags)
        await self._change(memory_id, lambda memory: replace(memory, tags=merged(memory.tags, tags)))

    async def untag(self, memory_id: str, keys: Sequence[str]) -> None:
        await self._change(
            memory_id,
            lambda memory: replace(memory, tags=without(memory.tags, keys)),
        )

    async def _change(
        self, memory_id: str, change_it: Callable[[Memory], Memory], idempotency: Idempotency | None = None
    ) -> Memory:
        for _ in range(_ATTEMPTS):
            memory, value = await self._read(memory_id)
            try:
                if memory.status is MemoryStatus.DELETING:
                    raise ConflictException(f"Memory {memory_id} is being deleted")
                changed = change_it(memory)
            except ServiceError:  # perhaps because it was done already: what it adds is there
                if await self._was_done(idempotency, memory_id):
                    return memory
                raise
            writes: list[Write] = [
                Put(_MEMORIES, memory_id, changed.dump(), expect=value),
                *_index(changed),
            ]
            try:
                replayed = await self._store.transact(writes, once=self._once(idempotency, memory_id))
            except ConditionFailed:
                continue
            return await self.get(memory_id) if isinstance(replayed, Replayed) else changed
        raise _busy(memory_id)

    def _updated(self, memory: Memory, request: Mapping[str, Any]) -> Memory:
        now = epoch_ms(self._clock.now())
        memory = replace(
            memory,
            updated_ms=now,
            description=request.get("description", memory.description),
            event_expiry_days=request.get("eventExpiryDuration", memory.event_expiry_days),
            execution_role_arn=request.get("memoryExecutionRoleArn", memory.execution_role_arn),
            indexed_keys=_unique([*memory.indexed_keys, *request.get("addIndexedKeys", [])], "addIndexedKeys"),
            namespace_keys=request.get("namespaceKeys", memory.namespace_keys),
            stream_delivery=request.get("streamDeliveryResources", memory.stream_delivery),
        )
        steps = request.get("memoryStrategies", {})
        strategies = list(memory.strategies)
        for deleted in steps.get("deleteMemoryStrategies", []):
            rest = [strategy for strategy in strategies if strategy.id != deleted["memoryStrategyId"]]
            if len(rest) == len(strategies):
                raise ResourceNotFoundException(f"Strategy {deleted['memoryStrategyId']} not found in this memory")
            strategies = rest
        for index, modified in enumerate(steps.get("modifyMemoryStrategies", [])):
            where = f"memoryStrategies.modifyMemoryStrategies.{index}"
            strategies = change(strategies, modified, where, memory.variables, now)
        added = steps.get("addMemoryStrategies", [])
        return _with_strategies(
            replace(memory, strategies=strategies), added, "memoryStrategies.addMemoryStrategies", now
        )

    async def _read(self, memory_id: str) -> tuple[Memory, bytes]:
        value = await self._store.get(_MEMORIES, memory_id)
        if value is None:
            raise not_found(memory_id)
        return Memory.load(value), value

    async def _was_done(self, idempotency: Idempotency | None, memory_id: str) -> bool:
        """Whether the request's token is spent. Does not spend it: the condition is never met."""
        try:
            await self._store.transact([Check(_MEMORIES, "", PRESENT)], once=self._once(idempotency, memory_id))
        except ConditionFailed:
            return False
        return True

    def _once(self, idempotency: Idempotency | None, memory_id: str) -> Once | None:
        return Once.of(idempotency, memory_id.encode(), epoch_ms(self._clock.now()))


def not_found(memory_id: str) -> ResourceNotFoundException:
    return ResourceNotFoundException(f"Memory not found: {memory_id}")


def _busy(memory_id: str) -> ConflictException:
    return ConflictException(f"Memory {memory_id} is being changed by others: try again")


def _index(memory: Memory) -> Sequence[Write]:
    """Of a memory that is not being deleted. Where tags were taken off, sessions may still wait for their end."""
    days = str(memory.event_expiry_days).encode()
    extracted = marking(memory.strategies, memory.tags)
    live = Put(_LIVE, memory.id, days if extracted is None else days + b" " + extracted.value.encode())
    return (live, Put(_HEEDING, memory.id, b"")) if behaviour(memory.tags).heeds_session_ends else (live,)


def _with_strategies(memory: Memory, declared: Sequence[Mapping[str, Any]], where: str, now_ms: int) -> Memory:
    strategies = list(memory.strategies)
    for index, one in enumerate(declared):
        strategies.append(declare(one, f"{where}.{index}", strategies, memory.variables, now_ms))
    if len(strategies) > _MOST_STRATEGIES:
        raise ServiceQuotaExceededException(f"A memory has at most {_MOST_STRATEGIES} strategies")
    check_namespace_keys(memory.namespace_keys or (), strategies)
    return replace(memory, strategies=strategies)


def _unique(keys: Sequence[Mapping[str, Any]], member: str) -> Sequence[Mapping[str, Any]]:
    names = [key["key"] for key in keys]
    message = None
    if len(set(names)) < len(names):
        message = "names a key twice, or one that is there already"
    elif len(keys) > _MOST_INDEXED_KEYS:
        message = f"a memory has at most {_MOST_INDEXED_KEYS} indexed keys"
    if message is not None:
        raise ValidationException(f"{member} {message}", fields=[FieldError(member, message)])
    return keys
