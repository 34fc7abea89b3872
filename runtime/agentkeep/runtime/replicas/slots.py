"""Places of a data volume, one for each replica that uses it.

Replicas may share a volume (`docker compose up --scale runtime=3` gives all of them the same). Each takes a slot: a
name and folders of its own, held by a lock of the kernel's on a file, which ends when the process does and not before.
So no two processes ever have one name, a replica that is started again finds its slot free, and whoever shares the
volume can see at once, and without doubt, that a replica has ended.

The lock belongs to the open file (`F_OFD_SETLK`, Linux), over containers too, as long as they share the machine. On
network file systems locks are leases themselves; such a volume is not to be shared.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
from pathlib import Path
from typing import Final

from agentkeep.core.errors import AgentkeepError

__all__ = ["Slot", "SlotsTaken"]

MOST: Final = 1000
#: struct flock: type, whence, start, length (0: the whole file), pid (must be 0).
_FLOCK: Final = "hhqqi4x"


class SlotsTaken(AgentkeepError):
    """Every slot of the volume is in use."""


class Slot:
    """A slot held by this process. `name` is the replica's; `folder` its own, the volume's itself for the first."""

    def __init__(self, volume: Path, identity: str, number: int, file: int) -> None:
        self._volume = volume
        self._identity = identity
        self._file = file  # kept open: it is the lock
        self.number = number
        self.folder = volume if number == 1 else volume / "replicas" / str(number)
        #: Says to others on the same volume which lock proves that this replica lives.
        self.lock = f"{identity}/{number}"
        self.name = self._name()

    @classmethod
    def take(cls, volume: Path) -> Slot:
        """The first that is free. Raises SlotsTaken, OSError."""
        folder = volume / "replicas"
        folder.mkdir(parents=True, exist_ok=True)
        identity = _identity(folder)
        for number in range(1, MOST + 1):
            file = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            except BlockingIOError:
                os.close(file)
            else:
                return cls(volume, identity, number, file)
        raise SlotsTaken(f"{MOST} replicas use the data volume {volume} already.")

    def has_ended(self, lock: str) -> bool:
        """Whether the process that held `lock` has ended, for certain. False says nothing: it may be elsewhere."""
        identity, _, number = lock.partition("/")
        if identity != self._identity or lock == self.lock:
            return False
        try:
            file = os.open(self._volume / "replicas" / f"{int(number)}.lock", os.O_RDWR | os.O_CLOEXEC)
        except (OSError, ValueError):
            return False
        try:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            (kind, *_) = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
            return bool(kind == fcntl.F_UNLCK)
        except OSError:
            return False
        finally:
            os.close(file)

    def release(self) -> None:
        os.close(self._file)

    def _name(self) -> str:
        # The name a platform gave itself before there were slots, so that it finds its sessions again.
        before = self._volume / "runtime" / "replica"
        if self.number == 1 and before.exists():
            return before.read_text().strip()
        return f"replica-{self._identity}-{self.number}"


def _identity(folder: Path) -> str:
    """Of the volume, the same for all who share it: made whole or not at all, by whoever is first."""
    path = folder / "volume"
    if not path.exists():
        new = folder / f".volume-{secrets.token_hex(8)}"
        new.write_text(secrets.token_hex(6))
        try:
            os.link(new, path)
        except FileExistsError:
            pass  # another was faster
        finally:
            new.unlink()
    return path.read_text().strip()
