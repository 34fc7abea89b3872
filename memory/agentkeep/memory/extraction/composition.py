"""Puts extraction together."""

from __future__ import annotations

from agentkeep.core.clock import Clock
from agentkeep.core.ports import Models
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.extraction.asking import Asking
from agentkeep.memory.extraction.by_model import ModelExtractor
from agentkeep.memory.extraction.extraction import Extraction
from agentkeep.memory.extraction.jobs import Jobs
from agentkeep.memory.extraction.loading import Loading
from agentkeep.memory.extraction.operations import ExtractionOperations
from agentkeep.memory.extraction.standing import ExtractionStanding
from agentkeep.memory.extraction.worker import ExtractionWorker
from agentkeep.memory.keys import MemoryKeys
from agentkeep.memory.long_term.actor_records import RecordsByActor
from agentkeep.memory.memories import LiveMemories, Memories
from agentkeep.memory.settings import MemorySettings
from agentkeep.memory.short_term.events import Events
from agentkeep.memory.short_term.sessions import Sessions
from agentkeep.storage.interface import KeyValueStore

__all__ = ["ExtractionParts"]


class ExtractionParts:
    """`operations` to be served, the `worker` to be started, `standing` to be told of sessions that ended and of actors
    to be erased."""

    def __init__(
        self,
        store: KeyValueStore,
        memories: Memories,
        live: LiveMemories,
        barrier: Barrier,
        keys: MemoryKeys,
        sessions: Sessions,
        events: Events,
        records: RecordsByActor,
        models: Models | None,
        settings: MemorySettings,
        clock: Clock,
    ) -> None:
        """`models` None: rules alone, whatever strategies and settings name."""
        by_model = None
        if models is not None:
            asking = Asking(models, clock, settings.extraction_attempts, settings.extraction_seconds)
            by_model = ModelExtractor(asking, settings.extraction_model)
        loading, jobs = Loading(store, keys, events), Jobs(store, live, barrier, clock)
        extraction = Extraction(store, memories, live, barrier, keys, records, loading, jobs, by_model, clock)
        self.operations = ExtractionOperations(store, memories, live, barrier, sessions, loading, jobs, clock)
        self.worker = ExtractionWorker(
            store, extraction, clock, settings.extraction_debounce, settings.extraction_at_once
        )
        self.standing = ExtractionStanding(store, extraction, jobs)
