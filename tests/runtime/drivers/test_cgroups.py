"""Control groups: the real ones of this machine, and a tree that looks like version 2 where it has none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agentkeep.runtime.drivers.driver import Limits
from agentkeep.runtime.drivers.process.cgroups import Cgroups, process_start

LIMITS = Limits(memory=256 << 20, processes=50, cpus=1.5)


def tree(root: Path, own: str) -> Path:
    """What /proc/self and a version 2 mount look like for a process in group `own`."""
    proc, mount = root / "proc", root / "mount"
    for folder in (proc, mount, mount / own.strip("/")):
        folder.mkdir(parents=True, exist_ok=True)
        if folder is not proc:
            (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
            (folder / "cgroup.subtree_control").write_text("")
            (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (proc / "cgroup").write_text(f"0::{own}\n")
    (proc / "mountinfo").write_text(f"30 24 0:26 / {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n")
    return proc


def test_version_2_is_found_in_a_delegated_group(tmp_path: Path) -> None:
    groups = Cgroups.find(tree(tmp_path, "/user.slice/agentkeep.scope"))
    assert groups.controllers == {"memory", "pids", "cpu"}
    delegated = tmp_path / "mount/user.slice/agentkeep.scope"
    assert (delegated / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert groups._places["memory"] == delegated / "agentkeep"
    assert sorted(groups._settings("memory", LIMITS)) == [("memory.max", str(256 << 20)), ("memory.swap.max", "0")]
    assert groups._settings("pids", LIMITS) == [("pids.max", "50")]
    assert groups._settings("cpu", LIMITS) == [("cpu.max", "150000 100000")]


def test_a_hierarchy_without_controllers_is_left_alone(tmp_path: Path) -> None:
    proc = tree(tmp_path, "/")
    (tmp_path / "mount/cgroup.controllers").write_text("hugetlb\n")
    assert Cgroups.find(proc).controllers == frozenset()
    assert not (tmp_path / "mount/agentkeep").exists()


def test_kills_for_memory_are_seen(tmp_path: Path) -> None:
    groups = Cgroups.find(tree(tmp_path, "/"))
    group = groups.create("a", LIMITS)
    assert not group.out_of_memory()
    (group.folders[0] / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    assert not group.out_of_memory()
    (group.folders[0] / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert group.out_of_memory()


def test_groups_of_the_dead_are_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    groups = Cgroups.find(tree(tmp_path, "/"))
    living = groups.create("mine", LIMITS)
    ended = subprocess.Popen(["true"])
    ended.wait()
    place = tmp_path / "mount/agentkeep"
    (place / f"{ended.pid}-12345-session").mkdir()
    (place / f"{os.getpid()}-1-session").mkdir()  # our pid, in an earlier life
    (place / "of-somebody-else").mkdir()
    assert groups.remove_stale() == 2
    assert sorted(entry.name for entry in place.iterdir() if entry.is_dir()) == sorted(
        [living.folders[0].name, "of-somebody-else"]
    )


@pytest.mark.sandbox
def test_the_machines_own_groups_limit_and_go() -> None:
    groups = Cgroups.find()
    if not groups.controllers:
        pytest.skip("NOT SHOWN: this user may not make control groups on this machine")
    group = groups.create("test", LIMITS)
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        group.add(sleeper.pid)
        own = Path(f"/proc/{sleeper.pid}/cgroup").read_text()
        assert own.count(group.folders[0].name) == len(group.folders)
        group.remove()  # ends what is in it
        assert sleeper.wait(5) == -9
    finally:
        sleeper.kill()
        sleeper.wait()
    assert not [folder for folder in group.folders if folder.exists()]


def test_a_process_is_known_by_its_start(tmp_path: Path) -> None:
    assert process_start(os.getpid()) > 0
    assert process_start(2**30) == 0
