"""As whom sessions run: root gives each a host uid of its own, an ordinary user shares his."""

from __future__ import annotations

import os
import secrets
from enum import StrEnum
from pathlib import Path

from agentkeep.core.errors import SandboxUnavailable

__all__ = ["HostIds", "Mode", "choose_mode"]

# linux/capability.h. PTRACE reads other uids' /proc entries, KILL ends them.
_NEEDED = {"DAC_OVERRIDE": 1, "KILL": 5, "SETGID": 6, "SETUID": 7, "NET_ADMIN": 12, "SYS_PTRACE": 19, "SYS_ADMIN": 21}


class Mode(StrEnum):
    ROOT = "root"
    USER = "user"


def choose_mode() -> Mode:
    """Raises SandboxUnavailable for a root without the power of root, as in an ordinary container."""
    if os.geteuid() != 0:
        return Mode.USER
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))
    missing = [name for name, bit in _NEEDED.items() if not effective >> bit & 1]
    if missing:
        raise SandboxUnavailable(
            f"running as root without the capabilities {', '.join(missing)}; run the platform as an ordinary user "
            "(in a container: with --user, --security-opt seccomp=unconfined and systempaths=unconfined), "
            "or use the docker driver"
        )
    return Mode.ROOT


class HostIds:
    """Host uids that nobody else has, from the range systemd leaves to containers. Begins at a random place, so that
    two platforms on one machine do not meet, and gives no id again while it is in use."""

    FIRST, LAST = 0x6A000000, 0x6AFFFFFF

    def __init__(self) -> None:
        self._next = self.FIRST + secrets.randbelow(self.LAST - self.FIRST)
        self._used: set[int] = set()

    def take(self) -> int:
        while self._next in self._used:
            self._advance()
        taken = self._next
        self._used.add(taken)
        self._advance()
        return taken

    def give_back(self, uid: int) -> None:
        self._used.discard(uid)

    def _advance(self) -> None:
        self._next = self.FIRST if self._next >= self.LAST else self._next + 1
