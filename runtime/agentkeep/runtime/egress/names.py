"""Names become addresses, apart from the platform's own look-ups: sessions that ask much wait for each other."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final, Protocol

from agentkeep.core.addresses import Address

__all__ = ["Names", "SystemNames"]

_THREADS: Final = 8


class Names(Protocol):
    async def addresses(self, host: str) -> list[Address]:
        """In the order in which they are to be tried. Raises OSError."""
        ...

    def close(self) -> None: ...


class SystemNames:
    """As this machine resolves them."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "egress names")

    async def addresses(self, host: str) -> list[Address]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(ip_address(str(place[0]).partition("%")[0]) for *_, place in found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
