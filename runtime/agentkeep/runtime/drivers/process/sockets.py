"""Connections to an agent through sockets that were made inside its network namespace.

A socket stays in the namespace it was made in. There is a fixed number of them a session; `connect(AF_UNSPEC)` turns
one that was used into one that may connect again.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections import deque
from collections.abc import Iterable

__all__ = ["PooledConnection", "SocketPool"]

_libc = ctypes.CDLL(None, use_errno=True)
_UNSPECIFIED = struct.pack("H14x", socket.AF_UNSPEC)


class PooledConnection:
    """See `drivers.driver.Connection`. Close `socket` first; `release` drops what it had not sent."""

    __slots__ = ("_pool", "_pooled", "socket")

    def __init__(self, pool: SocketPool, pooled: socket.socket) -> None:
        self.socket = pooled.dup()
        self._pool = pool
        self._pooled: socket.socket | None = pooled

    def release(self) -> None:
        if self._pooled is not None:
            self._pool.put_back(self._pooled)
            self._pooled = None


class SocketPool:
    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self._idle = deque(sockets)
        for one in self._idle:
            one.setblocking(False)
        self._waiting: deque[asyncio.Future[socket.socket]] = deque()
        self._closed = False

    @property
    def exhausted(self) -> bool:
        return not self._idle and not self._closed

    async def take(self) -> socket.socket | None:
        """An unconnected socket, waiting for one to be put back if all are in use. None once the pool is closed."""
        if self._closed:
            return None
        if self._idle:
            return self._idle.popleft()
        place: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                self.put_back(place.result())
            raise
        except ConnectionAbortedError:
            return None

    def put_back(self, used: socket.socket) -> None:
        if self._closed or not disconnect(used):
            used.close()
            return
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(used)
                return
        self._idle.append(used)

    def close(self) -> None:
        """Open sockets would keep the namespace."""
        self._closed = True
        while self._idle:
            self._idle.popleft().close()
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(ConnectionAbortedError())


def disconnect(used: socket.socket) -> bool:
    """Back to an unconnected socket, whatever state it was in. One that was refused must pass here, too, or its next
    `connect` fails with ECONNABORTED."""
    return bool(_libc.connect(used.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) == 0)
