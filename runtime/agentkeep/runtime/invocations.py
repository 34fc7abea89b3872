"""InvokeAgentRuntime, from the request's head to a turn of a live session. The bytes are the pump's."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Final

from agentkeep.core.call import Call, CallerKind, SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AccessDeniedException,
    EnvironmentStartFailed,
    FieldError,
    ResourceNotFoundException,
    RuntimeClientError,
)
from agentkeep.core.ports import WorkloadTokens
from agentkeep.runtime.authorization import Authorization, not_accepted
from agentkeep.runtime.drivers.driver import Connection
from agentkeep.runtime.headers import agent_headers
from agentkeep.runtime.records import SessionState
from agentkeep.runtime.rules import invalid
from agentkeep.runtime.session import Session
from agentkeep.runtime.session_table import other_user
from agentkeep.runtime.sessions import Sessions
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.runtime.targets import Target, Targets
from agentkeep.runtime.turn import InvocationRequest

__all__ = ["RuntimeInvocations", "SessionTurn"]

ACTION: Final = "InvokeAgentRuntime"
STOP: Final = "StopRuntimeSession"
CALLBACK_HEADER: Final = "oauth2callbackurl"
#: The model leaves session ids open but for their length; they travel in headers.
_SESSION_ID: Final = re.compile(r"[!-~]{33,256}")
_USER_ID_LIMIT: Final = 1024


class SessionTurn:
    """A `Turn` of a session in this process."""

    __slots__ = ("_clock", "_ended", "_session", "_timeout", "environment_id", "headers", "path")

    def __init__(self, session: Session, headers: Sequence[tuple[bytes, bytes]], clock: Clock, timeout: float) -> None:
        assert session.environment is not None
        assert session.prepared is not None
        self._session = session
        self._clock = clock
        self._timeout = timeout
        self._ended = False
        self.environment_id = session.environment.id
        self.path = session.prepared.settings.path
        self.headers = headers

    @property
    def session_id(self) -> str:
        return self._session.ref.session_id

    async def connect(self) -> Connection:
        try:
            return await self._session.connect(self._timeout)
        except (EnvironmentStartFailed, OSError, TimeoutError):
            raise RuntimeClientError(
                f"The agent does not accept connections. Its output: agentkeep logs {self.session_id}"
            ) from None

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._session.end_turn(self._clock.monotonic())


class RuntimeInvocations:
    """`Invocations` for the pump."""

    def __init__(
        self,
        targets: Targets,
        authorization: Authorization,
        sessions: Sessions,
        workload_tokens: WorkloadTokens,
        clock: Clock,
        settings: RuntimeSettings,
    ) -> None:
        self._targets = targets
        self._authorization = authorization
        self._sessions = sessions
        self._workload_tokens = workload_tokens
        self._clock = clock
        self._settings = settings

    def begin_now(self, request: InvocationRequest) -> SessionTurn | None:
        target = self._targets.cached(request.runtime, request.qualifier, request.account_id)
        if target is None or request.session_id is None:
            return None
        user: User | None
        if request.caller is None:
            user = self._authorization.cached_token(target, request.bearer or "", ACTION)
            if user is None:
                return None
        elif request.caller.kind is CallerKind.OPERATOR:
            user = self._authorization.operator(target, request.caller, request.user_id, ACTION)
        else:
            return None
        session = self._sessions.live(SessionRef(target.runtime_id, request.session_id))
        if session is None or session.state is not SessionState.READY:
            return None
        if session.user != user:
            raise other_user(request.session_id)
        if user is not None and not self._token_is_fresh(session, request.bearer):
            return None
        session.begin_turn()
        return self._turn(session, request)

    async def begin(self, request: InvocationRequest) -> SessionTurn:
        target = await self._target(request)
        user = await self._user(target, request)
        ref = SessionRef(target.runtime_id, _session_id(request.session_id))
        session = await self._sessions.open(target.version, target.endpoint, ref, user)
        try:
            if user is not None and not self._token_is_fresh(session, request.bearer):
                token = await self._workload_tokens.issue(target.runtime_id, user, request.bearer)
                session.workload_token = (request.bearer or "", token, self._clock.monotonic())
            return self._turn(session, request)
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
            raise

    async def _user(self, target: Target, request: InvocationRequest) -> User | None:
        caller = request.caller
        if caller is None:
            return await self._authorization.token(target, request.bearer or "", ACTION)
        user_id = request.user_id
        if user_id is not None and not 1 <= len(user_id) <= _USER_ID_LIMIT:
            raise invalid(FieldError("runtimeUserId", f"must have between 1 and {_USER_ID_LIMIT} characters"))
        if caller.kind is CallerKind.OPERATOR:
            return self._authorization.operator(target, caller, user_id, ACTION)
        if caller.kind is CallerKind.SESSION:
            return await self._authorization.agent(target, caller, user_id, ACTION)
        raise AccessDeniedException(f"{caller.principal} may not invoke agents.")

    def _token_is_fresh(self, session: Session, bearer: str | None) -> bool:
        kept = session.workload_token
        if kept is None or kept[0] != (bearer or ""):
            return False
        return self._clock.monotonic() - kept[2] < self._settings.workload_token_reuse

    def _turn(self, session: Session, request: InvocationRequest) -> SessionTurn:
        assert session.prepared is not None
        sent = request.headers
        headers = agent_headers(
            sent,
            session.prepared.settings.forwarded_headers,
            session.ref.session_id,
            request.request_id,
            session.workload_token[1] if session.user is not None and session.workload_token else None,
            sent.get(CALLBACK_HEADER, self._settings.oauth2_callback_url),
            request.bearer,
        )
        return SessionTurn(session, headers, self._clock, self._settings.connect_timeout)

    # StopRuntimeSession.

    async def stop(self, call: Call, runtime: str, qualifier: str, session_id: str) -> None:
        """Operators stop any session; a user's token stops that user's; an agent its own."""
        ref = SessionRef(self._targets.runtime_id(runtime, None), session_id)
        caller = call.caller
        if caller.kind is CallerKind.SESSION:
            if caller.session != ref:
                raise AccessDeniedException("An agent may stop no session but its own.")
        elif caller.kind is CallerKind.USER:
            await self._check_owner(call, runtime, qualifier, ref)
        await self._sessions.stop(ref, call.idempotency)

    async def _check_owner(self, call: Call, runtime: str, qualifier: str, ref: SessionRef) -> None:
        request = InvocationRequest(
            runtime, qualifier, None, ref.session_id, None, None, None, _bearer(call), call.request_id, call.headers
        )
        target = await self._target(request)
        user = await self._authorization.token(target, request.bearer or "", STOP)
        session = self._sessions.live(ref)
        owner = session.user if session is not None else None
        if session is None:
            stored = await self._sessions.table.find(ref)
            if stored is None:
                return  # not found is what the caller will be told
            owner = stored.record.user
        if owner != user:
            raise other_user(ref.session_id)


def _session_id(given: str | None) -> str:
    if given is None:
        return str(uuid.uuid4())
    if _SESSION_ID.fullmatch(given) is None:
        raise invalid(
            FieldError("runtimeSessionId", "must have between 33 and 256 characters, all of them visible ASCII")
        )
    return given


def _bearer(call: Call) -> str:
    authorization = call.headers.get("authorization", "")
    return authorization[7:].strip() if authorization[:7].lower() == "bearer " else ""
