"""What commands print, for people and for programs."""

from __future__ import annotations

import subprocess
import sys

_TABLE = """
from agentkeep.cli.output import table
table([], False, {"id": "SESSION", "why": "WHY"}, [{"id": "6" * 36, "why": "word " * 100}], "none")
"""


def test_a_program_reads_one_line_a_row() -> None:
    ran = subprocess.run([sys.executable, "-c", _TABLE], capture_output=True, text=True, timeout=60, check=True)
    title, row = ran.stdout.splitlines()
    assert title.split() == ["SESSION", "WHY"]
    assert row.split() == ["6" * 36, *["word"] * 100]
