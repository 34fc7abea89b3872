"""Puts the memory plane together: short-term and long-term memory, and what runs in the background."""

from __future__ import annotations

from collections.abc import Collection

from agentkeep.core.acting import ActingForUsers, LoggedAudit
from agentkeep.core.clock import Clock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service import KeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.core.ports import Audit, Models
from agentkeep.memory.admission import Admission, Admitted, Operations
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.extraction.composition import ExtractionParts
from agentkeep.memory.keys import MemoryKeys
from agentkeep.memory.lifecycle.actor_erasures import ActorErasures
from agentkeep.memory.lifecycle.app import LifecycleApp
from agentkeep.memory.lifecycle.compactions import Compactions
from agentkeep.memory.lifecycle.compactor import Compactor
from agentkeep.memory.lifecycle.deletions import Deletions
from agentkeep.memory.lifecycle.erasable import Erasable
from agentkeep.memory.lifecycle.erasure import Erasure, EventsErasure, RecordsErasure
from agentkeep.memory.lifecycle.merges import Merges
from agentkeep.memory.lifecycle.provenance import Provenance
from agentkeep.memory.lifecycle.purge import Purge
from agentkeep.memory.lifecycle.search_for_actor import ActorSearch
from agentkeep.memory.lifecycle.session_ends import SessionEnds
from agentkeep.memory.long_term.actor_records import RecordsByActor
from agentkeep.memory.long_term.operations import RecordOperations
from agentkeep.memory.long_term.records import Records
from agentkeep.memory.long_term.retrieval import Retrieval
from agentkeep.memory.long_term.writing import RecordWriter
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
from agentkeep.storage.search_sealed import sealed_search

__all__ = ["MemoryPlane"]


class MemoryPlane:
    """Operators manage memories; sessions read and write the events and records of their own user, and no more.

    `operations`: to be given to the backend. `operators_app`: to be mounted for operators at /memory. `session_ends`:
    the port MemorySessions.
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
        key_service: KeyService,
        key_settings: KeySettings | None = None,
        models: Models | None = None,
        audit: Audit | None = None,
        settle_seconds: float = 0.0,
        vouching_issuers: Collection[str] = (),
    ) -> None:
        """`search` takes the vectors of `embedder`; None: records are searched by words alone. `models` None: records
        are made of events by rules, whatever the settings say. `key_service`: what wraps the memories' keys.
        `audit` None: who acts for whom is in the log alone. `vouching_issuers`: those who take operators' word.
        `settle_seconds`: how long writes of other replicas to the same stores may be under way."""
        settings = settings or MemorySettings()
        live, branches, barrier = LiveMemories(store), Branches(store), Barrier(store)
        self._keys = keys = MemoryKeys(store, key_service, clock, live.present, key_settings)
        search = sealed_search(search, keys.of_records)
        memories, sessions = Memories(store, deployment, clock, keys), Sessions(store, live)
        retrieval = Retrieval(search, embedder, clock, reranks=settings.reranking)
        writer = RecordWriter(search)
        records = Records(store, search, retrieval, live, barrier, clock, writer)
        self.models = models
        self.records_by_actor = RecordsByActor(search, retrieval, writer)
        events = Events(store, live, barrier, sessions, branches, keys, clock)
        self.extraction = ExtractionParts(
            store, memories, live, barrier, keys, sessions, events, self.records_by_actor, models, settings, clock
        )
        self._acting = ActingForUsers(audit or LoggedAudit(), clock)
        admission = Admission(store, memories, clock, self._acting, settings, vouching_issuers)
        self.session_ends = SessionEnds(store, memories, clock, self.extraction.standing, admission)
        merges = Merges(store, keys, self.records_by_actor)
        compactor = Compactor(
            clock, search, self.records_by_actor, barrier, merges, models, self.extraction.standing.alone
        )
        self.compactions = Compactions(store, clock, memories, compactor, settings, audit)
        # Whatever keeps anything by actor is named here: what feeds others before what it feeds.
        erasables: list[Erasable] = [
            self.session_ends,
            self.extraction.standing,
            merges,
            EventsErasure(store),
            RecordsErasure(writer),
        ]
        self.deletions = Deletions(memories, Erasure(store, search, memories, keys, erasables))
        remains = ActorSearch(store, search, memories, settings.namespace_templates)
        self.erasures = ActorErasures(
            store, clock, memories, barrier, erasables, remains, audit, settings.report_days, settle_seconds
        )
        on_data: tuple[Operations, ...] = (
            EventOperations(memories, events, sessions, branches),
            RecordOperations(memories, records, settings),
            self.extraction.operations,
        )
        self.operations: tuple[Operations, ...] = (
            MemoryOperations(memories, self.deletions),
            *(Admitted(operations, admission) for operations in on_data),
        )
        provenance = Provenance(search, memories)
        self.operators_app = LifecycleApp(memories, self.erasures, self.compactions, provenance, self._acting, settings)
        self._purge = Purge(search, clock)

    async def start(self) -> None:
        """Goes on, in the background, with what a crash interrupted, and from now on removes expired records from the
        disk. Raises StoreUnavailable where a store cannot be used; then it may be called again."""
        await self._purge.start()
        await self.deletions.resume()
        await self.erasures.start()
        await self.compactions.start()
        self.session_ends.start()
        self.extraction.worker.start()

    async def close(self) -> None:
        """Stops what runs in the background; the next start continues it."""
        await self._purge.close()
        await self.extraction.worker.close()
        await self.session_ends.close()
        await self.compactions.close()
        await self.erasures.close()
        await self.deletions.close()
        await self._acting.close()
        await self._keys.close()
