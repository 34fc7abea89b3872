"""The probe's files: as a bundle for drivers that run code, as a folder to build an image from."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

__all__ = ["ENTRY_POINT", "FOLDER", "probe_files", "probe_zip"]

#: Holds a Dockerfile besides.
FOLDER = Path(__file__).with_name("probe")
ENTRY_POINT = "main.py"
_MAIN = b"from probe.agent import main\n\nmain()\n"


def probe_files() -> dict[str, bytes]:
    """Paths in the agent's folder and contents; the first is what is run."""
    package = {f"probe/{path.name}": path.read_bytes() for path in sorted(FOLDER.glob("*.py"))}
    return {ENTRY_POINT: _MAIN, **package}


def probe_zip() -> bytes:
    """The same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in probe_files().items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()
