"""What a session may send: connections to the platform's address, port 80, and nothing else.

An internal network alone would leave every port of the host open that is bound to 0.0.0.0 or to the bridge's address.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.network import BRIDGE, PLATFORM, REPLICAS

__all__ = ["CHAINS", "PLATFORM_IN_CONTAINER", "PLATFORM_ON_HOST", "Firewall", "Rules", "is_in_force"]

CHAIN: Final = "AGENTKEEP-SESSIONS"
FORWARD: Final = "AGENTKEEP-FORWARD"
CHAINS: Final = (CHAIN, FORWARD)
_BRIDGED: Final = f"-i {BRIDGE} -o {BRIDGE} -p tcp"


@dataclass(frozen=True, slots=True)
class Rules:
    """`chains`: of our own, whole. `first`: what the engine's and the kernel's chains must begin with. All lines as
    `iptables -S` prints them."""

    chains: Mapping[str, Sequence[str]]
    first: Mapping[str, Sequence[str]]


#: The platform is at the host's address: what comes from the bridge for it passes INPUT.
PLATFORM_ON_HOST: Final = Rules(
    chains={
        CHAIN: (
            f"-A {CHAIN} -m conntrack --ctstate ESTABLISHED -j ACCEPT",  # answers to the platform's own connections
            f"-A {CHAIN} -d {PLATFORM}/32 -p tcp -m tcp --dport 80 -j ACCEPT",
            f"-A {CHAIN} -j DROP",
        )
    },
    first={
        "INPUT": (f"-A INPUT -i {BRIDGE} -j {CHAIN}",),
        "DOCKER-USER": (f"-A DOCKER-USER -i {BRIDGE} -j DROP", f"-A DOCKER-USER -o {BRIDGE} -j DROP"),
    },
)
#: The platform is containers beside the sessions': nothing of theirs is for the host, and of what crosses the bridge
#: only that passes which the runtime plane begins, or a session with the session edge.
PLATFORM_IN_CONTAINER: Final = Rules(
    chains={
        CHAIN: (f"-A {CHAIN} -j DROP",),
        FORWARD: (
            f"-A {FORWARD} -s {REPLICAS} {_BRIDGED} -j ACCEPT",
            f"-A {FORWARD} -d {PLATFORM}/32 {_BRIDGED} -m tcp --dport 80 -j ACCEPT",
            f"-A {FORWARD} -s {PLATFORM}/32 {_BRIDGED} -m tcp --sport 80 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            f"-A {FORWARD} -d {REPLICAS} {_BRIDGED} -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            f"-A {FORWARD} -j DROP",
        ),
    },
    first={
        "INPUT": (f"-A INPUT -i {BRIDGE} -j {CHAIN}",),
        "DOCKER-USER": (f"-A DOCKER-USER -i {BRIDGE} -j {FORWARD}", f"-A DOCKER-USER -o {BRIDGE} -j {FORWARD}"),
    },
)
_FIX: Final = (
    "run the platform as root (or with CAP_NET_ADMIN) on the machine that runs Docker, with iptables installed"
)
#: The kernel has two sets of tables, and each program sees but one: ours must be the engine's.
_PROGRAMS: Final = ("iptables", "iptables-nft", "iptables-legacy")


def is_in_force(listing: str, rules: Rules = PLATFORM_ON_HOST) -> bool:
    """Whether the rules are there, and before all others, in what `iptables -S` printed."""
    lines = listing.splitlines()

    def chain(name: str) -> list[str]:
        return [line for line in lines if line.startswith(f"-A {name} ")]

    return all(chain(name) == list(whole) for name, whole in rules.chains.items()) and all(
        chain(name)[: len(beginning)] == list(beginning) for name, beginning in rules.first.items()
    )


class Firewall:
    def __init__(self, rules: Rules = PLATFORM_ON_HOST) -> None:
        self._rules = rules
        self._program: str | None = None
        self._lock = asyncio.Lock()

    async def ensure(self) -> None:
        """Puts the rules in force if they are not, as after another program has reloaded its own. Raises
        SandboxUnavailable: then no session may start."""
        async with self._lock:
            program, listing = await self._engines_tables()
            if is_in_force(listing, self._rules):
                return
            present = set(listing.splitlines())
            commands = ["*filter"]
            for name, whole in self._rules.chains.items():
                commands += [f":{name} - [0:0]", *whole]
            for beginning in self._rules.first.values():
                commands += [line.replace("-A ", "-D ", 1) for line in beginning if line in present]
                commands += [_inserted(line) for line in reversed(beginning)]
            # One transaction: at no time is there less than before.
            given = "\n".join([*commands, "COMMIT", ""])
            await _run(f"{program}-restore", "-w", "5", "--noflush", given=given)
            if not is_in_force(await _list(program), self._rules):
                raise SandboxUnavailable("the rules that keep sessions from this machine's ports did not take effect")

    async def _engines_tables(self) -> tuple[str, str]:
        """The program that sees the engine's chains, and what it lists."""
        problem = ""
        for program in (self._program,) if self._program else _PROGRAMS:
            if program != _PROGRAMS[0] and shutil.which(program) is None:
                continue
            try:
                listing = await _list(program)
            except SandboxUnavailable as error:
                problem = problem or str(error)
                continue
            problem = "Docker runs with --iptables=false, which leaves sessions open to each other"
            if "-N DOCKER-USER" in listing.splitlines():
                self._program = program
                return program, listing
        self._program = None
        raise SandboxUnavailable(problem)


async def _list(program: str) -> str:
    return await _run(program, "-w", "5", "-S")


def _inserted(line: str) -> str:
    _, chain, rule = line.split(" ", 2)
    return f"-I {chain} 1 {rule}"


async def _run(*command: str, given: str = "") -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate(given.encode() or None)
    except (OSError, RuntimeError) as error:  # uvloop's RuntimeError: it ended before it was told all
        raise SandboxUnavailable(f"{command[0]} cannot be run ({error}); {_FIX}") from None
    if process.returncode:
        said = errors.decode(errors="replace").strip()
        raise SandboxUnavailable(f"{command[0]} failed ({said}); {_FIX}")
    return output.decode()
