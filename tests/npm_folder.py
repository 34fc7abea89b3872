"""Packages of npm that tests use: installed once for a machine, by their lock file; then no registry is asked."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

CACHE = Path("/var/tmp/agentkeep-tests-npm")


def installed(source: Path) -> Path:
    """A copy of `source` (which has a package.json and its lock) with all it needs. Test processes wait for one
    another."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(source.iterdir()))).hexdigest()[:16]
    folder = CACHE / digest
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder)
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=folder, capture_output=True, text=True, timeout=100,
            )  # fmt: skip
            assert done.returncode == 0, f"npm ci failed:\n{done.stderr[-2000:]}"
            (folder / "installed").touch()
    return folder
