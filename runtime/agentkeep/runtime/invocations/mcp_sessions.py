"""Mcp-Session-Id: which session an MCP client means by it.

A client of the protocol knows this header and no other, so it must lead back to the session's environment, from any
replica. Where ids come from:

    the server's own (stateful)     returned with its answer to `initialize`; bound to the session before the client
                                    gets to see it
    the platform's (stateless)      the server names none: the session's id is its Mcp-Session-Id, and needs no binding
    the client's                    long enough to be a session's id, it is one; otherwise it is bound to the session of
                                    the first request that carries it

A binding is written once and for good (it outlives any environment), so keeping it in memory is safe. It leads to a
session and gives no right to it: whose that is, is checked as ever. A server can bind to its own session only, and
neither an id that is bound already nor one that is another session's.

A request may name its session twice (boto3 makes up a Runtime-Session-Id where its caller gives none). Then the
Runtime-Session-Id counts if that session lives, or if the Mcp-Session-Id is not known; otherwise the latter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Final

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock, epoch_ms
from agentkeep.core.errors import ConditionFailed, RuntimeClientError
from agentkeep.runtime.invocations.refusals import McpSessionNotFound
from agentkeep.runtime.records import SessionState
from agentkeep.runtime.sessions.sessions import Sessions
from agentkeep.runtime.sessions.table import SessionTable
from agentkeep.storage.interface import ABSENT, Expected, KeyValueStore, Put, partition

__all__ = ["MCP_SESSION_HEADER", "SESSION_ID", "McpSessions", "SessionMcpTurn"]

MCP_SESSION_HEADER: Final = "mcp-session-id"
#: The model leaves session ids open but for their length; they travel in headers.
SESSION_ID: Final = re.compile(r"[!-~]{33,256}")
BINDINGS: Final = partition("runtime", "mcp-sessions")
#: Longer than any environment lives: a server that began anew knows none of its former ids.
LIFE_SECONDS: Final = 36_000
_VISIBLE: Final = re.compile(r"[!-~]{1,1024}")  # 1024: the model's
_MOST: Final = 50_000


class McpSessions:
    def __init__(self, store: KeyValueStore, clock: Clock, sessions: Sessions, table: SessionTable) -> None:
        self._store = store
        self._clock = clock
        self._sessions = sessions
        self._table = table
        self._kept: dict[tuple[str, str], tuple[float, str]] = {}  # until when, session id; oldest first

    def session_of_now(self, runtime_id: str, given: str | None, mcp_id: str) -> str | None:
        """As `session_of`, if that is known without waiting."""
        bound = self._cached(runtime_id, mcp_id)
        if bound is None and self._sessions.live(SessionRef(runtime_id, mcp_id)) is not None:
            bound = mcp_id
        if bound is None or given is None or given == bound:
            return bound
        return given if self._sessions.live(SessionRef(runtime_id, given)) is not None else None

    async def session_of(self, runtime_id: str, given: str | None, mcp_id: str) -> tuple[str, bool]:
        """The id of the session a request means, `given` being its Runtime-Session-Id; and whether the Mcp-Session-Id
        is to be bound to it. Raises McpSessionNotFound."""
        bound = await self._find(runtime_id, mcp_id)
        if bound is None and SESSION_ID.fullmatch(mcp_id):
            named = SessionRef(runtime_id, mcp_id)
            if self._sessions.live(named) is not None or await self._table.find(named) is not None:
                bound = mcp_id
                self._keep(runtime_id, mcp_id, mcp_id, LIFE_SECONDS / 60)  # no server can bind it any more
            elif given is None:
                bound = mcp_id
        if given is None:
            if bound is None:
                raise McpSessionNotFound("There is no such MCP session, or it has ended. Initialize a new one")
            return bound, False
        if bound is None or bound == given or await self._lives(SessionRef(runtime_id, given)):
            return given, bound is None
        return bound, False

    async def _lives(self, ref: SessionRef) -> bool:
        if self._sessions.live(ref) is not None:
            return True
        found = await self._table.find(ref)
        return found is not None and found.record.state is not SessionState.STOPPED

    def _cached(self, runtime_id: str, mcp_id: str) -> str | None:
        kept = self._kept.get((runtime_id, mcp_id))
        return kept[1] if kept is not None and kept[0] > self._clock.monotonic() else None

    async def _find(self, runtime_id: str, mcp_id: str) -> str | None:
        bound = self._cached(runtime_id, mcp_id)
        if bound is None and (raw := await self._store.get(BINDINGS, _key(runtime_id, mcp_id))) is not None:
            bound = raw.decode()
            # When it was written is not known here; a while is enough.
            self._keep(runtime_id, mcp_id, bound, LIFE_SECONDS / 60)
        return bound

    async def bind(self, ref: SessionRef, mcp_id: str) -> None:
        """From now on `mcp_id` means this session. Raises RuntimeClientError if it means another, or is none."""
        if mcp_id == ref.session_id or self._cached(ref.runtime_id, mcp_id) == ref.session_id:
            return
        if _VISIBLE.fullmatch(mcp_id) is None:
            raise RuntimeClientError("The Mcp-Session-Id is not made of 1 to 1024 visible ASCII characters")
        named = SessionRef(ref.runtime_id, mcp_id)
        if SESSION_ID.fullmatch(mcp_id) and await self._table.find(named) is not None:
            raise _taken()
        expires = epoch_ms(self._clock.now()) + LIFE_SECONDS * 1000
        raw, expect = ref.session_id.encode(), ABSENT
        try:
            await self._store.transact([_put(ref.runtime_id, mcp_id, raw, expect, expires)])
        except ConditionFailed as found:
            if found.current != raw:
                raise _taken() from None
            # Written before; from now on it lasts as long as this environment may.
            try:
                await self._store.transact([_put(ref.runtime_id, mcp_id, raw, raw, expires)])
            except ConditionFailed:
                raise _taken() from None
        self._keep(ref.runtime_id, mcp_id, ref.session_id, LIFE_SECONDS)

    def _keep(self, runtime_id: str, mcp_id: str, session_id: str, seconds: float) -> None:
        self._kept.pop((runtime_id, mcp_id), None)
        self._kept[runtime_id, mcp_id] = (self._clock.monotonic() + seconds, session_id)
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]


class SessionMcpTurn:
    """`McpTurn` of a session. `named`: the request's Mcp-Session-Id."""

    __slots__ = ("_mcp", "_named", "_ref", "host", "on_begun")

    def __init__(self, mcp: McpSessions, ref: SessionRef, port: int, named: str | None) -> None:
        self.host = f"localhost:{port}"
        self._mcp = mcp
        self._ref = ref
        self._named = named
        self.on_begun: Callable[[], None] | None = None

    def begun(self) -> None:
        if self.on_begun is not None:
            self.on_begun()

    @property
    def session_id(self) -> str:
        return self._named or self._ref.session_id

    def knows(self, given: str) -> bool:
        return given == self._named or given == self._ref.session_id

    async def bind(self, given: str) -> None:
        await self._mcp.bind(self._ref, given)


def _put(runtime_id: str, mcp_id: str, raw: bytes, expect: Expected, expires: int) -> Put:
    return Put(BINDINGS, _key(runtime_id, mcp_id), raw, expect, expires)


def _key(runtime_id: str, mcp_id: str) -> str:
    # A digest: ids may be long, and what leads to a session need not be readable in the store.
    return partition(runtime_id, hashlib.sha256(mcp_id.encode()).hexdigest())


def _taken() -> RuntimeClientError:
    return RuntimeClientError(
        "The MCP server gave an Mcp-Session-Id that another session has. Ids must be unlike those of every other "
        "session (MCP, streamable HTTP: globally unique)"
    )
