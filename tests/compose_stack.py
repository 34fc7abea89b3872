"""The compose deployment, up for real: in an engine of the tests' own, from images made here.

It is up once for all tests of it (e2e/conftest.py), since that takes a minute or more. So each test uses names of its
own, puts back what it kills, and asks for the number of replicas that it needs: `replicated` and `single`.

Our own image is built when what it is made of has changed, and kept with the engine between runs, as the others are.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import boto3
import pytest
from botocore.config import Config
from docker_engine import DockerEngine, running_engine
from images.build import load, public_images
from images.engine import ImagesUnavailable

REPOSITORY = Path(__file__).parents[1]
COMPOSE = Path(sysconfig.get_path("scripts"), "docker-compose")
PLANES = ("runtime", "gateway", "memory", "identity", "observability")
IMAGE = "agentkeep:latest"
_DIGEST = "agentkeep.made-of"
#: What the image is made of: .dockerignore's list, and the recipe.
SOURCES = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "requirements/embedded.txt",
            "core", "runtime", "gateway", "memory", "identity", "observability")  # fmt: skip
DEMONSTRATION = {
    "agentkeep-demo/support-agent:latest": "support_agent",
    "agentkeep-demo/order-service:latest": "order_service",
}
_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")


REPLICAS = "docker-compose.replicas.yml"


@dataclass
class ComposeStack:
    """`identity_folder`: for roles.json and sts-rules.json. `files`: Compose's, for the next command."""

    engine: DockerEngine
    port: int
    keycloak_port: int
    identity_folder: Path
    files: tuple[str, ...] = ("docker-compose.yml", "infra/compose/demo.yml")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def issuer(self) -> str:
        return f"http://localhost:{self.keycloak_port}/realms/agentkeep"

    @property
    def discovery_url(self) -> str:
        return f"{self.issuer}/.well-known/openid-configuration"

    @property
    def environment(self) -> dict[str, str]:
        """In which Compose and `docker` know this deployment."""
        return {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.engine.socket}",
            "COMPOSE_PROJECT_NAME": "agentkeep",
            "AGENTKEEP_DOCKER_SOCKET": str(self.engine.socket),
            "AGENTKEEP_PORT": str(self.port),
            "KEYCLOAK_PORT": str(self.keycloak_port),
            "AGENTKEEP_IDENTITY_FOLDER": str(self.identity_folder),
            # Compiled quickly rather than well: its start takes half the work, and it is asked little here.
            "OPENSEARCH_JAVA_OPTS": "-Xms512m -Xmx512m -XX:TieredStopAtLevel=1",
        }

    def compose(self, *arguments: str, timeout: float = 900) -> str:
        """What it prints. AssertionError with what it said, where it fails."""
        files = [part for name in self.files for part in ("-f", name)]
        ran = subprocess.run(
            [COMPOSE, "--ansi", "never", "--progress", "plain", *files, *arguments],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        assert ran.returncode == 0, f"docker-compose {' '.join(arguments)}: {ran.stdout[-2000:]}{ran.stderr[-4000:]}"
        return ran.stdout

    def up(self) -> float:
        """Returns when all is healthy, with the seconds it took. A service that gives up while it starts, since a store
        is slower than it waits for, is started again by the engine, which Compose takes for a failure: hence twice."""
        began = time.monotonic()
        up = ("up", "--detach", "--wait", "--no-build", "--pull", "never", "--wait-timeout", "800")
        try:
            self.compose(*up)
        except AssertionError as first:
            print(f"up failed once: {self.troubles()}")
            try:
                self.compose(*up)
            except AssertionError as second:
                raise AssertionError(f"{first}\n{second}\n{self.troubles()}") from None
        return time.monotonic() - began

    def replicated(self) -> None:
        """Several of each plane."""
        if REPLICAS not in self.files:
            self.files = (*self.files, REPLICAS)
            print(f"replicas up in {self.up():.0f} s")

    def single(self) -> None:
        """One of each plane."""
        if REPLICAS in self.files:
            self.files = tuple(name for name in self.files if name != REPLICAS)
            print(f"replicas gone in {self.up():.0f} s")

    def down(self) -> None:
        self.compose("down", "--timeout", "60")

    def remove(self) -> None:
        """With its volumes, and at once: nothing of it is needed any more."""
        self.compose("down", "--timeout", "0", "--volumes")

    def troubles(self) -> str:
        """What services that are not healthy wrote last."""
        listed = [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines()]
        bad = [one["Service"] for one in listed if one.get("Health") != "healthy" and one.get("ExitCode") != 0]
        bad += [one["Service"] for one in listed if one.get("Health") in ("starting", "unhealthy")]
        return "\n".join(self.compose("logs", "--no-color", "--tail", "40", one) for one in dict.fromkeys(bad))

    def container(self, service: str) -> str:
        """Of its first replica."""
        return self.replicas(service)[0]

    def replicas(self, service: str) -> list[str]:
        """Their containers."""
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, service: str) -> Any:
        return json.loads(self.engine.docker("inspect", self.container(service)))[0]

    # As an operator and as users see it.

    def operator(self) -> dict[str, str]:
        command = ("exec", "-T", "identity", "python", "-m", "agentkeep.service", "operator-key")
        found: dict[str, str] = json.loads(self.compose(*command))
        return found

    def client(self, service: str, operator: dict[str, str]) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=operator["region"],
            aws_access_key_id=operator["accessKeyId"],
            aws_secret_access_key=operator["secretAccessKey"],
            config=Config(retries={"max_attempts": 1}, read_timeout=120),
        )

    def token(self, user: str, client: str = "demo") -> str:
        """An access token of the realm, got as the demonstration gets it."""
        password = self.compose("exec", "-T", "keycloak", "cat", f"/run/secrets/agentkeep/{user}-password").strip()
        form = {"grant_type": "password", "client_id": client, "username": user, "password": password}
        try:
            with urlopen(
                f"{self.issuer}/protocol/openid-connect/token", urlencode(form).encode(), timeout=30
            ) as answer:
                return str(json.load(answer)["access_token"])
        except HTTPError as error:
            raise AssertionError(f"no token for {user}: {error.read().decode()}") from None


@contextmanager
def compose_stack(identity_folder: Path) -> Iterator[ComposeStack]:
    """Up, in an engine of its own. At the end all is removed, volumes too."""
    with running_engine() as engine:
        try:
            load(engine.socket, public_images())
        except (ImagesUnavailable, LookupError) as error:
            pytest.skip(f"NOT SHOWN: the compose deployment; its images cannot be made here: {error}")
        build(engine, IMAGE, REPOSITORY, SOURCES)
        for image, folder in DEMONSTRATION.items():
            build(engine, image, REPOSITORY / "examples" / folder, ("",))
        identity_folder.chmod(0o755)
        stack = ComposeStack(engine, _free_port(), _free_port(), identity_folder)
        stack.remove()
        try:
            print(f"up in {stack.up():.0f} s")
            yield stack
        finally:
            stack.remove()


def build(engine: DockerEngine, image: str, folder: Path, sources: Iterable[str]) -> None:
    """One of our own images, if it is not there as its sources are now."""
    digest = hashlib.sha256()
    for source in sources:
        path = folder / source
        for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
            if not {"__pycache__", ".mypy_cache", ".ruff_cache"} & set(file.parts):
                digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    made_of = digest.hexdigest()[:16]
    docker = ["docker", "-H", f"unix://{engine.socket}"]
    inspect = [*docker, "image", "inspect", "--format", f'{{{{index .Config.Labels "{_DIGEST}"}}}}', image]
    if subprocess.run(inspect, capture_output=True, text=True).stdout.strip() == made_of:
        return
    arguments = [part for name in _PIP if name in os.environ for part in ("--build-arg", f"{name}={os.environ[name]}")]
    ran = subprocess.run(
        [*docker, "build", "--network", "host", "--label", f"{_DIGEST}={made_of}", "--tag", image, *arguments, folder],
        env={**os.environ, "DOCKER_BUILDKIT": "0"}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert ran.returncode == 0, f"{image} cannot be built: {ran.stdout[-3000:]}{ran.stderr[-3000:]}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
