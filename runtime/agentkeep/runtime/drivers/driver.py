"""The contract of a driver: it makes, polls, stops and finds again the environments in which sessions run.

One environment serves one session and is never used again. The life of an environment:

    STARTING ──▶ READY ──▶ STOPPING ──▶ GONE
        └──────────┴───────────────────▶ GONE      (crash, kill, failed start)
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

__all__ = [
    "PIECE",
    "AdoptedEnvironment",
    "Connection",
    "ConnectionsInUse",
    "Driver",
    "Environment",
    "EnvironmentSpec",
    "Execution",
    "Exit",
    "Finding",
    "Limits",
    "Severity",
    "VersionSpec",
    "Written",
]

#: Most bytes of one piece of a command's output.
PIECE = 16 << 10


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one session. Bytes unless named otherwise."""

    memory: int = 1 << 30
    processes: int = 128
    open_files: int = 1024
    cpus: float = 2.0
    disk: int = 512 << 20


@dataclass(frozen=True, slots=True)
class VersionSpec:
    """An agent runtime version, as a driver needs it. Exactly one of `bundle` (a read-only folder that holds the
    agent's code and, under `dependencies`, its installed packages) and `image` is set."""

    runtime_id: str
    version: str
    bundle: Path | None = None
    dependencies: Path | None = None
    entry_point: tuple[str, ...] = ()
    python: str = "3.11"
    image: str | None = None
    port: int = 8080
    fork_server: bool = True  # False: `cold`, a fresh process per session
    storage: tuple[str, ...] = ()  # /mnt/<name>: folders each session has for itself, within its disk limit


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """A driver does not know whose an environment is: it may be made before it is anybody's. `endpoint` makes the
    protocol that serves one connection to the session endpoint (169.254.170.2:80 inside): the driver calls it for each
    connection accepted from this environment, which is how the platform knows the session."""

    version: VersionSpec
    environment: Mapping[str, str]
    endpoint: Callable[[], asyncio.Protocol]
    log: Callable[[bytes], None]  # the agent's stdout and stderr, as it comes
    limits: Limits = field(default_factory=Limits)


class ConnectionsInUse(TimeoutError):
    """As many connections to the agent are in use as there may be, and none has become free in time."""


class Connection(Protocol):
    """A stream to the agent's port. `socket` is connected and non-blocking, the caller's to close; `release` must
    follow once, so that the driver can use what it kept for it."""

    @property
    def socket(self) -> socket.socket: ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Written:
    """A piece of what a command wrote, `PIECE` bytes at most, to its standard output or, if `error`, standard error."""

    data: bytes
    error: bool = False


class Execution(Protocol):
    """A command that runs in an environment. Only what is asked for is read of its output: one that is not read waits,
    as at any full pipe. Whoever got it ends it with `close`."""

    async def read(self) -> Written | None:
        """What it writes, as it comes. None when the shell has ended and all that was written until then has been
        read; processes it left behind are not waited for. One reader at a time."""
        ...

    async def wait(self) -> int | None:
        """The shell's exit status when it has ended, as another shell would tell it: 128 and the signal's number, if
        one killed it. None: unknown (lost host). With the environment the command has ended, too."""
        ...

    async def kill(self) -> None:
        """Ends the shell and the processes that descend from it; those of them that took pains to be nobody's
        may live on, in the environment's limits, until it ends. Safe to call more than once."""
        ...

    async def close(self) -> None:
        """Ends it, if it runs, and frees what was kept for it. Safe to call more than once."""
        ...


@dataclass(frozen=True, slots=True)
class Exit:
    """How an environment ended. `code` < 0: killed by that signal; None: unknown (lost host)."""

    code: int | None
    reason: str


class Environment(Protocol):
    @property
    def id(self) -> str:
        """Unlike any other's, and the same when it is adopted."""
        ...

    async def connect(self, timeout: float, port: int | None = None) -> Connection:
        """A new connection to the agent's port, or to another `port` of it; waits up to `timeout` seconds for it to
        listen.

        Raises EnvironmentStartFailed if the environment is gone, TimeoutError if it does not listen in time, of which
        ConnectionsInUse says that it has as many connections already as it may.
        """
        ...

    async def execute(self, line: str) -> Execution:
        """Runs a line with the environment's shell (bash, where it has one), beside the agent: as its user, with its
        environment variables, in its working directory, under the same limits and seals. `line` holds no NUL and fits
        one argument (131,071 bytes).

        Raises EnvironmentStartFailed if the environment is gone, CommandNotStarted if it has no room for another
        process, or no shell.
        """
        ...

    async def stop(self, grace: float) -> Exit:
        """Ends it: asks first (SIGTERM) and waits `grace` seconds, then kills. Nothing of it is left when this
        returns. Safe to call at any time, from anywhere, more than once."""
        ...

    async def wait(self) -> Exit:
        """Returns when the environment is gone, whatever ended it."""
        ...


class AdoptedEnvironment(Environment, Protocol):
    """One that outlived the platform. Until `resume` it has no session endpoint: its connections there are closed."""

    async def resume(self, endpoint: Callable[[], asyncio.Protocol], log: Callable[[bytes], None]) -> None:
        """Gives it back its session endpoint, and its output to `log` from now on; what it wrote meanwhile may be
        lost."""
        ...


class Severity(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, weaker than it could be
    ERROR = "error"  # cannot run sessions


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `agentkeep doctor`: what was tried, how it went, and the fix."""

    check: str
    severity: Severity
    detail: str
    fix: str = ""


class Driver(Protocol):
    """`prepare`, `start`, `adopt` and `retire` may raise DriverThrottled: nothing has come of the call, and whoever
    called calls again (`PatientDriver`). An environment's own methods never do: a `stop` that is turned away goes on
    trying by itself."""

    @property
    def name(self) -> str: ...

    async def probe(self) -> Sequence[Finding]:
        """Tries, with a throw-away environment, whether this machine can run sessions; never reads settings only."""
        ...

    async def prepare(self, version: VersionSpec) -> None:
        """Called before the first session of a version: fails with the reason (EnvironmentStartFailed,
        SandboxUnavailable) what would fail every session."""
        ...

    async def start(self, spec: EnvironmentSpec) -> Environment:
        """Starts an environment. Raises EnvironmentStartFailed or SandboxUnavailable; then nothing is left of it.
        Returns when the agent's process runs sealed; it need not listen yet."""
        ...

    async def adopt(self) -> Sequence[AdoptedEnvironment]:
        """After a restart of the platform: environments of ours that still live. A driver whose environments die with
        the platform returns none, and removes what remains of them."""
        ...

    async def take_over(self, replica: str) -> Sequence[AdoptedEnvironment]:
        """Environments still alive that another replica made, which is dead: `replica` is its name, as that replica's
        own driver was given it. Called once per dead replica, by one survivor, after nobody else can be it; from then
        on they are this driver's own, as if adopted, and every one is either resumed or stopped. None where they have
        died with it, or cannot be reached from here."""
        ...

    async def retire(self, runtime_id: str, version: str) -> None:
        """No new session of this version will come: frees what was kept for it. Running sessions go on."""
        ...

    async def close(self) -> None:
        """Ends every environment that cannot outlive the platform."""
        ...
