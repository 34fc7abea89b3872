"""Puts the memory plane together: short-term and long-term memory, and what runs in the background."""

from __future__ import annotations

from agentkeep.core.clock import Clock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Models
from agentkeep.memory.lifecycle.deletions import Deletions
from agentkeep.memory.lifecycle.erasure import Erasure
from agentkeep.memory.lifecycle.purge import Purge
from agentkeep.memory.lifecycle.session_ends import SessionEnds
from agentkeep.memory.long_term.actor_records import RecordsByActor
from agentkeep.memory.long_term.operations import RecordOperations
from agentkeep.memory.long_term.records import Records
from agentkeep.memory.long_term.retrieval import Retrieval
from agentkeep.memory.memories import LiveMemories, Memories
from agentkeep.memory.operations import MemoryOperations
from agentkeep.memory.settings import MemorySettings
from agentkeep.memory.short_term.branches import Branches
from agentkeep.memory.short_term.events import Events
from agentkeep.memory.short_term.operations import EventOperations
from agentkeep.memory.short_term.sessions import Sessions
from agentkeep.storage.embedding import Embedder
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search import SearchStore

__all__ = ["MemoryPlane"]


class MemoryPlane:
    """Operators manage memories; sessions read and write the events and records of their own user, and no more.

    `operations`: to be given to the backend. `session_ends`: the port MemorySessions.
    """

    def __init__(
        self,
        store: KeyValueStore,
        deployment: Deployment,
        clock: Clock,
        search: SearchStore,
        embedder: Embedder | None = None,
        settings: MemorySettings | None = None,
        *,
        models: Models | None = None,
    ) -> None:
        """`search` takes the vectors of `embedder`; None: records are searched by words alone. `models` None: records
        are made of events by rules, whatever the settings say."""
        settings = settings or MemorySettings()
        live, branches = LiveMemories(store), Branches(store)
        memories, sessions = Memories(store, deployment, clock), Sessions(store, live)
        retrieval = Retrieval(search, embedder, clock)
        records = Records(store, search, retrieval, live, clock)
        self.models = models
        self.records_by_actor = RecordsByActor(search, retrieval)
        self.deletions = Deletions(memories, Erasure(store, search, memories))
        self.session_ends = SessionEnds(store, memories, clock)
        self.operations = (
            MemoryOperations(memories, self.deletions),
            EventOperations(memories, Events(store, live, sessions, branches, clock), sessions, branches),
            RecordOperations(memories, records, settings),
        )
        self._purge = Purge(search, clock)

    async def start(self) -> None:
        """Goes on, in the background, with what a crash interrupted, and from now on removes expired records from the
        disk. Raises StoreUnavailable where a store cannot be used; then it may be called again."""
        await self._purge.start()
        await self.deletions.resume()
        self.session_ends.start()

    async def close(self) -> None:
        """Stops what runs in the background; the next start continues it."""
        await self._purge.close()
        await self.session_ends.close()
        await self.deletions.close()
