"""The session endpoint: connections of sessions, each known by the address of the container it comes from.

Why that address can be trusted: the engine gives each container one, which nothing inside can change (no capabilities,
so no raw sockets and no change of addresses or routes), the kernel sends from no other address without a capability,
and an answer to a forged one would go to the forged one's owner.

Where the platform is the host, one listener at 169.254.170.2:80. Where it is containers, the session edge has that, and
hands a connection to the Unix socket of its address, at which the replica listens that has the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.network import PLATFORM

__all__ = ["PORT", "EdgeListener", "HostListener", "SessionListener", "accepted", "socket_of"]

logger = logging.getLogger(__name__)

PORT: Final = 80
_BACKLOG = 1024
_PAUSE = 0.1  # seconds, when there are no descriptors to accept with

Endpoint = Callable[[], asyncio.Protocol]


class SessionListener(Protocol):
    def start(self) -> None:
        """Raises SandboxUnavailable. The network must be there."""

    def add(self, address: str, endpoint: Endpoint) -> None:
        """From now on `endpoint` serves what comes from this address. Raises SandboxUnavailable."""

    def remove(self, address: str) -> None:
        """Ends its connections: the address will be another's."""

    async def close(self) -> None: ...


class _Connections:
    """Those that are open, by address."""

    def __init__(self) -> None:
        self._open: dict[str, list[asyncio.BaseTransport]] = {}

    async def serve(self, address: str, connection: socket.socket, endpoint: Endpoint) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(endpoint, connection)
        except Exception:
            logger.exception("a connection to the session endpoint failed")
            connection.close()
            return
        living = [one for one in self._open.get(address, ()) if not one.is_closing()]
        self._open[address] = [*living, transport]

    def cut(self, address: str) -> None:
        for transport in self._open.pop(address, ()):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
            else:
                transport.close()


class HostListener:
    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._connections = _Connections()
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
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

    def add(self, address: str, endpoint: Endpoint) -> None:
        self._endpoints[address] = endpoint

    def remove(self, address: str) -> None:
        self._endpoints.pop(address, None)
        self._connections.cut(address)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, (address, _) = await accepted(listener)
            endpoint = self._endpoints.get(address)
            if endpoint is None:
                connection.close()
            else:
                await self._connections.serve(address, connection, endpoint)
                if self._endpoints.get(address) is not endpoint:  # it ended meanwhile
                    self._connections.cut(address)


class EdgeListener:
    """Behind the session edge; `folder`: where it looks for the sockets. Who adds an address has it, in
    `SharedAddresses` of the same folder: no other replica listens there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._connections = _Connections()
        self._listening: dict[str, tuple[socket.socket, asyncio.Task[None]]] = {}

    def start(self) -> None:
        """The session edge listens."""

    async def close(self) -> None:
        for address in list(self._listening):
            self.remove(address)

    def add(self, address: str, endpoint: Endpoint) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self._prepared(address))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise SandboxUnavailable(f"no session endpoint can be made in {self._folder} ({error.strerror})") from None
        accepting = asyncio.create_task(
            self._accept(address, listener, endpoint), name=f"session endpoint of {address}"
        )
        self._listening[address] = listener, accepting

    def _prepared(self, address: str) -> str:
        """The socket's path; a replica that died may have left its own there."""
        path = socket_of(self._folder, address)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return path

    def remove(self, address: str) -> None:
        if (found := self._listening.pop(address, None)) is not None:
            listener, accepting = found
            accepting.cancel()
            accepting.add_done_callback(lambda _: listener.close())
            with contextlib.suppress(OSError):
                os.unlink(socket_of(self._folder, address))
        self._connections.cut(address)

    async def _accept(self, address: str, listener: socket.socket, endpoint: Endpoint) -> None:
        while True:
            connection, _ = await accepted(listener)
            await self._connections.serve(address, connection, endpoint)


async def accepted(listener: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
    """The next connection, and where it comes from."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await loop.sock_accept(listener)
        except ConnectionError:
            continue
        except OSError as error:
            logger.warning("the session endpoint cannot accept: %s", error)
            await asyncio.sleep(_PAUSE)


def socket_of(folder: Path, address: str) -> str:
    return str(folder / f"{address}.sock")
