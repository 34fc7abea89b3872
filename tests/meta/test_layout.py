"""The repository keeps its shape."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PORTIONS = ("core", "runtime", "gateway", "memory", "identity", "observability")


@pytest.mark.parametrize("portion", PORTIONS)
def test_no_init_in_a_portion(portion: str) -> None:
    """An __init__.py there would hide every other portion of the namespace package."""
    assert (REPOSITORY / portion / "agentkeep").is_dir()
    assert not (REPOSITORY / portion / "agentkeep" / "__init__.py").exists()


def test_environment_is_read_by_settings_only() -> None:
    """`os.environ` outside settings hides a setting from the documentation. What runs inside a session's sandbox has
    no settings: the process driver's inner half, the docker driver's probe, and agents that come with the platform."""
    allowed = ("settings.py", "/drivers/process/", "/drivers/docker/reach.py", "/testing/contract_agent.py",
               "/verify/probe/")  # fmt: skip
    found = [
        str(path.relative_to(REPOSITORY))
        for portion in PORTIONS
        for path in (REPOSITORY / portion / "agentkeep").rglob("*.py")
        if "os.environ" in path.read_text() and not any(part in str(path) for part in allowed)
    ]
    assert found == []


def test_examples_do_not_know_the_platform() -> None:
    """What runs here runs on AgentCore: nothing of ours is imported or named by an example agent."""
    for path in (REPOSITORY / "examples").glob("*/*.py"):
        assert "agentkeep" not in path.read_text(), path
