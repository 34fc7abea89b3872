"""A Docker engine for building images and for single servers that tests need.

It has neither bridges nor firewall rules, so it disturbs no other engine: containers and builds use the network of the
machine.

Processes share it: the first starts it, the last one stops it, and a killed one counts no longer, because what counts
are locks on a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["PLACE", "ImagesUnavailable", "docker", "engine", "exclusively", "run"]

PLACE = Path("/var/tmp/agentkeep-test-images")
#: Seconds. One command; waiting for another process that has what only one may have.
COMMAND_TIME, PATIENCE = 1200.0, 2400.0


class ImagesUnavailable(Exception):
    """Why there is no engine here, or no image."""


@contextlib.contextmanager
def engine() -> Iterator[Path]:
    """The engine's socket. Raises ImagesUnavailable."""
    _require()
    PLACE.mkdir(parents=True, exist_ok=True)
    socket, pid_file = PLACE / "engine.sock", PLACE / "engine.pid"
    with (PLACE / "users").open("w") as users:
        with exclusively("engine"):
            if not _answers(socket):
                _end(pid_file)
                _start(socket, pid_file)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield socket
        finally:
            with exclusively("engine"):
                fcntl.flock(users, fcntl.LOCK_UN)
                if _locked(users):  # nobody else uses it
                    for container in docker(socket, "ps", "--all", "--quiet").split():
                        docker(socket, "rm", "--force", "--volumes", container)
                    _end(pid_file)


@contextlib.contextmanager
def exclusively(what: str) -> Iterator[None]:
    """One process at a time."""
    with (PLACE / f"{what}.lock").open("w") as lock:
        deadline = time.monotonic() + PATIENCE
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise ImagesUnavailable(f"another process has kept {what} for too long")
            time.sleep(0.2)
        yield


def docker(socket: Path, *arguments: str) -> str:
    # The classic builder, which every client has: the newer one is a plug-in to newer clients.
    return run(["docker", "-H", f"unix://{socket}", *arguments], DOCKER_BUILDKIT="0")


def run(command: list[str], **environment: str) -> str:
    """What the command prints. Raises ImagesUnavailable where it fails."""
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIME, env={**os.environ, **environment}
        )
    except subprocess.TimeoutExpired as error:
        raise ImagesUnavailable(f"{' '.join(command[:8])} takes longer than {COMMAND_TIME:.0f} s") from error
    if ran.returncode != 0:
        raise ImagesUnavailable(f"{' '.join(command)} failed:\n{ran.stdout[-3000:]}{ran.stderr[-3000:]}")
    return ran.stdout.strip()


def _require() -> None:
    if os.geteuid() != 0:
        raise ImagesUnavailable("a Docker engine of the tests' own needs root")
    packages = {"dockerd": "docker.io", "docker": "docker.io", "debootstrap": "debootstrap"}
    missing = {package for program, package in packages.items() if not shutil.which(program)}
    if missing and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *command], capture_output=True, env=environment)
    absent = [program for program in packages if not shutil.which(program)]
    if absent:
        raise ImagesUnavailable(f"neither are {', '.join(absent)} here nor can they be installed")


def _start(socket: Path, pid_file: Path) -> None:
    log = PLACE / "engine.log"
    with log.open("w") as output:
        daemon = subprocess.Popen(
            ["dockerd", "--bridge", "none", "--iptables=false", "--ip6tables=false", "--data-root", PLACE / "engine",
             "--exec-root", "/tmp/agentkeep-test-images", "--pidfile", pid_file, "-H", f"unix://{socket}"],
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 60
    while not _answers(socket):
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise ImagesUnavailable(f"dockerd does not start here: {log.read_text()[-1500:]}")
        time.sleep(0.1)
    daemon.returncode = 0  # it outlives this process, which is not to warn of it


def _answers(socket: Path) -> bool:
    return subprocess.run(["docker", "-H", f"unix://{socket}", "version"], capture_output=True).returncode == 0


def _end(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        if b"dockerd" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
    except (OSError, ValueError):
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
