"""What the kernel says of namespaces whose numbers come back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from agentkeep.runtime.drivers.process.evidence import NAMESPACES, Sealed, inhabits


def _namespaces(pid: int) -> Sealed:
    found = {kind: os.stat(f"/proc/{pid}/ns/{kind}") for kind in NAMESPACES}
    return Sealed(2, frozenset((kind, one.st_dev, one.st_ino) for kind, one in found.items()), frozenset())


def test_a_dead_session_inhabits_nothing() -> None:
    """EXE-3. The numbers of its namespaces may be a new session's before anybody has been told of its end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        lived = _namespaces(process.pid)
        assert inhabits(process.pid, lived)
        others = Sealed(
            2, frozenset((kind, device, inode + 1) for kind, device, inode in lived.namespaces), frozenset()
        )
        assert not inhabits(process.pid, others)
        process.kill()
        deadline = time.monotonic() + 30
        while "State:\tZ" not in Path(f"/proc/{process.pid}/status").read_text():  # it has ended, nobody was told
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert not inhabits(process.pid, lived)
    assert not inhabits(process.pid, lived)
