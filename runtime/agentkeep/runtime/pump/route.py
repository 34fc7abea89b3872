"""The data path of InvokeAgentRuntime and of an agent's WebSocket, as the front sees it."""

from __future__ import annotations

from agentkeep.runtime.pump.invocation import Invocation
from agentkeep.runtime.pump.limits import PumpLimits
from agentkeep.runtime.pump.pump import Pump
from agentkeep.runtime.pump.run import Run
from agentkeep.runtime.pump.tunnel import Tunnel
from agentkeep.runtime.sessions.turn import Invocations
from agentkeep.service.authentication import Authenticator
from agentkeep.service.direct import ClientConnection, Exchange, Head

__all__ = ["InvocationRoute"]

_DEFAULT_LIMITS = PumpLimits()
_METHODS = frozenset((b"POST", b"GET", b"DELETE"))


class InvocationRoute:
    """/runtimes/{runtime}/invocations (POST; of MCP clients GET and DELETE too) and GET /runtimes/{runtime}/ws.
    A DirectRoute; close it after the front."""

    def __init__(
        self, invocations: Invocations, authenticator: Authenticator, limits: PumpLimits = _DEFAULT_LIMITS
    ) -> None:
        self.pump = Pump(invocations, authenticator, limits)

    def matches(self, method: bytes, path: bytes, websocket: bool) -> bool:
        if not path.startswith(b"/runtimes/"):
            return False
        runtime, _, tail = path[10:].partition(b"/")
        if not runtime:
            return False
        # With a slash at the end: so agents' cards say it (AGENTCORE_RUNTIME_URL).
        if tail == b"invocations" or tail == b"invocations/":
            return method in _METHODS and not websocket
        return tail == b"ws" and websocket

    def open(self, head: Head, connection: ClientConnection) -> Exchange:
        before, connection.memo = connection.memo, None
        if isinstance(before, Run):
            self.pump.runs.forget(before)
        return Tunnel(self.pump, head, connection) if head.websocket else Invocation(self.pump, head, connection)

    def sweep(self, now: float) -> None:
        self.pump.sweep(now)

    def close(self) -> None:
        """Gives up what is still under way."""
        self.pump.close()
