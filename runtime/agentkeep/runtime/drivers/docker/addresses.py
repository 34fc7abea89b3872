"""Sessions' addresses: each is one session's at a time, and used again as late as possible.

By its address the session endpoint knows who asks. So who has an address is one fact, kept in one place: in memory
where one process holds the session endpoint, in a folder where several replicas share it (`shared_addresses.py`).
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Protocol

from agentkeep.core.errors import CapacityReached
from agentkeep.runtime.drivers.docker.network import session_addresses

__all__ = ["Addresses", "Found", "OwnAddresses", "no_address"]


class Found(Enum):
    """Whose a container is that was found with an address."""

    OURS = auto()  # from now on: its address is claimed
    OTHERS = auto()  # a living replica's, or another's who may come for it
    NOBODYS = auto()  # whoever made it is gone for good


class Addresses(Protocol):
    async def start(self) -> None:
        """Before all else. Raises SandboxUnavailable."""

    async def take(self) -> str:
        """One that no container has. Raises CapacityReached, SandboxUnavailable, EngineError."""

    async def claim(self, address: str, maker: str, owner: str) -> Found:
        """Of a container that was found: takes its address if it was `owner`'s. `maker`: who made the container."""

    async def give_back(self, address: str) -> None:
        """When its container is gone."""

    async def close(self) -> None:
        """Lets go of all, which remain this replica's to claim again."""


class OwnAddresses:
    """Of the one process on this machine that has the session endpoint: who else made containers is gone."""

    def __init__(self) -> None:
        self._free = deque(session_addresses())

    async def start(self) -> None:
        pass

    async def take(self) -> str:
        if not self._free:
            raise no_address()
        return self._free.popleft()

    async def claim(self, address: str, maker: str, owner: str) -> Found:
        if maker != owner or address not in self._free:
            return Found.NOBODYS
        self._free.remove(address)
        return Found.OURS

    async def give_back(self, address: str) -> None:
        self._free.append(address)

    async def close(self) -> None:
        pass


def no_address() -> CapacityReached:
    return CapacityReached(
        f"{len(session_addresses())} sessions are active, the most that have an address on this machine; stop some, or "
        "run another replica on another machine"
    )
