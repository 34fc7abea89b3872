"""The command that starts the outer sandbox, in which the fork server of one agent version lives.

Everything in it is read-only and nothing of the host is visible but /usr, the interpreter, the agent's bundle and its
dependencies. Sessions nest in it and share its superblocks, so anything writable here would be shared between them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from agentkeep.core.errors import SandboxUnavailable
from agentkeep.runtime.drivers.process.interpreter import Interpreter

__all__ = ["AGENT_HOME", "BUNDLE", "DEPENDENCIES", "command", "find_bubblewrap", "write_etc"]

BUNDLE = "/var/task"
DEPENDENCIES = "/opt/python"
AGENT_HOME = "/home/agent"
CODE = "/.agentkeep"
PACKAGE = "_agentkeep_sandbox"
USER_MODE_ID = 1000  # of the fork server in its own user namespace

_ETC = {
    "passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:1000:1000:agent:/home/agent:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost session\n::1 localhost\n",
    "hostname": "session\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "",  # no resolver: the session endpoint, an address, is the only way out
}
# Of the host's /etc: certificates of public authorities, OpenSSL's defaults, where libraries are.
_FROM_ETC = ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/openssl.cnf", "/etc/ld.so.cache")
_EMPTY = ("/tmp", "/home", "/run", "/var/tmp", "/var/empty")  # noqa: S108 -- inside; sessions mount their own there


def find_bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxUnavailable("bubblewrap is not installed; install it: apt install bubblewrap")
    return found


def write_etc(folder: Path) -> None:
    """Writes the minimal /etc that sandboxes get. Blocking."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _ETC.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o644)


def command(
    *,
    interpreter: Interpreter,
    bundle: Path,
    dependencies: Path | None,
    etc: Path,
    root: bool,
    control: int,
    storage: Sequence[str] = (),
) -> list[str]:
    """The argument list; to be run with an empty environment (`/proc/1/environ` shows the launcher's)."""
    mounts = _Mounts()
    mounts.read_only(Path("/usr"))
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            mounts.arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            mounts.read_only(path)
    if not any(prefix.is_relative_to("/usr/local") for prefix in interpreter.prefixes):
        # An operator's own things live here; of them only libraries may be needed.
        mounts.empty(Path("/usr/local"))
        if Path("/usr/local/lib").is_dir():
            mounts.read_only(Path("/usr/local/lib"))
    for prefix in interpreter.prefixes:
        if not prefix.is_relative_to("/usr"):
            mounts.read_only(prefix)
    for folder in interpreter.hidden:
        mounts.empty(folder)
    for name in _ETC:
        mounts.read_only(etc / name, Path("/etc", name))
    for text in _FROM_ETC:
        if Path(text).exists():
            mounts.read_only(Path(text).resolve(), Path(text))
    mounts.read_only(Path(__file__).parent / "inside", Path(CODE, PACKAGE))
    mounts.read_only(bundle, Path(BUNDLE))
    if dependencies is not None:
        mounts.read_only(dependencies, Path(DEPENDENCIES))
    for text in (*_EMPTY, *storage):
        mounts.folder(Path(text))

    arguments = [
        find_bubblewrap(), "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv", "--hostname", "session",
        "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
    ]  # fmt: skip
    if root:
        arguments += ["--cap-add", "ALL"]  # the fork server drops them with its uid before it imports anything
    else:
        identity = str(USER_MODE_ID)
        arguments += ["--unshare-user", "--uid", identity, "--gid", identity, "--cap-drop", "ALL"]
    arguments += ["--dev", "/dev", "--proc", "/proc", *mounts.arguments]
    for text in (*mounts.emptied, "/dev", "/"):
        arguments += ["--remount-ro", text]
    environment = {
        "PATH": f"{interpreter.executable.parent}:/usr/bin:/bin",
        "HOME": "/home",
        "LANG": "C.UTF-8",
        "PYTHONPATH": CODE,
        "PYTHONDONTWRITEBYTECODE": "1",
        "MALLOC_ARENA_MAX": "2",
    }
    for name, value in environment.items():
        arguments += ["--setenv", name, value]
    return [*arguments, "--chdir", "/", str(interpreter.executable), "-m", f"{PACKAGE}.server", str(control)]


class _Mounts:
    """bubblewrap makes missing parents with mode 0700, which locks out the uid the fork server takes: every parent is
    therefore named."""

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.emptied: list[str] = []
        self._made: set[Path] = {Path("/"), Path("/dev"), Path("/proc")}
        self._read_only: list[Path] = []

    def folder(self, path: Path) -> None:
        for parent in (*reversed(path.parents), path):
            inside_mount = any(parent.is_relative_to(mounted) for mounted in self._read_only)
            if parent not in self._made and not inside_mount:
                self._made.add(parent)
                self.arguments += ["--dir", str(parent)]

    def read_only(self, source: Path, target: Path | None = None) -> None:
        target = target or source
        self.folder(target.parent)
        self.arguments += ["--ro-bind", str(source), str(target)]
        self._read_only.append(target)

    def empty(self, path: Path) -> None:
        self.folder(path.parent)
        self.arguments += ["--tmpfs", str(path)]
        self.emptied.append(str(path))
