"""The memory service: events, and the records that outlive their sessions."""

from __future__ import annotations

from typing import Final

from agentkeep.core.key_settings import KeySettings
from agentkeep.distributed.opensearch import opensearch
from agentkeep.distributed.service import Composed, Service
from agentkeep.distributed.settings import load
from agentkeep.memory.plane import MemoryPlane
from agentkeep.memory.settings import MemorySettings
from agentkeep.service.mounts import Access, Mount
from agentkeep.service.ports.catalogue import MEMORY_SESSIONS, MODELS
from agentkeep.storage.embedding import Embedder
from agentkeep.storage.search import SearchStore
from agentkeep.storage.search_opensearch import OpenSearchSearchStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

__all__ = ["SETTINGS", "compose"]

#: Checked before the service waits for anything.
SETTINGS: Final = (MemorySettings, KeySettings)

#: Longer than a write of another replica's to the search store takes.
_SETTLE_SECONDS: Final = 10.0


async def compose(service: Service) -> Composed:
    settings = load(MemorySettings)
    embedder = settings.embedder()
    if embedder is not None:
        service.on_exit(embedder.close)
    records = await _search(service, settings, embedder)
    service.on_exit(records.close)
    key_settings = load(KeySettings)
    key_service = key_settings.services(service.secrets.data_key, service.data / "keys")
    service.on_exit(key_service.close)
    plane = MemoryPlane(
        service.store,
        service.deployment,
        service.clock,
        records,
        embedder,
        settings,
        key_service=key_service,
        key_settings=key_settings,
        models=service.port(MODELS),
        audit=service.audit,
        settle_seconds=_SETTLE_SECONDS,
    )
    service.on_exit(plane.close)
    return Composed(
        plane.operations,
        service.keys(),
        mounts=[Mount("/memory", plane.operators_app, Access.OPERATOR)],
        ports={MEMORY_SESSIONS: plane.session_ends},
        start=lambda: service.until_stored(plane.start),
    )


async def _search(service: Service, settings: MemorySettings, embedder: Embedder | None) -> SearchStore:
    dimensions = embedder.dimensions if embedder is not None else None
    model = embedder.name if embedder is not None else ""
    if service.settings.search_url is not None:
        client = await opensearch(service, service.settings.search_url)
        return OpenSearchSearchStore(
            client,
            dimensions=dimensions,
            model=model,
            shards=service.settings.search_shards,
            clock=service.clock,
        )
    service.data.mkdir(parents=True, exist_ok=True)
    return SqliteSearchStore(
        service.data / "records.db",
        dimensions=dimensions,
        model=model,
        clock=service.clock,
        cache_bytes=settings.search_cache_mb * 1_000_000,
    )
