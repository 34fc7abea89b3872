"""Branches of a session: alternative continuations, each from an event of another branch.

Their names are what users and agents called them, so the store has only keyed digests of these."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from agentkeep.core.errors import FieldError, ValidationException
from agentkeep.memory.keys import MemoryKey
from agentkeep.memory.partition import ActorPartition
from agentkeep.memory.short_term.event import MAIN, Event, Place, decode
from agentkeep.storage.interface import Ensure, KeyValueStore

__all__ = ["Branches"]


class Branches:
    """Remembers of each branch the event it began at. Its first event with a root says so; later ones may repeat it."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    async def parent_of(self, actor: ActorPartition, place: Place, root_event_id: str) -> str:
        """The branch of the event at which another is to begin. Raises ValidationException if it is none of this
        session's."""
        value = await self._store.get(actor.events(place.session_id), root_event_id)
        if value is None:
            message = "names no event of this session"
            raise ValidationException(
                f"branch.rootEventId {message}", "EventInOtherSession", [FieldError("branch.rootEventId", message)]
            )
        return decode(place, root_event_id, value, payload=False).branch_name

    def record(
        self, actor: ActorPartition, place: Place, name: str, root_event_id: str, parent: str, expires_ms: int
    ) -> Ensure:
        """To be part of the event's write."""
        where = actor.branches(place.session_id)
        sort = place.key.digest(name, where)
        value = orjson.dumps({"root": root_event_id, "parent": parent})
        return Ensure(where, sort, place.key.seal(value, f"{where}#{sort}"), expires_ms)

    async def members(
        self, actor: ActorPartition, place: Place, name: str, include_parents: bool
    ) -> Callable[[Event], bool]:
        """Which events are of the branch; with its parents: also those of each parent up to and including the event
        at which the child begins."""
        if not include_parents:
            return lambda event: event.branch_name == name
        last: dict[str, str | None] = {name: None}
        while name != MAIN:
            recorded = await self._recorded(actor.branches(place.session_id), place.key, name)
            if recorded is None:  # it was continued without ever having been begun
                break
            name = recorded["parent"]
            if name in last:
                break
            last[name] = recorded["root"]

        def matches(event: Event) -> bool:
            if event.branch_name not in last:
                return False
            end = last[event.branch_name]
            return end is None or event.id <= end

        return matches

    async def _recorded(self, where: str, key: MemoryKey, name: str) -> dict[str, str] | None:
        sort = key.digest(name, where)
        value = await self._store.get(where, sort)
        if value is not None:
            value = key.open(value, f"{where}#{sort}")
        elif key.mixed:
            value = await self._store.get(where, name)
        recorded: dict[str, str] | None = orjson.loads(value) if value is not None else None
        return recorded
