"""What the exchanges of one invocation route share: what they ask, what they keep, and their time limits."""

from __future__ import annotations

from typing import Protocol

from agentkeep.core.errors import ServiceError
from agentkeep.runtime.pump.agent import AgentPool
from agentkeep.runtime.pump.envelopes import RpcId, error_envelope
from agentkeep.runtime.pump.limits import PumpLimits
from agentkeep.runtime.pump.runs import Runs
from agentkeep.runtime.sessions.turn import Invocations
from agentkeep.service.authentication import Authenticator
from agentkeep.service.spool import Spools
from agentkeep.wire.model import service

__all__ = ["Pump", "Timed"]


class Timed(Protocol):
    """What ends when the loop's time has passed `deadline`."""

    deadline: float

    @property
    def replica_lost(self) -> bool:
        """Whether its other end is a replica that is dead."""
        ...

    def expire(self) -> None: ...


class Pump:
    def __init__(self, invocations: Invocations, authenticator: Authenticator, limits: PumpLimits) -> None:
        self.invocations = invocations
        self.authenticator = authenticator
        self.limits = limits
        self.pool = AgentPool(limits)
        self.runs = Runs(limits)
        self.spools = Spools(limits.spooled)
        self.tunnels: set[Timed] = set()
        self.now = 0.0  # the loop's time, as of the last sweep
        self._operation = service("bedrock-agentcore").operation("InvokeAgentRuntime")

    def error_answer(
        self, error: ServiceError, protocol: str = "HTTP", call: RpcId = None
    ) -> tuple[int, list[bytes], bytes]:
        """Status, header lines and body, as the runtime's protocol has them; for HTTP as InvokeAgentRuntime models
        them. `call`: the id of the JSON-RPC request."""
        return error_envelope(error, self._operation, protocol, call)

    def sweep(self, now: float) -> None:
        self.now = now
        self.pool.sweep(now)
        self.runs.sweep(now)
        for tunnel in [tunnel for tunnel in self.tunnels if tunnel.deadline < now or tunnel.replica_lost]:
            tunnel.expire()

    def close(self) -> None:
        """Gives up what is still under way."""
        self.runs.give_up()
        self.pool.close()
