"""A person at a real browser: Chromium without a screen, from npm by a lock file; then no registry is asked."""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npm_folder import installed
from platform_process import clean_environment

SOURCE = Path(__file__).parent / "identity" / "browser"
_PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Visit:
    """Where it ended, what the page there says, and the headings of the pages on the way."""

    url: str
    text: str
    pages: list[str]


def visit(*urls: str, until: str, fields: Mapping[str, str]) -> Visit:
    """Opens one page after another, in one browser without a past; then fills in each form that comes (`fields` by
    name), and submits it, until it is at an address that begins with `until`."""
    folder = installed(SOURCE)
    temporary = folder / "unpacked"  # the browser itself, 200 MB, unpacked at the first start
    temporary.mkdir(exist_ok=True)
    asked = json.dumps({"open": urls, "fields": fields, "until": until})
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            ["node", "browse.mjs", asked], cwd=folder, env=clean_environment() | {"TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Visit(**json.loads(done.stdout))
