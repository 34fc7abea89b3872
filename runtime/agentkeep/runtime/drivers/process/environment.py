"""A session's environment: one sealed process tree, born of a fork server, with everything the platform holds of it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from agentkeep.core.clock import Clock
from agentkeep.core.errors import EnvironmentStartFailed, SandboxUnavailable
from agentkeep.runtime.drivers.driver import ConnectionsInUse, EnvironmentSpec, Exit
from agentkeep.runtime.drivers.process.cgroups import Cgroup, Cgroups
from agentkeep.runtime.drivers.process.channel import Channel, Message, memory_file
from agentkeep.runtime.drivers.process.command import Work, plan_work
from agentkeep.runtime.drivers.process.evidence import NotSealed, Sealed, catches, inhabits, inspect_session
from agentkeep.runtime.drivers.process.execution import Inhabited, ProcessExecution
from agentkeep.runtime.drivers.process.fork_server import ForkServer
from agentkeep.runtime.drivers.process.log_pipe import LogPipe
from agentkeep.runtime.drivers.process.sockets import PooledConnection, SocketPool
from agentkeep.runtime.drivers.process.tasks import in_thread, when_readable

__all__ = ["ProcessEnvironment", "Surroundings"]

logger = logging.getLogger(__name__)

CONNECTIONS = 32  # at once, to one agent
HANDSHAKE_TIMEOUT = 60.0  # seconds; milliseconds where nothing is wrong
_SEALED_DESCRIPTORS = {0, 1, 2, 3}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an environment needs of its driver. `uid`: the host uid of its own, None where sessions share the
    platform's; `living`: the other environments, with whom nothing may be shared."""

    uid: int | None
    cgroups: Cgroups
    clock: Clock
    living: Callable[[], list[ProcessEnvironment]]


class ProcessEnvironment:
    """See `drivers.driver.Environment`."""

    def __init__(self, spec: EnvironmentSpec, server: ForkServer, surroundings: Surroundings) -> None:
        self.spec = spec
        self.id = f"process-{secrets.token_hex(8)}"
        self.pid = 0  # of the session's PID 1, on the host
        self.sealed: Sealed | None = None
        self._server = server
        self._around = surroundings
        self._channel = Channel()
        self._log = LogPipe(spec.log)
        self._pidfd = -1
        self._dead: asyncio.Future[None] | None = None
        self._cgroup: Cgroup | None = None
        self._pool = SocketPool(())
        self._listener: socket.socket | None = None
        self._endpoint: asyncio.Server | None = None
        self._plan: dict[str, Any] = {}
        self._work: Work | None = None
        self._executions: set[ProcessExecution] = set()
        self._reason = ""  # why we ended it, if we did
        self._gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return self._dead is not None and not self._dead.done()

    # Birth

    async def begin(self) -> None:
        """Raises EnvironmentStartFailed or SandboxUnavailable; the caller then calls `finish`."""
        self._server.sessions += 1
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await self._handshake()
        except TimeoutError:
            raise EnvironmentStartFailed(f"the sandbox was not sealed within {HANDSHAKE_TIMEOUT:g} s") from None
        except (NotSealed, OSError) as error:
            raise SandboxUnavailable(f"the session was not sealed: {error}") from error

    async def _handshake(self) -> None:
        try:
            await self._server.fork(self._channel.theirs.fileno(), self._log.writer)
        finally:
            self._channel.theirs.close()
            self._log.close_writer()
        born = await self._receive(b"unshared")
        await in_thread(self._confine, born.pid)
        limits = self.spec.limits
        plan = self._plan = {**asdict(limits), "map_self": self._around.uid is None, "sockets": CONNECTIONS, "data": 0}
        plan["storage"] = self.spec.version.storage
        if "memory" not in self._around.cgroups.controllers:
            plan["data"] = limits.memory  # at least each process by itself
        await self._channel.send(orjson.dumps(plan))
        handed = await self._receive(b"sockets")
        self.pid = handed.pid
        self._pidfd = os.pidfd_open(handed.pid)
        self._dead = when_readable(self._pidfd)
        dial = [socket.socket(fileno=descriptor) for descriptor in handed.descriptors]
        handed.descriptors.clear()
        if len(dial) != CONNECTIONS + 1:
            for one in dial:
                one.close()
            raise NotSealed(f"{len(dial)} sockets arrived of {CONNECTIONS + 1}; is the limit of open files reached?")
        self._listener = dial.pop(0)
        self._pool = SocketPool(dial)
        await self._receive(b"sealed")
        own = os.geteuid() if self._around.uid is None else self._around.uid
        sealed = await in_thread(
            inspect_session,
            self.pid,
            own,
            [self._listener, *dial],
            _SEALED_DESCRIPTORS,
            self.spec.version.storage,
        )
        self._shares_nothing(sealed)
        self.sealed = sealed
        self._server.exit_of(sealed.inner_pid)
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._endpoint = await loop.create_server(self.spec.endpoint, sock=self._listener)
        await self._send_work()

    def _confine(self, pid: int) -> None:
        """What only the platform can do for the new process. Blocking."""
        if self._around.cgroups.controllers:
            self._cgroup = self._around.cgroups.create(self.id, self.spec.limits)
            self._cgroup.add(pid)
        if self._around.uid is not None:
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{kind}").write_text(f"0 {self._around.uid} 1")

    def _shares_nothing(self, sealed: Sealed) -> None:
        """Nothing is awaited between this and telling the others: of two that share, one must see it."""
        for other in self._around.living():
            if other is self or other.sealed is None:
                continue
            common = (sealed.namespaces & other.sealed.namespaces) | (sealed.devices & other.sealed.devices)
            # The numbers of one that has just died may be new already. (Seldom, so the loop may wait for it.)
            if common and other.alive and inhabits(other.pid, other.sealed):
                raise NotSealed(f"{sorted(map(str, common))} shared with another session")

    async def _send_work(self) -> None:
        server = self._server
        assert server.interpreter is not None
        work, cold = plan_work(
            self.spec.version, self.spec.environment, server.interpreter, server.cold_reason, server.instruments
        )
        self._work = work
        if cold and not server.cold_reason:
            logger.info("%s starts cold: %s", self.id, cold)
        with memory_file(asdict(work)) as file:
            await self._channel.send(b"work", [file])
        self._channel.close()

    async def _receive(self, wanted: bytes) -> Message:
        message = await self._channel.receive()
        if message.data == wanted:
            return message
        message.close()
        text = message.data.decode(errors="replace")
        if text.startswith("failed "):
            raise SandboxUnavailable(f"the sandbox {text}; `agentkeep doctor` says what this machine lacks")
        raise EnvironmentStartFailed(
            f"the session ended before it was {wanted.decode()}", self._log.tail.decode(errors="replace")
        )

    # Life

    async def connect(self, timeout: float, port: int | None = None) -> PooledConnection:
        port = port or self.spec.version.port
        try:
            async with asyncio.timeout(timeout):
                return await self._connect(port)
        except TimeoutError:
            if self._pool.exhausted:
                raise ConnectionsInUse(f"{CONNECTIONS} connections to the agent are in use") from None
            raise TimeoutError(f"the agent did not listen on port {port} within {timeout:g} s") from None

    async def _connect(self, port: int) -> PooledConnection:
        loop = asyncio.get_running_loop()
        pause = 0.004
        while True:
            pooled = await self._pool.take()
            if pooled is None or not self.alive:
                if pooled is not None:
                    self._pool.put_back(pooled)
                raise self._failure()
            try:
                await loop.sock_connect(pooled, ("127.0.0.1", port))
                return PooledConnection(self._pool, pooled)
            except (ConnectionError, OSError):
                self._pool.put_back(pooled)
            except BaseException:
                self._pool.put_back(pooled)
                raise
            await asyncio.wait([self._gone], timeout=pause)
            pause = min(pause * 1.2, 0.05)

    def _failure(self) -> EnvironmentStartFailed:
        how = self._gone.result().reason if self._gone.done() else "its process has ended"
        return EnvironmentStartFailed(
            f"the agent's environment is gone: {how}", self._log.tail.decode(errors="replace")
        )

    @property
    def roots(self) -> list[int]:
        """Host pids from which all of the session's processes descend."""
        return [self.pid, *(execution.pid for execution in self._executions)]

    async def execute(self, line: str) -> ProcessExecution:
        if not self.alive:
            raise self._failure()
        execution = ProcessExecution(self._server, self._inhabited())
        self._executions.add(execution)
        try:
            await execution.begin(line)
        except BaseException:
            self._executions.discard(execution)
            raise
        execution.on_end(lambda: self._executions.discard(execution))
        return execution

    def _inhabited(self) -> Inhabited:
        assert self.sealed is not None and self._work is not None and self._dead is not None
        return Inhabited(
            pid=self.pid,
            sealed=self.sealed,
            uid=os.geteuid() if self._around.uid is None else self._around.uid,
            separate=self._around.uid is not None,
            plan=self._plan,
            variables=self._work.environment,
            folder=self._work.folder,
            confine=lambda pid: None if self._cgroup is None else self._cgroup.add(pid),
            gone=self._dead,
        )

    async def stop(self, grace: float) -> Exit:
        if self.alive:
            # PID 1 of a namespace never sees a signal it does not handle, so asking would be waiting for nothing.
            if grace > 0 and await in_thread(catches, self.pid, signal.SIGTERM):
                self._reason = self._reason or "stopped"
                self._signal(signal.SIGTERM)
                await self._ended_within(grace)
            if self.alive:
                self.kill("stopped")
        return await self.wait()

    def kill(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._signal(signal.SIGKILL)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._gone)

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    async def _ended_within(self, seconds: float) -> None:
        assert self._dead is not None
        timer = asyncio.ensure_future(self._around.clock.sleep(seconds))
        await asyncio.wait([self._dead, timer], return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()

    # End

    async def finish(self) -> Exit:
        """Waits for the end of the session's process, then leaves nothing of the environment. Called once, by the
        driver, in a task that nobody cancels; after a birth that failed, too."""
        if self._dead is not None:
            if self.sealed is None:
                self._signal(signal.SIGKILL)
            await self._dead
        self._channel.close()  # a child that waits for us ends now
        self._log.close_writer()
        if self.sealed is None:
            # Its pid may never have become known, but the log ends only with the last process that could write to it.
            await asyncio.wait([self._log.ended], timeout=HANDSHAKE_TIMEOUT)
        result = await self._exit()
        self._pool.close()
        if self._endpoint is not None:
            self._endpoint.close()
        elif self._listener is not None:
            self._listener.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._log.close()
        if self._cgroup is not None:
            try:
                await in_thread(self._cgroup.remove)
            except OSError as error:
                logger.warning("the control group of %s stays: %s", self.id, error)
        await asyncio.gather(*(execution.ended() for execution in list(self._executions)))
        self._server.sessions -= 1
        self._server.idle_since = self._around.clock.monotonic()
        self._gone.set_result(result)
        return result

    async def _exit(self) -> Exit:
        if self.sealed is None:
            return Exit(None, "failed to start")
        status = self._server.exit_of(self.sealed.inner_pid)
        first: list[asyncio.Future[Any]] = [status, self._server.ended]
        await asyncio.wait(first, timeout=2, return_when=asyncio.FIRST_COMPLETED)
        self._server.forget(self.sealed.inner_pid)
        if not status.done():
            return Exit(-signal.SIGKILL, self._reason or "its fork server ended")
        code = status.result()
        if self._cgroup is not None and code == -signal.SIGKILL and await in_thread(self._cgroup.out_of_memory):
            return Exit(code, f"out of memory: its limit is {self.spec.limits.memory >> 20} MiB")
        if self._reason:
            return Exit(code, self._reason)
        if code < 0:
            return Exit(code, f"killed by {signal.Signals(-code).name}")
        return Exit(code, f"the agent's process ended with status {code}")
