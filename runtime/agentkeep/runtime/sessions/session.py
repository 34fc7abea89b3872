"""A session that lives in this process: its environment, its turns, and how long it has been idle."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any, Protocol

from agentkeep.core.call import Idempotency, SessionRef, User
from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.core.ports import SessionCredentials
from agentkeep.runtime.agents.prepared import PreparedVersion
from agentkeep.runtime.drivers.driver import Connection, Environment, Execution
from agentkeep.runtime.environments.health import Health, PingStatus
from agentkeep.runtime.environments.warm_pool import Pooled
from agentkeep.runtime.records import SESSION_MOVES, EndReason, SessionRecord, SessionState
from agentkeep.runtime.sessions.logs import SessionLog

__all__ = ["Cuttable", "IssuedKeys", "KeysRefused", "Session", "TrackedConnection"]


@dataclass(frozen=True, slots=True)
class IssuedKeys:
    """Handed out until `renew`, good until `expire`: the clock's monotonic seconds."""

    credentials: SessionCredentials
    renew: float
    expire: float


@dataclass(frozen=True, slots=True)
class KeysRefused:
    """`until`: monotonic seconds. `user_token`: by another there may be another answer."""

    error: Exception
    until: float
    user_token: str | None


class Cuttable(Protocol):
    """What is open in a session's name."""

    def cut(self) -> None:
        """Ends it at once. It may be over already."""
        ...


class Session:
    """Made by `Sessions`, which alone moves it from state to state. Times are the clock's monotonic seconds."""

    def __init__(
        self, ref: SessionRef, user: User | None, version: int, endpoint: str, log: SessionLog, now: float
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ref = ref
        self.user = user
        self.version = version
        self.endpoint = endpoint
        self.log = log
        self.state = SessionState.PROVISIONING
        self.opened = now
        #: Set when the lease is ours (or the claim's failure), and when the agent answers (or the start's failure).
        self.claimed: asyncio.Future[SessionRecord] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended = asyncio.Event()
        self.end_reason: EndReason | None = None
        self.forfeited = False  # another replica's: nothing of it may be ended but the environment here
        self.record: SessionRecord | None = None  # as last written
        self.stop_token: Idempotency | None = None  # spent by the write that ends the session
        self.prepared: PreparedVersion | None = None
        self.pooled: Pooled | None = None  # claimed from a warm pool
        self.environment: Environment | None = None
        self.starting: asyncio.Task[Environment] | None = None
        self.provisioning: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.watching: asyncio.Task[None] | None = None
        self.checking: asyncio.Task[None] | None = None
        self.turns = 0
        self.last_ping = now
        self.failed_pings = 0
        #: For which user token ("" if none), the token, since when.
        self.workload_token: tuple[str, str | None, float] | None = None
        self.user_token: str | None = None  # the newest that proved the user here; in memory only, never said
        self.issuing_keys: asyncio.Task[SessionCredentials] | None = None
        self.issued_keys: IssuedKeys | None = None
        self.keys_refused: KeysRefused | None = None
        self._last_activity = now
        self._status_changed = now
        self._connections: set[Cuttable] = set()
        self.commands = 0  # that run, or are about to
        self._executions: set[Execution] = set()
        self._killing: set[asyncio.Task[None]] = set()
        # Nobody may be waiting for them any more when they fail.
        self.claimed.add_done_callback(_retrieve)
        self.ready.add_done_callback(_retrieve)

    def move(self, to: SessionState) -> None:
        assert to in SESSION_MOVES[self.state], (self.state, to)
        self.state = to

    def fail_start(self, error: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)

    # Turns.

    def begin_turn(self) -> None:
        self.turns += 1

    def end_turn(self, now: float) -> None:
        self.turns -= 1
        self._last_activity = now

    def touch(self, now: float) -> None:
        self._last_activity = now

    # Idleness.

    def idle_for(self, now: float, limit: float) -> float:
        """Seconds since the agent was last busy, 0 while it has a turn.

        The agent's own word for when its status last changed counts, but prolongs nothing beyond one more `limit`: an
        agent that reports a new time at every ping would never be idle.
        """
        if self.turns:
            return 0.0
        since = max(self._last_activity, min(self._status_changed, self._last_activity + limit))
        return now - since

    def answered_ping(self, health: Health, asked: float, now: float, wall: float) -> None:
        """`asked` and `now`: when the ping began and ended; `wall`: epoch seconds at `now`."""
        self.last_ping = now
        self.failed_pings = 0
        if health.status is PingStatus.HEALTHY_BUSY:
            self._last_activity = now
        elif health.changed is not None:
            ago = max(0.0, wall - health.changed)
            self._status_changed = max(self._status_changed, min(now - ago, asked))

    # Connections.

    async def connect(self, timeout: float) -> Connection:
        """Raises EnvironmentStartFailed once the session is ending, OSError, TimeoutError."""
        assert self.environment is not None
        connection = await self.environment.connect(timeout)
        if self.state is not SessionState.READY:
            connection.socket.close()
            connection.release()
            raise EnvironmentStartFailed("the session is ending")
        return TrackedConnection(connection, self._connections)

    def track(self, connection: Cuttable) -> None:
        """It ends with the session, unless it is untracked before."""
        self._connections.add(connection)

    def untrack(self, connection: Cuttable) -> None:
        self._connections.discard(connection)

    def cut_connections(self) -> None:
        """Ends every stream to and from the agent at once, every one of its own to elsewhere, and every command."""
        for connection in list(self._connections):
            connection.cut()
        for execution in self._executions:
            self._killing.add(killing := asyncio.create_task(execution.kill()))
            killing.add_done_callback(self._killing.discard)

    # Commands.

    async def execute(self, line: str) -> Execution:
        """Raises EnvironmentStartFailed once the session is ending, CommandNotStarted."""
        assert self.environment is not None
        self.commands += 1
        try:
            execution = await self.environment.execute(line)
        except BaseException:
            self.commands -= 1
            raise
        self._executions.add(execution)
        if self.state is not SessionState.READY:
            await self.end_command(execution)
            raise EnvironmentStartFailed("the session is ending")
        return execution

    async def end_command(self, execution: Execution) -> None:
        """Once, whether it runs or has ended."""
        try:
            await execution.close()
        finally:
            self._executions.discard(execution)
            self.commands -= 1


class TrackedConnection:
    """A driver's connection that the session can cut."""

    __slots__ = ("_all", "_connection")

    def __init__(self, connection: Connection, all_of_session: set[Cuttable]) -> None:
        self._connection = connection
        self._all = all_of_session
        all_of_session.add(self)

    @property
    def socket(self) -> socket.socket:
        return self._connection.socket

    def release(self) -> None:
        if self in self._all:
            self._all.discard(self)
            self._connection.release()

    def cut(self) -> None:
        try:
            self._connection.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed before


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
