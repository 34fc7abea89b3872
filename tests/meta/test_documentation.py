"""What the documentation says is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentkeep.cli.main import app

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("*/**/README.md")]
    if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
)
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback} | {
    group.name for group in app.registered_groups
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_exist(page: Path) -> None:
    """`agentkeep COMMAND` and `make TARGET` in code."""
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL))
    assert set(re.findall(r"(?:^|[\s(`/])agentkeep ([a-z]+)\b", code)) - COMMANDS == set()
    assert set(re.findall(r"\bmake ([a-z-]+)\b", code)) - targets == set()


def test_every_setting_is_explained() -> None:
    rows = [line for line in (REPOSITORY / "docs" / "settings.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert [row for row in rows if row.endswith("|  |")] == []
