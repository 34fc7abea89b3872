"""The data path's view of the control plane: copies in the process, each proved still true by one read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from agentkeep.gateway.control import layout
from agentkeep.gateway.control.layout import Revision, engine_revision, gateway_revision
from agentkeep.gateway.records import GatewayRecord, PolicyRecord, RateLimitRecord, TargetRecord
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.records import all_of, decode

__all__ = ["StoredResources"]

_ATTEMPTS: Final = 5
_COPIES: Final = 1000  # of gateways, and of engines

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Gateway:
    record: GatewayRecord
    targets: Sequence[TargetRecord]
    rate_limits: Sequence[RateLimitRecord]


class StoredResources:
    """`Resources` over the key-value store. A question costs one small read; only what has changed is read again."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._gateways = _Copies(store, gateway_revision, self._read_gateway)
        self._engines = _Copies(store, engine_revision, self._read_policies)

    async def gateway(self, gateway_id: str) -> GatewayRecord | None:
        found = await self._gateways.get(gateway_id)
        return found[1].record if found else None

    async def targets(self, gateway_id: str) -> Sequence[TargetRecord]:
        found = await self._gateways.get(gateway_id)
        return found[1].targets if found else ()

    async def rate_limits(self, gateway_id: str) -> Sequence[RateLimitRecord]:
        found = await self._gateways.get(gateway_id)
        return found[1].rate_limits if found else ()

    async def policies(self, engine_id: str) -> tuple[str, Sequence[PolicyRecord]]:
        """An engine there is not has no policies, and revision ''."""
        return await self._engines.get(engine_id) or ("", ())

    async def _read_gateway(self, gateway_id: str) -> _Gateway | None:
        raw = await self._store.get(layout.GATEWAYS, gateway_id)
        if raw is None:
            return None
        targets = [one.record async for one in all_of(self._store, TargetRecord, layout.targets(gateway_id))]
        limits = [one.record async for one in all_of(self._store, RateLimitRecord, layout.rate_limits(gateway_id))]
        targets.sort(key=lambda target: (target.created_at, target.id))
        return _Gateway(decode(GatewayRecord, raw), tuple(targets), tuple(limits))

    async def _read_policies(self, engine_id: str) -> Sequence[PolicyRecord] | None:
        if await self._store.get(layout.ENGINES, engine_id) is None:
            return None
        return tuple([one.record async for one in all_of(self._store, PolicyRecord, layout.policies(engine_id))])


class _Copies(Generic[T]):
    """What was read under which revision."""

    def __init__(
        self,
        store: KeyValueStore,
        revision: Callable[[str], Revision],
        read: Callable[[str], Awaitable[T | None]],
    ) -> None:
        self._store = store
        self._revision = revision
        self._read = read
        self._known: dict[str, tuple[str, T]] = {}

    async def get(self, id: str) -> tuple[str, T] | None:
        """Its revision and what there is under it; None where there is nothing."""
        where = self._revision(id)
        current = await where.read(self._store)
        known = self._known.get(id)
        if known is not None and current is not None and known[0] == current.decode():
            return known
        self._known.pop(id, None)
        for _ in range(_ATTEMPTS):
            if current is None:
                return None
            before, found = current, await self._read(id)
            # Read in several steps: what changed meanwhile may be half in it.
            current = await where.read(self._store)
            if current == before and found is not None:
                if len(self._known) >= _COPIES:
                    self._known.clear()
                self._known[id] = copy = (before.decode(), found)
                return copy
        # Changed under every reading: the last one is as true as any could be, but is not kept.
        return None if found is None else (before.decode(), found)
