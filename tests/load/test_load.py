"""The programs of `benchmarks/` that find leaks and falls, scaled down; in full by hand (docs/development/load.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, "--no-keep", *arguments], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_invocations_and_sessions_leave_nothing_behind() -> None:
    """EXE-3, EXE-6: no task, thread, descriptor, process, control group, mount or item of the store, however a session
    or a call ends."""
    _run("load.py", "--invocations", "2000", "--sessions", "32", "--steps", "1")


def test_more_than_is_taken_is_refused_and_nothing_falls() -> None:
    """EXE-6: two thousand calls at once where fifty sessions are allowed."""
    _run("storm.py", "--calls", "2000")


def test_replicas_killed_under_load_lose_nothing() -> None:
    """EXE-6: three replicas of the runtime service, SIGKILL under load: no acknowledged event lost, no session served
    by two environments, and all are served again soon."""
    _run("kill_replicas.py", "--seconds", "30", "--recovered", "120")
