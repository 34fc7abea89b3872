"""Real servers for tests that need one, each once for all test processes: Valkey, OpenSearch, Keycloak.

Started by testcontainers, from the images that the compose deployment names (images/README.md), on an engine of the
tests' own. Skipped, loudly, where none can run.
"""

from __future__ import annotations

import contextlib
import socket as sockets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from images.build import load, public_images
from images.engine import ImagesUnavailable, docker, engine, exclusively

__all__ = [
    "KEYCLOAK",
    "OPENSEARCH",
    "PASSWORD",
    "VALKEY",
    "container_engine",
    "keycloak_url",
    "opensearch_url",
    "start",
    "valkey_container_url",
]

#: Of the servers that want one. They listen on the loopback address alone.
PASSWORD = "of-the-tests-only"
START_TIME = 240.0  # seconds
#: To Java: compile quickly rather than well. Starting takes half the work, and tests ask little.
_QUICK = "-XX:TieredStopAtLevel=1"
PORT = "agentkeep.port"


@dataclass(frozen=True)
class Server:
    """`image`: the last part of its name. `arguments` and `environment` are given the port on which it is to listen;
    `answers` says whether it does."""

    image: str
    answers: Callable[[int], bool]
    environment: Callable[[int], Mapping[str, str]] = lambda port: {}
    arguments: Callable[[int], list[str]] = lambda port: []


def _answers_http(path: str) -> Callable[[int], bool]:
    def answers(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    return answers


def _answers_valkey(port: int) -> bool:
    try:
        with sockets.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"AUTH {PASSWORD}\r\nPING\r\n".encode())
            return b"PONG" in connection.recv(100)
    except OSError:
        return False


VALKEY = Server(
    "valkey",
    _answers_valkey,
    arguments=lambda port: [
        *("valkey-server", "--bind", "127.0.0.1", "--port", str(port), "--requirepass", PASSWORD),
        *("--appendonly", "yes", "--appendfsync", "no"),
    ],
)
OPENSEARCH = Server(
    "opensearch",
    _answers_http("/_cluster/health"),
    environment=lambda port: {
        "discovery.type": "single-node",
        "network.host": "127.0.0.1",
        "http.port": str(port),
        "transport.port": str(_free_port()),
        "OPENSEARCH_JAVA_OPTS": f"-Xms512m -Xmx512m {_QUICK}",
        "DISABLE_SECURITY_PLUGIN": "true",
    },
)
KEYCLOAK = Server(
    "keycloak",
    _answers_http("/realms/master"),
    environment=lambda port: {
        "KC_BOOTSTRAP_ADMIN_USERNAME": "admin",
        "KC_BOOTSTRAP_ADMIN_PASSWORD": PASSWORD,
        "JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx512m",
        "JAVA_OPTS_APPEND": _QUICK,
    },
    arguments=lambda port: [
        *("start", "--optimized", "--hostname-strict=false", "--http-enabled=true"),
        *("--http-host=127.0.0.1", f"--http-port={port}"),
    ],
)


@pytest.fixture(scope="session")
def container_engine() -> Iterator[Path]:
    """The socket of the engine, which stops with the last test process that uses it."""
    with contextlib.ExitStack() as stack:
        try:
            socket = stack.enter_context(engine())
        except ImagesUnavailable as reason:
            pytest.skip(f"NOT SHOWN: what needs a real server in a container; {reason}")
        yield socket


@pytest.fixture(scope="session")
def opensearch_url(container_engine: Path) -> str:
    return f"http://127.0.0.1:{_port(container_engine, OPENSEARCH)}"


@pytest.fixture(scope="session")
def valkey_container_url(container_engine: Path) -> str:
    """By TCP, with a password."""
    return f"redis://:{PASSWORD}@127.0.0.1:{_port(container_engine, VALKEY)}/0"


@pytest.fixture(scope="session")
def keycloak_url(container_engine: Path) -> str:
    """Its administrator is `admin`, with PASSWORD."""
    return f"http://127.0.0.1:{_port(container_engine, KEYCLOAK)}"


def _port(socket: Path, server: Server) -> int:
    try:
        return start(socket, server)
    except ImagesUnavailable as reason:
        pytest.skip(f"NOT SHOWN: what needs {server.image}; {reason}")


def start(socket: Path, server: Server) -> int:
    """The server's port; it runs already if another process asked first. Raises ImagesUnavailable."""
    name = f"agentkeep-test-{server.image}"
    with exclusively(server.image):
        running = docker(socket, "ps", "--filter", f"name=^{name}$", "--format", f'{{{{.Label "{PORT}"}}}}')
        return int(running) if running else _start(socket, name, server)


def _start(socket: Path, name: str, server: Server) -> int:
    # Imported here, since no other test needs it.
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    testcontainers_config.ryuk_disabled = True  # the engine's last user removes the containers
    image = next(one for one in public_images() if one.rsplit("/", 1)[-1].partition(":")[0] == server.image)
    load(socket, [image])
    with contextlib.suppress(ImagesUnavailable):
        docker(socket, "rm", "--force", "--volumes", name)
    port = _free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{socket}")
        container = DockerContainer(image, name=name, network_mode="host", labels={PORT: str(port)})
        container.with_envs(**server.environment(port))
        if arguments := server.arguments(port):
            container.with_command(arguments)
        container.start()
        container.get_docker_client().client.close()
    deadline = time.monotonic() + START_TIME
    while not server.answers(port):
        if time.monotonic() > deadline or docker(socket, "inspect", "--format", "{{.State.Running}}", name) != "true":
            raise AssertionError(f"{server.image} does not start: {docker(socket, 'logs', '--tail', '40', name)}")
        time.sleep(0.3)
    return port


def _free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
