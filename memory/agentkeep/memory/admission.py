"""Who may use a memory at all: asked before every operation on what actors have in it.

`partition.py` says which actor's data a caller gets; this, whether its agent may use the memory, whether its user is of
those whom the memory knows apart, and, of an operator, that it is on record for whom it acts.

A memory's actors are users of one identity provider, or of several that its operator says give nobody the same subject:
else two of them with the same `sub` would be one actor. Which: the tag agentkeep:issuers of the memory, else the
setting AGENTKEEP_MEMORY_ISSUERS, else the provider of the first user who used it, which is kept with the memory.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Final, Protocol

from agentkeep.core.acting import ActingForUsers
from agentkeep.core.call import Call, CallerKind, SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import AccessDeniedException, ConditionFailed, ResourceNotFoundException
from agentkeep.core.pages import bound, unbound
from agentkeep.memory.long_term.namespaces import Layout, normalised
from agentkeep.memory.memories import ISSUERS, Memories
from agentkeep.memory.partition import authorized_actor, foreign_agent
from agentkeep.memory.settings import MemorySettings
from agentkeep.memory.tags import behaviour
from agentkeep.storage.interface import ABSENT, KeyValueStore, Put

__all__ = ["Admission", "Admitted", "Operations"]

logger = logging.getLogger(__name__)

#: Seconds for which other replicas may go by a memory's earlier tags.
_REMEMBERED: Final = 1.0
_MOST: Final = 10_000

Method = Callable[[Call, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Rules:
    """`agents`, `issuers`: who may use the memory; None: not said. `until`: how long this is believed (monotonic)."""

    agents: frozenset[str] | None
    issuers: Collection[str] | None
    layout: Layout
    until: float


class Operations(Protocol):
    """Named and asked for by the backend."""

    @property
    def name(self) -> str: ...

    @property
    def arn_kinds(self) -> frozenset[str]: ...


class Admission:
    """`vouching`: issuers who take an operator's word for who a user is, as the platform's own for development does."""

    def __init__(
        self,
        store: KeyValueStore,
        memories: Memories,
        clock: Clock,
        acting: ActingForUsers,
        settings: MemorySettings,
        vouching: Collection[str] = (),
    ) -> None:
        self._store = store
        self._memories = memories
        self._clock = clock
        self._acting = acting
        self._settings = settings
        self._vouching = frozenset(vouching)
        self._rules: dict[str, _Rules] = {}
        self._bound: dict[str, str] = {}

    def admitted(self, call: Call, request: Mapping[str, Any]) -> bool:
        """Whether the call may go on, without waiting; False: `admit` it. Raises AccessDeniedException."""
        authorized_actor(call)
        memory_id = self._memories.id_of(request["memoryId"])
        rules = self._rules.get(memory_id)
        if rules is None or rules.until <= self._clock.monotonic():
            return False
        if call.caller.kind is CallerKind.OPERATOR:
            return all(
                self._acting.admitted(call.caller, call.operation, f"memory {memory_id}", user)
                for user in _users(request, rules.layout)
            )
        self._refuse_agent(call, memory_id, rules)
        user = call.caller.user
        if user is None or self._vouched(user):
            return True
        issuers = rules.issuers
        if issuers is None:
            bound = self._bound.get(memory_id)
            if bound is None:
                return False
            issuers = (bound,)
        _refuse_issuer(call, memory_id, user, issuers)
        return True

    async def admit(self, call: Call, request: Mapping[str, Any]) -> None:
        """Raises AccessDeniedException, and StoreUnavailable where what must be known or on record cannot be."""
        authorized_actor(call)
        memory_id = self._memories.id_of(request["memoryId"])
        try:
            rules = await self._read(memory_id)
        except ResourceNotFoundException:
            return  # the operation says so, in its own way
        caller = call.caller
        if caller.kind is CallerKind.OPERATOR:
            for named in _users(request, rules.layout):
                await self._acting.admit(caller, call.operation, f"memory {memory_id}", named)
            return
        self._refuse_agent(call, memory_id, rules)
        user = caller.user
        if user is None or self._vouched(user):
            return
        issuers = rules.issuers
        if issuers is None:
            assert user.issuer is not None
            issuers = (await self._bind(memory_id, user.issuer),)
        _refuse_issuer(call, memory_id, user, issuers)

    def narrowed(self, call: Call, request: Mapping[str, Any]) -> Call:
        """The admitted call as operations are to know it: of a role that does not act for everyone, as the user it was
        admitted for. A path that is one user's may have others' beneath it (`a` and `a/b`)."""
        caller = call.caller
        rules = self._rules.get(self._memories.id_of(request["memoryId"])) if caller.grant is not None else None
        if rules is None or caller.acts_for(None):
            return call
        users = _users(request, rules.layout)
        named = next(iter(users)) if len(users) == 1 else None
        return call if named is None else replace(call, caller=replace(caller, user=User(named)))

    async def would_admit(self, memory_id: str, session: SessionRef, user: User) -> bool:
        """Whether that session could have used the memory: for what is done to it because of a session. The first user
        of a memory does not decide by this whose it is."""
        try:
            rules = await self._read(memory_id)
        except ResourceNotFoundException:
            return False
        if rules.agents is not None and session.runtime_id not in rules.agents:
            return False
        if self._vouched(user):
            return True
        if rules.issuers is not None:
            return user.issuer in rules.issuers
        bound = await self._store.get(ISSUERS, memory_id)
        return bound is None or user.issuer == bound.decode()

    def _vouched(self, user: User) -> bool:
        return user.issuer is None or user.issuer in self._vouching

    def _refuse_agent(self, call: Call, memory_id: str, rules: _Rules) -> None:
        session = call.caller.session
        if rules.agents is not None and (session is None or session.runtime_id not in rules.agents):
            raise foreign_agent(call, memory_id)

    async def _read(self, memory_id: str) -> _Rules:
        asked = self._clock.monotonic()
        memory = await self._memories.get(memory_id)
        told = behaviour(memory.tags)
        if len(self._rules) >= _MOST:
            self._rules.clear()
        rules = self._rules[memory_id] = _Rules(
            told.agents,
            told.issuers if told.issuers is not None else self._settings.issuers or None,
            Layout(memory, self._settings.namespace_templates),
            asked + _REMEMBERED,
        )
        return rules

    async def _bind(self, memory_id: str, issuer: str) -> str:
        """The provider whose users the memory is for: `issuer` if there was none. It never changes."""
        bound = self._bound.get(memory_id)
        if bound is None:
            try:
                await self._store.transact([Put(ISSUERS, memory_id, issuer.encode(), expect=ABSENT)])
                bound = issuer
                logger.info("memory %s is for users of %r from now on: one of them came first", memory_id, issuer)
            except ConditionFailed as failed:
                bound = (failed.current or b"").decode()
            if len(self._bound) >= _MOST:
                self._bound.clear()
            self._bound[memory_id] = bound
        return bound


class Admitted:
    """An object's operations, each behind the admission; their pages' tokens good for the same listing only."""

    def __init__(self, operations: Operations, admission: Admission) -> None:
        self.name = operations.name
        self.arn_kinds = operations.arn_kinds
        self._operations = operations
        self._admission = admission

    def __getattr__(self, name: str) -> Method:
        if name.startswith("_"):
            raise AttributeError(name)
        method: Method = getattr(self._operations, name)

        @wraps(method)
        async def admitted(call: Call, request: Any) -> Any:
            if not self._admission.admitted(call, request):
                await self._admission.admit(call, request)
            call = self._admission.narrowed(call, request)
            given = request
            if (token := request.get("nextToken")) is not None:
                given = {**request, "nextToken": unbound(token, call.operation, request)}
            answer = await method(call, given)
            if (token := answer.get("nextToken")) is not None:
                answer["nextToken"] = bound(token, call.operation, request)
            return answer

        return admitted


def _refuse_issuer(call: Call, memory_id: str, user: User, issuers: Collection[str]) -> None:
    if user.issuer not in issuers:
        raise AccessDeniedException(
            f"{call.caller.principal} is not authorized to perform {call.operation}: memory {memory_id} is not for "
            f"users of {user.issuer}, whose subjects may be those of others. An operator can give them a memory of "
            "their own, or name every identity provider of this one in its tag agentkeep:issuers (or in "
            "AGENTKEEP_MEMORY_ISSUERS)"
        )


def _users(request: Mapping[str, Any], layout: Layout) -> Collection[str | None]:
    """Whose data an operator's request names; None among them where that cannot be told from it."""
    actor = request.get("actorId") or request.get("filter", {}).get("actorId")
    if actor is not None:
        return (actor,)
    return {owner for one in request.get("records", (request,)) for owner in _owners(one, layout)}


def _owners(named: Mapping[str, Any], layout: Layout) -> Collection[str | None]:
    """Of a request, or of one of a batch's records: what one record names says nothing about the others."""
    paths = [named[member] for member in ("namespace", "namespacePath") if member in named]
    paths += named.get("namespaces", ())
    return {None if "*" in path else layout.owner(normalised(path)) for path in paths} or (None,)
