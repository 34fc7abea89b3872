"""The fork servers of all versions: started when first needed, replaced when worn, ended when idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agentkeep.core.clock import Clock
from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.fork_server import ForkServer
from agentkeep.runtime.drivers.process.settings import ProcessDriverSettings

__all__ = ["ForkServers"]

logger = logging.getLogger(__name__)


class ForkServers:
    """`launch` starts one. A server no longer current ends with its last session."""

    def __init__(
        self, launch: Callable[[VersionSpec], Awaitable[ForkServer]], settings: ProcessDriverSettings, clock: Clock
    ) -> None:
        self._launch = launch
        self._settings = settings
        self._clock = clock
        self._current: dict[VersionSpec, asyncio.Task[ForkServer]] = {}
        self._replacing: dict[VersionSpec, asyncio.Task[None]] = {}
        self._leaving: set[ForkServer] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def get(self, version: VersionSpec) -> ForkServer:
        """The current server of this version. Raises what starting one raises; the next call tries again."""
        starting = self._current.get(version)
        if starting is not None and starting.done() and not self._usable(starting):
            self._drop(version)
            starting = None
        if starting is None:
            starting = self._current[version] = asyncio.create_task(self._start(version))
            if self._sweeper is None:
                self._sweeper = asyncio.create_task(self._sweep())
        # Shielded: others may wait for the same server.
        server = await asyncio.shield(starting)
        if self._worn(server) and version not in self._replacing and self._current.get(version) is starting:
            self._replacing[version] = asyncio.create_task(self._replace(version))
        return server

    def released(self, server: ForkServer) -> None:
        """A session of it has ended."""
        if server in self._leaving and server.sessions == 0:
            self._leaving.discard(server)
            self._close(server)

    async def retire(self, runtime_id: str, version: str) -> None:
        for known in [key for key in self._current if (key.runtime_id, key.version) == (runtime_id, version)]:
            self._drop(known)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for replacing in self._replacing.values():
            replacing.cancel()
        await asyncio.gather(*self._replacing.values(), return_exceptions=True)
        for starting in self._current.values():
            starting.cancel()  # one that is ready keeps its result
        for result in await asyncio.gather(*self._current.values(), return_exceptions=True):
            if isinstance(result, ForkServer):
                self._close(result)
        self._current.clear()
        for server in self._leaving:
            self._close(server)
        self._leaving.clear()
        await asyncio.gather(*self._closing)

    async def _start(self, version: VersionSpec) -> ForkServer:
        server = await self._launch(version)
        server.started_at = server.idle_since = self._clock.monotonic()
        return server

    @staticmethod
    def _usable(starting: asyncio.Task[ForkServer]) -> bool:
        return not starting.cancelled() and starting.exception() is None and starting.result().alive

    def _worn(self, server: ForkServer) -> bool:
        age = self._clock.monotonic() - server.started_at
        return server.served >= self._settings.fork_server_sessions or age >= self._settings.fork_server_age

    async def _replace(self, version: VersionSpec) -> None:
        """The new one first; sessions go on being born from the old one meanwhile."""
        starting = asyncio.create_task(self._start(version))
        try:
            await asyncio.wait([starting])
            if starting.exception() is not None:
                logger.warning("the fork server of %s keeps on: %s", version.runtime_id, starting.exception())
                return
            if version in self._current:
                self._drop(version)
                self._current[version] = starting
            else:  # retired meanwhile
                self._close(starting.result())
        except asyncio.CancelledError:
            starting.cancel()
            for result in await asyncio.gather(starting, return_exceptions=True):
                if isinstance(result, ForkServer):
                    self._close(result)
            raise
        finally:
            del self._replacing[version]

    def _drop(self, version: VersionSpec) -> None:
        """No longer current: ends now, or with its last session."""
        starting = self._current.pop(version)
        starting.add_done_callback(self._leave)

    def _leave(self, starting: asyncio.Task[ForkServer]) -> None:
        if starting.cancelled() or starting.exception() is not None:
            return
        server = starting.result()
        if server.sessions == 0 or not server.alive:
            self._close(server)
        else:
            self._leaving.add(server)

    def _close(self, server: ForkServer) -> None:
        closing = asyncio.create_task(server.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _sweep(self) -> None:
        idle = self._settings.fork_server_idle
        while True:
            await self._clock.sleep(idle / 4)
            now = self._clock.monotonic()
            for version, starting in list(self._current.items()):
                if not starting.done() or not self._usable(starting) or version in self._replacing:
                    continue
                server = starting.result()
                if server.sessions == 0 and now - server.idle_since >= idle:
                    self._drop(version)
