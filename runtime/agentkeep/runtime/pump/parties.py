"""What a run is in, and whom it deals with: the client that waits for the answer, and what its route gives it."""

from __future__ import annotations

from enum import Enum
from typing import Protocol, TypeVar

from agentkeep.core.errors import ServiceError
from agentkeep.runtime.pump.agent import AgentPool
from agentkeep.runtime.pump.limits import PumpLimits
from agentkeep.runtime.sessions.turn import Invocations

__all__ = ["AgentTooSlow", "Client", "Means", "RunState"]

#: A run.
R = TypeVar("R", contravariant=True)


class AgentTooSlow(ServiceError):
    """AgentCore answers 504 without an error type; clients see the code "504" and retry."""

    status = 504

    @property
    def code(self) -> str:
        return ""


class RunState(Enum):
    WAITING = "waiting"  # for a turn, a connection
    SENDING = "sending"  # the request is on its way, or waits for its answer
    ANSWERING = "answering"
    COMPLETE = "complete"
    FAILED = "failed"


class Client(Protocol):
    """Who waits for the answer: the exchange on a client's connection."""

    def answer_started(self, status: int, fields: list[bytes], length: int | None) -> None: ...
    def answer_data(self, data: bytes) -> None: ...
    def answer_pause(self) -> None: ...
    def answer_complete(self) -> None: ...
    def answer_failed(self, error: ServiceError) -> None: ...
    def take_body(self, ready: bool) -> None:
        """Whether the agent takes more of the request's body now."""
        ...

    def superseded(self) -> None:
        """A retry of the same client has taken the answer over."""
        ...


class Register(Protocol[R]):
    """Where a run is found again by its client's retries (`Runs`)."""

    def add(self, run: R, /) -> None: ...
    def ended(self, run: R, /) -> None: ...
    def forget(self, run: R, /) -> None: ...
    def release(self, run: R, /) -> None: ...


class Means(Protocol[R]):
    """What a run works with (`Pump`)."""

    @property
    def invocations(self) -> Invocations: ...
    @property
    def limits(self) -> PumpLimits: ...
    @property
    def pool(self) -> AgentPool: ...
    @property
    def runs(self) -> Register[R]: ...
    @property
    def now(self) -> float: ...
