"""Operations on memories: what operators create, describe, tag and delete."""

from __future__ import annotations

from typing import Final

from agentkeep.core.call import Call
from agentkeep.memory.lifecycle.deletions import Deletions
from agentkeep.memory.memories import Memories
from agentkeep.memory.shapes import memory_shape, memory_summary_shape
from agentkeep.wire.types import bedrock_agentcore_control as control

__all__ = ["MemoryOperations"]

_MEMORIES_PAGE: Final = 10


class MemoryOperations:
    """For operators alone."""

    name = "memory"
    arn_kinds = frozenset({"memory"})

    def __init__(self, memories: Memories, deletions: Deletions) -> None:
        self._memories = memories
        self._deletions = deletions

    async def create_memory(self, call: Call, request: control.CreateMemoryInput) -> control.CreateMemoryOutput:
        memory = await self._memories.create(request, call.idempotency)
        return {"memory": memory_shape(memory, self._memories.arn(memory.id))}

    async def get_memory(self, call: Call, request: control.GetMemoryInput) -> control.GetMemoryOutput:
        memory = await self._memories.get(self._memories.id_of(request["memoryId"]))
        return {"memory": memory_shape(memory, self._memories.arn(memory.id))}

    async def list_memories(self, call: Call, request: control.ListMemoriesInput) -> control.ListMemoriesOutput:
        memories, token = await self._memories.page(request.get("maxResults", _MEMORIES_PAGE), request.get("nextToken"))
        answer: control.ListMemoriesOutput = {
            "memories": [memory_summary_shape(memory, self._memories.arn(memory.id)) for memory in memories]
        }
        if token is not None:
            answer["nextToken"] = token
        return answer

    async def update_memory(self, call: Call, request: control.UpdateMemoryInput) -> control.UpdateMemoryOutput:
        memory_id = self._memories.id_of(request["memoryId"])
        memory = await self._memories.update(memory_id, request, call.idempotency)
        return {"memory": memory_shape(memory, self._memories.arn(memory.id))}

    async def delete_memory(self, call: Call, request: control.DeleteMemoryInput) -> control.DeleteMemoryOutput:
        memory_id = self._memories.id_of(request["memoryId"])
        await self._memories.start_deletion(memory_id, call.idempotency)
        await self._deletions.erase(memory_id)
        return {"memoryId": memory_id, "status": "DELETING"}

    # Tags of memories; other planes have those of their own resources.

    async def tag_resource(self, call: Call, request: control.TagResourceRequest) -> control.TagResourceResponse:
        await self._memories.tag(self._memories.id_of(request["resourceArn"]), request["tags"])
        return {}

    async def untag_resource(self, call: Call, request: control.UntagResourceRequest) -> control.UntagResourceResponse:
        await self._memories.untag(self._memories.id_of(request["resourceArn"]), request["tagKeys"])
        return {}

    async def list_tags_for_resource(
        self, call: Call, request: control.ListTagsForResourceRequest
    ) -> control.ListTagsForResourceResponse:
        memory = await self._memories.get(self._memories.id_of(request["resourceArn"]))
        return {"tags": dict(memory.tags)}
