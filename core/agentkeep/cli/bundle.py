"""An agent's folder as the zip AgentCore calls a code artifact."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from agentkeep.cli.output import CommandError

ENTRY_POINTS = ("main.py", "agent.py", "app.py")
LEFT_OUT = frozenset({".venv", "venv", "node_modules", "__pycache__", ".git", ".agentkeep"})
LARGEST = 250 << 20  # AgentCore's limit for a zip


def entry_point(folder: Path, named: str | None) -> str:
    if named is not None:
        if not (folder / named).is_file():
            raise CommandError(
                f"{folder / named} does not exist.", "--entry-point names a file inside the agent's folder."
            )
        return named
    for candidate in ENTRY_POINTS:
        if (folder / candidate).is_file():
            return candidate
    raise CommandError(
        f"{folder} holds none of {', '.join(ENTRY_POINTS)}.", "Name the agent's main file with --entry-point."
    )


def pack(folder: Path) -> bytes:
    """The zip, the same bytes for the same content. Hidden files, virtual environments and caches stay out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if any(part in LEFT_OUT or part.startswith(".") for part in relative.parts) or not path.is_file():
                continue
            entry = zipfile.ZipInfo(relative.as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    if buffer.tell() > LARGEST:
        raise CommandError(
            f"The bundle is {buffer.tell() >> 20} MB; a code artifact may have {LARGEST >> 20} MB.",
            "Leave data out of the folder, or name packages in requirements.txt: the platform installs them.",
        )
    return buffer.getvalue()
