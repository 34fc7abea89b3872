"""Where figures are kept: one JSON document a run, a line each, newest last."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).parent / "history.jsonl"


def keep(benchmark: str, figures: Mapping[str, Any]) -> None:
    """Appends a run's figures."""
    entry = {
        "benchmark": benchmark,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "figures": figures,
    }
    with HISTORY.open("a") as file:
        file.write(json.dumps(entry) + "\n")
