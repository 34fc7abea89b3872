"""Operators who act for users that nobody but they themselves vouch for: only with a key issued for it, and on record.

The first use by one key of one operation on one user's data is on record before it is answered; further ones are
counted, and told once a minute together. So whoever serves users all day writes a record a minute, and none is unseen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Final

from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.clock import Clock
from agentkeep.core.errors import AccessDeniedException, StoreUnavailable
from agentkeep.core.ports import Audit, AuditRecord

__all__ = ["ACTED_FOR_USER", "ActingForUsers", "LoggedAudit", "Tally", "require_acting"]

logger = logging.getLogger(__name__)

ACTED_FOR_USER: Final = "acted-for-user"
#: Seconds between two records of the same.
PERIOD: Final = 60.0
#: Seconds for which uses are counted on after a record; then, should records not be written, nothing goes unrecorded.
TRUSTED: Final = 2.5 * PERIOD
#: What is counted at one time; beyond, each use is a record of its own.
MOST_COUNTED: Final = 50_000


def require_acting(caller: Caller, operation: str) -> None:
    """Raises AccessDeniedException where an operator's key was not issued to act for users, or a role's may act for
    none. For whom exactly a role may, `ActingForUsers` says, who is asked as soon as the user is known."""
    if caller.grant is not None:
        caller.grant.require_acting(operation)
    elif caller.kind is CallerKind.OPERATOR and not caller.acts_for_users:
        raise AccessDeniedException(
            f"{caller.principal} is not authorized to perform {operation}: it concerns users' data, and this key does "
            "not act for users. Call it as the user (with the user's token, or from the user's session), or with a key "
            "that was issued for it: agentkeep keys create NAME --acts-for-users"
        )


def _require_acting_for(caller: Caller, operation: str, user_id: str | None) -> None:
    if caller.grant is not None:
        caller.grant.require_acting_for(operation, user_id)
    else:
        require_acting(caller, operation)


class LoggedAudit:
    """The port `Audit` where no observability plane is: the process's log keeps the records."""

    async def record(self, record: AuditRecord) -> None:
        logger.info("audit %s: %s", record.kind, record.summary)


@dataclass(slots=True)
class _Counted:
    """`written`: when its last record was (monotonic); `waiting`: uses since, of which the first is `first`."""

    written: float
    waiting: int = 0
    first: AuditRecord | None = None


class Tally:
    """Audit records of what may happen often. `close` writes what waits."""

    def __init__(self, audit: Audit, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._counted: dict[Hashable, _Counted] = {}
        self._beginning: dict[Hashable, asyncio.Task[None]] = {}
        self._writing: asyncio.Task[None] | None = None

    def again(self, key: Hashable, record: Callable[[], AuditRecord]) -> bool:
        """Counts one more of what was on record a moment ago; False where it was not: then `note` it."""
        counted = self._counted.get(key)
        if counted is None or self._clock.monotonic() - counted.written >= TRUSTED:
            return False
        if counted.first is None:
            counted.first = record()
        counted.waiting += 1
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_on(), name="audit")
        return True

    async def note(self, key: Hashable, record: Callable[[], AuditRecord]) -> None:
        """On record when it returns. Raises StoreUnavailable: then it is not, and must not happen."""
        while not self.again(key, record):
            beginning = self._beginning.get(key)
            if beginning is not None:  # of many at once one is the first
                await asyncio.shield(beginning)
                continue
            task = self._beginning[key] = asyncio.create_task(self._begin(key, record()), name="audit")
            task.add_done_callback(lambda _: self._beginning.pop(key, None))
            await asyncio.shield(task)
            return

    async def _begin(self, key: Hashable, record: AuditRecord) -> None:
        await self._audit.record(record)
        counted = self._counted.get(key)
        if counted is not None:
            counted.written = self._clock.monotonic()
        elif len(self._counted) < MOST_COUNTED:
            self._counted[key] = _Counted(self._clock.monotonic())

    async def flush(self) -> None:
        """Writes what waits; forgets what did not come again. Raises StoreUnavailable; what waits goes on waiting."""
        for key, counted in list(self._counted.items()):
            waiting, first = counted.waiting, counted.first
            if first is None:
                if self._clock.monotonic() - counted.written >= PERIOD:
                    self._counted.pop(key, None)
                continue
            counted.waiting, counted.first = 0, None
            try:
                await self._audit.record(replace(first, count=waiting))
            except BaseException:
                counted.waiting += waiting
                counted.first = first
                raise
            counted.written = self._clock.monotonic()

    async def _write_on(self) -> None:
        while self._counted:
            await asyncio.sleep(PERIOD)
            try:
                await self.flush()
            except StoreUnavailable as error:
                logger.warning("counted audit records wait for their store: %s", error)

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        try:
            await self.flush()
        except StoreUnavailable:
            waiting = sum(counted.waiting for counted in self._counted.values())
            logger.error("%d uses that followed others on record were not written: the store is away", waiting)


class ActingForUsers:
    """`close` writes what waits."""

    def __init__(self, audit: Audit, clock: Clock) -> None:
        self._tally = Tally(audit, clock)
        self._clock = clock

    def admitted(self, caller: Caller, operation: str, resource: str, user_id: str | None) -> bool:
        """Whether it may go on without waiting; False: `admit` it. Raises AccessDeniedException."""
        _require_acting_for(caller, operation, user_id)
        return self._tally.again(
            (caller.principal, caller.access_key_id, operation, resource, user_id),
            lambda: self._record(caller, operation, resource, user_id),
        )

    async def admit(self, caller: Caller, operation: str, resource: str, user_id: str | None) -> None:
        """`resource`: what of (`memory notes-0123456789`); `user_id`: whose, None where that is not known. On record
        when it returns. Raises AccessDeniedException, and StoreUnavailable where it cannot be put on record."""
        _require_acting_for(caller, operation, user_id)
        await self._tally.note(
            (caller.principal, caller.access_key_id, operation, resource, user_id),
            lambda: self._record(caller, operation, resource, user_id),
        )

    def _record(self, caller: Caller, operation: str, resource: str, user_id: str | None) -> AuditRecord:
        whom = "users" if user_id is None else f"user {user_id}"
        return AuditRecord(
            ACTED_FOR_USER,
            f"{caller.principal} called {operation} on {resource} for {whom}.",
            caller.principal,
            caller.session,
            user_id,
            self._clock.now(),
            {"operation": operation, "resource": resource, "access-key": caller.access_key_id or "-"},
        )

    async def flush(self) -> None:
        await self._tally.flush()

    async def close(self) -> None:
        await self._tally.close()
