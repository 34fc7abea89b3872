"""What one client may ask of the front before it has proved who it is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FrontLimits"]


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """Sizes in bytes, times in seconds. A body must come at `body_rate` bytes per second on average, after
    `body_grace`; time in which we ourselves stopped reading does not count."""

    connections: int = 10_000  # to the public listener; as many to all sessions' together
    session_connections: int = 256  # to one session's listener
    head_bytes: int = 32 * 1024
    head_fields: int = 100
    head_seconds: float = 10.0  # from the first byte of a head to its last: against slow-loris
    idle_seconds: float = 65.0  # a connection between two requests; above the 60 s of common load balancers
    body_grace: float = 60.0
    body_rate: int = 1024
    stall_seconds: float = 300.0  # a client that takes nothing of its answer
    linger_seconds: float = 2.0  # reading on after an early refusal, so that the client sees it and not a reset
    linger_bytes: int = 64 * 1024 * 1024
    sweep_seconds: float = 0.25  # how often time limits are looked at; their resolution
