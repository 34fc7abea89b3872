"""The reaper: ends sessions that are idle, too old or no longer answer."""

from __future__ import annotations

import asyncio
import logging

from agentkeep.core.clock import Clock
from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.environments.health import ping, supports_ping
from agentkeep.runtime.records import EndReason, SessionState
from agentkeep.runtime.sessions.logs import Logs
from agentkeep.runtime.sessions.session import Session
from agentkeep.runtime.sessions.sessions import Sessions
from agentkeep.runtime.settings import RuntimeSettings

__all__ = ["Reaper"]

log = logging.getLogger(__name__)

PINGS_AT_ONCE = 32
COLLECT_SECONDS = 3600.0


class Reaper:
    def __init__(self, sessions: Sessions, logs: Logs, clock: Clock, settings: RuntimeSettings) -> None:
        self._sessions = sessions
        self._logs = logs
        self._clock = clock
        self._settings = settings
        self._pings = asyncio.Semaphore(PINGS_AT_ONCE)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._reap(), name="reaper"),
            asyncio.create_task(self._collect(), name="log-retention"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reap(self) -> None:
        while True:
            await self._clock.sleep(self._settings.reap_interval)
            for session in self._sessions.all_live():
                try:
                    self._look_at(session)
                except Exception:
                    log.exception("session %s could not be checked", session.ref.session_id)

    def _look_at(self, session: Session) -> None:
        if session.state is not SessionState.READY or session.prepared is None:
            return
        now = self._clock.monotonic()
        limits = session.prepared.settings
        if now - session.opened >= limits.lifetime:
            self._sessions.end(session, EndReason.LIFETIME)
        elif session.turns == 0 and session.checking is None:
            # Before it is ended for idleness it is asked once more: it may be busy of its own accord.
            is_idle = session.idle_for(now, limits.idle) >= limits.idle
            if is_idle or now - session.last_ping >= self._settings.ping_interval:
                session.checking = asyncio.create_task(self._check(session))
                session.checking.add_done_callback(lambda task: _checked(session, task))

    async def _check(self, session: Session) -> None:
        assert session.environment is not None
        assert session.prepared is not None
        limits = session.prepared.settings
        async with self._pings:
            asked = self._clock.monotonic()
            session.last_ping = asked
            if supports_ping(limits.protocol):
                try:
                    connection = await session.environment.connect(self._settings.ping_timeout)
                    health = await ping(connection, self._settings.ping_timeout)
                except EnvironmentStartFailed:
                    return  # it is gone; whoever watches it has been told
                except (OSError, TimeoutError):
                    health = None
                if health is None:
                    self._missed(session)
                    return
                session.answered_ping(health, asked, self._clock.monotonic(), self._clock.now().timestamp())
        # Nothing is awaited from here on: a turn that begins now finds the session READY or STOPPING, never between.
        now = self._clock.monotonic()
        if session.state is SessionState.READY and session.idle_for(now, limits.idle) >= limits.idle:
            self._sessions.end(session, EndReason.IDLE)

    def _missed(self, session: Session) -> None:
        session.failed_pings += 1
        # An agent at work in a turn may be too busy to answer.
        if session.failed_pings >= self._settings.ping_failures and session.turns == 0:
            self._sessions.end(session, EndReason.UNHEALTHY)

    async def _collect(self) -> None:
        while True:
            try:
                await self._logs.collect()
            except OSError as error:
                log.warning("old logs cannot be removed: %s", error)
            await self._clock.sleep(COLLECT_SECONDS)


def _checked(session: Session, task: asyncio.Task[None]) -> None:
    session.checking = None
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("session %s could not be checked", session.ref.session_id, exc_info=error)
