"""An agent's WebSocket: the upgrade is authenticated and answered by us, then bytes are moved both ways."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from hashlib import sha256
from typing import cast

import httptools

from agentkeep.core.errors import (
    InternalServerException,
    RuntimeClientError,
    ServiceError,
    UnauthorizedException,
)
from agentkeep.runtime.drivers.driver import Connection
from agentkeep.runtime.invocations.headers import SESSION_HEADER, USER_HEADER
from agentkeep.runtime.invocations.protocols import WEB_SOCKET
from agentkeep.runtime.pump.agent import MOST_FRAMING
from agentkeep.runtime.pump.heads import agent_refused, upgrade_answer, upgrade_head
from agentkeep.runtime.pump.pump import Pump
from agentkeep.runtime.pump.target import bearer_token, parse_target, query_headers, text_headers
from agentkeep.runtime.replicas.forwarding import FORWARDED, ForwardedTurn, OwnerChanged
from agentkeep.runtime.sessions.table import in_progress
from agentkeep.runtime.sessions.turn import InvocationRequest, Turn
from agentkeep.service.direct import ClientConnection, Exchange, Head

__all__ = ["Tunnel"]

logger = logging.getLogger(__name__)

_NO_BODY = sha256(b"").hexdigest()
_NEVER = float("inf")
_TRIES = 5


class Tunnel(Exchange):
    """States: opening (head proved, turn and agent's connection awaited), upgrading (the agent's 101 awaited),
    tunnelled."""

    def __init__(self, pump: Pump, head: Head, connection: ClientConnection) -> None:
        super().__init__(head, connection)
        self._pump = pump
        self._turn: Turn | None = None
        self._agent: _AgentEnd | None = None
        self._task: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self.deadline = _NEVER

    def on_open(self) -> None:
        # What follows the head is the WebSocket's; an answer instead of it ends the connection.
        self.keep_alive = False
        self.tunnelled = True
        self.received = True
        self._pump.tunnels.add(self)
        self._task = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        pump = self._pump
        try:
            request = await self._authenticated()
            for _ in range(_TRIES):
                turn = await pump.invocations.begin(request)
                if self.response_complete:
                    turn.end()
                    return
                self._turn = turn
                try:
                    opened = await turn.connect()
                    break
                except OwnerChanged:
                    self._turn = None
                    turn.end()
            else:
                raise in_progress()
            handed_on = isinstance(turn, ForwardedTurn)
            _, agent = await asyncio.get_running_loop().create_connection(
                lambda: _AgentEnd(self, opened, handed_on=handed_on), sock=opened.socket
            )
            if self.response_complete:
                agent.transport.abort()
                return
        except ServiceError as error:
            self._fail(error)
        except OSError:
            self._fail(RuntimeClientError("The runtime's environment closed the connection"))
        except Exception:
            logger.exception("WebSocket %s failed", self.request_id)
            self._fail(InternalServerException("The WebSocket failed. The platform's log says more"))
        else:
            self._agent = agent
            self.deadline = pump.now + pump.limits.first_byte
            agent.transport.write(upgrade_head(turn, self.head.headers))

    async def _authenticated(self) -> InvocationRequest:
        head, authenticator = self.head, self._pump.authenticator
        asked = self._asked(bearer_token(text_headers(head.headers), head.session))
        if asked.bearer is not None:
            return asked
        try:
            claim = authenticator.claim(head.method, head.path, head.query, head.headers)
        except UnauthorizedException:
            if head.session is None and b"authorization" not in head.headers and b"X-Amz-" not in head.query:
                # Nobody has signed, and there is no token: where tokens are taken, the answer says how to get one.
                challenge = await self._pump.invocations.challenge(asked)
                if challenge is not None:
                    raise UnauthorizedException("Missing authentication token", challenge) from None
            raise
        access = authenticator.cached(claim, head.session) or await authenticator.find(claim, head.session)
        authenticator.prove(claim, access, _NO_BODY)
        return replace(asked, caller=access.caller)

    def _asked(self, bearer: str | None) -> InvocationRequest:
        head, headers = self.head, text_headers(self.head.headers)
        target = parse_target(head.path, head.query)
        given = query_headers(target.query)
        session_id = headers.get(SESSION_HEADER) or given.pop(SESSION_HEADER, None)
        user_id = headers.get(USER_HEADER) or given.pop(USER_HEADER, None)
        return InvocationRequest(
            target.runtime,
            target.qualifier,
            target.account_id,
            session_id,
            user_id,
            None,
            None,
            bearer,
            self.request_id,
            {**given, **headers},
            # Sessions' own WebSockets stay on their replica: internal listeners take none.
            head=None if FORWARDED in headers or head.session is not None else head,
            operation=WEB_SOCKET,
        )

    # The agent's end.

    def agreed(self, fields: list[tuple[bytes, bytes]], rest: bytes) -> None:
        """The agent took the upgrade."""
        assert self._turn is not None
        self._turn.span.answered(101)
        head = upgrade_answer(self.request_id, self._turn.session_id, fields)
        self.started = True
        self.deadline = self._pump.now + self._pump.limits.tunnel
        self.connection.transport.write(head + rest)
        early, self._early = self._early, []
        self.connection.resume_body()
        if self._agent is not None and early:
            self._agent.transport.write(b"".join(early))  # may pause the client again

    def answered_elsewhere(self) -> None:
        """The replica that runs the session answers, whatever it is: from here on bytes are moved."""
        self.started = True
        self.deadline = self._pump.now + self._pump.limits.tunnel
        early, self._early = self._early, []
        self.connection.resume_body()
        if self._agent is not None and early:
            self._agent.transport.write(b"".join(early))

    def declined(self, status: int) -> None:
        self._fail(agent_refused(status))

    def from_agent(self, data: bytes) -> None:
        self.connection.transport.write(data)

    def agent_blocked(self, blocked: bool) -> None:
        if blocked:
            self.connection.pause_body()
        else:
            self.connection.resume_body()

    def agent_lost(self) -> None:
        self._agent = None
        if self.started:
            self._over()
            self.connection.transport.close()
        else:
            self._fail(RuntimeClientError("The runtime closed the connection before its answer was complete"))

    # The client's end.

    def on_upgrade(self, rest: bytes) -> None:
        if rest:
            self.on_tunnel_data(rest)

    def on_tunnel_data(self, data: bytes) -> None:
        if self.started and self._agent is not None:
            self._agent.transport.write(data)
        elif not self.response_complete:
            self._early.append(data)
            self.connection.pause_body()

    def on_client_blocked(self, blocked: bool) -> None:
        if self._agent is not None:
            self._agent.pause(blocked)

    def on_client_lost(self) -> None:
        self._over()

    @property
    def replica_lost(self) -> bool:
        return self._agent is not None and isinstance(self._turn, ForwardedTurn) and self._turn.lost

    def expire(self) -> None:
        if self.started:
            self._over()
            self.cut()
        else:
            self._fail(RuntimeClientError("The runtime did not take the WebSocket in time"))

    # Endings.

    def _fail(self, error: ServiceError) -> None:
        self._over(error)
        if not self.response_complete:
            self.tunnelled = False
            status, fields, body = self._pump.error_answer(error)
            self.answer(status, fields, body)

    def _over(self, error: ServiceError | None = None) -> None:
        self.deadline = _NEVER
        self._pump.tunnels.discard(self)
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.leave()
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.end(error)


class _AgentEnd(asyncio.Protocol):
    transport: asyncio.Transport

    """`handed_on`: the other end is a replica, whose answer is the client's as it is."""

    def __init__(self, tunnel: Tunnel, connection: Connection, *, handed_on: bool) -> None:
        self._handed_on = handed_on
        self._tunnel: Tunnel | None = tunnel
        self._connection = connection
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0

    def leave(self) -> None:
        self._tunnel = None
        self.transport.abort()

    def pause(self, paused: bool) -> None:
        if not self.transport.is_closing():
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        tunnel = self._tunnel
        if tunnel is None:
            return
        if self._handed_on:
            if self._parser is not None:
                self._parser = None
                tunnel.answered_elsewhere()
            tunnel.from_agent(data)
            return
        if self._parser is None:
            tunnel.from_agent(data)
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parser = None
            tunnel.agreed(self._fields, data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.transport.abort()
        else:
            if self._head_bytes > MOST_FRAMING:
                self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status != 101 and self._tunnel is not None:
            self._tunnel.declined(status)

    def pause_writing(self) -> None:
        if self._tunnel is not None:
            self._tunnel.agent_blocked(True)

    def resume_writing(self) -> None:
        if self._tunnel is not None:
            self._tunnel.agent_blocked(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.release()
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.agent_lost()
