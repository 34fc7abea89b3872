"""The session table: who runs which session, in the key-value store, so that any number of replicas agree.

A session is its owner's, a replica, as long as that lives (`replicas.py`) and has not ended it. The fence number grows
with every environment, and tells what an earlier owner still writes from what the present one does.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from agentkeep.core.call import Idempotency, SessionRef, User
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import (
    ConditionFailed,
    CrossUserAccess,
    ResourceNotFoundException,
    RetryableConflictException,
)
from agentkeep.runtime.agents.runtimes import once
from agentkeep.runtime.records import EndReason, SessionRecord, SessionState
from agentkeep.runtime.replicas.table import REPLICAS, Replica, Replicas
from agentkeep.runtime.sessions.ends import SessionEnds
from agentkeep.runtime.sessions.limit import UserSessions
from agentkeep.storage.interface import ABSENT, Check, Delete, Expected, KeyValueStore, Put, Write, partition
from agentkeep.storage.records import Stored, decode, encode, replayed
from agentkeep.storage.session_lives import SessionLives

__all__ = ["LeaseLost", "OwnedElsewhere", "SessionTable", "in_progress", "other_user"]

log = logging.getLogger(__name__)

SESSIONS = partition("runtime", "sessions")
#: The keys of those not ended, so that nobody need read through the ended ones.
LIVE = partition("runtime", "live-sessions")
_PAGE = 200
_TRIES = 8


class LeaseLost(Exception):
    """The session is no longer this replica's: another took it after this one was declared dead."""


class OwnedElsewhere(RetryableConflictException):
    """The session lives on `replica`."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(str(in_progress()))
        self.replica = replica

    @property
    def code(self) -> str:
        return RetryableConflictException.__name__


def in_progress() -> RetryableConflictException:
    """AgentCore's words."""
    return RetryableConflictException("Session operation in progress, please retry")


def other_user(session_id: str) -> CrossUserAccess:
    return CrossUserAccess(
        f"Session {session_id} belongs to another user. A session is used only by the user who opened it; take a new "
        "session id.",
        f"session {session_id}",
    )


class SessionTable:
    """`per_user`: how many sessions one user may have alive at once, 0 for any number. `ends`: who is to know of the
    ended ones."""

    def __init__(
        self,
        store: KeyValueStore,
        clock: Clock,
        replicas: Replicas,
        retention: float,
        per_user: int = 0,
        ends: SessionEnds | None = None,
    ) -> None:
        self.replicas = replicas
        self.replica = replicas.name
        self._store = store
        self._clock = clock
        self._retention_ms = int(retention * 1000)
        self._user_sessions = UserSessions(store, per_user)
        self._ends = ends or SessionEnds(store, clock, None)

    async def find(self, ref: SessionRef) -> Stored[SessionRecord] | None:
        raw = await self._store.get(SESSIONS, _key(ref))
        return None if raw is None else Stored(decode(SessionRecord, raw), raw)

    async def claim(
        self, ref: SessionRef, user: User | None, version: int, endpoint: str
    ) -> tuple[SessionRecord, bool]:
        """Takes the session for this replica, in PROVISIONING; says, too, whether a dead owner had left it unended.
        Exactly one claim of several succeeds.

        Raises AccessDeniedException (another user's), OwnedElsewhere (another replica's), RetryableConflictException
        (another was faster), ServiceQuotaExceededException (the user has as many as one may have).
        """
        found = await self.find(ref)
        for _ in range(_TRIES):
            claimed, writes = await self._claiming(found, ref, user, version, endpoint)
            try:
                await self._store.transact(writes)
                unended = found is not None and found.record.state is not SessionState.STOPPED
                return claimed, unended
            except ConditionFailed:
                # Where it was only the user's seat that somebody else took, there may be another.
                before, found = found, await self.find(ref)
                if found != before or claimed.seat is None:
                    break
        if (elsewhere := await self._elsewhere(found)) is not None:
            raise OwnedElsewhere(elsewhere)
        raise in_progress()

    async def _elsewhere(self, found: Stored[SessionRecord] | None) -> Replica | None:
        """The other replica that answers for a session."""
        if found is None or found.record.state is SessionState.STOPPED or found.record.owner == self.replica:
            return None
        replica = await self.replicas.responsible(found.record.owner)
        return None if replica is None or replica.name == self.replica else replica

    async def responsible(self, ref: SessionRef) -> tuple[str | None, Replica | None]:
        """Who runs a session now: the owner's name, and the living replica that answers for it (its heir, who may be
        this one, where it is dead). The owner is None where it is nobody's, or this replica's."""
        found = await self.find(ref)
        if found is None or found.record.state is SessionState.STOPPED or found.record.owner == self.replica:
            return None, None
        return found.record.owner, await self.replicas.responsible(found.record.owner)

    async def _claiming(
        self, found: Stored[SessionRecord] | None, ref: SessionRef, user: User | None, version: int, endpoint: str
    ) -> tuple[SessionRecord, list[Write]]:
        fence, seat, writes = 1, None, list(self.replicas.mine())
        expect: Expected = ABSENT
        if found is not None:
            record, expect = found.record, found.raw
            if record.user != user:
                raise other_user(ref.session_id)
            if record.state is not SessionState.STOPPED:
                seat = record.seat
                if record.owner != self.replica:
                    responsible = await self.replicas.responsible(record.owner)
                    if responsible is not None:
                        # Dead, and ours to look after: that comes first.
                        raise in_progress() if responsible.name == self.replica else OwnedElsewhere(responsible)
                    # Free only if its owner is still dead when the transaction happens.
                    writes.append(Check(REPLICAS, record.owner, ABSENT))
            fence = record.fence + 1
        sits = seat is not None
        now = self._clock.now()
        claimed = SessionRecord(
            runtime_id=ref.runtime_id,
            session_id=ref.session_id,
            state=SessionState.PROVISIONING,
            owner=self.replica,
            fence=fence,
            user_id=user.id if user else None,
            user_issuer=user.issuer if user else None,
            user_claims=dict(user.claims) if user else {},
            version=version,
            endpoint=endpoint,
            created_at=now,
            updated_at=now,
            seat=seat if sits else await self._user_sessions.seat(user),
        )
        writes += [self._put(claimed, expect), Put(LIVE, _key(ref), b"")]
        if not sits:
            writes += self._user_sessions.take(claimed)
        if user is not None:
            writes += SessionLives.begin(ref, user.id, epoch_ms(now))
        return claimed, writes

    async def ready(self, record: SessionRecord, environment_id: str) -> SessionRecord:
        """Raises LeaseLost."""
        ready = replace(record, state=SessionState.READY, environment_id=environment_id, updated_at=self._clock.now())
        try:
            await self._store.transact([*self.replicas.mine(), self._put(ready, encode(record))])
        except ConditionFailed:
            raise LeaseLost(record.session_id) from None
        return ready

    async def stopped(self, record: SessionRecord, reason: EndReason, token: Idempotency | None = None) -> None:
        """Whatever the state before; does nothing if the session has a newer environment, here or elsewhere."""
        found = await self.find(record.ref)
        if found is None or found.record.fence != record.fence or found.record.state is SessionState.STOPPED:
            return
        ended: SessionRecord = found.but(
            state=SessionState.STOPPED,
            end_reason=reason,
            updated_at=self._clock.now(),
            environment_id=None,
            seat=None,
        )
        leaving = [*self._user_sessions.leave(found.record), *self._ends.end(ended)]
        if ended.user_id is not None:
            leaving.append(SessionLives.end(ended.ref, ended.user_id))
        try:
            await self._store.transact(
                [self._put(ended, found.raw), Delete(LIVE, _key(record.ref)), *leaving],
                once=once(self._clock, token, ""),
            )
            self._ends.written()
        except ConditionFailed:
            # Only a claim can have come between, and a claim means the session has gone on without us.
            log.info("session %s of %s was taken while it ended", record.session_id, record.runtime_id)

    async def spend(self, token: Idempotency | None) -> None:
        """Notes a StopRuntimeSession that joined another one's."""
        if token is not None:
            await self._store.transact([], once=once(self._clock, token, ""))

    def _put(self, record: SessionRecord, expect: Expected) -> Put:
        ended = record.state is SessionState.STOPPED
        expires = epoch_ms(record.updated_at) + self._retention_ms if ended else None
        return Put(SESSIONS, _key(record.ref), encode(record), expect, expires)

    async def was_stopped(self, token: Idempotency | None) -> bool:
        """Whether an equal StopRuntimeSession has succeeded before."""
        return await replayed(self._store, once(self._clock, token, "")) is not None

    async def refuse_stop(self, ref: SessionRef) -> Exception:
        """Why a session that does not live here cannot be stopped here."""
        found = await self.find(ref)
        if found is None or found.record.state is SessionState.STOPPED:
            return ResourceNotFoundException(
                f"Session {ref.session_id} of agent runtime {ref.runtime_id} does not exist or has ended."
            )
        return in_progress()

    async def inherit(self, record: SessionRecord) -> SessionRecord | None:
        """A dead replica's session, whose environment lives, becomes this one's; None: it is somebody's already."""
        taken = replace(record, owner=self.replica, fence=record.fence + 1, updated_at=self._clock.now())
        try:
            await self._store.transact([*self.replicas.mine(), self._put(taken, encode(record))])
        except ConditionFailed:
            return None
        return taken

    async def of_owner(self, replica: str) -> AsyncIterator[SessionRecord]:
        """Sessions not ended that are this replica's."""
        async for record in self.live():
            if record.owner == replica:
                yield record

    async def strays(self) -> set[str]:
        """Replicas that are not registered, and of which sessions are left."""
        owners = {record.owner async for record in self.live()} - {self.replica}
        return {name for name in owners if await self.replicas.find(name) is None}

    async def lives_any(self, runtime_id: str) -> bool:
        """Whether a session of this runtime is not ended, on any replica."""
        after, before = _range(runtime_id)
        return bool(await self._store.query(LIVE, after=after, before=before, limit=1))

    async def live(self) -> AsyncIterator[SessionRecord]:
        """Every session not ended, on any replica."""
        after: str | None = None
        while True:
            keys = [item.sort for item in await self._store.query(LIVE, after=after, limit=_PAGE)]
            for raw in await self._store.get_many(SESSIONS, keys) if keys else ():
                if raw is not None:
                    yield decode(SessionRecord, raw)
            if len(keys) < _PAGE:
                return
            after = keys[-1]

    async def of_runtime(self, runtime_id: str, limit: int) -> list[SessionRecord]:
        """Sessions of a runtime, ended ones too."""
        after, before = _range(runtime_id)
        items = await self._store.query(SESSIONS, after=after, before=before, limit=limit)
        return [decode(SessionRecord, item.value) for item in items]


def _key(ref: SessionRef) -> str:
    return partition(ref.runtime_id, ref.session_id)


def _range(runtime_id: str) -> tuple[str, str]:
    """Of all keys that begin with the runtime's: "0" follows "/"."""
    return partition(runtime_id, ""), partition(runtime_id) + "0"
