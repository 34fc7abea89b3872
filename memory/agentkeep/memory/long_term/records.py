"""Long-term memory records: written in batches of which each record stands or falls alone, read within one scope."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakValueDictionary

import orjson

from agentkeep.core.call import Call, Idempotency
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    ResourceNotFoundException,
    RetryableConflictException,
    ValidationException,
)
from agentkeep.core.pages import place, token
from agentkeep.memory.barrier import Barrier, being_erased
from agentkeep.memory.long_term.categories import limited
from agentkeep.memory.long_term.namespaces import Layout, normalised
from agentkeep.memory.long_term.record import Record, metadata_of, new_id
from agentkeep.memory.long_term.record_filters import checked_path, selection
from agentkeep.memory.long_term.retrieval import Retrieval, Scored
from agentkeep.memory.long_term.writing import RecordWriter
from agentkeep.memory.memories import LiveMemories, Memory
from agentkeep.memory.partition import RecordScope, crossing
from agentkeep.memory.strategies import Strategy
from agentkeep.storage.interface import KeyValueStore, Once
from agentkeep.storage.search import SearchStore

__all__ = ["Outcome", "RecordView", "Records"]

_DAY_MS: Final = 24 * 3600 * 1000
_ATTEMPTS: Final = 3
#: The service's defaults.
_PAGE: Final = 20
_TOP: Final = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record of a batch: an error, or none. `code` is an HTTP status."""

    record_id: str
    request_identifier: str | None = None
    code: int | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class RecordView:
    """What a call sees of a memory's records: `scope` says whose, `layout` which namespaces may be named."""

    call: Call
    memory: Memory
    scope: RecordScope
    layout: Layout

    def admit(self, path: str, member: str) -> None:
        """Raises AccessDeniedException where the path is not the caller's own actor's."""
        actor = self.scope.actor
        if actor is not None and not self.layout.admits(actor, path):
            allowed = f"it may only name namespaces of the user it acts for, such as {self.layout.examples(actor)}"
            raise crossing(self.call, self.memory.id, member, allowed)

    def admit_all(self, records: Sequence[Mapping[str, Any]], *, needed: bool = False) -> None:
        """The same for every namespace that a batch names. `needed`: each record must name one. What is no namespace
        at all is left to the record's own failure."""
        for index, record in enumerate(records):
            named = [*record.get("namespaces", ()), *record.get("sourceNamespaces", ())]
            named += [record["namespace"]] if "namespace" in record else []
            if needed and not named and self.scope.actor is not None:
                self.admit("/", f"records.{index}.namespaces")
            for namespace in named:
                if "*" not in namespace:
                    self.admit(normalised(namespace), f"namespace (record {index})")

    def owner(self, namespace: str | None) -> str | None:
        """Whose a record in this namespace will be: a session's user's, or found from the namespace."""
        if self.scope.actor is not None:
            return self.scope.actor
        return self.layout.owner(namespace) if namespace is not None else None


class Records:
    def __init__(
        self,
        store: KeyValueStore,
        search: SearchStore,
        retrieval: Retrieval,
        live: LiveMemories,
        barrier: Barrier,
        clock: Clock,
        writer: RecordWriter,
    ) -> None:
        self._store = store
        self._search = search
        self._retrieval = retrieval
        self._writer = writer
        self._live = live
        self._barrier = barrier
        self._clock = clock
        #: One at a time changes what is there: else an update could bring back what was deleted meanwhile.
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(
        self, view: RecordView, request: Mapping[str, Any], idempotency: Idempotency | None
    ) -> list[Outcome]:
        """From a BatchCreateMemoryRecordsInput."""
        given = request["records"]
        view.admit_all(given, needed=True)
        # A token's records have ids made from it: a repetition after a failure halfway writes the same records again.
        seed = None
        if idempotency is not None and (once := self._once(idempotency, b"")) is not None:
            if (made := await self._live.made(once)) is not None:
                return [Outcome(*one) for one in orjson.loads(made)]
            seed = f"{idempotency.key}#{idempotency.fingerprint.hex()}"
        expiry = _expiry(request)
        outcomes: list[Outcome] = []
        records: list[Record] = []
        for index, one in enumerate(given):
            record_id = new_id(f"{seed}#{index}" if seed is not None else None)
            try:
                records.append(self._made(view, record_id, one, expiry))
                outcomes.append(Outcome(record_id, one["requestIdentifier"]))
            except ValueError as error:
                outcomes.append(Outcome(record_id, one["requestIdentifier"], 400, str(error)))
        vectors = await self._retrieval.vectors([record.text for record in records])
        records = [replace(record, vector=vector) for record, vector in zip(records, vectors, strict=True)]
        for home, owned in _by_home(view, records).items():
            await self._writer.add(home, owned)
        reference = orjson.dumps([(one.record_id, one.request_identifier, one.code, one.message) for one in outcomes])
        await self._confirm(view, records, self._once(idempotency, reference))
        return outcomes

    async def update(self, view: RecordView, request: Mapping[str, Any]) -> list[Outcome]:
        """From a BatchUpdateMemoryRecordsInput. What is not given stays."""
        given = request["records"]
        view.admit_all(given)
        expiry = _expiry(request)
        texts = {one["content"]["text"] for one in given if "content" in one}
        vectors = dict(zip(texts, await self._retrieval.vectors(list(texts)), strict=True))

        def changed(record: Record, one: Mapping[str, Any]) -> Record:
            record = self._updated(view, record, one, expiry)
            return replace(record, vector=vectors[record.text]) if "content" in one else record

        async with self._lock(view):
            outcomes, records = await self._each(view, given, changed)
            for home, owned in _by_home(view, records).items():
                await self._writer.replace(home, owned)
        await self._confirm(view, records)
        return outcomes

    async def delete(self, view: RecordView, given: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """From a BatchDeleteMemoryRecordsInput's records."""
        view.admit_all(given)
        async with self._lock(view):
            outcomes, records = await self._each(view, given, lambda record, _: record)
            await self._remove(view, records)
        return outcomes

    async def remove(self, view: RecordView, record_id: str, namespace: str | None) -> None:
        """As `get`, and then it is gone. Raises ResourceNotFoundException."""
        async with self._lock(view):
            await self._remove(view, [await self.get(view, record_id, namespace)])

    async def get(self, view: RecordView, record_id: str, namespace: str | None) -> Record:
        """`namespace`: the one it must be in, None for any. Raises ResourceNotFoundException."""
        if namespace is not None:
            path = checked_path(namespace, "namespace")
            view.admit(path, "namespace")
        [document] = await self._search.get(view.scope.readable, [record_id])
        record = Record.of(document) if document is not None else None
        if record is None or (namespace is not None and record.namespace != path):
            raise ResourceNotFoundException(_missing(record_id))
        return record

    async def page(self, view: RecordView, request: Mapping[str, Any]) -> tuple[list[Record], str | None]:
        """From a ListMemoryRecordsInput. Newest first; complete and stable while others write: a page begins behind
        the last record of the page before."""
        selected, path = selection(view.memory, request, request)
        view.admit(path, "namespace")
        after = place(request.get("nextToken"))
        try:
            page = await self._search.newest(
                view.scope.readable, selected, limit=request.get("maxResults", _PAGE), after=after
            )
        except ValueError:
            raise _unknown_token() from None
        return [Record.of(document) for document in page.documents], token(page.after) if page.after else None

    async def retrieve(self, view: RecordView, request: Mapping[str, Any]) -> tuple[list[Scored], str | None]:
        """From a RetrieveMemoryRecordsInput: the best `topK`, in pages."""
        criteria = request["searchCriteria"]
        selected, path = selection(view.memory, request, criteria, "searchCriteria.")
        view.admit(path, "namespace")
        size = request.get("maxResults", _PAGE)
        top = criteria.get("topK", request.get("maxResults", _TOP))
        served, behind = _rank(place(request.get("nextToken")))
        found = await self._retrieval.best(view.scope.readable, criteria["searchQuery"], selected, top)
        rest = [one for one in found if behind is None or (-one.score, one.record.id) > behind][: max(top - served, 0)]
        page = rest[:size]
        if len(rest) <= size:
            return page, None
        last = page[-1]
        return page, token(f"{served + size} {last.score.hex()} {last.record.id}")

    def _made(self, view: RecordView, record_id: str, one: Mapping[str, Any], expiry: _Expiry | None) -> Record:
        """From a MemoryRecordCreateInput. Raises ValueError."""
        namespace = _namespace(one)
        strategy_id = _strategy(view.memory, one)
        now = epoch_ms(self._clock.now())
        own = _own_strategy(view.memory, strategy_id)
        if expiry is None:  # then as its strategy keeps them
            expiry = _Expiry(own.record_expiry_days if own is not None else None)
        expiry = _Expiry(limited(expiry.days, view.memory.tags, own, namespace))
        return Record(
            record_id,
            one["content"]["text"],
            view.owner(namespace),
            namespace,
            strategy_id,
            one["timestamp"],
            now,
            expiry.ends(now),
            metadata_of(one.get("metadata", {})),
        )

    def _updated(self, view: RecordView, record: Record, one: Mapping[str, Any], expiry: _Expiry | None) -> Record:
        """As a MemoryRecordUpdateInput says. Raises ValueError."""
        namespace = _namespace(one) if "namespaces" in one else record.namespace
        if namespace != record.namespace and view.owner(namespace) != record.owner:
            raise ValueError("namespaces: a record stays with its actor: create one there, and delete this")
        strategy_id = _strategy(view.memory, one) if "memoryStrategyId" in one else record.strategy_id
        return replace(
            record,
            text=one["content"]["text"] if "content" in one else record.text,
            namespace=namespace,
            strategy_id=strategy_id,
            timestamp=one["timestamp"],
            metadata=metadata_of(one["metadata"]) if "metadata" in one else record.metadata,
            expires_ms=self._ends(view.memory, record, strategy_id, namespace, expiry),
            method=None if "content" in one else record.method,  # these are no longer the words that were made
        )

    def _ends(
        self, memory: Memory, record: Record, strategy_id: str | None, namespace: str | None, expiry: _Expiry | None
    ) -> int | None:
        """When the record ends that will be of this strategy and in this namespace."""
        own = _own_strategy(memory, strategy_id)
        now = epoch_ms(self._clock.now())
        if expiry is not None:
            return _Expiry(limited(expiry.days, memory.tags, own, namespace)).ends(now)
        if (strategy_id, namespace) == (record.strategy_id, record.namespace):
            return record.expires_ms
        latest = _Expiry(limited(None, memory.tags, own, namespace)).ends(now)
        return min((ends for ends in (record.expires_ms, latest) if ends is not None), default=None)

    async def _each(
        self,
        view: RecordView,
        given: Sequence[Mapping[str, Any]],
        change: Callable[[Record, Mapping[str, Any]], Record],
    ) -> tuple[list[Outcome], list[Record]]:
        """What becomes of each record named, and the records it goes well with."""
        documents = await self._search.get(view.scope.readable, [one["memoryRecordId"] for one in given])
        outcomes: list[Outcome] = []
        records: dict[str, Record] = {}
        for one, document in zip(given, documents, strict=True):
            record_id = one["memoryRecordId"]
            try:
                record = Record.of(document) if document is not None else None
                if record is None or not _is_in(record, one):
                    outcomes.append(Outcome(record_id, code=404, message=_missing(record_id)))
                    continue
                if record_id in records:
                    raise ValueError("memoryRecordId: this batch names it twice")
                records[record_id] = change(record, one)
                outcomes.append(Outcome(record_id))
            except ValueError as error:
                outcomes.append(Outcome(record_id, code=400, message=str(error)))
        return outcomes, list(records.values())

    async def _remove(self, view: RecordView, records: Sequence[Record]) -> None:
        for home, owned in _by_home(view, records).items():
            await self._writer.remove(home, [record.id for record in owned])

    async def _confirm(self, view: RecordView, written: Sequence[Record], once: Once | None = None) -> None:
        """After a write: the memory is still there and no actor whose they are is being erased, so that the write is
        part of what is removed then; and spends the token. Raises ResourceNotFoundException and
        RetryableConflictException, having removed what came too late."""
        memory_id = view.memory.id
        owners = {record.owner for record in written if record.owner is not None}
        try:
            for _ in range(_ATTEMPTS):
                checks = [self._live.present(memory_id)]
                checks += [self._barrier.check(memory_id, owner) for owner in owners]
                try:
                    await self._store.transact(checks, once=once)
                except ConditionFailed:
                    await self._live.refresh(memory_id)
                    if erased := await self._barrier.closed_to(memory_id, owners):
                        await self._remove(view, [record for record in written if record.owner in erased])
                        raise being_erased() from None
                else:
                    return
        except ResourceNotFoundException:
            # All there, since what stood around the new ones was written again with them.
            for home in _by_home(view, written):
                await self._search.delete_partition(home)
            raise
        raise RetryableConflictException(f"Memory {memory_id} is being changed: try again")

    def _once(self, idempotency: Idempotency | None, reference: bytes) -> Once | None:
        return Once.of(idempotency, reference, epoch_ms(self._clock.now()))

    def _lock(self, view: RecordView) -> asyncio.Lock:
        lock = self._changing.get(view.memory.id)
        if lock is None:
            lock = self._changing[view.memory.id] = asyncio.Lock()
        return lock


@dataclass(frozen=True, slots=True)
class _Expiry:
    """`days` None: never."""

    days: int | None

    def ends(self, now_ms: int) -> int | None:
        return None if self.days is None else now_ms + self.days * _DAY_MS


def _by_home(view: RecordView, records: Sequence[Record]) -> Mapping[str, Sequence[Record]]:
    homes: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        homes[view.scope.home(record.owner)].append(record)
    return homes


def _expiry(request: Mapping[str, Any]) -> _Expiry | None:
    """None: the request says nothing of it."""
    specification = request.get("recordExpirySpecification")
    return None if specification is None else _Expiry(specification.get("recordExpiryDurationDays"))


def _namespace(one: Mapping[str, Any]) -> str | None:
    return next(map(normalised, one["namespaces"]), None)


def _strategy(memory: Memory, one: Mapping[str, Any]) -> str | None:
    strategy_id: str | None = one.get("memoryStrategyId")
    if strategy_id is not None and all(strategy.id != strategy_id for strategy in memory.strategies):
        raise ValueError(f"memoryStrategyId: strategy {strategy_id} not found in this memory")
    return strategy_id


def _own_strategy(memory: Memory, strategy_id: str | None) -> Strategy | None:
    return next((strategy for strategy in memory.strategies if strategy.id == strategy_id), None)


def _is_in(record: Record, one: Mapping[str, Any]) -> bool:
    """Whether it is where the request says it is. Raises ValueError for what is no namespace."""
    named = [one["namespace"]] if "namespace" in one else one.get("sourceNamespaces", ())
    return all(normalised(namespace) == record.namespace for namespace in named)


def _rank(sort: str | None) -> tuple[int, tuple[float, str] | None]:
    """How many were served, and the rank of the last of them."""
    if sort is None:
        return 0, None
    try:
        served, score, record_id = sort.split(" ")
        return max(int(served), 0), (-float.fromhex(score), record_id)
    except (ValueError, OverflowError):
        raise _unknown_token() from None


def _unknown_token() -> ValidationException:
    return ValidationException(
        "nextToken is not a token this operation returned: pass it back unchanged, or not at all"
    )


def _missing(record_id: str) -> str:
    return f"Memory record not found: {record_id}"
