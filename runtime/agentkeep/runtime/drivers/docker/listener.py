"""The session endpoint: one listener at 169.254.170.2:80, which knows a session by the address it connects from.

Why that address can be trusted: the engine gives each container one, which nothing inside can change (no capabilities,
so no raw sockets and no change of addresses or routes), the kernel sends from no other address without a capability,
and an answer to a forged one would go to the forged one's owner.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.network import PLATFORM

__all__ = ["SessionListener"]

logger = logging.getLogger(__name__)

PORT = 80
_BACKLOG = 1024
_PAUSE = 0.1  # seconds, when there are no descriptors to accept with


class SessionListener:
    def __init__(self) -> None:
        self._endpoints: dict[str, Callable[[], asyncio.Protocol]] = {}
        self._open: dict[str, list[asyncio.BaseTransport]] = {}
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Raises SandboxUnavailable. The bridge must be there."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((PLATFORM, PORT))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise SandboxUnavailable(
                f"the session endpoint cannot listen on {PLATFORM}:{PORT} ({error.strerror}); run the platform as root "
                "(or with CAP_NET_BIND_SERVICE) on the machine that runs Docker, and only one on it"
            ) from None
        self._socket = listener
        self._accepting = asyncio.create_task(self._accept(listener), name="docker session endpoint")

    async def close(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._socket is not None:
            self._socket.close()
        for address in list(self._endpoints):
            self.remove(address)

    def add(self, address: str, endpoint: Callable[[], asyncio.Protocol]) -> None:
        self._endpoints[address] = endpoint

    def remove(self, address: str) -> None:
        """Ends its connections: the address will be another's."""
        self._endpoints.pop(address, None)
        for transport in self._open.pop(address, ()):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
            else:
                transport.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, (address, _) = await loop.sock_accept(listener)
            except ConnectionError:
                continue
            except OSError as error:
                logger.warning("the session endpoint cannot accept: %s", error)
                await asyncio.sleep(_PAUSE)
                continue
            endpoint = self._endpoints.get(address)
            if endpoint is None:
                connection.close()
                continue
            try:
                transport, _ = await loop.connect_accepted_socket(endpoint, connection)
            except Exception:
                logger.exception("a connection to the session endpoint failed")
                connection.close()
                continue
            living = [one for one in self._open.get(address, ()) if not one.is_closing()]
            self._open[address] = [*living, transport]
