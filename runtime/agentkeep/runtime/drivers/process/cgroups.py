"""Limits on memory, processes and CPU of a session as a whole, by control groups: version 1, 2, or both mixed.

Groups are named `<platform's pid>-<its start time>-<token>`, so that those of a platform that was killed can be told
from those of a living neighbour and removed.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from agentkeep.runtime.drivers.driver import Limits

__all__ = ["Cgroup", "Cgroups", "process_start"]

CONTROLLERS = ("memory", "pids", "cpu")
FOLDER = "agentkeep"
_PERIOD = 100_000  # microseconds in which a CPU quota is counted


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The groups of one session, one folder in each hierarchy. All methods block."""

    folders: tuple[Path, ...]
    events: Path | None  # the file that counts kills for lack of memory

    def add(self, pid: int) -> None:
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something of the session for using too much memory."""
        try:
            lines = self.events.read_text().splitlines() if self.events else []
        except OSError:
            return False
        return any(line.startswith("oom_kill ") and not line.endswith(" 0") for line in lines)

    def remove(self, patience: float = 2.0) -> None:
        """Ends what is left in the groups and removes them. Raises OSError when they cannot be."""
        deadline = time.monotonic() + patience
        for folder in self.folders:
            while True:
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:  # something in it is still ending, or was never ours to see
                    if time.monotonic() > deadline:
                        raise
                    for line in (folder / "cgroup.procs").read_text().split():
                        try:
                            os.kill(int(line), signal.SIGKILL)
                        except (ProcessLookupError, PermissionError):
                            pass
                    time.sleep(0.005)


class Cgroups:
    """Where this process may make groups. `places` maps a controller to its folder; `unified` names those in the
    version 2 hierarchy. All methods block."""

    def __init__(self, places: dict[str, Path], unified: frozenset[str]) -> None:
        self._places = places
        self._unified = unified
        self._owner = f"{os.getpid()}-{process_start(os.getpid())}"

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(self._places)

    @classmethod
    def find(cls, proc: Path = Path("/proc/self")) -> Cgroups:
        """Tries, for each controller, to make a folder for our groups. Controllers that refuse are left out."""
        own = _own_groups(proc)
        places: dict[str, Path] = {}
        unified: set[str] = set()
        for kind, mount, root, options in _hierarchies(proc):
            if kind == "cgroup":
                for controller in set(options.split(",")) & set(CONTROLLERS):
                    parent = _below(mount, root, own.get(controller, "/"))
                    if (place := _try_folder(parent)) is not None:
                        places[controller] = place
            else:
                for parent in dict.fromkeys((_below(mount, root, own.get("", "/")), mount)):
                    missing = set(CONTROLLERS) - set(places)
                    enabled = _try_delegated(parent, missing)
                    places |= dict.fromkeys(enabled, parent / FOLDER)
                    unified |= enabled
        return cls(places, frozenset(unified))

    def create(self, token: str, limits: Limits) -> Cgroup:
        """Groups for one session. Raises OSError; then none of them is left."""
        folders = {controller: place / f"{self._owner}-{token}" for controller, place in self._places.items()}
        group = Cgroup(tuple(dict.fromkeys(folders.values())), self._events(folders))
        try:
            for folder in group.folders:
                folder.mkdir()
            for controller, folder in folders.items():
                for name, value in self._settings(controller, limits):
                    if (folder / name).exists():
                        (folder / name).write_text(value)
        except OSError:
            group.remove()
            raise
        return group

    def remove_stale(self) -> int:
        """Removes groups whose platform is gone. Returns how many sessions that were."""
        stale = 0
        for place in set(self._places.values()):
            for folder in [entry for entry in place.iterdir() if entry.is_dir()]:
                pid, _, rest = folder.name.partition("-")
                started = rest.partition("-")[0]
                if pid.isdigit() and started.isdigit() and process_start(int(pid)) != int(started):
                    Cgroup((folder,), None).remove()
                    stale += 1
        return stale

    def _events(self, folders: dict[str, Path]) -> Path | None:
        folder = folders.get("memory")
        if folder is None:
            return None
        return folder / ("memory.events" if "memory" in self._unified else "memory.oom_control")

    def _settings(self, controller: str, limits: Limits) -> list[tuple[str, str]]:
        two = controller in self._unified
        quota = max(1000, int(limits.cpus * _PERIOD))
        if controller == "memory":
            if two:
                return [("memory.max", str(limits.memory)), ("memory.swap.max", "0")]
            return [("memory.limit_in_bytes", str(limits.memory)), ("memory.memsw.limit_in_bytes", str(limits.memory))]
        if controller == "pids":
            return [("pids.max", str(limits.processes))]
        if two:
            return [("cpu.max", f"{quota} {_PERIOD}")]
        return [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(quota))]


def process_start(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if there is none. With the pid, a name never reused."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def _own_groups(proc: Path) -> dict[str, str]:
    """Controller ("" for version 2) → path of the group this process is in."""
    groups: dict[str, str] = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path)
    return groups


def _hierarchies(proc: Path) -> list[tuple[str, Path, str, str]]:
    """(file system type, mount point, which part of the hierarchy is mounted, options), version 1 first."""
    found = []
    for line in (proc / "mountinfo").read_text().splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            _, _, _, root, point, *_ = mount.split(" ")
            found.append((kind, Path(point), root, options))
    return sorted(found)


def _below(mount: Path, root: str, path: str) -> Path:
    """The folder of group `path` under a mount that shows the hierarchy from `root` on."""
    relative = os.path.relpath(path, root)
    return mount if relative.startswith("..") else mount / relative


def _try_folder(parent: Path) -> Path | None:
    folder = parent / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _try_delegated(parent: Path, wanted: set[str]) -> set[str]:
    """Version 2: a folder under `parent` that has as many of the wanted controllers as we are allowed to hand down."""
    try:
        offered = set((parent / "cgroup.controllers").read_text().split()) & wanted
        if not offered:
            return set()
        folder = parent / FOLDER
        folder.mkdir(exist_ok=True)
        order = " ".join(f"+{controller}" for controller in sorted(offered))
        try:
            (parent / "cgroup.subtree_control").write_text(order)
        except OSError:  # a group with processes of its own may not hand controllers down: move ours to a leaf
            if not _step_aside(parent):
                folder.rmdir()
                return set()
            (parent / "cgroup.subtree_control").write_text(order)
        (folder / "cgroup.subtree_control").write_text(order)
        return offered if os.access(folder, os.W_OK) else set()
    except OSError:
        return set()


def _step_aside(parent: Path) -> bool:
    """Moves this process into a leaf, if nobody else is in the group (as in a unit with Delegate=yes)."""
    present = {int(line) for line in (parent / "cgroup.procs").read_text().split()}
    if present != {os.getpid()}:
        return False
    leaf = parent / f"{FOLDER}-platform"
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(str(os.getpid()))
    return True
