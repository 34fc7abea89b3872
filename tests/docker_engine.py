"""A Docker engine of the tests' own, and images for it made of this machine's files: no registry is asked.

Images are kept in /var/tmp between runs. Only one test process at a time has the engine: the address
169.254.170.2 is there but once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from agentkeep.runtime.drivers.docker.firewall import CHAINS
from agentkeep.runtime.drivers.docker.images import REPOSITORY
from agentkeep.runtime.drivers.docker.network import BRIDGE, NETWORK

PLACE = Path("/var/tmp/agentkeep-tests-docker")  # not below tests/: it holds whole file systems
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
PATIENCE = 400.0  # seconds for another test process to end
_INSTALL = ["install", "-y", "--no-install-recommends", "docker.io", "iptables"]
#: The public SDK and what it needs, as files of this environment.
SDK = [
    "annotated_doc", "annotated_types", "anyio", "bedrock_agentcore", "boto3", "botocore", "click", "dateutil", "h11",
    "idna", "jmespath", "pydantic", "pydantic_core", "s3transfer", "six.py", "sniffio", "starlette",
    "typing_extensions.py", "typing_inspection", "urllib3", "uvicorn", "websockets",
]  # fmt: skip
PASSWD = (
    "root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:1000:1000:agent:/tmp:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
)


@dataclass(frozen=True)
class DockerEngine:
    socket: Path
    daemon: subprocess.Popen[bytes]

    def docker(self, *arguments: str, given: bytes | None = None) -> str:
        ran = subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *arguments], input=given, capture_output=True, timeout=120
        )
        assert ran.returncode == 0, f"docker {arguments}: {ran.stderr.decode()}"
        return ran.stdout.decode().strip()

    def image(
        self,
        name: str,
        files: dict[str, bytes],
        *,
        packages: Iterable[str] = (),
        user: str = "",
        programs: Iterable[str] = (),
    ) -> str:
        """An image with this machine's Python, `packages` of this environment, `programs` of /usr/bin, and `files` in
        /app, whose first is run. Made once for the same contents."""
        packages, programs = sorted(packages), sorted(programs)
        contents = json.dumps([sys.version, __doc__, PASSWD, packages, user, *programs, sorted(files)]).encode()
        digest = hashlib.sha256(b"".join([contents, *(files[one] for one in sorted(files))])).hexdigest()[:16]
        reference = f"agentkeep-test/{name}:{digest}"
        if reference not in self.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split():
            changes = [
                f'CMD ["{sys.base_prefix}/bin/python3", "{next(iter(files))}"]',
                "WORKDIR /app",
                "ENV DOCKER_CONTAINER=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8",
                f"ENV PATH={sys.base_prefix}/bin:/usr/bin:/bin PYTHONPATH=/opt/python",
                *([f"USER {user}"] if user else []),
            ]
            arguments = [part for change in changes for part in ("--change", change)]
            self.docker("import", *arguments, "-", reference, given=_archive(files, packages, programs))
        return reference


def _archive(files: dict[str, bytes], packages: Iterable[str], others: Iterable[str]) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        library = Path(sysconfig.get_path("stdlib"))
        left_out = {"test", "tests", "idlelib", "site-packages", "ensurepip", "lib2to3", "tkinter", "turtledemo"}
        left_out |= {"__pycache__", f"config-{sys.version_info[0]}.{sys.version_info[1]}-x86_64-linux-gnu"}

        def keep(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
            entry.uid = entry.gid = 0
            return None if Path(entry.name).name in left_out else entry

        tar.add(library, str(library), filter=keep)
        python = Path(sys.base_prefix, "bin", "python3").resolve()
        programs = [
            python,
            Path("/bin/sh").resolve(),
            Path("/usr/bin/su"),
            *(Path("/usr/bin", name) for name in others),
        ]
        linked = {python, *programs, *library.glob("lib-dynload/*.so")}
        for package in packages:
            for path in [*SITE_PACKAGES.glob(f"{package}"), *SITE_PACKAGES.glob(f"{package}-*.dist-info")]:
                tar.add(path, f"opt/python/{path.name}", filter=keep)
                linked |= set(path.rglob("*.so")) if path.is_dir() else {path}
        for path in _libraries(linked):
            tar.add(path.resolve(), str(path))
        for program in programs:
            tar.add(program, str(program))
        for link, target in (("bin/sh", str(programs[1])), (f"{sys.base_prefix}/bin/python3", str(python))):
            _add(tar, link, target=target)
        for name, content in {"etc/passwd": PASSWD.encode(), "etc/group": b"root:x:0:\nagent:x:1000:\n"}.items():
            _add(tar, name, content)
        for name, content in files.items():
            _add(tar, f"app/{name}", content)
        _add(tar, "home/agent", target="/tmp")
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes = b"", target: str = "") -> None:
    entry = tarfile.TarInfo(name)
    if target:
        entry.type, entry.linkname = tarfile.SYMTYPE, target
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, BytesIO(content))


def _libraries(programs: Iterable[Path]) -> set[Path]:
    ran = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True)
    words = [word for line in ran.stdout.splitlines() if line.startswith("\t") for word in line.split()]
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":") and Path(word).exists()}


@pytest.fixture(scope="module")
def docker_engine() -> Iterator[DockerEngine]:
    with running_engine() as engine:
        yield engine


@contextmanager
def running_engine() -> Iterator[DockerEngine]:
    """A daemon, started and stopped here. Skips the test, loudly, where none can run."""
    _require()
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        _acquire(lock.fileno())
        engine = _start()
        try:
            yield engine
        finally:
            _stop(engine)


def _require() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT SHOWN: the docker driver; starting an engine needs root")
    if all(shutil.which(name) for name in ("dockerd", "docker", "iptables")):
        return
    if shutil.which("apt-get"):
        for arguments in (_INSTALL, ["update"], _INSTALL):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            ran = subprocess.run(["apt-get", *arguments], capture_output=True, env=environment)
            if arguments is _INSTALL and ran.returncode == 0:
                return
    pytest.skip("NOT SHOWN: the docker driver; neither are docker.io and iptables here nor can they be installed")


def _acquire(descriptor: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            assert time.monotonic() < deadline, "another test process does not give the Docker engine back"
            time.sleep(0.5)


def _start() -> DockerEngine:
    pid_file, socket, log = PLACE / "dockerd.pid", PLACE / "docker.sock", PLACE / "dockerd.log"
    _end_left_over(pid_file)
    with log.open("w") as output:
        daemon = subprocess.Popen(
            ["dockerd", "--bridge", "none", "--data-root", PLACE / "data", "--exec-root",
             "/tmp/agentkeep-tests-docker", "--pidfile", pid_file, "-H", f"unix://{socket}"],
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    engine = DockerEngine(socket, daemon)
    deadline = time.monotonic() + 60
    while True:
        ran = subprocess.run(["docker", "-H", f"unix://{socket}", "version"], capture_output=True)
        if ran.returncode == 0:
            _clean(engine)
            return engine
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            daemon.wait()
            pytest.skip(f"NOT SHOWN: the docker driver; dockerd does not start here: {log.read_text()[-1500:]}")
        time.sleep(0.1)


def _end_left_over(pid_file: Path) -> None:
    """Of a test run that was killed."""
    try:
        pid = int(pid_file.read_text())
        if b"dockerd" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
    except (OSError, ValueError):
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _clean(engine: DockerEngine) -> None:
    containers = engine.docker("ps", "-aq").split()
    if containers:
        engine.docker("rm", "-f", *containers)
    if NETWORK in engine.docker("network", "ls", "--format", "{{.Name}}").split():
        engine.docker("network", "rm", NETWORK)
    pinned = engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY).split()
    if pinned:
        engine.docker("rmi", *pinned)


def _stop(engine: DockerEngine) -> None:
    _clean(engine)
    engine.daemon.terminate()
    engine.daemon.wait(30)
    remove_rules()


def remove_rules() -> None:
    listing = subprocess.run(["iptables", "-S"], capture_output=True, text=True).stdout
    for line in listing.splitlines():
        if BRIDGE in line and line.startswith(("-A INPUT ", "-A DOCKER-USER ")):
            subprocess.run(["iptables", "-w", "5", *line.replace("-A ", "-D ", 1).split()], check=True)
    for chain in CHAINS:
        if f"-N {chain}" in listing.splitlines():
            for action in ("-F", "-X"):
                subprocess.run(["iptables", "-w", "5", action, chain], check=True)
