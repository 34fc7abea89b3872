"""A call that does not pass."""

from __future__ import annotations

from agentkeep.core.errors import AgentkeepError

__all__ = ["Refused"]


class Refused(AgentkeepError):
    """The message says what is wrong with it."""
