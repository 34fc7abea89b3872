"""The data folder is its owner's alone, whatever it was before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agentkeep.embedded.data_folder import DataFolderUnsafe, secure


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    secure(tmp_path / "a" / "data")
    assert mode(tmp_path / "a" / "data") == 0o700


def test_nobody_else_writes_an_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "runtime").mkdir(mode=0o755)
    folder.chmod(0o777)
    secure(folder)
    assert mode(folder) == 0o755
    assert [mode(folder / name) for name in ("artifacts", "runtime", "driver")] == [0o700] * 3


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(DataFolderUnsafe, match="everybody"):
        secure(shared)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "runtime").symlink_to(tmp_path)
    with pytest.raises(DataFolderUnsafe, match="link"):
        secure(linked)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_owner_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(DataFolderUnsafe, match="belongs to user 12345"):
        secure(tmp_path)
