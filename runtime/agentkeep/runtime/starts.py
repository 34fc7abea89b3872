"""Starting a session: its lease claimed, an environment made for it and healthy, and watched until it is gone.

claim (session table) ─▶ budget ─▶ version prepared ─▶ driver ─▶ /ping answers ─▶ READY
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    CapacityReached,
    DependencyError,
    EnvironmentStartFailed,
    RuntimeClientError,
    SandboxUnavailable,
    ServiceError,
    ServiceQuotaExceededException,
    ServiceUnavailableException,
    StoreUnavailable,
    ThrottlingException,
)
from agentkeep.runtime.admission import StartSlots
from agentkeep.runtime.artifacts import ArtifactError
from agentkeep.runtime.budgets import TaggedBudgets
from agentkeep.runtime.drivers.driver import AdoptedEnvironment, Driver, Environment, EnvironmentSpec, Exit, Limits
from agentkeep.runtime.health import ping, supports_ping
from agentkeep.runtime.prepared import PreparedVersion, PreparedVersions
from agentkeep.runtime.records import EndReason, SessionState, Version
from agentkeep.runtime.session import Session
from agentkeep.runtime.session_table import LeaseLost, SessionTable, in_progress
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.runtime.tracing import session_started

__all__ = ["Starts", "VariablesOf"]

log = logging.getLogger(__name__)

START_POLL_SECONDS = 0.02

#: The environment variables of a session: of (version, endpoint name).
VariablesOf = Callable[[Version, str], Mapping[str, str]]


class Starts:
    """`end` ends a session that did not start, or whose environment is gone; `forget` drops one that never was ours."""

    def __init__(
        self,
        table: SessionTable,
        clock: Clock,
        settings: RuntimeSettings,
        *,
        prepared: PreparedVersions,
        driver: Driver,
        endpoint_of: Callable[[SessionRef], Callable[[], asyncio.Protocol]],
        variables_of: VariablesOf,
        budgets: TaggedBudgets,
        end: Callable[[Session, EndReason], object],
        forget: Callable[[Session], None],
    ) -> None:
        self._table = table
        self._clock = clock
        self._settings = settings
        self._prepared = prepared
        self._driver = driver
        self._endpoint_of = endpoint_of
        self._variables_of = variables_of
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
            record = await self._table.claim(session.ref, session.user, version.number, session.endpoint)
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
            async with self._slots.taken(), asyncio.timeout(self._settings.start_timeout):
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
        except ThrottlingException as error:
            session.fail_start(error)
            self._end(session, EndReason.START_FAILED)
        except LeaseLost:
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

    async def _make_environment(self, session: Session, version: Version) -> None:
        await self._budgets.open(session.ref, session.endpoint)
        prepared = await self.prepare(session, version)
        settings = self._settings
        session.log.note(f"session {session.ref.session_id} begins, version {version.number}")
        if prepared.bundle is not None and prepared.bundle.note:
            session.log.note(prepared.bundle.note)
        spec = EnvironmentSpec(
            version=prepared.spec,
            environment=self._variables_of(version, session.endpoint),
            endpoint=self._endpoint_of(session.ref),
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
        session.starting = asyncio.create_task(self._driver.start(spec))
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
