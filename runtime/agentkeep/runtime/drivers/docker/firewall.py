"""What a session may send: connections to the platform's address, port 80, and nothing else.

An internal network alone would leave every port of the host open that is bound to 0.0.0.0 or to the bridge's address.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.docker.network import BRIDGE, PLATFORM

__all__ = ["Firewall", "is_in_force"]

CHAIN: Final = "AGENTKEEP-SESSIONS"
_JUMP: Final = f"-A INPUT -i {BRIDGE} -j {CHAIN}"
_RULES: Final = (
    f"-A {CHAIN} -m conntrack --ctstate ESTABLISHED -j ACCEPT",  # answers to the platform's own connections
    f"-A {CHAIN} -d {PLATFORM}/32 -p tcp -m tcp --dport 80 -j ACCEPT",
    f"-A {CHAIN} -j DROP",
)
_FORWARDING: Final = (f"-A DOCKER-USER -i {BRIDGE} -j DROP", f"-A DOCKER-USER -o {BRIDGE} -j DROP")
_FIX: Final = (
    "run the platform as root (or with CAP_NET_ADMIN) on the machine that runs Docker, with iptables installed"
)


def is_in_force(listing: str) -> bool:
    """Whether the rules are there, and before all others, in what `iptables -S` printed."""
    lines = listing.splitlines()

    def chain(name: str) -> list[str]:
        return [line for line in lines if line.startswith(f"-A {name} ")]

    return (
        chain("INPUT")[:1] == [_JUMP] and chain(CHAIN) == list(_RULES) and chain("DOCKER-USER")[:2] == list(_FORWARDING)
    )


class Firewall:
    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def ensure(self) -> None:
        """Puts the rules in force if they are not, as after another program has reloaded its own. Raises
        SandboxUnavailable: then no session may start."""
        async with self._lock:
            listing = await _run("iptables", "-w", "5", "-S")
            if is_in_force(listing):
                return
            if "-N DOCKER-USER" not in listing.splitlines():
                raise SandboxUnavailable("Docker runs with --iptables=false, which leaves sessions open to each other")
            commands = ["*filter", f":{CHAIN} - [0:0]", *_RULES]
            present = set(listing.splitlines())
            commands += [line.replace("-A ", "-D ", 1) for line in (_JUMP, *_FORWARDING) if line in present]
            commands += [_inserted(line) for line in (_JUMP, *reversed(_FORWARDING))]
            # One transaction: at no time is there less than before.
            await _run("iptables-restore", "-w", "5", "--noflush", given="\n".join([*commands, "COMMIT", ""]))
            if not is_in_force(await _run("iptables", "-w", "5", "-S")):
                raise SandboxUnavailable("the rules that keep sessions from this machine's ports did not take effect")


def _inserted(line: str) -> str:
    _, chain, rule = line.split(" ", 2)
    return f"-I {chain} 1 {rule}"


async def _run(*command: str, given: str = "") -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate(given.encode())
    except OSError as error:
        raise SandboxUnavailable(f"{command[0]} cannot be run ({error}); {_FIX}") from None
    if process.returncode:
        said = errors.decode(errors="replace").strip()
        raise SandboxUnavailable(f"{command[0]} failed ({said}); {_FIX}")
    return output.decode()
