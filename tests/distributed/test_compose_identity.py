"""The compose deployment's folder for roles and STS rules, without a container: examples, and what is used of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from agentkeep.core.identifiers import Deployment
from agentkeep.identity.roles.roles import Roles
from agentkeep.identity.sts.rules import StsRules

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "infra" / "compose" / "identity"


def test_the_examples_are_read_as_they_are() -> None:
    """The roles' is least privilege: nobody may act for users, and tokens that agents see open none."""
    roles = Roles.load(EXAMPLES / "roles.example.json", Deployment())
    for name, policies in (("deployer", ("deployer",)), ("auditor", ("auditor",))):
        role = roles.named(name)
        assert role is not None and role.shipped == policies
        assert all(trust.audiences == ("agentkeep-roles",) and trust.session_name for trust in role.trust)
    assert StsRules.load(EXAMPLES / "sts-rules.example.json")


def started(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the container would start, showing its settings."""
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    shell, option, script, called = services["identity"]["entrypoint"]
    assert "exec python -m agentkeep.service" in script and "/etc/agentkeep/identity" in script
    script = script.replace("$$", "$").replace("/etc/agentkeep/identity", str(folder))
    script = script.replace("exec python -m agentkeep.service", "echo started; env; :")
    return subprocess.run([shell, option, script, called, "identity"], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "setting"),
    [("roles.json", "AGENTKEEP_IDENTITY_ROLES"), ("sts-rules.json", "AGENTKEEP_IDENTITY_STS_RULES")],
)
def test_a_file_that_is_there_is_used(tmp_path: Path, name: str, setting: str) -> None:
    """And nothing else; a link to nowhere is a file that cannot be read, not one that is not there. What settings say
    goes first."""
    (tmp_path / f"{name}.off").touch()
    without = started(tmp_path, PATH="/usr/bin:/bin")
    assert "started" in without.stdout and "AGENTKEEP_IDENTITY" not in without.stdout
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    lines = started(tmp_path, PATH="/usr/bin:/bin").stdout.splitlines()
    assert [line for line in lines if line.startswith("AGENTKEEP")] == [f"{setting}={tmp_path / name}"]
    assert f"{setting}=/else" in started(tmp_path, PATH="/usr/bin:/bin", **{setting: "/else"}).stdout


def test_without_its_folder_the_service_does_not_start(tmp_path: Path) -> None:
    ended = started(tmp_path / "none", PATH="/usr/bin:/bin")
    assert (ended.returncode, ended.stdout) == (1, "") and "readable" in ended.stderr
