"""`agentkeep verify isolation` where sessions are containers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from docker_engine import DockerEngine, docker_engine  # noqa: F401 -- a fixture
from platform_process import running_platform

from agentkeep.verify.bundle import FOLDER, probe_files

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]


def test_containers_leak_nothing_by_the_command(docker_engine: DockerEngine, tmp_path: Path) -> None:  # noqa: F811
    """EXE-5, EXE-1: containers' own attacks too, each with its control; no container and no image tag is left."""
    settings = {
        "AGENTKEEP_RUNTIME_DOCKER": "true",
        "AGENTKEEP_RUNTIME_DOCKER_SOCKET": str(docker_engine.socket),
    }
    image = docker_engine.image("isolation", probe_files())
    with running_platform(tmp_path / "data", **settings) as platform:
        arguments = ("verify", "isolation", "--sessions", "10", "--image", image, "--json")
        ran = platform.run(*arguments, check=False, timeout=400)
        report = json.loads(ran.stdout)
        assert (ran.returncode, report["result"]) == (0, "passed"), f"{report['gaps']} {ran.stderr}"
        attacks = {row["attack"] for row in report["attacks"]}
        assert {"neighbours", "the_metadata_address", "sockets_of_the_engine", "image_layers"} <= attacks
        assert docker_engine.docker("ps", "--all", "--quiet") == ""


def test_the_image_is_made_of_the_same_files() -> None:
    """`docker build "$(agentkeep verify probe)"` needs no more than Python and what is in the folder."""
    recipe = (FOLDER / "Dockerfile").read_text()
    assert "COPY . /app/probe" in recipe and 'ENTRYPOINT ["python", "-m", "probe"]' in recipe
    assert {name.removeprefix("probe/") for name in probe_files() if name.startswith("probe/")} == {
        path.name for path in FOLDER.glob("*.py")
    }
