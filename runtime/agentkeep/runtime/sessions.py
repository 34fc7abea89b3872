"""Sessions: found or made, exactly one environment each, ended once.

begin ─▶ claim (lease in the session table) ─▶ start (driver) ─▶ /ping answers ─▶ turns ... ─▶ end
                                                                                                │
  stop, idle, lifetime, unhealthy, crash, failed start, runtime deleted, platform stopped ──────┘
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentkeep.core.call import Idempotency, SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AccessDeniedException,
    CapacityReached,
    DependencyError,
    EnvironmentStartFailed,
    RuntimeClientError,
    SandboxUnavailable,
    ServiceError,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
    StoreUnavailable,
)
from agentkeep.core.ports import Keys
from agentkeep.runtime.artifacts import ArtifactError
from agentkeep.runtime.budgets import TaggedBudgets
from agentkeep.runtime.drivers.driver import AdoptedEnvironment, Driver, Environment, EnvironmentSpec, Exit, Limits
from agentkeep.runtime.health import ping, supports_ping
from agentkeep.runtime.logs import Logs
from agentkeep.runtime.prepared import PreparedVersions
from agentkeep.runtime.records import EndReason, SessionRecord, SessionState, Version
from agentkeep.runtime.session import Session
from agentkeep.runtime.session_table import LeaseLost, SessionTable, in_progress, other_user
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.runtime.tracing import session_ended, session_started

__all__ = ["Sessions", "VariablesOf"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
START_POLL_SECONDS = 0.02
CLOSE_SECONDS = 10.0

#: The environment variables of a session: of (version, endpoint name).
VariablesOf = Callable[[Version, str], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a session is made with."""

    prepared: PreparedVersions
    driver: Driver
    keys: Keys
    logs: Logs
    endpoint_of: Callable[[SessionRef], Callable[[], asyncio.Protocol]]
    variables_of: VariablesOf
    budgets: TaggedBudgets


class Sessions:
    def __init__(
        self,
        table: SessionTable,
        clock: Clock,
        settings: RuntimeSettings,
        *,
        prepared: PreparedVersions,
        driver: Driver,
        keys: Keys,
        logs: Logs,
        endpoint_of: Callable[[SessionRef], Callable[[], asyncio.Protocol]],
        variables_of: VariablesOf,
        budgets: TaggedBudgets,
    ) -> None:
        self.table = table
        self._clock = clock
        self._settings = settings
        self._parts = _Parts(prepared, driver, keys, logs, endpoint_of, variables_of, budgets)
        self._live: dict[SessionRef, Session] = {}
        self._closing = False

    # Looking.

    def live(self, ref: SessionRef) -> Session | None:
        return self._live.get(ref)

    def all_live(self) -> Iterable[Session]:
        return list(self._live.values())

    # Opening.

    async def open(self, version: Version, endpoint: str, ref: SessionRef, user: User | None) -> Session:
        """The session, READY, with a turn begun (`Session.begin_turn`). Made, on `version`, if it does not live.

        Raises AccessDeniedException (another user's), RuntimeClientError (the agent does not start),
        RetryableConflictException (another replica has it, or it is ending), ServiceQuotaExceededException.
        """
        while True:
            session = self._live.get(ref)
            if session is None:
                session = self._create(version, endpoint, ref, user)
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
            await asyncio.shield(session.ready)
            if session.state is SessionState.READY:
                session.begin_turn()
                return session

    async def _wait_for_end(self, session: Session) -> None:
        try:
            async with asyncio.timeout(self._settings.stop_grace + self._settings.connect_timeout):
                await session.ended.wait()
        except TimeoutError:
            raise in_progress() from None

    def _create(self, version: Version, endpoint: str, ref: SessionRef, user: User | None) -> Session:
        if self._closing:
            raise ServiceUnavailableException("The platform is stopping.")
        if len(self._live) >= self._settings.max_sessions:
            raise ServiceQuotaExceededException(
                f"{self._settings.max_sessions} sessions are active, the most this platform takes at once. Stop some, "
                "or raise AGENTKEEP_RUNTIME_MAX_SESSIONS."
            )
        output = self._parts.logs.open(ref)
        session = Session(ref, user, version.number, endpoint, output, self._clock.monotonic())
        self._live[ref] = session
        # A task of its own: who asked first may leave, the others stay.
        session.provisioning = asyncio.create_task(self._provision(session, version), name=f"session-{ref.session_id}")
        return session

    async def _provision(self, session: Session, version: Version) -> None:
        try:
            record = await self.table.claim(session.ref, session.user, version.number, session.endpoint)
        except BaseException as error:
            self._forget(session)
            session.claimed.set_exception(_visible(error))
            if isinstance(error, ServiceError | StoreUnavailable):
                return
            raise
        session.record = record
        session.claimed.set_result(record)
        begun_ns = time.time_ns()
        try:
            async with asyncio.timeout(self._settings.start_timeout):
                await self._start(session, version)
            assert session.environment is not None
            session.record = await self.table.ready(record, session.environment.id)
        except TimeoutError:
            self._start_failed(session, f"did not answer within {self._settings.start_timeout:g} seconds")
        except CapacityReached as error:
            session.fail_start(ServiceQuotaExceededException(str(error)))
            self.end(session, EndReason.START_FAILED)
        except (EnvironmentStartFailed, SandboxUnavailable, ArtifactError) as error:
            self._start_failed(session, str(error))
        except LeaseLost:
            session.fail_start(in_progress())
            self.end(session, EndReason.LEASE_LOST)
        except asyncio.CancelledError:
            session.fail_start(RuntimeClientError("The session was stopped while it was starting."))
            raise
        except Exception as error:
            log.exception("session %s cannot be started", session.ref.session_id)
            session.fail_start(_visible(error))
            self.end(session, EndReason.START_FAILED)
        else:
            if session.state is not SessionState.PROVISIONING:
                return  # ended while the last step was on its way
            session.provisioning = None
            session.move(SessionState.READY)
            session.touch(self._clock.monotonic())
            session.ready.set_result(None)
            session_started(session, begun_ns)

    async def _start(self, session: Session, version: Version) -> None:
        await self._parts.budgets.open(session.ref, session.endpoint)
        prepared = session.prepared = await self._parts.prepared.get(version)
        settings = self._settings
        session.log.note(f"session {session.ref.session_id} begins, version {version.number}")
        if prepared.bundle is not None and prepared.bundle.note:
            session.log.note(prepared.bundle.note)
        spec = EnvironmentSpec(
            version=prepared.spec,
            environment=self._parts.variables_of(version, session.endpoint),
            endpoint=self._parts.endpoint_of(session.ref),
            log=session.log.write,
            limits=Limits(
                memory=settings.session_memory,
                processes=settings.session_processes,
                open_files=settings.session_open_files,
                cpus=settings.session_cpus,
                disk=settings.session_disk,
            ),
        )
        # Never cancelled half-way: what a driver has begun it finishes, and then it is stopped.
        session.starting = asyncio.create_task(self._parts.driver.start(spec))
        environment = await asyncio.shield(session.starting)
        self._attach(session, environment)
        await self._until_healthy(environment, prepared.settings.protocol)

    def _attach(self, session: Session, environment: Environment) -> None:
        session.environment = environment
        session.watching = asyncio.create_task(self._watch(session, environment))

    async def _until_healthy(self, environment: Environment, protocol: str) -> None:
        """Within the caller's time limit. Raises EnvironmentStartFailed if the environment ends."""
        while True:
            try:
                connection = await environment.connect(self._settings.connect_timeout)
                if not supports_ping(protocol):
                    connection.socket.close()
                    connection.release()
                    return
                if await ping(connection, self._settings.ping_timeout) is not None:
                    return
            except (OSError, TimeoutError):
                pass  # not yet; OSError: it listens, and does not speak
            await asyncio.sleep(START_POLL_SECONDS)

    def _start_failed(self, session: Session, reason: str) -> None:
        session.log.note(f"the agent did not start: {reason}")
        log.warning("session %s: the agent did not start: %s", session.ref.session_id, reason)
        session_started(session, time.time_ns(), reason)
        session.fail_start(
            RuntimeClientError(
                f"The agent did not start: {reason.splitlines()[0] if reason else 'no reason given'}. Its output: "
                f"agentkeep logs {session.ref.session_id}"
            )
        )
        self.end(session, EndReason.START_FAILED)

    async def _watch(self, session: Session, environment: Environment) -> None:
        try:
            exited = await environment.wait()
        except DependencyError as error:
            exited = Exit(None, f"the driver lost it ({error})")
        if session.state in (SessionState.PROVISIONING, SessionState.READY):
            if session.state is SessionState.PROVISIONING:
                self._start_failed(session, exited.reason)
                return
            session.log.note(f"the environment is gone: {exited.reason}")
            log.warning("session %s: the environment is gone: %s", session.ref.session_id, exited.reason)
            self.end(session, EndReason.CRASHED)

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
        await self._until_done(lambda: self._parts.keys.end_session(session.ref))
        record = session.record
        if record is not None and reason is not EndReason.LEASE_LOST:
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
        if session.environment is None and session.starting is not None:
            try:
                session.environment = await session.starting
            except DependencyError:
                pass  # then the driver has left nothing
        for task in (session.watching, session.checking):
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

    async def end_runtime(self, runtime_id: str) -> None:
        """Ends every session of a runtime."""
        ending = [
            self.end(session, EndReason.RUNTIME_DELETED)
            for session in self.all_live()
            if session.ref.runtime_id == runtime_id
        ]
        if ending:
            await asyncio.wait(ending)

    # The platform's own life.

    async def adopt(self, record: SessionRecord, version: Version, environment: AdoptedEnvironment) -> None:
        """A session whose environment has outlived its platform goes on here, READY."""
        now = self._clock.monotonic()
        age = (self._clock.now() - record.created_at).total_seconds()
        output = self._parts.logs.open(record.ref)
        session = Session(record.ref, record.user, record.version, record.endpoint, output, now - max(age, 0))
        session.prepared = await self._parts.prepared.get(version)
        session.record = record
        session.claimed.set_result(record)
        session.ready.set_result(None)
        session.move(SessionState.READY)
        session.touch(now)
        self._live[record.ref] = session
        await environment.resume(self._parts.endpoint_of(record.ref), output.write)
        self._attach(session, environment)
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


def _visible(error: BaseException) -> Exception:
    """What the ones who wait are told."""
    if isinstance(error, ServiceError | DependencyError):
        return error
    return ServiceUnavailableException("The session could not be started. Try again.")
