"""Between the data path (`pump`), which moves bytes, and `sessions`, which know what may happen: one turn of a session.

The pump authenticates SigV4 callers and parses the head; sessions authorise, resolve, provision; the pump then speaks
HTTP to the agent through connections the turn gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agentkeep.core.call import Caller
from agentkeep.core.errors import ServiceError
from agentkeep.runtime.drivers.driver import Connection
from agentkeep.runtime.sessions.tracing import InvocationSpan
from agentkeep.service.direct import Head

__all__ = ["InvocationRequest", "Invocations", "McpTurn", "Reached", "Turn"]


@dataclass(slots=True)
class Reached:
    """Whom a request reaches, as far as its caller may know: noted by `Invocations`, for the errors it is answered
    with. `protocol` is the runtime's; HTTP as long as nothing is known."""

    protocol: str = "HTTP"


@dataclass(frozen=True, slots=True)
class InvocationRequest:
    """The head of an InvokeAgentRuntime (or WebSocket upgrade). `caller` is None exactly where `bearer` is set: only
    the runtime's authorizer can say who that is. `runtime` is the decoded path label, an ARN or an id."""

    runtime: str
    qualifier: str
    account_id: str | None
    session_id: str | None
    user_id: str | None
    invocation_id: str | None
    caller: Caller | None
    bearer: str | None
    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    operation: str = ""  # where it is another one, on a session as well
    method: str = "POST"
    reached: Reached = field(default_factory=Reached)
    head: Head | None = None  # as it came, if it may be handed on to another replica


class McpTurn(Protocol):
    """The MCP session of a turn."""

    @property
    def host(self) -> str:
        """The agent's own name, with its port: servers that defend themselves against DNS rebinding look at it."""
        ...

    @property
    def session_id(self) -> str:
        """The Mcp-Session-Id the client is told where the server names none."""
        ...

    def begun(self) -> None:
        """The answer has begun. One that only listens for the server's messages (GET) keeps no session busy."""
        ...

    def knows(self, given: str) -> bool:
        """Whether a request with this Mcp-Session-Id would find the session already."""
        ...

    async def bind(self, given: str) -> None:
        """From now on it does. Raises RuntimeClientError."""
        ...


class Turn(Protocol):
    """One request to a live environment. The environment counts as busy from begin to `end`."""

    @property
    def session_id(self) -> str: ...

    @property
    def environment_id(self) -> str:
        """Names the environment; the pump keeps idle connections under it and drops them when it is gone."""
        ...

    @property
    def path(self) -> str:
        """Where the agent takes this protocol's requests (`/invocations`)."""
        ...

    @property
    def mcp(self) -> McpTurn | None:
        """Set where the agent is an MCP server."""
        ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """All headers for the agent but Host and framing: content type, session id, request id, tokens, trace,
        allow-listed ones."""
        ...

    async def connect(self) -> Connection:
        """A new connection to the agent. Raises RuntimeClientError when it cannot be had, RetryableConflictException
        when the environment has just ended: nothing was sent, and another turn gets a new one."""
        ...

    @property
    def span(self) -> InvocationSpan:
        """Told what is sent and what comes back, for the session's trace."""
        ...

    def end(self, error: ServiceError | None = None, proved: bool = True) -> None:
        """Exactly once, when the answer is complete, or with the `error` for which there is none. `proved`: the request
        was whole, and its caller who he said."""
        ...


class Invocations(Protocol):
    def begin_now(self, request: InvocationRequest) -> Turn | None:
        """The turn, if everything needed is known here and nothing must be waited for; else None, and `begin` is
        asked. Raises ServiceError where it already knows the refusal."""
        ...

    async def challenge(self, request: InvocationRequest) -> str | None:
        """For a request that names no caller: how to get a token (`WWW-Authenticate`), where the runtime takes them."""
        ...

    async def begin(self, request: InvocationRequest) -> Turn:
        """Authorises, resolves runtime and qualifier, finds or creates the session's environment (exactly one creator),
        waits until it answers /ping. Raises ServiceError."""
        ...
