"""Sessions' addresses where several replicas of the runtime plane share a machine: a file for each, in a folder that
only they write.

    169.254.170.17         locked by the replica that has it, which the kernel undoes when that process ends, however
                           it ends. It says `free` and since when, or who has it, or had it when it died
    169.254.170.17.sock    there the replica listens for the session's connections (`listener.py`)

So a locked address is a living replica's, by no clock's word; and an address counts as free only if who had it said so
after its container was gone, or if no container has it while nobody can make one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.addresses import Found, no_address
from agentkeep.runtime.drivers.docker.engine import Engine
from agentkeep.runtime.drivers.docker.network import NETWORK, session_addresses

__all__ = ["REST", "SharedAddresses", "address_of", "alone"]

#: Seconds from an address's end to its next use: longer than the session edge may hold a connection that it has not
#: handed on (`session_edge.py`), so that none of the one session's becomes the other's.
REST: Final = 10.0
_FREE: Final = "free"
_PAUSE: Final = 0.1


class SharedAddresses:
    """`replica`: this one's name. `label`: of the containers that have addresses."""

    def __init__(self, folder: Path, replica: str, engine: Engine, label: str) -> None:
        self._folder = folder
        self._replica = replica
        self._engine = engine
        self._label = label
        # Replicas begin at different places, and each uses its own addresses in turn.
        self._order = deque(random.sample(session_addresses(), len(session_addresses())))
        self._held: dict[str, int] = {}  # by descriptor
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        await asyncio.to_thread(self._make_files)
        await self._sweep()

    async def take(self) -> str:
        async with self._lock:
            swept = False
            while True:
                address, rest = await asyncio.to_thread(self._take)
                if address is not None:
                    return address
                if rest is not None:
                    await asyncio.sleep(rest)
                elif not swept:
                    await self._sweep()
                    swept = True
                else:
                    raise no_address()

    async def claim(self, address: str, maker: str, owner: str) -> Found:
        return Found.OURS if await asyncio.to_thread(self._claim, address, maker, owner) else Found.OTHERS

    async def give_back(self, address: str) -> None:
        if (descriptor := self._held.pop(address, None)) is not None:
            await asyncio.to_thread(_free, descriptor)

    async def close(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])

    # Blocking.

    def _make_files(self) -> None:
        try:
            for address in self._order:
                os.close(os.open(self._folder / address, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> SandboxUnavailable:
        return SandboxUnavailable(
            f"sessions' addresses cannot be kept in {self._folder} ({error.strerror}); mount the volume that the "
            "session edge has there, writable by this user"
        )

    def _locked(self, address: str) -> int | None:
        """Its descriptor, and with it the lock; None if a living process has that."""
        try:
            descriptor = os.open(self._folder / address, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _take(self) -> tuple[str | None, float | None]:
        """An address, now held; or else the seconds after which one will have rested long enough, if one rests."""
        soonest: float | None = None
        for _ in range(len(self._order)):
            address = self._order[0]
            self._order.rotate(-1)
            descriptor = None if address in self._held else self._locked(address)
            if descriptor is None:
                continue
            since = _free_since(_read(descriptor))
            rest = None if since is None else REST - (_now() - since)
            if rest is not None and not 0 < rest <= REST:  # more: the machine was started anew since
                _write(descriptor, self._replica)
                self._held[address] = descriptor
                return address, None
            os.close(descriptor)
            if rest is not None:
                soonest = min(rest, soonest or rest)
        return None, soonest

    def _claim(self, address: str, maker: str, owner: str) -> bool:
        if address in self._held or address not in self._order:
            return False
        descriptor = self._locked(address)
        if descriptor is None:
            return False
        said = _read(descriptor)
        last = maker if not said or _free_since(said) is not None else said
        if last != owner:
            os.close(descriptor)
            return False
        _write(descriptor, self._replica)
        self._held[address] = descriptor
        return True

    async def _sweep(self) -> None:
        """Sets free what no container has. Locked first, then looked at: nobody makes a container there meanwhile."""
        unknown = await asyncio.to_thread(self._unknown)
        try:
            inhabited = {address_of(found) for found in await self._engine.containers(self._label)}
            await asyncio.to_thread(_release, (one for address, one in unknown.items() if address not in inhabited))
        finally:
            for descriptor in unknown.values():
                os.close(descriptor)

    def _unknown(self) -> dict[str, int]:
        unknown = {}
        for address in self._order:
            descriptor = None if address in self._held else self._locked(address)
            if descriptor is None:
                continue
            if _free_since(_read(descriptor)) is None:
                unknown[address] = descriptor
            else:
                os.close(descriptor)
        return unknown


def address_of(found: dict[str, Any]) -> str:
    """Of a container as the engine lists it: which it has, or will have when it is started. Empty: none."""
    network = found["NetworkSettings"]["Networks"].get(NETWORK) or {}
    return network.get("IPAddress") or (network.get("IPAMConfig") or {}).get("IPv4Address") or ""


@asynccontextmanager
async def alone(path: Path) -> AsyncIterator[None]:
    """Not while another replica is within."""
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _release(descriptors: Iterable[int]) -> None:
    """Where nobody has been is free at once; where somebody was who died, after a rest."""
    for descriptor in descriptors:
        _write(descriptor, f"{_FREE} {_now() if _read(descriptor) else 0}")


def _free(descriptor: int) -> None:
    _write(descriptor, f"{_FREE} {_now()}")
    os.close(descriptor)


def _free_since(said: str) -> float | None:
    word, _, since = said.partition(" ")
    try:
        return float(since) if word == _FREE else None
    except ValueError:
        return None


def _now() -> float:
    """The machine's own time since its start, the same for all its containers."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip()


def _write(descriptor: int, said: str) -> None:
    os.pwrite(descriptor, said.encode().ljust(64), 0)
