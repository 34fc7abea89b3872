"""How much and how long one invocation may take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PumpLimits"]


@dataclass(frozen=True, slots=True)
class PumpLimits:
    """Sizes in bytes, times in seconds."""

    body: int = 100_000_000  # the model's: `payload` of InvokeAgentRuntime
    held_body: int = 256 * 1024  # up to this a body is proved before anything happens because of it
    spooled: int = 1 << 30  # on disk at one time, of larger bodies that must be proved before a session is made
    first_byte: float = 900.0  # from the end of the request to the answer's head
    gap: float = 900.0  # between two pieces of the answer
    tunnel: float = 3600.0  # a WebSocket's life
    # A kept connection: below the 5 s after which uvicorn, the usual server of agents, closes it.
    agent_idle: float = 4.0
    agent_idle_connections: int = 32  # per environment
    # Retries of the same invocation (boto3 sends them after a read timeout).
    retry_grace: float = 60.0  # how long a turn whose client left, or its answer, waits for the client's retry
    kept_answer: int = 256 * 1024  # of one turn
    kept_answers: int = 64 * 1024 * 1024  # together
