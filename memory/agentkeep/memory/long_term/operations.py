"""Operations on long-term memory records."""

from __future__ import annotations

from agentkeep.core.call import Call, CallerKind, allow
from agentkeep.memory.long_term.namespaces import Layout
from agentkeep.memory.long_term.records import Records, RecordView
from agentkeep.memory.memories import Memories, MemoryStatus, not_found
from agentkeep.memory.partition import authorize_records
from agentkeep.memory.settings import MemorySettings
from agentkeep.memory.shapes import outcome_shapes, record_shape, record_summary_shape
from agentkeep.wire.types import bedrock_agentcore as data

__all__ = ["RecordOperations"]


class RecordOperations:
    """Open to sessions, within what their `RecordView` lets them see and name."""

    name = "memory"
    arn_kinds: frozenset[str] = frozenset()

    def __init__(self, memories: Memories, records: Records, settings: MemorySettings) -> None:
        self._memories = memories
        self._records = records
        self._templates = settings.namespace_templates

    @allow(CallerKind.SESSION)
    async def batch_create_memory_records(
        self, call: Call, request: data.BatchCreateMemoryRecordsInput
    ) -> data.BatchCreateMemoryRecordsOutput:
        outcomes = await self._records.create(await self._view(call, request["memoryId"]), request, call.idempotency)
        succeeded, failed = outcome_shapes(outcomes)
        return {"successfulRecords": succeeded, "failedRecords": failed}

    @allow(CallerKind.SESSION)
    async def batch_update_memory_records(
        self, call: Call, request: data.BatchUpdateMemoryRecordsInput
    ) -> data.BatchUpdateMemoryRecordsOutput:
        outcomes = await self._records.update(await self._view(call, request["memoryId"]), request)
        succeeded, failed = outcome_shapes(outcomes)
        return {"successfulRecords": succeeded, "failedRecords": failed}

    @allow(CallerKind.SESSION)
    async def batch_delete_memory_records(
        self, call: Call, request: data.BatchDeleteMemoryRecordsInput
    ) -> data.BatchDeleteMemoryRecordsOutput:
        outcomes = await self._records.delete(await self._view(call, request["memoryId"]), request["records"])
        succeeded, failed = outcome_shapes(outcomes)
        return {"successfulRecords": succeeded, "failedRecords": failed}

    @allow(CallerKind.SESSION)
    async def get_memory_record(self, call: Call, request: data.GetMemoryRecordInput) -> data.GetMemoryRecordOutput:
        view = await self._view(call, request["memoryId"])
        record = await self._records.get(view, request["memoryRecordId"], request.get("namespace"))
        return {"memoryRecord": record_shape(record)}

    @allow(CallerKind.SESSION)
    async def delete_memory_record(
        self, call: Call, request: data.DeleteMemoryRecordInput
    ) -> data.DeleteMemoryRecordOutput:
        view = await self._view(call, request["memoryId"])
        await self._records.remove(view, request["memoryRecordId"], request.get("namespace"))
        return {"memoryRecordId": request["memoryRecordId"]}

    @allow(CallerKind.SESSION)
    async def list_memory_records(
        self, call: Call, request: data.ListMemoryRecordsInput
    ) -> data.ListMemoryRecordsOutput:
        records, token = await self._records.page(await self._view(call, request["memoryId"]), request)
        answer: data.ListMemoryRecordsOutput = {
            "memoryRecordSummaries": [record_summary_shape(record) for record in records]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    @allow(CallerKind.SESSION)
    async def retrieve_memory_records(
        self, call: Call, request: data.RetrieveMemoryRecordsInput
    ) -> data.RetrieveMemoryRecordsOutput:
        found, token = await self._records.retrieve(await self._view(call, request["memoryId"]), request)
        answer: data.RetrieveMemoryRecordsOutput = {
            "memoryRecordSummaries": [record_summary_shape(one.record, one.score) for one in found]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    async def _view(self, call: Call, memory: str) -> RecordView:
        memory_id = self._memories.id_of(memory)
        scope = authorize_records(call, memory_id)
        known = await self._memories.get(memory_id)
        if known.status is MemoryStatus.DELETING:
            raise not_found(memory_id)
        return RecordView(call, known, scope, Layout(known, self._templates))
