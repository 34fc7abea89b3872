"""What is done with a session's memory when the session has ended: what was not extracted is, then its events go.

told that it ended ─▶ kept per memory that heeds it ─▶ extraction begun ─▶ ... done ─▶ events removed ─▶ forgotten
                                 ▲ waits, while the session lives again

Every step may happen twice, after a crash or on several replicas. A session's events, branches and listing go in one
transaction, which happens only while no session of the user's lives under the id, and while nothing of it waits for
extraction. So a session that begins again finds all of its events or none, and loses none while it lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import Clock, epoch_ms, sleep_until
from agentkeep.core.errors import (
    AgentkeepError,
    ConditionFailed,
    ResourceNotFoundException,
    RetryableConflictException,
)
from agentkeep.core.ports import EndedSession
from agentkeep.memory.barrier import Barrier
from agentkeep.memory.memories import Memories, Memory, MemoryStatus
from agentkeep.memory.partition import ActorPartition
from agentkeep.memory.tags import EventRetention, behaviour
from agentkeep.storage.interface import Check, Clear, Delete, KeyValueStore, Put, Write, partition
from agentkeep.storage.records import Stored, decode, encode
from agentkeep.storage.session_lives import SessionLives

__all__ = ["SessionEnds", "SessionExtraction"]

logger = logging.getLogger(__name__)

#: memory, actor, session id -> its end, until all is done.
_ENDS: Final = partition("memory", "session-ends")
#: Longer than any event is kept.
_LONGEST_MS: Final = 400 * 24 * 3600 * 1000
_AT_ONCE: Final = 100
#: Seconds until an end that waits is looked at again: at first, and at the most; and until what other replicas were
#: told of is looked for.
_SOON: Final = 1.0
_SELDOM: Final = 600.0
_OTHERS: Final = 60.0


class SessionExtraction(Protocol):
    """Of one ended session's events (extraction)."""

    async def begin(self, memory: Memory, actor: ActorPartition, session_id: str) -> None:
        """What was held back until the end will be extracted, whatever happens, when this returns."""
        ...

    async def done(self, memory: Memory, actor: ActorPartition, session_id: str) -> Sequence[Check] | None:
        """Conditions that hold for as long as every event of the session has been extracted with success; None: some
        wait, or failed."""
        ...


class Admits(Protocol):
    async def would_admit(self, memory_id: str, session: SessionRef, user: User) -> bool:
        """Whether that session could have used the memory (`Admission`)."""
        ...


@dataclass(frozen=True, slots=True)
class _End:
    """`ended`: as it was told; the session's id and user are the memory's session and actor."""

    memory_id: str
    ended: EndedSession

    @property
    def actor(self) -> ActorPartition:
        return ActorPartition.of_platform(self.memory_id, self.ended.user.id)

    @property
    def session_id(self) -> str:
        return self.ended.session.session_id

    @property
    def key(self) -> str:
        return partition(self.memory_id, self.ended.user.id, self.session_id)


class SessionEnds:
    """`MemorySessions`, and `Erasable`."""

    def __init__(
        self,
        store: KeyValueStore,
        memories: Memories,
        clock: Clock,
        extraction: SessionExtraction,
        admission: Admits | None = None,
    ) -> None:
        self._store = store
        self._admission = admission
        self._memories = memories
        self._clock = clock
        self._lives = SessionLives(store)
        self._barrier = Barrier(store)
        self._extraction = extraction
        self._waits: dict[str, tuple[float, float]] = {}  # key -> when to look again (monotonic), seconds it then waits
        self._told = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def session_ended(self, ended: EndedSession) -> None:
        until = epoch_ms(self._clock.now()) + _LONGEST_MS
        writes: list[Write] = []
        keys: list[str] = []
        for memory_id in await self._memories.heeding_session_ends():
            end = _End(memory_id, ended)
            listed = await self._store.get(end.actor.sessions, end.session_id) is not None
            if listed and await self._admits(end):
                # Raises while the actor is being erased: then it is told again.
                writes.append(await self._barrier.read(memory_id, end.actor.actor_id))
                writes.append(Put(_ENDS, end.key, encode(end), expires_ms=until))
                keys.append(end.key)
        if not keys:
            return
        try:
            await self._store.transact(writes)
        except ConditionFailed:
            raise RetryableConflictException("The user's data is being erased: tell it again") from None
        for key in keys:
            self._waits.pop(key, None)
        self._told.set()

    async def _admits(self, end: _End) -> bool:
        """Another agent's session, or one of another provider's user, may have the same id and a user so called: it
        is nothing to this memory."""
        if self._admission is None or await self._admission.would_admit(
            end.memory_id, end.ended.session, end.ended.user
        ):
            return True
        logger.warning(
            "the end of a session of agent %s is nothing to memory %s, which is not for it",
            end.ended.session.runtime_id,
            end.memory_id,
        )
        return False

    async def erase_actor(self, memory_id: str, actor_id: str) -> Mapping[str, int]:
        removed = 0
        async for key, _ in self._waiting(partition(memory_id, actor_id)):
            await self._store.transact([Delete(_ENDS, key)])
            removed += 1
        return {"session ends": removed} if removed else {}

    # In the background.

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look(), name="session-ends")

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            try:
                await self.settle()
            except AgentkeepError as error:
                logger.warning("ends of sessions wait: %s", error)
            except Exception:
                logger.exception("ends of sessions could not be looked after")
            now = self._clock.monotonic()
            pause = min((due - now for due, _ in self._waits.values()), default=_OTHERS)
            await sleep_until(self._told, self._clock, min(max(pause, _SOON), _OTHERS))

    async def settle(self) -> None:
        """Looks at every end that is due. Raises StoreUnavailable."""
        self._told.clear()
        seen: set[str] = set()
        async for key, raw in self._waiting():
            seen.add(key)
            due, wait = self._waits.get(key, (0.0, _SOON))
            if self._clock.monotonic() < due:
                continue
            found = Stored(decode(_End, raw), raw)
            if await self._settle(found):
                self._waits.pop(key, None)
            else:
                self._waits[key] = (self._clock.monotonic() + wait, min(2 * wait, _SELDOM))
        for gone in self._waits.keys() - seen:
            del self._waits[gone]

    async def _settle(self, found: Stored[_End]) -> bool:
        """Whether there is no more to do."""
        end = found.record
        try:
            memory = await self._memories.get(end.memory_id)
        except ResourceNotFoundException:
            memory = None
        if memory is None or memory.status is MemoryStatus.DELETING:
            return await self._forget(found)
        not_living = await self._lives.none(end.ended.user.id, end.session_id)
        if not_living is None:
            return False
        # Whatever the tags say now: some may have been held back by what they said.
        await self._extraction.begin(memory, end.actor, end.session_id)
        if behaviour(memory.tags).events is not EventRetention.UNTIL_SESSION_END:
            return await self._forget(found)
        extracted = await self._extraction.done(memory, end.actor, end.session_id)
        if extracted is None:
            return False
        actor = end.actor
        try:
            await self._store.transact(
                [
                    not_living,
                    *extracted,
                    Delete(_ENDS, end.key, found.raw),
                    Clear(actor.events(end.session_id)),
                    Clear(actor.branches(end.session_id)),
                    Delete(actor.sessions, end.session_id),
                ]
            )
        except ConditionFailed:
            return False  # it begins again, more events came, or another replica was faster
        logger.debug("the events of a session that ended are removed from memory %s", memory.id)
        return True

    async def _forget(self, found: Stored[_End]) -> bool:
        try:
            await self._store.transact([Delete(_ENDS, found.record.key, found.raw)])
        except ConditionFailed:
            return False  # another end of the session was told
        return True

    async def _waiting(self, beneath: str | None = None) -> AsyncIterator[tuple[str, bytes]]:
        """Ends that are kept, with their keys. `beneath`: of this memory and actor."""
        # "0" follows "/".
        after, before = (None, None) if beneath is None else (beneath + "/", beneath + "0")
        while items := await self._store.query(_ENDS, after=after, before=before, limit=_AT_ONCE):
            for item in items:
                yield item.sort, item.value
            after = items[-1].sort
