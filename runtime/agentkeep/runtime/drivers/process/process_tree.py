"""The processes that descend from one, as the host sees them, and their end. Everything here blocks."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["end_tree", "holding", "tree"]

_ROUNDS: Final = 64
_DYING: Final = 5.0  # seconds


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    pids, waiting = [pid], [pid]
    while waiting:
        children = _children(waiting.pop())
        pids += children
        waiting += children
    return pids


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except OSError:  # it has just ended
        return []


def _descends(pid: int, root: int) -> bool:
    while pid != root:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False
        pid = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")), 0)
        if pid <= 1:
            return False
    return True


@contextmanager
def holding(pid: int, root: int) -> Iterator[int | None]:
    """A pidfd of a process that descends from `root`: held, its number cannot become another's. None if it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield pidfd if _descends(pid, root) else None
    finally:
        os.close(pidfd)


def end_tree(root: int, last: int) -> None:
    """Kills all that descends from a process which inherits the orphans among its descendants (a "subreaper"), `last`
    when the others are dead: whoever waits for it can then reap them all. They are stopped first, so that none has
    children that nobody saw; those that outrun this remain the session's, and end with it."""
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        running = set(tree(root)) - stopped - {root}
        if not running:
            break
        _send_each(running, root, signal.SIGSTOP)
        stopped |= running
    others = stopped - {last}
    _send_each(others, root, signal.SIGKILL)
    _await_each(others, root)
    _send_each([last], root, signal.SIGKILL)


def _send_each(pids: Iterable[int], root: int, number: int) -> None:
    for pid in pids:
        with holding(pid, root) as pidfd:
            if pidfd is not None:
                _send(pidfd, number)


def _await_each(pids: Iterable[int], root: int) -> None:
    """Until each is dead, for a while."""
    deadline = time.monotonic() + _DYING
    for pid in pids:
        with holding(pid, root) as pidfd:
            if pidfd is not None:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(max(0.0, deadline - time.monotonic()) * 1000)


def _send(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
