"""The answer of an MCP server: which of it passes, and the session id that must be bound before anybody sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from agentkeep.core.errors import InternalServerException, ServiceError
from agentkeep.runtime.pump.agent import AgentConnection, Answered, Fields
from agentkeep.runtime.sessions.turn import McpTurn

__all__ = ["McpAnswer", "passes"]

logger = logging.getLogger(__name__)


def passes(status: int) -> bool:
    """Whether an MCP server's refusal is the client's to see: streamable HTTP gives 400, 404, 405 and others a meaning.
    Not 401 and 407: who asks for credentials here is the platform, and nobody else."""
    return 400 <= status < 500 and status not in (401, 407)


class Receiver(Answered, Protocol):
    @property
    def over(self) -> bool: ...
    def fail(self, error: ServiceError) -> None: ...


class McpAnswer:
    """Between an agent's connection and a run. An answer with a session id that is not known yet waits until the id is
    bound: the client's next request, on whichever replica, must find the session."""

    def __init__(self, run: Receiver, agent: AgentConnection, turn: McpTurn) -> None:
        self._run = run
        self._agent = agent
        self._turn = turn
        self._waiting: list[Callable[[], None]] | None = None
        self._task: asyncio.Task[None] | None = None

    def on_answer(self, status: int, fields: Fields) -> None:
        given = next((value for name, value in fields if name == b"mcp-session-id"), None)
        if given is None or status >= 400 or self._turn.knows(given.decode("latin-1")):
            self._run.on_answer(status, fields)
            return
        self._waiting = [partial(self._run.on_answer, status, fields)]
        self._agent.pause(True)
        self._task = asyncio.get_running_loop().create_task(self._bind(given.decode("latin-1")))

    async def _bind(self, given: str) -> None:
        error: ServiceError | None = None
        try:
            await self._turn.bind(given)
        except ServiceError as refused:
            error = refused
        except Exception:
            logger.exception("an MCP session id could not be bound")
            error = InternalServerException("The MCP session could not be noted. Try again")
        waiting, self._waiting = self._waiting, None
        if error is not None:
            self._run.fail(error)
            return
        self._agent.pause(False)
        for event in waiting or ():
            if not self._run.over:  # its client may have left
                event()

    def _pass(self, event: Callable[[], None]) -> None:
        if self._waiting is None:
            event()
        else:
            self._waiting.append(event)

    def on_answer_data(self, data: bytes) -> None:
        self._pass(partial(self._run.on_answer_data, data))

    def on_answer_pause(self) -> None:
        self._pass(self._run.on_answer_pause)

    def on_answer_end(self) -> None:
        self._pass(self._run.on_answer_end)

    def on_agent_lost(self) -> None:
        self._pass(self._run.on_agent_lost)

    def on_agent_blocked(self, blocked: bool) -> None:
        self._run.on_agent_blocked(blocked)
