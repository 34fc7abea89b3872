"""Starting a session: its lease claimed, an environment made for it and healthy, and watched until it is gone.

lease (session table) ─▶ keys ─┬▶ one from the warm pool still answers ─▶ budget ─▶ bound ────────────────────┬▶ READY
   (where AWS gives them)      └▶ budget ─▶ version prepared ─▶ driver ─▶ /ping answers ─▶ warm-up hook ──────┘
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    CapacityReached,
    DependencyError,
    DriverThrottled,
    EnvironmentStartFailed,
    KeyRefused,
    KeyServiceUnavailable,
    RuntimeClientError,
    SandboxUnavailable,
    ServiceError,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
    StoreUnavailable,
    ThrottlingException,
)
from agentkeep.core.ports import Keys
from agentkeep.runtime.agents.artifacts import ArtifactError
from agentkeep.runtime.agents.budgets import TaggedBudgets
from agentkeep.runtime.agents.prepared import PreparedVersion, PreparedVersions
from agentkeep.runtime.drivers.driver import AdoptedEnvironment, Environment, Exit
from agentkeep.runtime.environments.making import Environments
from agentkeep.runtime.environments.warm_pools import WarmPools
from agentkeep.runtime.invocations.admission import StartSlots
from agentkeep.runtime.records import EndReason, SessionState, Version
from agentkeep.runtime.sessions.keys import SessionKeys
from agentkeep.runtime.sessions.session import Session
from agentkeep.runtime.sessions.table import LeaseLost, SessionTable, in_progress
from agentkeep.runtime.sessions.tracing import session_started
from agentkeep.runtime.settings import RuntimeSettings

__all__ = ["Starts"]

log = logging.getLogger(__name__)


class _NoKeys(Exception):
    """A session may not begin without keys, and there are none; `reason` is for who asked for it."""

    def __init__(self, reason: ServiceError | StoreUnavailable) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Starts:
    """`end` ends a session that did not start, or whose environment is gone; `forget` drops one that never was ours."""

    def __init__(
        self,
        table: SessionTable,
        clock: Clock,
        settings: RuntimeSettings,
        *,
        prepared: PreparedVersions,
        keys: Keys,
        session_keys: SessionKeys,
        endpoint_of: Callable[[SessionRef], Callable[[], asyncio.Protocol]],
        environments: Environments,
        pools: WarmPools,
        budgets: TaggedBudgets,
        end: Callable[[Session, EndReason], object],
        forget: Callable[[Session], None],
    ) -> None:
        self._table = table
        self._clock = clock
        self._settings = settings
        self._prepared = prepared
        self._keys = keys
        self._session_keys = session_keys
        self._endpoint_of = endpoint_of
        self._environments = environments
        self._pools = pools
        self._budgets = budgets
        self._end = end
        self._forget = forget
        self._slots = StartSlots(settings.starts_at_once, settings.starts_waiting, settings.start_patience)

    def check(self) -> None:
        """Raises ThrottlingException where so many wait for their start that another could not."""
        self._slots.check()

    async def prepare(self, session: Session, version: Version) -> PreparedVersion:
        session.prepared = await self._prepared.get(version)
        return session.prepared

    async def resume(self, session: Session, environment: AdoptedEnvironment) -> None:
        """For a session whose environment has outlived its platform."""
        await environment.resume(self._endpoint_of(session.ref), session.log.write)
        self._attach(session, environment)

    async def start(self, session: Session, version: Version) -> None:
        """Until the session is READY, or ended; its futures `claimed` and `ready` tell who waits."""
        try:
            record, unended = await self._table.claim(session.ref, session.user, version.number, session.endpoint)
        except BaseException as error:
            self._forget(session)
            if session.pooled is not None:
                session.pooled.pool.put_back(session.pooled)
            session.claimed.set_exception(_visible(error))
            if isinstance(error, ServiceError | StoreUnavailable):
                return
            raise
        session.record = record
        session.claimed.set_result(record)
        begun_ns = time.time_ns()
        try:
            if unended:
                # Of an environment that nobody has ended: its keys must not be good beside the new one's.
                await self._keys.end_session(session.ref)
            await self._begin_keys(session)
            if not await self._claim_pooled(session, version):
                async with self._slots.taken():
                    await self._make_environment(session, version)
            assert session.environment is not None
            session.record = await self._table.ready(record, session.environment.id)
        except TimeoutError:
            self._start_failed(session, f"did not answer within {self._settings.start_timeout:g} seconds")
        except CapacityReached as error:
            session.fail_start(ServiceQuotaExceededException(str(error)))
            self._end(session, EndReason.START_FAILED)
        except (EnvironmentStartFailed, SandboxUnavailable, ArtifactError) as error:
            self._start_failed(session, str(error))
        except (ThrottlingException, _NoKeys) as error:
            session.fail_start(error.reason if isinstance(error, _NoKeys) else error)
            self._end(session, EndReason.START_FAILED)
        except (KeyServiceUnavailable, KeyRefused) as error:
            log.warning("session %s: its agent's variables cannot be opened: %s", session.ref.session_id, error)
            session.log.note(f"session {session.ref.session_id} does not begin: {error}")
            session.fail_start(error)
            self._end(session, EndReason.START_FAILED)
        except DriverThrottled as error:
            log.warning("session %s: the driver was turned away for too long: %s", session.ref.session_id, error)
            session.fail_start(ThrottlingException(f"The session could not be started now ({error}). Try again later"))
            self._end(session, EndReason.START_FAILED)
        except LeaseLost:
            session.forfeited = True
            session.fail_start(in_progress())
            self._end(session, EndReason.LEASE_LOST)
        except asyncio.CancelledError:
            session.fail_start(RuntimeClientError("The session was stopped while it was starting."))
            raise
        except Exception as error:
            log.exception("session %s cannot be started", session.ref.session_id)
            session.fail_start(_visible(error))
            self._end(session, EndReason.START_FAILED)
        else:
            if session.state is not SessionState.PROVISIONING:
                return  # ended while the last step was on its way
            session.provisioning = None
            session.move(SessionState.READY)
            session.touch(self._clock.monotonic())
            session.ready.set_result(None)
            session_started(session, begun_ns)

    async def _begin_keys(self, session: Session) -> None:
        """Before anything is started: who gets no keys takes up no environment."""
        try:
            await self._session_keys.begin(session)
        except (ServiceError, StoreUnavailable) as error:
            if session.pooled is not None:
                session.pooled.pool.put_back(session.pooled)
                session.pooled = None
            session.log.note(f"session {session.ref.session_id} does not begin: {error}")
            raise _NoKeys(error) from error

    async def _claim_pooled(self, session: Session, version: Version) -> bool:
        """Gives the session the environment that was taken from its warm pool, or, if that has died, the next one.
        False: there is none."""
        while session.pooled is not None:
            pooled = session.pooled
            if await self._environments.is_healthy(pooled.environment, pooled.prepared):
                self._attach(session, pooled.environment)
                await self._begin(session, version)
                pooled.bind(self._endpoint_of(session.ref), session.log.write)
                return True
            session.pooled = self._pools.another(version, session.endpoint)
            pooled.pool.discard(pooled)
        return False

    async def _make_environment(self, session: Session, version: Version) -> None:
        async with asyncio.timeout(self._settings.start_timeout):
            prepared = await self._begin(session, version)
            while True:
                # Never cancelled half-way: what a driver has begun it finishes, and then it is stopped.
                session.starting = asyncio.create_task(
                    self._environments.start(
                        prepared, session.endpoint, self._endpoint_of(session.ref), session.log.write
                    )
                )
                try:
                    environment = await asyncio.shield(session.starting)
                    break
                except CapacityReached:
                    if (ending := self._pools.give_way()) is None:
                        raise
                    await asyncio.wait([ending])
            self._attach(session, environment)
            await self._environments.until_healthy(environment, prepared)
        await self._environments.warm_up(environment, prepared)

    async def _begin(self, session: Session, version: Version) -> PreparedVersion:
        await self._budgets.open(session.ref, session.endpoint)
        prepared = await self.prepare(session, version)
        session.log.note(f"session {session.ref.session_id} begins, version {version.number}")
        if prepared.bundle is not None and prepared.bundle.note:
            session.log.note(prepared.bundle.note)
        return prepared

    def _attach(self, session: Session, environment: Environment) -> None:
        session.environment = environment
        session.watching = asyncio.create_task(self._watch(session, environment))

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
        self._end(session, EndReason.START_FAILED)

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
            self._end(session, EndReason.CRASHED)


def _visible(error: BaseException) -> Exception:
    """What the ones who wait are told."""
    if isinstance(error, ServiceError | DependencyError):
        return error
    return ServiceUnavailableException("The session could not be started. Try again.")
