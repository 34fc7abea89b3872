"""`python -m agentkeep.runtime.drivers.docker.session_edge`: the one holder of 169.254.170.2:80 on a machine where the
runtime plane is containers, any number of them.

It hands each session's connection to the replica that has the session: to the Unix socket named after the address the
connection comes from (`listener.py`). It reads nothing of what passes, holds no secret and keeps nothing.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Final, cast

import uvloop

from agentkeep.runtime.drivers.docker.listener import PORT, accepted, socket_of
from agentkeep.runtime.drivers.docker.network import PLATFORM
from agentkeep.runtime.drivers.docker.program import until_told
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings

__all__ = ["SessionEdge"]

logger = logging.getLogger(__name__)

_BACKLOG: Final = 4096
_BUFFER: Final = 256 << 10  # bytes held for a side that reads slowly
#: Of one session at once, so that one leaves descriptors to the others.
MOST_CONNECTIONS: Final = 512
#: Seconds since a session was last heard of, when its connection is taken up: it may have ended. With those for handing
#: it on, fewer than those for which an address rests (`shared_addresses.REST`).
_SILENT: Final = 2.0
_HANDING_ON: Final = 3.0
#: struct tcp_info of linux/tcp.h: milliseconds since data and since an acknowledgement was last received.
_HEARD: Final = struct.Struct("52xII")


class SessionEdge:
    def __init__(self, folder: Path, host: str = PLATFORM, port: int = PORT) -> None:
        self._folder = folder
        self._place = host, port
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: Counter[str] = Counter()

    async def serve(self) -> None:
        """Until cancelled. Raises OSError where it cannot listen."""
        with socket.create_server(self._place, backlog=_BACKLOG) as listener:
            listener.setblocking(False)
            logger.info("session endpoints are reached at %s:%d", *self._place)
            try:
                while True:
                    connection, (address, _) = await accepted(listener)
                    self._take_up(connection, address)
            finally:
                for task in self._tasks:
                    task.cancel()

    def _take_up(self, connection: socket.socket, address: str) -> None:
        if self._open[address] >= MOST_CONNECTIONS or _heard_before(connection) > _SILENT:
            connection.close()
            return
        self._open[address] += 1
        task = asyncio.create_task(self._hand_on(connection, address))
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("a connection of %s failed: %r", address, error)

        task.add_done_callback(done)

    async def _hand_on(self, connection: socket.socket, address: str) -> None:
        """Returns when both ends are closed."""
        loop = asyncio.get_running_loop()
        inner = _End()
        try:
            async with asyncio.timeout(_HANDING_ON):
                await loop.create_unix_connection(lambda: inner, socket_of(self._folder, address))
        except (OSError, TimeoutError):  # no session has this address, or its replica has just died
            connection.close()
            return
        outer = _End()
        inner.other, outer.other = outer, inner
        try:
            await loop.connect_accepted_socket(lambda: outer, connection)
            await asyncio.wait([inner.closed, outer.closed])
        finally:
            connection.close()
            for end in (inner, outer):
                end.abort()


class _End(asyncio.Protocol):
    """One of the two ends of a connection that is handed on. What comes here goes to the other, no faster than that
    one's peer reads."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._ended = False  # its peer sends no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._transport.set_write_buffer_limits(_BUFFER)
        if self.other is None:
            self._transport.pause_reading()  # until there is another end
        else:
            self._sending().resume_reading()

    def data_received(self, data: bytes) -> None:
        self._sending().write(data)

    def eof_received(self) -> bool:
        """True: it may still be sent something."""
        self._ended = True
        sending = self._sending()
        if self.other is not None and self.other._ended:
            sending.close()
            return False
        if not sending.is_closing():
            sending.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if self.other is not None and self.other._transport is not None:
            self.other._transport.close()  # when what it was sent has been sent

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _sending(self) -> asyncio.Transport:
        assert self.other is not None and self.other._transport is not None, "nothing is read before both are open"
        return self.other._transport


def _heard_before(connection: socket.socket) -> float:
    """Seconds since anything came from its peer."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _HEARD.size)
    data, acknowledgement = _HEARD.unpack(told)
    return float(min(data, acknowledgement)) / 1000


if __name__ == "__main__":
    uvloop.run(until_told(SessionEdge(DockerDriverSettings().sessions_folder).serve()))
