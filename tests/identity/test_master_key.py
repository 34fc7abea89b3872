"""The master key's file."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentkeep.identity.master_key import FileMasterKey, MasterKeyError


def test_a_key_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "data" / "master.key"
    made = FileMasterKey.load_or_create(path)
    assert len(path.read_bytes()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert FileMasterKey.load_or_create(path).derive("x") == made.derive("x")
    assert [entry.name for entry in path.parent.iterdir()] == ["master.key"]


def test_purposes_are_independent(tmp_path: Path) -> None:
    key = FileMasterKey.load_or_create(tmp_path / "k")
    derived = {key.derive(purpose) for purpose in ("a", "b", "")}
    assert len(derived) == 3
    assert (tmp_path / "k").read_bytes() not in derived


def test_processes_that_create_it_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: FileMasterKey.load_or_create(path).derive("x"), range(32)))
    assert len(set(keys)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_key_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    FileMasterKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(MasterKeyError, match="chmod 600"):
        FileMasterKey.load_or_create(path)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_damaged_key_is_refused_and_left_alone(tmp_path: Path, length: int) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(b"k" * length)
    path.chmod(0o600)
    with pytest.raises(MasterKeyError, match="damaged"):
        FileMasterKey.load_or_create(path)
    assert len(path.read_bytes()) == length


def test_a_link_or_a_folder_is_refused(tmp_path: Path) -> None:
    FileMasterKey.load_or_create(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir(mode=0o700)
    for name in ("link", "folder"):
        with pytest.raises(MasterKeyError):
            FileMasterKey.load_or_create(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    FileMasterKey.load_or_create(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(MasterKeyError, match="belongs to user 12345"):
        FileMasterKey.load_or_create(path)


def test_the_key_is_not_shown(tmp_path: Path) -> None:
    key = FileMasterKey.load_or_create(tmp_path / "k")
    assert repr(key) == str(key) == "FileMasterKey()"
