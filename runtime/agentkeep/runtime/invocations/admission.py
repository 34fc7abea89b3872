"""How much this replica takes on at one time. What is beyond is refused with the modelled error, before anything is
made for it: clients come again (SDKs retry a ThrottlingException by themselves), and what is under way goes on.

The limits on sessions are elsewhere: of this replica in `Sessions`, of one user in `user_sessions`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentkeep.core.errors import ThrottlingException

__all__ = ["StartSlots", "TurnLimits"]


class StartSlots:
    """At most `at_once` environments are made at one time, and `waiting` more wait for their turn, in order, none of
    them longer than `patience` seconds. A start is mostly processor time: many at once end no sooner, they only all
    end late."""

    def __init__(self, at_once: int, waiting: int, patience: float) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._most_waiting = waiting
        self._patience = patience
        self.waiting = 0

    def check(self) -> None:
        """Raises ThrottlingException where there is no room to wait in."""
        if self._free.locked() and self.waiting >= self._most_waiting:
            raise ThrottlingException(
                f"{self.waiting} sessions wait for their start, as many as may (AGENTKEEP_RUNTIME_STARTS_WAITING). "
                "Try again later"
            )

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Raises ThrottlingException: too many wait, or this one has waited too long."""
        self.check()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise ThrottlingException(
                f"The session could not be started within {self._patience:g} seconds, so many others are being "
                "started. Try again later"
            ) from None
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free.release()


class TurnLimits:
    """At most `in_all` invocations are under way at one time, those included that wait for their session's start; of
    one session `of_session`."""

    def __init__(self, of_session: int, in_all: int) -> None:
        self._of_session = of_session
        self._in_all = in_all
        self.under_way = 0

    def begin(self) -> None:
        """Counts an invocation; `end` it. Raises ThrottlingException."""
        if self.under_way >= self._in_all:
            raise ThrottlingException(
                f"{self._in_all} invocations are under way, as many as this replica takes at once "
                "(AGENTKEEP_RUNTIME_INVOCATIONS). Try again later"
            )
        self.under_way += 1

    def end(self) -> None:
        self.under_way -= 1

    def check(self, others: int) -> None:
        """`others`: turns of the session under way besides the one that asks. Raises ThrottlingException."""
        if others >= self._of_session:
            raise ThrottlingException(
                f"{self._of_session} invocations of this session are under way, as many as it takes at once "
                "(AGENTKEEP_RUNTIME_INVOCATIONS_OF_SESSION). Try again later"
            )
