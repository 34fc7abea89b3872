"""Options several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_DATA_DIR = Path.home() / ".local" / "share" / "agentkeep"

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="AGENTKEEP_DATA_DIR",
        help="Where the platform keeps everything: stores, keys, bundles, logs.",
        file_okay=False,
    ),
]
SessionId = Annotated[
    str | None, typer.Option("--session-id", help="Go on with this session (33 characters or more); else a new one.")
]
