"""The data path of InvokeAgentRuntime and of an agent's WebSocket, as the front sees it."""

from __future__ import annotations

from agentkeep.core.errors import ServiceError
from agentkeep.runtime.pump.agent import AgentPool
from agentkeep.runtime.pump.invocation import Invocation
from agentkeep.runtime.pump.limits import PumpLimits
from agentkeep.runtime.pump.run import Run
from agentkeep.runtime.pump.runs import Runs
from agentkeep.runtime.pump.tunnel import Tunnel
from agentkeep.runtime.turn import Invocations
from agentkeep.service.answers import error_answer
from agentkeep.service.authentication import Authenticator
from agentkeep.service.direct import ClientConnection, Exchange, Head
from agentkeep.service.spool import Spools
from agentkeep.wire.model import service

__all__ = ["InvocationRoute"]

_DEFAULT_LIMITS = PumpLimits()


class InvocationRoute:
    """POST /runtimes/{runtime}/invocations and GET /runtimes/{runtime}/ws. A DirectRoute; close it after the front."""

    def __init__(
        self, invocations: Invocations, authenticator: Authenticator, limits: PumpLimits = _DEFAULT_LIMITS
    ) -> None:
        self.invocations = invocations
        self.authenticator = authenticator
        self.limits = limits
        self.pool = AgentPool(limits)
        self.runs = Runs(limits)
        self.spools = Spools(limits.spooled)
        self.tunnels: set[Tunnel] = set()
        self.now = 0.0
        self._operation = service("bedrock-agentcore").operation("InvokeAgentRuntime")

    def matches(self, method: bytes, path: bytes, websocket: bool) -> bool:
        if not path.startswith(b"/runtimes/"):
            return False
        runtime, _, tail = path[10:].partition(b"/")
        if not runtime:
            return False
        return (tail == b"invocations" and method == b"POST") or (tail == b"ws" and websocket)

    def open(self, head: Head, connection: ClientConnection) -> Exchange:
        before, connection.memo = connection.memo, None
        if isinstance(before, Run):
            self.runs.forget(before)
        return Tunnel(self, head, connection) if head.websocket else Invocation(self, head, connection)

    def sweep(self, now: float) -> None:
        self.now = now
        self.pool.sweep(now)
        self.runs.sweep(now)
        for tunnel in [tunnel for tunnel in self.tunnels if tunnel.deadline < now]:
            tunnel.expire()

    def error_answer(self, error: ServiceError) -> tuple[int, list[bytes], bytes]:
        return error_answer(error, self._operation)

    def close(self) -> None:
        """Gives up what is still under way."""
        self.runs.give_up()
        self.pool.close()
