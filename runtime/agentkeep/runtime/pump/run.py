"""One turn on its way: the request to the agent, and the answer for whichever client waits for it.

    WAITING ──▶ SENDING ──▶ ANSWERING ──▶ COMPLETE
       └───────────┴────────────┴───────▶ FAILED        (refused, agent lost, too slow, given up)

A run outlives its client's connection where the client said that it retries (`amz-sdk-invocation-id`) and has seen
nothing of the answer: the retry attaches to it, so that the agent works once. What was answered is recorded as long
as it is small, for a retry whose client never got it.
"""

from __future__ import annotations

import asyncio
import logging

from agentkeep.core.errors import InternalServerException, RuntimeClientError, ServiceError
from agentkeep.runtime.pump.agent import AgentConnection, Fields
from agentkeep.runtime.pump.forward import forwarded_answer
from agentkeep.runtime.pump.heads import agent_refused, answer_fields, invocation_head
from agentkeep.runtime.pump.mcp import McpAnswer, passes
from agentkeep.runtime.pump.parties import AgentTooSlow, Client, Means, RunState
from agentkeep.runtime.replicas.forwarding import ForwardedTurn, OwnerChanged
from agentkeep.runtime.sessions.table import in_progress
from agentkeep.runtime.sessions.turn import InvocationRequest, Turn
from agentkeep.service.spool import Spool

__all__ = ["Run"]

logger = logging.getLogger(__name__)

_NEVER = float("inf")
#: Replicas asked for one session, each of which had died or lost it.
_TRIES = 5


class Run:
    """`client` sends the request, and receives the answer once the request is whole: nothing is answered to a caller
    whose signature is not proved yet. `key` names the invocation among its retries; None: there are none."""

    def __init__(self, pump: Means[Run], request: InvocationRequest, client: Client, key: object | None) -> None:
        self.state = RunState.WAITING
        self.digest: str | None = None  # of the body: a retry's must be the same
        self.deadline = _NEVER
        self.detached_since = _NEVER  # no client: a retry is awaited
        self.key = key
        self.request_id = request.request_id  # by which whoever answers knows it
        self.recorded_size = 0
        self._recorded: list[bytes] | None = []
        self._pump = pump
        self._request = request
        self._sender: Client | None = client
        self._client: Client | None = None
        self._turn: Turn | None = None
        self._agent: AgentConnection | None = None
        self._head: tuple[int, list[bytes], int | None] | None = None
        self._error: ServiceError | None = None
        self._opening = False
        self._task: asyncio.Task[None] | None = None
        # The request: `body` whole; or in pieces, framed by `length` (None: chunked).
        self._body: bytes | Spool | None = None
        self._length: int | None = None
        self._pieces: list[bytes] = []
        self._ended = False

    # The request.

    def send(self, body: bytes | Spool, digest: str) -> None:
        """Begins the turn with a body that is whole."""
        self._body = body
        self.digest = digest
        self._ended = True
        self._client, self._sender = self._sender, None
        if self.key is None:
            self._recorded = None
        self._open()

    def stream(self, length: int | None, turn: Turn | None = None) -> None:
        """Begins the turn with a body still to come, by `feed` and `finish`."""
        self._length = length
        self._turn = turn
        self._open()

    def feed(self, data: bytes) -> None:
        if self._agent is not None:
            self._note(data)
            self.deadline = self._pump.now + self._pump.limits.first_byte
            self._agent.write(b"%x\r\n%b\r\n" % (len(data), data) if self._length is None else data, False)
        elif self.state is RunState.WAITING:
            self._pieces.append(data)

    def finish(self, digest: str) -> None:
        """The body is whole and proved: whoever sent it gets the answer."""
        self.digest = digest
        self._ended = True
        if self._agent is not None:
            self._finish_body()
        sender, self._sender = self._sender, None
        if sender is not None:
            self.attach(sender)

    def _finish_body(self) -> None:
        if self._agent is not None:
            self._agent.write(b"0\r\n\r\n" if self._length is None else b"", True)

    # The client.

    @property
    def attachable(self) -> bool:
        """Whether a retry would get the whole answer: nothing of it has been let go."""
        return self._recorded is not None and self._ended

    @property
    def protocol(self) -> str:
        """The runtime's, as far as it is known."""
        return self._request.reached.protocol

    @property
    def replica_lost(self) -> bool:
        """Whether it waits for a replica that is dead."""
        return self._agent is not None and isinstance(self._turn, ForwardedTurn) and self._turn.lost

    @property
    def over(self) -> bool:
        return self.state is RunState.COMPLETE or self.state is RunState.FAILED

    def attach(self, client: Client) -> None:
        """From here on `client` gets the answer, from its beginning. A client before it has given up, and is cut."""
        before, self._client = self._client, client
        self.detached_since = _NEVER
        if before is not None and not self.over:
            before.superseded()
        if self._head is not None:
            client.answer_started(*self._head)
            for data in self._recorded or ():
                client.answer_data(data)
            client.answer_pause()
        if self.key is None:
            self._recorded = None
        if self._error is not None:
            client.answer_failed(self._error)
            self._pump.runs.forget(self)
            self._client = None
        elif self.state is RunState.COMPLETE:
            self._client = None
            client.answer_complete()
        elif self._agent is not None:
            self._agent.pause(False)

    def client_blocked(self, blocked: bool) -> None:
        if self._agent is not None and self._ended:
            self._agent.pause(blocked)

    def client_lost(self, may_retry: bool) -> None:
        """`may_retry`: the client has said that it would, and has seen nothing of the answer."""
        self._client = self._sender = None
        if may_retry and self.key is not None and self.attachable and not self.over:
            self.detached_since = self._pump.now
            if self._agent is not None:
                self._agent.pause(False)
        else:
            self.give_up()

    def give_up(self) -> None:
        """Nobody wants the answer: the agent's server sees its client leave."""
        self._client = self._sender = self._recorded = None
        self.fail(RuntimeClientError("The invocation was given up"))
        self._pump.runs.forget(self)

    # Opening.

    def _open(self) -> None:
        """Most often all that is needed is at hand, and nothing is waited for."""
        pump = self._pump
        pump.runs.add(self)
        try:
            if self._turn is None:
                self._turn = pump.invocations.begin_now(self._request)
            agent = pump.pool.take(self._turn.environment_id) if self._turn is not None else None
        except ServiceError as error:
            self.fail(error)
        except Exception:
            self._fail_unexpectedly()
        else:
            if agent is not None:
                self._begin(agent)
                return
            if self._sender is not None:
                self._sender.take_body(False)
            self._opening = True
            self._task = asyncio.get_running_loop().create_task(self._open_slowly())

    async def _open_slowly(self) -> None:
        """Not cancelled when the client leaves: a session half made would be nobody's. Whoever prepares the session
        has time limits of his own."""
        agent = None
        try:
            agent = await self._opened()
        except ServiceError as error:
            self.fail(error)
        except Exception:
            self._fail_unexpectedly()
        self._opening = False
        if self.over:
            if agent is not None:
                agent.transport.close()
            self._end_turn()
            return
        assert agent is not None
        self._begin(agent)
        if self._sender is not None:
            self._sender.take_body(not agent.blocked)

    async def _opened(self) -> AgentConnection | None:
        """None: it is over already."""
        pump = self._pump
        for _ in range(_TRIES):
            agent = None
            if self._turn is None:
                self._turn = await pump.invocations.begin(self._request)
                agent = pump.pool.take(self._turn.environment_id)
            try:
                if agent is None and not self.over:
                    agent = await pump.pool.connect(self._turn)
                return agent
            except OwnerChanged:
                turn, self._turn = self._turn, None
                turn.end()
        raise in_progress()

    def _hand_on(self) -> bool:
        """What another replica runs can be retried through any: that one knows it, and nothing of it is kept here.
        False: nobody waits for it now."""
        self._pump.runs.release(self)
        if self._client is None and self._sender is None:
            return False
        if self._client is not None:
            self._recorded = None
        return True

    def _begin(self, agent: AgentConnection) -> None:
        turn, body = self._turn, self._body
        assert turn is not None
        if isinstance(turn, ForwardedTurn) and not self._hand_on():
            agent.transport.close()
            self.give_up()
            return
        self._agent = agent
        self.state = RunState.SENDING
        self.deadline = self._pump.now + self._pump.limits.first_byte
        method = self._request.method
        out = invocation_head(turn, method)
        receiver = self if turn.mcp is None else McpAnswer(self, agent, turn.mcp)
        if isinstance(body, bytes):
            self._body = None
            turn.span.sent(body)
            out += (b"content-length: %d\r\n\r\n" % len(body) if method == "POST" else b"\r\n", body)
            agent.request(receiver, b"".join(out), True)
            return
        length = body.size if body is not None else self._length
        out.append(b"transfer-encoding: chunked\r\n\r\n" if length is None else b"content-length: %d\r\n\r\n" % length)
        agent.request(receiver, b"".join(out), False)
        if body is not None:
            self._task = asyncio.get_running_loop().create_task(self._send_spooled(body))
            return
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            self.feed(piece)
        if self._ended:
            self._finish_body()

    def _note(self, data: bytes) -> None:
        if self._turn is not None:
            self._turn.span.sent(data)

    async def _send_spooled(self, body: Spool) -> None:
        try:
            with body:
                while self._agent is not None and (piece := body.read()):
                    self._note(piece)
                    self.deadline = self._pump.now + self._pump.limits.first_byte
                    self._agent.write(piece, body.exhausted)
                    await self._agent.drained()
        except Exception:
            self._fail_unexpectedly()

    # The agent's answer.

    def on_answer(self, status: int, fields: Fields) -> None:
        self.deadline = self._pump.now + self._pump.limits.gap
        turn = self._turn
        assert turn is not None
        if isinstance(turn, ForwardedTurn):
            turn.span.answered(status)
            request_id, out, length = forwarded_answer(fields)
            self.request_id = request_id or self.request_id
            self._answer(status, out, length)
            return
        if status >= 400 and (turn.mcp is None or not passes(status)):
            self.fail(agent_refused(status))
            return
        turn.span.answered(status)
        if turn.mcp is not None:
            turn.mcp.begun()
        self._answer(status, *answer_fields(turn, status, fields))

    def _answer(self, status: int, out: list[bytes], length: int | None) -> None:
        self.state = RunState.ANSWERING
        self._head = (status, out, length)
        if self._client is not None:
            self._client.answer_started(status, out, length)

    def on_answer_data(self, data: bytes) -> None:
        if self._turn is not None:
            self._turn.span.received(data)
        if self._recorded is not None:
            self._record(data)
        if self._client is not None:
            self._client.answer_data(data)

    def _record(self, data: bytes) -> None:
        assert self._recorded is not None
        self.recorded_size += len(data)
        if self.recorded_size <= self._pump.limits.kept_answer:
            self._recorded.append(data)
        elif self._client is not None:
            self._recorded = None  # too large to keep: a retry would find it incomplete
            self.recorded_size = 0
        else:
            self._recorded.append(data)
            if self._agent is not None:
                self._agent.pause(True)  # until a client comes

    def on_answer_pause(self) -> None:
        self.deadline = self._pump.now + self._pump.limits.gap
        if self._client is not None:
            self._client.answer_pause()

    def on_answer_end(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            self._pump.pool.give_back(agent)
        self.state = RunState.COMPLETE
        self._end_turn()
        self._pump.runs.ended(self)
        if self._sender is not None:
            self._sender.take_body(True)  # nobody reads it any more; it is still to be proved
        client, self._client = self._client, None  # and no cycle is left for the garbage collector
        if client is not None:
            client.answer_complete()

    def on_agent_blocked(self, blocked: bool) -> None:
        if self._sender is not None:
            self._sender.take_body(not blocked)

    def on_agent_lost(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.abort()
        if isinstance(self._turn, ForwardedTurn):
            # What its client would see of a server that is gone; SDKs retry it.
            self.fail(InternalServerException("The replica that runs the session was lost before its answer ended"))
            return
        self.fail(RuntimeClientError("The runtime closed the connection before its answer was complete"))

    def expire(self) -> None:
        """The deadline has passed."""
        self.fail(AgentTooSlow("The runtime did not answer in time"))

    # Endings.

    def _fail_unexpectedly(self) -> None:
        logger.exception("invocation %s failed", self._request.request_id)
        self.fail(InternalServerException("The invocation failed. The platform's log says more"))

    def fail(self, error: ServiceError) -> None:
        """There is no answer, or not all of it."""
        if self.over:
            return
        if self.state is RunState.WAITING or self._client is not None:
            self._recorded = None  # the agent did not work, or the client hears of it: a retry is a new turn
        self.state = RunState.FAILED
        self._error = error
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.abort()
        self._pieces.clear()
        if isinstance(self._body, Spool):
            self._body.close()
        if not self._opening:
            self._end_turn()
        self._pump.runs.ended(self)
        if self._sender is not None:
            self._sender.take_body(True)
        client, self._client = self._client, None
        if client is not None:
            client.answer_failed(error)

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.end(self._error, self._ended)
