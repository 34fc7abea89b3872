"""Tells memory of every session of a user's that has ended: an outbox, and what empties it.

The end of a session and its entry are one write (`SessionTable.stopped`), whoever ends it: so none is lost, whatever
dies in between. Entries leave when memory has acknowledged them. Every replica delivers what it finds, its own at once;
so an end may be told twice, which changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from agentkeep.core.call import User
from agentkeep.core.clock import Clock, sleep_until
from agentkeep.core.errors import AgentkeepError, ConditionFailed, DependencyError
from agentkeep.core.ports import EndedSession, MemorySessions
from agentkeep.runtime.records import SessionRecord
from agentkeep.storage.interface import Delete, Item, KeyValueStore, Put, Write, partition
from agentkeep.storage.records import decode, encode

__all__ = ["SessionEnds"]

log = logging.getLogger(__name__)

#: runtime, session -> its last end, until memory knows of it.
_ENDS: Final = partition("runtime", "session-ends")
_AT_ONCE: Final = 16
_PAGE: Final = 100
#: Seconds until what could not be told is tried again: doubled from the one to the other.
_SOON: Final = 1.0
_LATE: Final = 60.0
#: Seconds for which the platform's stop waits for it.
_PATIENCE: Final = 2.0


class SessionEnds:
    """`memory` None: nobody is told, and nothing is kept."""

    def __init__(self, store: KeyValueStore, clock: Clock, memory: MemorySessions | None) -> None:
        self._store = store
        self._clock = clock
        self._memory = memory
        self._ended = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None

    def end(self, record: SessionRecord) -> list[Write]:
        """To be part of the write that ends the session."""
        if self._memory is None or record.user_id is None:
            return []
        user = User(record.user_id, record.user_issuer)
        ended = EndedSession(record.ref, user, record.fence, self._clock.now())
        return [Put(_ENDS, partition(record.runtime_id, record.session_id), encode(ended))]

    def written(self) -> None:
        """Such a write has happened."""
        self._ended.set()

    def start(self) -> None:
        """Begins with what an earlier process could not tell."""
        if self._memory is not None:
            self._telling = asyncio.create_task(self._tell_on(), name="session-ends")

    async def stop(self) -> None:
        """What cannot be told now the next start tells."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self.tell()
            except (TimeoutError, DependencyError):
                log.warning("memory will be told of the last sessions' ends at the next start")

    async def _tell_on(self) -> None:
        pause = _SOON
        while True:
            self._ended.clear()
            try:
                told = await self.tell()
            except DependencyError as error:
                log.warning("the ends of sessions cannot be read: %s", error)
                told = False
            except Exception:
                log.exception("the ends of sessions cannot be told")
                told = False
            pause = _SOON if told else min(2 * pause, _LATE)
            # What another replica has left is found in time, too.
            await sleep_until(self._ended, self._clock, _LATE if told else pause)

    async def tell(self) -> bool:
        """Tells of all that have ended; whether memory knows of all. Raises StoreUnavailable."""
        told = True
        after: str | None = None
        while items := await self._store.query(_ENDS, after=after, limit=_PAGE):
            for begin in range(0, len(items), _AT_ONCE):
                answers = await asyncio.gather(*(self._tell(item) for item in items[begin : begin + _AT_ONCE]))
                told &= all(answers)
                if not any(answers):
                    return False  # memory is away: the rest would only wait for it
            after = items[-1].sort
        return told

    async def _tell(self, item: Item) -> bool:
        assert self._memory is not None
        ended = decode(EndedSession, item.value)
        try:
            await self._memory.session_ended(ended)
        except AgentkeepError as error:
            log.warning("memory could not be told that session %s ended: %s", ended.session.session_id, error)
            return False
        try:
            await self._store.transact([Delete(_ENDS, item.sort, item.value)])
        except ConditionFailed:
            pass  # it has ended once more, or another replica was faster
        return True
