"""One turn of a session in this process: connections to its agent, and its end."""

from __future__ import annotations

from collections.abc import Sequence

from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    CommandNotStarted,
    EnvironmentStartFailed,
    RuntimeClientError,
    ServiceError,
    ThrottlingException,
)
from agentkeep.runtime.drivers.driver import Connection, ConnectionsInUse, Execution
from agentkeep.runtime.invocations.admission import TurnLimits
from agentkeep.runtime.records import SessionState
from agentkeep.runtime.sessions.session import Session
from agentkeep.runtime.sessions.table import in_progress
from agentkeep.runtime.sessions.tracing import InvocationSpan
from agentkeep.runtime.sessions.turn import McpTurn

__all__ = ["SessionTurn"]


class SessionTurn:
    """A `Turn` of a session in this process."""

    __slots__ = (
        "_clock",
        "_ended",
        "_limits",
        "_resting",
        "_session",
        "_timeout",
        "environment_id",
        "headers",
        "mcp",
        "path",
        "span",
    )

    def __init__(
        self,
        session: Session,
        headers: Sequence[tuple[bytes, bytes]],
        span: InvocationSpan,
        clock: Clock,
        timeout: float,
        limits: TurnLimits,
        mcp: McpTurn | None = None,
    ) -> None:
        assert session.environment is not None
        assert session.prepared is not None
        self._session = session
        self._clock = clock
        self._timeout = timeout
        self._limits = limits
        self._ended = self._resting = False
        self.environment_id = session.environment.id
        self.path = session.prepared.settings.path
        self.headers = headers
        self.mcp = mcp
        self.span = span

    @property
    def session_id(self) -> str:
        return self._session.ref.session_id

    async def connect(self) -> Connection:
        try:
            return await self._session.connect(self._timeout)
        except EnvironmentStartFailed:
            # It has just ended, and nothing was sent: whoever tries again gets a new environment.
            raise in_progress() from None
        except ConnectionsInUse as error:
            raise ThrottlingException(f"{error}, as many as there may be. Try again later") from None
        except (OSError, TimeoutError):
            raise RuntimeClientError(
                f"The agent does not accept connections. Its output: agentkeep logs {self.session_id}"
            ) from None

    @property
    def lives(self) -> bool:
        """Whether its session does."""
        return self._session.state is SessionState.READY

    async def execute(self, line: str, most: int) -> Execution:
        """Runs a line with the session's shell, if fewer than `most` run. Raises ThrottlingException,
        RuntimeClientError, RetryableConflictException."""
        if self._session.commands >= most:
            raise ThrottlingException(
                f"{most} commands run in this session, the most there may be. Wait for one to end."
            )
        try:
            return await self._session.execute(line)
        except EnvironmentStartFailed:
            raise in_progress() from None
        except CommandNotStarted as error:
            raise RuntimeClientError(f"The command could not be run: {error}") from error

    async def end_command(self, execution: Execution) -> None:
        """Must follow `execute`, once."""
        await self._session.end_command(execution)

    def rest(self) -> None:
        """From here on the turn only listens, and keeps the session from being idle no longer."""
        if not self._resting:
            self._resting = True
            self._session.end_turn(self._clock.monotonic())

    def end(self, error: ServiceError | None = None, proved: bool = True) -> None:
        if not self._ended:
            self._ended = True
            self.rest()
            self._limits.end()
            self.span.end(error, proved)
