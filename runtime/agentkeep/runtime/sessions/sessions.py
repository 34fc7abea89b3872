"""Sessions: found or made, exactly one environment each, ended once.

begin ─▶ claim (lease in the session table) ─▶ start (starts.py) ─▶ /ping answers ─▶ turns ... ─▶ end
                                                                                                │
  stop, idle, lifetime, unhealthy, crash, failed start, runtime deleted, platform stopped ──────┘
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from agentkeep.core.call import Idempotency, SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AccessDeniedException,
    DependencyError,
    ServiceError,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
)
from agentkeep.core.ports import Keys
from agentkeep.runtime.agents.budgets import TaggedBudgets
from agentkeep.runtime.agents.prepared import PreparedVersions
from agentkeep.runtime.drivers.driver import AdoptedEnvironment
from agentkeep.runtime.environments.making import Environments
from agentkeep.runtime.environments.warm_pools import WarmPools
from agentkeep.runtime.records import EndReason, SessionRecord, SessionState, Version
from agentkeep.runtime.sessions.keys import SessionKeys, newest
from agentkeep.runtime.sessions.logs import Logs
from agentkeep.runtime.sessions.session import Session
from agentkeep.runtime.sessions.starts import Starts
from agentkeep.runtime.sessions.table import SessionTable, in_progress, other_user
from agentkeep.runtime.sessions.tracing import session_ended
from agentkeep.runtime.settings import RuntimeSettings

__all__ = ["Sessions"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
CLOSE_SECONDS = 10.0


class Sessions:
    def __init__(
        self,
        table: SessionTable,
        clock: Clock,
        settings: RuntimeSettings,
        *,
        prepared: PreparedVersions,
        keys: Keys,
        session_keys: SessionKeys,
        logs: Logs,
        endpoint_of: Callable[[SessionRef], Callable[[], asyncio.Protocol]],
        environments: Environments,
        pools: WarmPools,
        budgets: TaggedBudgets,
    ) -> None:
        self.table = table
        self._clock = clock
        self._settings = settings
        self._keys = keys
        self._logs = logs
        self._pools = pools
        self._starts = Starts(
            table,
            clock,
            settings,
            prepared=prepared,
            keys=keys,
            session_keys=session_keys,
            endpoint_of=endpoint_of,
            environments=environments,
            pools=pools,
            budgets=budgets,
            end=self.end,
            forget=self._forget,
        )
        self._live: dict[SessionRef, Session] = {}
        self._closing = False

    # Looking.

    def live(self, ref: SessionRef) -> Session | None:
        return self._live.get(ref)

    @property
    def count(self) -> int:
        return len(self._live)

    def all_live(self) -> Iterable[Session]:
        return list(self._live.values())

    # Opening.

    async def open(
        self, version: Version, endpoint: str, ref: SessionRef, user: User | None, user_token: str | None = None
    ) -> Session:
        """The session, READY, with a turn begun (`Session.begin_turn`). Made, on `version`, if it does not live.
        `user_token`: what `user` was proved with, if it was a token.

        Raises AccessDeniedException (another user's), RuntimeClientError (the agent does not start),
        OwnedElsewhere (another replica has it), RetryableConflictException (it is ending),
        ServiceQuotaExceededException, ThrottlingException (too much at once), StoreUnavailable.
        """
        while True:
            await self.table.replicas.confirm()
            session = self._live.get(ref)
            if session is None:
                session = self._create(version, endpoint, ref, user, user_token)
            if session.state is SessionState.STOPPING:
                await self._wait_for_end(session)
                continue
            try:
                await asyncio.shield(session.claimed)
            except AccessDeniedException:
                # Of the one who opened it here; which says nothing about another user.
                if session.user == user:
                    raise
                continue
            if session.user != user:
                raise other_user(ref.session_id)
            session.user = user  # the same; its claims are now those of its newest token
            session.user_token = newest(session.user_token, user_token)
            await asyncio.shield(session.ready)
            if session.state is SessionState.READY and self.table.replicas.holds():
                session.begin_turn()
                return session

    async def _wait_for_end(self, session: Session) -> None:
        try:
            async with asyncio.timeout(self._settings.stop_grace + self._settings.connect_timeout):
                await session.ended.wait()
        except TimeoutError:
            raise in_progress() from None

    def _create(
        self, version: Version, endpoint: str, ref: SessionRef, user: User | None, user_token: str | None
    ) -> Session:
        if self._closing:
            raise ServiceUnavailableException("The platform is stopping.")
        if len(self._live) >= self._settings.max_sessions:
            raise ServiceQuotaExceededException(
                f"{self._settings.max_sessions} sessions are active, the most this platform takes at once. Stop some, "
                "or raise AGENTKEEP_RUNTIME_MAX_SESSIONS."
            )
        pooled = self._pools.take(version, endpoint)
        if pooled is None:
            self._starts.check()
            if len(self._live) + self._pools.count >= self._settings.max_sessions:
                self._pools.give_way()
        output = self._logs.open(ref)
        session = Session(ref, user, version.number, endpoint, output, self._clock.monotonic())
        session.pooled = pooled
        session.user_token = user_token
        self._live[ref] = session
        # A task of its own: who asked first may leave, the others stay.
        session.provisioning = asyncio.create_task(
            self._starts.start(session, version), name=f"session-{ref.session_id}"
        )
        return session

    # Ending.

    def end(self, session: Session, reason: EndReason) -> asyncio.Task[None]:
        """From this moment the session takes no turn and its streams are cut; the task ends when nothing is left of
        it. Safe to call more than once."""
        if session.ending is None:
            session.move(SessionState.STOPPING)
            session.end_reason = reason
            session.cut_connections()
            session.ending = asyncio.create_task(self._tear_down(session, reason), name=f"end-{session.ref.session_id}")
        return session.ending

    async def _tear_down(self, session: Session, reason: EndReason) -> None:
        begun_ns = time.time_ns()
        try:
            await self._stop_environment(session)
        except Exception:
            log.exception("session %s: its environment did not stop", session.ref.session_id)
        session.log.note(f"session {session.ref.session_id} ended: {reason.value}")
        await session.log.close()
        # The credentials must die and the lease be given back, however long the store is away.
        # But of a session that is another replica's by now they are that one's.
        await self._until_done(self.table.replicas.confirm)
        if not session.forfeited:
            await self._until_done(lambda: self._keys.end_session(session.ref))
        record = session.record
        if record is not None and not session.forfeited:
            await self._until_done(lambda: self.table.stopped(record, reason, session.stop_token))
        self._forget(session)
        if session.state is not SessionState.STOPPED:
            session.move(SessionState.STOPPED)
        session_ended(session, begun_ns)
        session.ended.set()

    async def _stop_environment(self, session: Session) -> None:
        current = asyncio.current_task()
        provisioning, session.provisioning = session.provisioning, None
        if provisioning is not None and provisioning is not current:
            provisioning.cancel()
            await asyncio.wait([provisioning])
        if session.environment is None and session.pooled is not None:
            session.environment = session.pooled.environment
        if session.environment is None and session.starting is not None:
            try:
                session.environment = await session.starting
            except (DependencyError, ServiceError):
                pass  # then the driver has left nothing, or was not asked
        for task in (session.watching, session.checking, session.issuing_keys):
            if task is not None:
                task.cancel()
        if session.environment is not None:
            await session.environment.stop(self._settings.stop_grace)

    async def _until_done(self, step: Callable[[], Any]) -> None:
        while True:
            try:
                await step()
                return
            except Exception as error:
                # Most likely the store is away. A session half ended would be worse than one that ends late.
                log.warning("the end of a session waits: %r", error)
                await self._clock.sleep(RETRY_SECONDS)

    def _forget(self, session: Session) -> None:
        if self._live.get(session.ref) is session:
            del self._live[session.ref]

    async def stop(self, ref: SessionRef, token: Idempotency | None) -> None:
        """StopRuntimeSession: nothing is left of the session when this returns. Raises ResourceNotFoundException (it
        does not live), RetryableConflictException (another replica has it)."""
        session = self._live.get(ref)
        if session is not None and not session.claimed.done():
            await asyncio.wait([session.claimed])
            session = self._live.get(ref)
        if session is None:
            if await self.table.was_stopped(token):
                return
            raise await self.table.refuse_stop(ref)
        if session.stop_token is None and session.ending is None:
            session.stop_token = token
        await asyncio.shield(self.end(session, EndReason.STOPPED))
        if token is not session.stop_token:
            await self.table.spend(token)

    def end_runtime(self, runtime_id: str) -> list[asyncio.Task[None]]:
        """Ends every session of a runtime that is here."""
        return [
            self.end(session, EndReason.RUNTIME_DELETED)
            for session in self.all_live()
            if session.ref.runtime_id == runtime_id
        ]

    def forfeit(self) -> None:
        """This replica was declared dead: what it has is others', who may have it already."""
        for session in self.all_live():
            session.forfeited = True
            self.end(session, EndReason.LEASE_LOST)

    def cut(self) -> None:
        """This replica cannot prove that it lives: what is under way ends, and sessions wait for what becomes of it."""
        for session in self.all_live():
            session.cut_connections()

    # The platform's own life.

    async def adopt(self, record: SessionRecord, version: Version, environment: AdoptedEnvironment) -> None:
        """A session whose environment has outlived its platform goes on here, READY."""
        now = self._clock.monotonic()
        age = (self._clock.now() - record.created_at).total_seconds()
        output = self._logs.open(record.ref)
        session = Session(record.ref, record.user, record.version, record.endpoint, output, now - max(age, 0))
        await self._starts.prepare(session, version)
        session.record = record
        session.claimed.set_result(record)
        session.ready.set_result(None)
        session.move(SessionState.READY)
        session.touch(now)
        self._live[record.ref] = session
        await self._starts.resume(session, environment)
        log.info("session %s of %s goes on", record.session_id, record.runtime_id)

    async def close(self) -> None:
        """Ends every session of this process; without the store's help if it is away, then the next start ends them
        in the table."""
        self._closing = True
        claiming = [session.claimed for session in self.all_live() if not session.claimed.done()]
        if claiming:
            await asyncio.wait(claiming, timeout=CLOSE_SECONDS)
        ending = [self.end(session, EndReason.PLATFORM_STOPPED) for session in self.all_live()]
        if ending:
            _, late = await asyncio.wait(ending, timeout=self._settings.stop_grace + CLOSE_SECONDS)
            for task in late:
                task.cancel()
            if late:
                log.warning("%d sessions were ended without the store", len(late))
                await asyncio.wait(late)
