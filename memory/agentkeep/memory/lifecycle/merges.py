"""Merges under way, one a compaction: planned, written, done; each step fenced by the lease of who takes it.

    planned ──▶ the merged record is there, and what it stands for is as it was ──▶ written ──▶ that is deleted, done

A plan lies in the store from before the first step till after the last, sealed. An erasure of the actor takes it away,
and with it the merged record; what is written after that is taken back, for what it stands for is not there any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from agentkeep.core.errors import ConditionFailed, ResourceNotFoundException
from agentkeep.memory.keys import MemoryKeys
from agentkeep.memory.lifecycle.compaction_plan import MergePlan, state
from agentkeep.memory.lifecycle.compaction_report import CompactionReport, Merge
from agentkeep.memory.long_term.actor_records import ActorRecords, RecordsByActor
from agentkeep.storage.interface import ABSENT, Check, Delete, KeyValueStore, Put, partition
from agentkeep.storage.leases import Lease, LeaseLost
from agentkeep.storage.records import Stored, encode, find

__all__ = ["PLANS", "REPORTS", "Merges"]

REPORTS: Final = partition("memory", "compactions")
#: Compaction -> its merge under way.
PLANS: Final = partition("memory", "compaction-plans")
_AT_ONCE: Final = 100


class Merges:
    def __init__(self, store: KeyValueStore, keys: MemoryKeys, by_actor: RecordsByActor) -> None:
        self._store = store
        self._keys = keys
        self._by_actor = by_actor

    async def save(
        self, lease: Lease, before: Stored[CompactionReport], report: CompactionReport
    ) -> Stored[CompactionReport]:
        """Raises LeaseLost."""
        raw = encode(report)
        try:
            await self._store.transact([lease.check, Put(REPORTS, report.id, raw, before.raw)])
        except ConditionFailed:
            raise LeaseLost(report.id) from None
        return Stored(report, raw)

    async def begin(
        self, lease: Lease, stored: Stored[CompactionReport], seen: Check, plan: MergePlan
    ) -> Stored[CompactionReport]:
        """`seen`: the barrier as it was before the records were read. Raises LeaseLost."""
        raw = await self._sealed(stored.record, plan)
        try:
            await self._store.transact([lease.check, seen, Put(PLANS, stored.record.id, raw, expect=ABSENT)])
        except ConditionFailed as failed:
            if failed.index == 1:  # the actor was erased since: there is nothing to merge
                return stored
            raise LeaseLost(stored.record.id) from None
        return await self._carry_out(lease, stored, plan, raw)

    async def go_on(self, lease: Lease, stored: Stored[CompactionReport]) -> Stored[CompactionReport]:
        """With what is planned, if anything is. Raises LeaseLost."""
        raw = await self._store.get(PLANS, stored.record.id)
        if raw is None:
            return stored
        key = await self._keys.of(stored.record.wanted.memory_id)
        return await self._carry_out(lease, stored, MergePlan.load(key.open(raw, _label(stored.record))), raw)

    async def erase_actor(self, memory_id: str, actor_id: str) -> Mapping[str, int]:
        """`Erasable`."""
        removed = 0
        after: str | None = None
        while items := await self._store.query(PLANS, after=after, limit=_AT_ONCE):
            after = items[-1].sort
            for item in items:
                held = await self._held(memory_id, item.sort, item.value)
                if held is not None and held.actor_id == actor_id:
                    await self._store.transact([Delete(PLANS, item.sort)])
                    removed += 1
        return {"merges": removed} if removed else {}

    async def _carry_out(
        self, lease: Lease, stored: Stored[CompactionReport], plan: MergePlan, raw: bytes
    ) -> Stored[CompactionReport]:
        report = stored.record
        records = self._by_actor.of(report.wanted.memory_id, plan.actor_id)
        merged = plan.merged
        if not plan.written:
            await lease.renew()
            if not await self._write(records, plan):
                return await self._end(lease, stored, raw, replace(report, changed=report.changed + 1))
            written = replace(plan, written=True)
            sealed = await self._sealed(report, written)
            try:
                await self._store.transact([lease.check, Put(PLANS, report.id, sealed, expect=raw)])
            except ConditionFailed:
                await self._overtaken(stored)
                return stored
            plan, raw = written, sealed
        there = await records.get([id for id, _ in plan.removed])
        unchanged = [
            record.id
            for record, (_, before) in zip(there, plan.removed, strict=True)
            if record is not None and state(record) == before
        ]
        await records.delete(unchanged)
        ids = [id for id, _ in plan.removed]
        merge = Merge(plan.actor_id, merged.namespace, plan.how, merged.id, ids)
        return await self._end(lease, stored, raw, report.with_merge(merge, len(ids), 1))

    async def _write(self, records: ActorRecords, plan: MergePlan) -> bool:
        """Whether the merged record is written, and all that it stands for is as it was; else nothing is changed."""
        merged = plan.merged
        if await self._is_current(records, plan):
            new, changed = ([merged], []) if plan.kept is None else ([], [merged])
            if await records.put(new, replacing=changed) and await self._is_current(records, plan):
                return True
        if plan.kept is None:
            await records.delete([merged.id])
        return False

    async def _is_current(self, records: ActorRecords, plan: MergePlan) -> bool:
        expected = [*plan.removed, *((plan.kept,) if plan.kept is not None else ())]
        found = await records.get([id for id, _ in expected])
        return all(
            record is not None and state(record) == before for record, (_, before) in zip(found, expected, strict=True)
        )

    async def _overtaken(self, stored: Stored[CompactionReport]) -> None:
        """The plan is not as it was. Raises LeaseLost where another replica goes on with it, or has; else an erasure of
        the actor took it."""
        raw = await self._store.get(REPORTS, stored.record.id)
        if raw != stored.raw or await self._store.get(PLANS, stored.record.id) is not None:
            raise LeaseLost(stored.record.id)

    async def _end(
        self, lease: Lease, stored: Stored[CompactionReport], raw: bytes, report: CompactionReport
    ) -> Stored[CompactionReport]:
        encoded = encode(report)
        try:
            await self._store.transact(
                [
                    lease.check,
                    Put(REPORTS, report.id, encoded, stored.raw),
                    Delete(PLANS, report.id, expect=raw),
                ]
            )
        except ConditionFailed as failed:
            if failed.index < 2 or failed.current is not None:
                raise LeaseLost(report.id) from None
            return stored  # an erasure took the plan, and has or will what was written
        return Stored(report, encoded)

    async def _held(self, memory_id: str, compaction: str, raw: bytes) -> MergePlan | None:
        """The plan, if it is of that memory."""
        stored = await find(self._store, CompactionReport, REPORTS, compaction)
        if stored is None or stored.record.wanted.memory_id != memory_id:
            return None
        try:
            key = await self._keys.of(memory_id)
        except ResourceNotFoundException:  # gone with the memory, and with it what the plan says
            return None
        return MergePlan.load(key.open(raw, _label(stored.record)))

    async def _sealed(self, report: CompactionReport, plan: MergePlan) -> bytes:
        key = await self._keys.of(report.wanted.memory_id)
        return key.seal(plan.dump(), _label(report))


def _label(report: CompactionReport) -> str:
    return f"compaction {report.id}"
