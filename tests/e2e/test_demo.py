"""The README's first command, as a newcomer runs it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from platform_process import REPOSITORY, clean_environment

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]


def test_everything_of_the_demonstration_is_right(tmp_path: Path) -> None:
    """EXE-1, MEM-1, MEM-2, IDN-5, GOV-1, GOV-4, GOV-7, OBS-1, OBS-3: users talk to an unmodified agent, which acts for
    each of them: tools as its user, one of them refused by policy; facts remembered and recalled; a budget that stops a
    session. The scenario looks each step up from outside: the tool's own log, the audit, the trace, the usage."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        str(REPOSITORY / "examples" / "demo.py"),
        "--data-dir",
        str(tmp_path),
        "--port",
        str(port),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=280)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything was right." in done.stdout
    assert "WRONG" not in done.stdout
    assert "refused: 403" in done.stdout
    assert re.search(r"agent: .*A-1001.*shipped", done.stdout)
    assert re.search(r"agent: .*denied by default", done.stdout)
    assert "agent: I have reached the limit" in done.stdout
    assert not (tmp_path / "platform.json").exists(), "the platform was not stopped"
