"""A living session's namespaces, held open so that a command can be let into them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from agentkeep.runtime.drivers.process.evidence import NotSealed, Sealed

__all__ = ["session_namespaces"]

_NS_GET_USERNS: Final = 0xB701  # linux/nsfs.h: the user namespace that owns a namespace
#: After the user namespace that owns them, before the agent's own; as `inside/entry.py` takes them.
_OWNED: Final = ("cgroup", "ipc", "uts", "net", "pid", "mnt")


@contextmanager
def session_namespaces(pid: int, session: Sealed) -> Iterator[list[int]]:
    """Descriptors in the order in which they are entered. `pid`: the session's PID 1, on the host. Blocking; raises
    NotSealed where they are not the session's (its pid is somebody else's by now), OSError if it is gone."""
    known = {kind: (device, inode) for kind, device, inode in session.namespaces}
    with ExitStack() as opened:

        def opening(kind: str) -> int:
            descriptor = os.open(Path(f"/proc/{pid}/ns", kind), os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != known[kind]:
                raise NotSealed(f"the {kind} namespace is not the session's any more")
            return descriptor

        owned = [opening(kind) for kind in _OWNED]
        owner = fcntl.ioctl(owned[-1], _NS_GET_USERNS)
        opened.callback(os.close, owner)
        yield [owner, *owned, opening("user")]
