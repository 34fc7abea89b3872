"""Where a session runs that does not run here, and the way there.

A request for a session of another replica goes there whole and as it came, Host and signature included: that replica
asks for itself who is calling. Clients' requests go to its public listener; a session's own, which were signed with a
key that is good on that session's listener only, to its internal one, with a listener token.

`FORWARDED` on a request says that it was handed on before. Such a one is never handed on again: two replicas that think
a session to be each other's would play ball with it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from agentkeep.core.call import SessionRef
from agentkeep.core.clock import Clock
from agentkeep.core.errors import RetryableConflictException, ServiceError
from agentkeep.runtime.replicas.table import Replica, Replicas
from agentkeep.runtime.sessions.table import SessionTable, in_progress
from agentkeep.runtime.sessions.tracing import InvocationSpan
from agentkeep.service.credentials import SESSION_HEADER
from agentkeep.service.direct import Head

__all__ = ["FORWARDED", "Address", "ForwardedTurn", "Forwarding", "OwnerChanged", "PeerConnection"]

log = logging.getLogger(__name__)

FORWARDED: Final = "x-agentkeep-forwarded"
_KEPT_SECONDS: Final = 30.0
_MOST: Final = 100_000
_CONNECT_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 0.1


class OwnerChanged(RetryableConflictException):
    """The replica is dead or another by now, and nothing was sent to it: ask anew where the session runs."""

    @property
    def code(self) -> str:
        return RetryableConflictException.__name__


class HasSessions(Protocol):
    def live(self, ref: SessionRef) -> object | None: ...


class Address:
    """Of the replica that runs a session, for requests of one kind. `headers`: to be put to a request's own."""

    __slots__ = ("headers", "key", "listener", "ref", "replica")

    def __init__(self, ref: SessionRef, replica: Replica, listener: str, headers: Mapping[str, str]) -> None:
        self.ref = ref
        self.replica = replica
        self.listener = listener  # host:port
        self.headers = headers
        #: Names the listener of this very process; connections are kept under it.
        self.key = f"replica {replica.name} {replica.incarnation} {listener}"

    @property
    def url(self) -> str:
        return f"http://{self.listener}"


class Forwarding:
    """`listener_token`: says to another runtime service through which session's listener a request came. `heir`:
    returns when nothing is left of a dead replica that is this one's to look after."""

    def __init__(
        self,
        replicas: Replicas,
        table: SessionTable,
        sessions: HasSessions,
        clock: Clock,
        heir: Callable[[str], Awaitable[None]],
        listener_token: Callable[[SessionRef], str] | None = None,
    ) -> None:
        self._replicas = replicas
        self._table = table
        self._sessions = sessions
        self._clock = clock
        self._heir = heir
        self._listener_token = listener_token
        self._kept: OrderedDict[SessionRef, tuple[Replica, float]] = OrderedDict()

    @property
    def is_alone(self) -> bool:
        return self._replicas.is_alone

    def cached(self, ref: SessionRef, listener: SessionRef | None = None) -> Address | None:
        """Where it runs, if that is known without waiting. `listener`: the session whose listener the request came
        through."""
        kept = self._kept.get(ref)
        if kept is None or self._sessions.live(ref) is not None:
            return None
        if kept[1] <= self._clock.monotonic() or not self._replicas.known_to_live(kept[0]):
            del self._kept[ref]
            return None
        return self._address(ref, kept[0], listener)

    async def locate(self, ref: SessionRef, listener: SessionRef | None = None) -> Address | None:
        """Where it runs; None: here, or nowhere yet. Raises StoreUnavailable."""
        if self.is_alone or self._sessions.live(ref) is not None:
            return None
        if (found := self.cached(ref, listener)) is not None:
            return found
        owner, replica = await self._table.responsible(ref)
        if owner is None or replica is None:
            return None
        if replica.name == self._replicas.name:
            await self._heir(owner)  # what may live of it goes on here
            return None
        return self.to(ref, replica, listener)

    def to(self, ref: SessionRef, replica: Replica, listener: SessionRef | None = None) -> Address | None:
        """The way to a replica that is known to run the session; None: there is none."""
        if replica.public is None:
            return None
        self._kept[ref] = (replica, self._clock.monotonic() + _KEPT_SECONDS)
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        return self._address(ref, replica, listener)

    def _address(self, ref: SessionRef, replica: Replica, listener: SessionRef | None) -> Address | None:
        headers = {FORWARDED: self._replicas.name}
        if listener is None:
            return Address(ref, replica, replica.public or "", headers)
        if replica.internal is None or self._listener_token is None:
            return None
        headers[SESSION_HEADER.decode()] = self._listener_token(listener)
        return Address(ref, replica, replica.internal, headers)

    def is_lost(self, address: Address) -> bool:
        """Whether the replica is dead by now, as far as is known: one that is only silent would be waited for."""
        return not self._replicas.known_to_live(address.replica)

    def forget(self, ref: SessionRef) -> None:
        self._kept.pop(ref, None)

    async def connect(self, address: Address) -> PeerConnection:
        """A new connection. While the replica takes none, waits until it does or is known to be dead. Raises
        OwnerChanged, RetryableConflictException."""
        deadline = self._clock.monotonic() + self._replicas.lease * 1.5
        host, _, port = address.listener.rpartition(":")
        while True:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return PeerConnection(await _connected(host.strip("[]"), int(port)))
            except (OSError, TimeoutError) as error:
                log.info("replica %s takes no connections: %s", address.replica.name, error or "no answer")
            await self.unreachable(address)
            if self._clock.monotonic() >= deadline:
                raise in_progress()
            await asyncio.sleep(_RETRY_SECONDS)

    async def unreachable(self, address: Address) -> None:
        """Raises OwnerChanged if another answers for the session by now, StoreUnavailable."""
        await self._replicas.suspect(address.replica.name)
        # One that is about to stop ends its sessions while it takes no connections any more.
        _, replica = await self._table.responsible(address.ref)
        if replica is None or replica.incarnation != address.replica.incarnation:
            self.forget(address.ref)
            raise OwnerChanged(str(in_progress()))


async def _connected(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, where = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(made, where)
    except BaseException:
        made.close()
        raise
    return made


class PeerConnection:
    """A driver's `Connection`, to a replica."""

    __slots__ = ("socket",)

    def __init__(self, made: socket.socket) -> None:
        self.socket = made

    def release(self) -> None:
        pass


class _Untraced(InvocationSpan):
    """Whose the session is traces the invocation."""

    __slots__ = ("_forwarding", "_ref")

    def __init__(self, forwarding: Forwarding, ref: SessionRef) -> None:
        self._forwarding = forwarding
        self._ref = ref
        self.headers = []

    def sent(self, data: bytes) -> None:
        pass

    def answered(self, status: int) -> None:
        if status == RetryableConflictException.status:
            self._forwarding.forget(self._ref)  # it may have moved

    def received(self, data: bytes) -> None:
        pass

    def end(self, error: ServiceError | None, proved: bool) -> None:
        pass


class ForwardedTurn:
    """A `Turn` of a session on another replica, whose agent is that replica: its head is the request's own, and its
    answer, errors too, is the client's as it comes. `head` is written by the pump."""

    path = host = ""
    mcp = None

    def __init__(self, forwarding: Forwarding, address: Address, head: Head, ended: Callable[[], None]) -> None:
        self._forwarding = forwarding
        self._ended = ended
        self.address = address
        self.head = head
        self.session_id = address.ref.session_id
        self.environment_id = address.key
        self.headers = [(name.encode(), value.encode("latin-1")) for name, value in address.headers.items()]
        self.span = _Untraced(forwarding, address.ref)

    @property
    def lost(self) -> bool:
        return self._forwarding.is_lost(self.address)

    async def connect(self) -> PeerConnection:
        """Raises OwnerChanged, RetryableConflictException."""
        return await self._forwarding.connect(self.address)

    def end(self, error: ServiceError | None = None, proved: bool = True) -> None:
        if error is not None:
            self._forwarding.forget(self.address.ref)
        ended, self._ended = self._ended, _nothing
        ended()


def _nothing() -> None:
    pass
