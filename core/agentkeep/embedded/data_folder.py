"""The data folder: nobody else may read, replace or add what the platform keeps in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agentkeep.core.errors import AgentkeepError

__all__ = ["DataFolderUnsafe", "secure"]

#: What is not secret file by file: agents' code, their packages, their output.
_PRIVATE = ("artifacts", "runtime", "driver")


class DataFolderUnsafe(AgentkeepError):
    """Another user of this machine could change what is in the folder; the message says what to do."""


def secure(folder: Path) -> None:
    """Makes the folder and those in it for this user alone. Raises DataFolderUnsafe, OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise DataFolderUnsafe(
            f"the data folder {folder} belongs to user {found.st_uid}, not to user {os.geteuid()} who starts the "
            "platform: its owner could replace what is in it. Change its owner, or choose another folder"
        )
    if found.st_mode & stat.S_ISVTX:
        raise DataFolderUnsafe(f"{folder} is a folder for everybody (sticky). Choose one of its own, e.g. below it")
    if found.st_mode & 0o022:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
    for name in _PRIVATE:
        inner = folder / name
        if inner.is_symlink():
            raise DataFolderUnsafe(f"{inner} is a link. Remove it; the platform makes this folder itself")
        inner.mkdir(exist_ok=True)
        inner.chmod(0o700)
