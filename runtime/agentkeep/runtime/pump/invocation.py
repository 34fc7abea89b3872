"""The client's side of InvokeAgentRuntime: the body is taken in and proved, the answer handed out.

What happens to a body depends on its size and on what is known of its sender:

    HOLD      up to 256 KB: held, proved, and only then anything happens because of it
    STREAM    larger, to a session that lives: sent on while it is hashed; the newest piece is held back until the
              signature is proved, so the agent never gets a whole request of somebody else
    SPOOL     larger, and a session would have to be made first: kept on disk until it is proved
    DISCARD   larger, and only its digest matters: the retry of a turn under way, or a refusal that must be proved
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING

from agentkeep.core.call import Caller
from agentkeep.core.errors import (
    InternalServerException,
    RetryableConflictException,
    ServiceError,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.core.ports import AccessKey
from agentkeep.runtime.invocations.headers import SESSION_HEADER, USER_HEADER
from agentkeep.runtime.pump.envelopes import rpc_id
from agentkeep.runtime.pump.pump import Pump
from agentkeep.runtime.pump.run import Run
from agentkeep.runtime.pump.target import (
    Attempt,
    attempt,
    bearer_token,
    parse_target,
    text_headers,
)
from agentkeep.runtime.replicas.forwarding import FORWARDED
from agentkeep.runtime.sessions.turn import InvocationRequest, Reached
from agentkeep.service.authentication import Claim
from agentkeep.service.direct import ClientConnection, Exchange, Head
from agentkeep.service.spool import Spool

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

__all__ = ["Invocation"]

logger = logging.getLogger(__name__)

_FIRST = Attempt(1, False)


class _Mode(Enum):
    HOLD = "hold"
    STREAM = "stream"
    SPOOL = "spool"
    DISCARD = "discard"


class Invocation(Exchange):
    def __init__(self, pump: Pump, head: Head, connection: ClientConnection) -> None:
        super().__init__(head, connection)
        self._pump = pump
        self._mode = _Mode.HOLD
        self._size = 0
        self._parts: list[bytes] = []
        self._hash: Hash | None = None  # of a body that is not held
        self._held = b""
        self._spool: Spool | None = None
        self._claim: Claim | None = None
        self._access: AccessKey | None = None
        self._request: InvocationRequest | None = None  # known with its caller
        self._reached = Reached()
        self._call = b""  # the body, if it was held, until an answer begins: an error may have to name its call
        self._headers: dict[str, str] = {}
        self._attempt = _FIRST
        self._key: object | None = None
        self._retried: Run | None = None
        self._run: Run | None = None
        self._refusal: ServiceError | None = None  # told once the caller is proved
        self._task: asyncio.Task[None] | None = None

    # The head.

    def on_open(self) -> None:
        pump, head = self._pump, self.head
        try:
            self._headers = text_headers(head.headers)
            if head.method != b"POST" and head.length != 0:
                raise ValidationException(f"A {head.method.decode()} request has no body here")
            if head.length is not None and head.length > pump.limits.body:
                raise _too_large(pump.limits.body)
            bearer = bearer_token(self._headers, head.session)
            if bearer is not None:
                self._identified(None, bearer)
                return
            claim = self._claim = pump.authenticator.claim(head.method, head.path, head.query, head.headers)
            access = pump.authenticator.cached(claim, head.session)
            if access is not None:
                self._access = access
                self._identified(access.caller, None)
            else:
                self._task = asyncio.get_running_loop().create_task(self._find_key(claim))
        except UnauthorizedException as error:
            if head.session is None and b"authorization" not in head.headers and b"X-Amz-" not in head.query:
                self.refused = True
                self._task = asyncio.get_running_loop().create_task(self._challenge(error))
            else:
                self.answer_failed(error)
        except ServiceError as error:
            self.answer_failed(error)

    async def _challenge(self, error: UnauthorizedException) -> None:
        """Nobody has signed, and there is no token: where tokens are taken, the answer says how to get one."""
        try:
            challenge = await self._pump.invocations.challenge(self._asked(None, ""))
        except ServiceError as refused:
            self.answer_failed(refused)
        except Exception:
            logger.exception("invocation %s failed", self.request_id)
            self.answer_failed(InternalServerException("The invocation failed. The platform's log says more"))
        else:
            if challenge is not None:
                error = UnauthorizedException("Missing authentication token", challenge)
            self.answer_failed(error)

    async def _find_key(self, claim: Claim) -> None:
        try:
            self._access = await self._pump.authenticator.find(claim, self.head.session)
            if not self.response_complete:
                self._identified(self._access.caller, None)
                if self.received:
                    self._whole()
                elif self._size > self._pump.limits.held_body:
                    self.take_body(True)
                    self._overflow()  # may stop the body again
        except ServiceError as error:
            self.answer_failed(error)
        except Exception:
            logger.exception("invocation %s failed", self.request_id)
            self.answer_failed(InternalServerException("The invocation failed. The platform's log says more"))

    def _identified(self, caller: Caller | None, bearer: str | None) -> None:
        headers, head = self._headers, self.head
        request = self._request = self._asked(caller, bearer)
        invocation_id, session_id = request.invocation_id, request.session_id
        if invocation_id is not None and session_id is not None and caller is not None and request.method == "POST":
            self._key = (caller.principal, head.path, head.query, request.user_id, session_id, invocation_id)
            self._attempt = attempt(headers.get("amz-sdk-request", ""))
            if self._attempt.number > 1:
                self._retried = self._pump.runs.get(self._key)

    def _asked(self, caller: Caller | None, bearer: str | None) -> InvocationRequest:
        headers, head = self._headers, self.head
        target = parse_target(head.path, head.query)
        return InvocationRequest(
            target.runtime,
            target.qualifier,
            target.account_id,
            headers.get(SESSION_HEADER) or None,
            headers.get(USER_HEADER),
            headers.get("amz-sdk-invocation-id"),
            caller,
            bearer,
            self.request_id,
            headers,
            head=None if FORWARDED in headers else head,
            method=head.method.decode(),
            reached=self._reached,
        )

    # The body.

    def on_body(self, data: bytes) -> None:
        if self.response_complete:
            return
        limits = self._pump.limits
        self._size += len(data)
        if self._size > limits.body:
            self.answer_failed(_too_large(limits.body))
        elif self._mode is _Mode.HOLD:
            self._parts.append(data)
            if self._size > limits.held_body:
                if self._request is None:
                    self.connection.pause_body()  # until the caller's key was looked up
                else:
                    self._overflow()
        elif self._hash is not None:
            self._hash.update(data)
            self._relay(data)

    def _overflow(self) -> None:
        """The body is larger than what is held."""
        assert self._request is not None
        parts, self._parts = self._parts, []
        self._hash = sha256(b"".join(parts))
        self._mode = _Mode.DISCARD
        if self._retried is not None:
            return
        try:
            # Without a session that lives, nothing may be made for a caller who is not proved.
            turn = self._pump.invocations.begin_now(self._request) if self._claim is not None else None
        except ServiceError as error:
            self._refusal = error
            return
        if turn is None and self._claim is not None:
            self._mode = _Mode.SPOOL
            self._spool = self._pump.spools.open()
        else:
            self._mode = _Mode.STREAM
            self._run = Run(self._pump, self._request, self, self._key)
            self._run.stream(self.head.length, turn)
        for part in parts:
            self._relay(part)

    def _relay(self, data: bytes) -> None:
        if self._mode is _Mode.STREAM:
            assert self._run is not None
            held, self._held = self._held, data
            if held:
                self._run.feed(held)
        elif self._spool is not None:
            try:
                self._spool.write(data)
            except ServiceError as error:
                self.answer_failed(error)

    def on_request_end(self) -> None:
        if not self.response_complete and self._request is not None:
            self._whole()

    def _whole(self) -> None:
        """The body is complete and the caller known: now the signature can be proved."""
        request = self._request
        assert request is not None
        body = b""
        if self._mode is _Mode.HOLD:
            parts, self._parts = self._parts, []
            body = self._call = parts[0] if len(parts) == 1 else b"".join(parts)
        digest = (self._hash or sha256(body)).hexdigest()
        try:
            if self._claim is not None:
                assert self._access is not None
                self._pump.authenticator.prove(self._claim, self._access, digest)
            if self._refusal is not None:
                raise self._refusal
            if self._retried is not None and self._attach(self._retried, digest):
                return
            if self._mode is _Mode.DISCARD:
                raise RetryableConflictException("The invocation this one repeats has just ended. Send it again")
        except ServiceError as error:
            self._drop()
            self.answer_failed(error)
            return
        if self._mode is _Mode.STREAM:
            assert self._run is not None
            held, self._held = self._held, b""
            self._run.feed(held)
            self._run.finish(digest)
            return
        run = self._run = Run(self._pump, request, self, self._key)
        if self._spool is not None:
            spool, self._spool = self._spool, None
            run.send(spool, digest)
        else:
            run.send(body, digest)

    def _attach(self, run: Run, digest: str) -> bool:
        """Whether the answer of the turn under way is the answer to this retry of it."""
        if run.digest is not None and run.digest != digest:
            raise ValidationException(
                "amz-sdk-invocation-id names an invocation with another payload", "IdempotentParameterMismatchException"
            )
        if run.attachable:
            self._run = run
            run.attach(self)
            return True
        if not run.over:
            raise RetryableConflictException("The invocation is being answered on another connection")
        return False

    def _drop(self) -> None:
        if self._run is not None:
            self._run.give_up()
        if self._spool is not None:
            self._spool.close()

    # The client.

    def on_client_blocked(self, blocked: bool) -> None:
        if self._run is not None:
            self._run.client_blocked(blocked)

    def on_client_lost(self) -> None:
        if self._run is not None:
            self._run.client_lost(may_retry=not self.started and not self._attempt.last)
        if self._spool is not None:
            self._spool.close()

    def take_body(self, ready: bool) -> None:
        if ready:
            self.connection.resume_body()
        else:
            self.connection.pause_body()

    def superseded(self) -> None:
        self.cut()

    # The answer.

    def answer_started(self, status: int, fields: list[bytes], length: int | None) -> None:
        self._call = b""
        self.request_id = self._run.request_id if self._run is not None else self.request_id
        self.start(status, fields, length)

    def answer_data(self, data: bytes) -> None:
        self.send(data)

    def answer_pause(self) -> None:
        self.flush()

    def answer_complete(self) -> None:
        run = self._run
        if run is not None and run.key is not None:
            self.connection.memo = run  # the next request on this connection shows that the answer arrived
        self.end()

    def answer_failed(self, error: ServiceError) -> None:
        if self.response_complete:
            return
        if self.started:
            self.cut()
            return
        if not self.received and self._run is not None:
            self._run.give_up()
        # A retry that joined another's run has found out nothing by itself.
        protocol = self._reached.protocol if self._run is None else self._run.protocol
        call = rpc_id(self._call) if protocol in ("MCP", "A2A") and self._call else None
        status, fields, body = self._pump.error_answer(error, protocol, call)
        self.answer(status, fields, body)


def _too_large(limit: int) -> ValidationException:
    return ValidationException(f"payload is larger than {limit} bytes")
