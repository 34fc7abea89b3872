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


def test_every_turn_of_the_demonstration_is_right(tmp_path: Path) -> None:
    """EXE-1, MEM-1, IDN-5: two users talk to an unmodified agent; each is known within the session, nobody across;
    one cannot speak in the other's session."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "demo.py"), "--data-dir", str(tmp_path), "--port", str(port)],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=280,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every turn was right." in done.stdout
    assert "refused: The platform answered 403" in done.stdout
    assert len(re.findall(r"agent: .*A-1001", done.stdout)) == 2
    assert not (tmp_path / "platform.json").exists(), "the platform was not stopped"
