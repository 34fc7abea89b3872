"""What a record was made of, for operators."""

from __future__ import annotations

from agentkeep.memory.long_term.record import Record
from agentkeep.memory.memories import Memories
from agentkeep.memory.partition import RecordScope
from agentkeep.storage.search import SearchStore

__all__ = ["Provenance"]


class Provenance:
    """Of all actors' records: who asks must be one who may."""

    def __init__(self, search: SearchStore, memories: Memories) -> None:
        self._search = search
        self._memories = memories

    async def find(self, memory_id: str, record_id: str) -> Record | None:
        """With its `sources` and `method`. Raises ResourceNotFoundException where there is no such memory."""
        await self._memories.get(memory_id)
        [document] = await self._search.get(RecordScope.of_platform(memory_id).readable, [record_id])
        return Record.of(document) if document is not None else None
