"""InvokeAgentRuntime, from the request's head to a turn of a live session. The bytes are the pump's."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Final

from opentelemetry.util.types import AttributeValue

from agentkeep.core.acting import ActingForUsers
from agentkeep.core.alarm import Alarm
from agentkeep.core.call import Caller, CallerKind, Idempotency, SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AccessDeniedException,
    CrossUserAccess,
    FieldError,
    ResourceNotFoundException,
    RoleRefused,
    ServiceError,
    UnauthorizedException,
)
from agentkeep.core.ports import WorkloadTokens
from agentkeep.core.telemetry import RUNTIME_ID, owned_by, step
from agentkeep.runtime.agents.rules import invalid
from agentkeep.runtime.agents.targets import Target, Targets
from agentkeep.runtime.invocations.admission import TurnLimits
from agentkeep.runtime.invocations.authorization import Authorization, not_accepted
from agentkeep.runtime.invocations.headers import agent_headers
from agentkeep.runtime.invocations.mcp_sessions import MCP_SESSION_HEADER, SESSION_ID, McpSessions, SessionMcpTurn
from agentkeep.runtime.invocations.protocols import INVOKE, action, admit, is_message
from agentkeep.runtime.invocations.session_turn import SessionTurn
from agentkeep.runtime.records import DEFAULT_ENDPOINT, SessionState
from agentkeep.runtime.replicas.forwarding import ForwardedTurn, Forwarding
from agentkeep.runtime.sessions.session import Session
from agentkeep.runtime.sessions.sessions import Sessions
from agentkeep.runtime.sessions.table import OwnedElsewhere, other_user
from agentkeep.runtime.sessions.tracing import InvocationSpan, about_session, refused_invocation, session_owner
from agentkeep.runtime.sessions.turn import InvocationRequest
from agentkeep.runtime.settings import RuntimeSettings

__all__ = ["RuntimeInvocations"]

CALLBACK_HEADER: Final = "oauth2callbackurl"
_USER_ID_LIMIT: Final = 1024


class RuntimeInvocations:
    """`Invocations` for the pump."""

    def __init__(
        self,
        targets: Targets,
        authorization: Authorization,
        sessions: Sessions,
        forwarding: Forwarding,
        mcp_sessions: McpSessions,
        workload_tokens: WorkloadTokens,
        clock: Clock,
        settings: RuntimeSettings,
        acting: ActingForUsers,
        alarm: Alarm | None = None,
    ) -> None:
        self._acting = acting
        self._alarm = alarm
        self._targets = targets
        self._authorization = authorization
        self._sessions = sessions
        self._forwarding = forwarding
        self._mcp = mcp_sessions
        self._workload_tokens = workload_tokens
        self._clock = clock
        self._settings = settings
        self._limits = TurnLimits(settings.invocations_of_session, settings.invocations)

    def begin_now(self, request: InvocationRequest) -> SessionTurn | ForwardedTurn | None:
        target = self._targets.cached(request.runtime, request.qualifier, request.account_id)
        if target is None:
            return None
        session_id, mcp_id = request.session_id, _mcp_id(target, request)
        if mcp_id is not None:
            session_id = self._mcp.session_of_now(target.runtime_id, session_id, mcp_id)
        if session_id is None:
            return None
        _note_protocol(request, target)
        user: User | None
        if request.caller is None:
            user = self._authorization.cached_token(target, request.bearer or "", action(request))
            if user is None:
                return None
        elif request.caller.kind is CallerKind.OPERATOR and request.caller.grant is None:
            user = self._authorization.operator(target, request.caller, request.user_id, action(request))
            if user is not None and not self._acting.admitted(*_acted(target, request.caller, request, user)):
                return None
        else:
            return None
        admit(target.settings.protocol, request)
        ref = SessionRef(target.runtime_id, session_id)
        session = self._sessions.live(ref)
        if session is None:
            return self._known_elsewhere(ref, request)
        if session.state is not SessionState.READY or not self._sessions.table.replicas.holds():
            return None
        if session.user != user:
            refused = other_user(session_id)
            about = {RUNTIME_ID: target.runtime_id}
            refused_invocation(action(request), request.request_id, time.time_ns(), request.headers, refused, about)
            self._alert(request, user, refused)
            raise refused
        if user is not None and not self._token_is_fresh(session, request.bearer):
            return None
        self._limits.check(session.turns)
        turn = self._turn(session, request)
        self._limits.begin()
        session.begin_turn()
        return turn

    def _known_elsewhere(self, ref: SessionRef, request: InvocationRequest) -> ForwardedTurn | None:
        if request.head is None or self._forwarding.is_alone:
            return None
        address = self._forwarding.cached(ref, request.head.session)
        if address is None:
            return None
        self._limits.check(0)
        self._limits.begin()
        return ForwardedTurn(self._forwarding, address, request.head, self._limits.end)

    async def begin_here(self, request: InvocationRequest) -> SessionTurn:
        """The same for requests that cannot be handed on: raises OwnedElsewhere instead."""
        turn = await self.begin(replace(request, head=None))
        assert isinstance(turn, SessionTurn)
        return turn

    async def begin(self, request: InvocationRequest) -> SessionTurn | ForwardedTurn:
        begun_ns = time.time_ns()
        owner: dict[str, AttributeValue] = {}
        try:
            self._limits.begin()
            try:
                return await self._begin(request, owner, begun_ns)
            except BaseException:
                self._limits.end()
                raise
        except ServiceError as error:
            refused_invocation(action(request), request.request_id, begun_ns, request.headers, error, owner)
            if isinstance(error, RoleRefused) and request.caller is not None and self._alarm is not None:
                self._alarm.denied(request.caller, error)
            raise

    def _alert(self, request: InvocationRequest, user: User | None, refused: CrossUserAccess) -> None:
        if self._alarm is None:
            return
        caller = request.caller or Caller(CallerKind.USER, f"user {user.id if user else '-'} (by token)")
        caller = replace(caller, user=user or caller.user)
        self._alarm.crossed_soon(caller, action(request), request.request_id, refused)

    async def _begin(
        self, request: InvocationRequest, owner: dict[str, AttributeValue], begun_ns: int
    ) -> SessionTurn | ForwardedTurn:
        """Notes in `owner` whose trace the attempt is on, once that is known."""
        target = await self._target(request)
        owner[RUNTIME_ID] = target.runtime_id
        _note_protocol(request, target)
        user = await self._user(target, request)
        admit(target.settings.protocol, request)
        session_id, mcp_id = _session_id(request.session_id), _mcp_id(target, request)
        unbound = False
        if mcp_id is not None:
            session_id, unbound = await self._mcp.session_of(target.runtime_id, request.session_id, mcp_id)
        ref = SessionRef(target.runtime_id, session_id)
        mine = owned_by(ref, user.id if user is not None else None)
        try:
            if request.head is not None and (request.session_id is not None or mcp_id is not None):
                address = await self._forwarding.locate(ref, request.head.session)
                if address is not None:
                    return ForwardedTurn(self._forwarding, address, request.head, self._limits.end)
            if not self._forwarding.is_alone and self._sessions.live(ref) is None:
                # Another replica may have changed or deleted what is remembered here, and no session begins on that.
                target = await self._targets.resolve(request.runtime, request.qualifier, request.account_id)
            session = await self._sessions.open(target.version, target.endpoint, ref, user, request.bearer)
        except OwnedElsewhere as elsewhere:
            # Another replica was faster.
            if request.head is not None:
                address = self._forwarding.to(ref, elsewhere.replica, request.head.session)
                if address is not None:
                    return ForwardedTurn(self._forwarding, address, request.head, self._limits.end)
            raise
        except ServiceError as error:
            if not isinstance(error, AccessDeniedException):  # another user's: not on that user's trace
                owner.update(mine)
            if isinstance(error, CrossUserAccess):
                self._alert(request, user, error)
            if isinstance(error, UnauthorizedException) and target.settings.authorizer is not None:
                # The token passed here and not at AWS: a new one is got in the same place.
                raise UnauthorizedException(error.message, self._authorization.challenge(target)) from error
            raise
        owner.update(mine)
        try:
            self._limits.check(session.turns - 1)
            if unbound and mcp_id is not None:
                await self._mcp.bind(ref, mcp_id)
            if user is not None and not self._token_is_fresh(session, request.bearer):
                with step("identity", "IssueWorkloadAccessToken", ref, user.id):
                    token = await self._workload_tokens.issue(target.runtime_id, user, request.bearer)
                session.workload_token = (request.bearer or "", token, self._clock.monotonic())
            return self._turn(session, request, begun_ns)
        except BaseException:
            session.end_turn(self._clock.monotonic())
            raise

    async def _target(self, request: InvocationRequest) -> Target:
        target = self._targets.cached(request.runtime, request.qualifier, request.account_id)
        if target is not None:
            return target
        try:
            return await self._targets.resolve(request.runtime, request.qualifier, request.account_id)
        except ResourceNotFoundException:
            if request.caller is None:
                raise not_accepted() from None
            await self._find_protocol(request)
            raise

    async def _find_protocol(self, request: InvocationRequest) -> None:
        """Of a runtime that has no such endpoint; if there is one at all."""
        try:
            target = await self._targets.resolve(request.runtime, DEFAULT_ENDPOINT, request.account_id)
        except ServiceError:
            return
        _note_protocol(request, target)

    async def challenge(self, request: InvocationRequest) -> str | None:
        try:
            target = await self._target(request)
        except ServiceError:
            return None
        _note_protocol(request, target)
        return None if target.settings.authorizer is None else self._authorization.challenge(target)

    async def _user(self, target: Target, request: InvocationRequest) -> User | None:
        caller, asked = request.caller, action(request)
        if caller is None:
            return await self._authorization.token(target, request.bearer or "", asked)
        user_id = request.user_id
        if user_id is not None and not 1 <= len(user_id) <= _USER_ID_LIMIT:
            raise invalid(FieldError("runtimeUserId", f"must have between 1 and {_USER_ID_LIMIT} characters"))
        if caller.grant is not None:
            caller = self._authorization.role(target, caller, user_id, asked)
        if caller.kind is CallerKind.OPERATOR:
            user = self._authorization.operator(target, caller, user_id, asked)
            if user is not None:
                await self._acting.admit(*_acted(target, caller, request, user))
            return user
        if caller.kind is CallerKind.SESSION:
            return await self._authorization.agent(target, caller, user_id, asked)
        raise AccessDeniedException(f"{caller.principal} may not invoke agents.")

    def _token_is_fresh(self, session: Session, bearer: str | None) -> bool:
        kept = session.workload_token
        if kept is None or kept[0] != (bearer or ""):
            return False
        return self._clock.monotonic() - kept[2] < self._settings.workload_token_reuse

    def _turn(self, session: Session, request: InvocationRequest, begun_ns: int | None = None) -> SessionTurn:
        assert session.prepared is not None
        sent = request.headers
        protocol = request.reached.protocol = session.prepared.settings.protocol
        message = is_message(protocol, request)
        span = InvocationSpan(
            action(request), request.request_id, sent, session_owner(session), about_session(session), begun_ns
        )
        headers = agent_headers(
            sent,
            session.prepared.settings.forwarded_headers,
            session.ref.session_id,
            request.request_id,
            session.workload_token[1] if session.user is not None and session.workload_token else None,
            sent.get(CALLBACK_HEADER, self._settings.oauth2_callback_url),
            request.bearer,
            span.headers,
            protocol if action(request) == INVOKE else "HTTP",
        )
        mcp = None
        if message:
            named = sent.get(MCP_SESSION_HEADER)
            mcp = SessionMcpTurn(self._mcp, session.ref, session.prepared.settings.port, named)
        turn = SessionTurn(session, headers, span, self._clock, self._settings.connect_timeout, self._limits, mcp)
        if mcp is not None and request.method == "GET":
            mcp.on_begun = turn.rest
        return turn

    # StopRuntimeSession.

    async def stop(
        self, caller: Caller, runtime: str, qualifier: str, session_id: str, token: Idempotency | None
    ) -> None:
        """Operators stop any session; a user's token stops that user's; an agent its own; unless a policy denies it:
        the runtime's, the named endpoint's, or that of the endpoint through which the session was opened."""
        ref = SessionRef(self._targets.runtime_id(runtime, None), session_id)
        if caller.kind is CallerKind.SESSION and caller.session != ref:
            raise AccessDeniedException("An agent may stop no session but its own.")
        stored = await self._sessions.table.find(ref)
        endpoints = {qualifier} if stored is None else {qualifier, stored.record.endpoint}
        arn, policies = await self._targets.policies(ref.runtime_id, endpoints)
        await self._authorization.stopping(arn, policies, caller)
        if caller.kind is CallerKind.USER:
            await self._check_owner(caller, ref)
        await self._sessions.stop(ref, token)

    async def _check_owner(self, caller: Caller, ref: SessionRef) -> None:
        session = self._sessions.live(ref)
        if session is not None:
            owner = session.user
        else:
            stored = await self._sessions.table.find(ref)
            if stored is None:
                return  # that it does not exist is what the caller will be told
            owner = stored.record.user
        if owner != caller.user:
            raise other_user(ref.session_id)


def _acted(target: Target, caller: Caller, request: InvocationRequest, user: User) -> tuple[Caller, str, str, str]:
    return caller, action(request), f"runtime {target.runtime_id}", user.id


def _note_protocol(request: InvocationRequest, target: Target) -> None:
    """A token's holder learns nothing of a runtime that takes none: not even that it exists."""
    if request.caller is not None or target.settings.authorizer is not None:
        request.reached.protocol = target.settings.protocol


def _mcp_id(target: Target, request: InvocationRequest) -> str | None:
    return request.headers.get(MCP_SESSION_HEADER) if is_message(target.settings.protocol, request) else None


def _session_id(given: str | None) -> str:
    if given is None:
        return str(uuid.uuid4())
    if SESSION_ID.fullmatch(given) is None:
        raise invalid(
            FieldError("runtimeSessionId", "must have between 33 and 256 characters, all of them visible ASCII")
        )
    return given
