"""Looks for what is left of an actor, by other ways than what removed it; and for what names the actor but is not the
actor's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Final

from agentkeep.memory.long_term.namespaces import normalised
from agentkeep.memory.long_term.record import Record
from agentkeep.memory.memories import Memories, Memory
from agentkeep.memory.partition import ActorPartition, RecordScope, actors_partition
from agentkeep.storage.file_search import FileSearch
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search import EVERYTHING, Beneath, SearchStore, Selection

__all__ = ["ActorSearch"]

_ACTOR: Final = "{actorId}"
_PAGE: Final = 500
_MOST_NAMED: Final = 100
#: How many of the actor's records are looked for in the search store's files.
_SAMPLE: Final = 16


class ActorSearch:
    """`usual`: templates beside the memories' own, by which a namespace is found to be an actor's."""

    def __init__(self, store: KeyValueStore, search: SearchStore, memories: Memories, usual: Iterable[str]) -> None:
        self._store = store
        self._search = search
        self._memories = memories
        self._usual = tuple(usual)

    async def found(self, memory_id: str, actor_id: str) -> Mapping[str, int]:
        """What the stores still list of the actor, by kind; empty where there is nothing."""
        actor = ActorPartition.of_platform(memory_id, actor_id)
        found: dict[str, int] = {}
        if sessions := await self._store.query(actor.sessions):
            found["sessions"] = len(sessions)
        if await self._store.get(actors_partition(memory_id), actor_id) is not None:
            found["actors"] = 1
        if records := await self.sample(memory_id, actor_id):
            found["records"] = len(records)
        return found

    async def sample(self, memory_id: str, actor_id: str) -> list[str]:
        """Ids of some of the actor's records."""
        home = RecordScope.of_platform(memory_id, actor_id).home(actor_id)
        return [document.id for document in (await self._search.newest(home, limit=_SAMPLE)).documents]

    async def in_files(self, ids: Sequence[str]) -> bool | None:
        """Whether bytes of records of these ids are left in the search store's files; None where it cannot tell."""
        return await self._search.in_files(ids) if ids and isinstance(self._search, FileSearch) else None

    async def nobodys(self, memory_id: str, actor_id: str) -> list[str]:
        """Ids of records that are no actor's and whose namespace has the actor's id among its segments."""
        home = RecordScope.of_platform(memory_id).home(None)
        named: list[str] = []
        async for record in self._all(home):
            if record.namespace is not None and f"/{actor_id}/" in record.namespace:
                named.append(record.id)
                if len(named) == _MOST_NAMED:
                    break
        return named

    async def beneath(self, memory_id: str, actor_id: str) -> int:
        """How many records of other actors lie beneath a namespace of this one's."""
        memory = await self._memories.get(memory_id)
        others: set[str] = set()
        for path in self._paths(memory, actor_id):
            async for record in self._all(RecordScope.of_platform(memory_id).readable, Selection(namespace_path=path)):
                if record.owner not in (None, actor_id):
                    others.add(record.id)
        return len(others)

    def _paths(self, memory: Memory, actor_id: str) -> Iterator[str]:
        """Where the actor's namespaces begin, by templates that say it without further variables."""
        templates = [
            template.replace("{memoryStrategyId}", strategy.id)
            for strategy in memory.strategies
            for template in (*strategy.namespaces, *self._usual)
        ]
        heads = {normalised(template).partition(_ACTOR) for template in (*templates, *self._usual)}
        return (f"{head}{actor_id}/" for head, actor, _ in heads if actor and "{" not in head)

    async def _all(self, where: str | Beneath, selection: Selection = EVERYTHING) -> AsyncIterator[Record]:
        after: str | None = None
        while True:
            page = await self._search.newest(where, selection, limit=_PAGE, after=after)
            for document in page.documents:
                yield Record.of(document)
            after = page.after
            if after is None:
                return
