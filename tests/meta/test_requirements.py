"""Requirements and tests name each other."""

from __future__ import annotations

import re
from pathlib import Path

from requirements import PART, REQUIREMENTS

TESTS = Path(__file__).parents[1]
CITATION = re.compile(r"\b(?:EXE|GOV|MEM|IDN|OBS|GRD|BCK|OPS)-\d+\b")


def citations() -> dict[str, set[str]]:
    """Requirement id -> the test files that cite it."""
    found: dict[str, set[str]] = {}
    for path in TESTS.rglob("*.py"):
        if ".cache" in path.parts or path.name in ("requirements.py", Path(__file__).name):
            continue
        for requirement in CITATION.findall(path.read_text()):
            found.setdefault(requirement, set()).add(str(path.relative_to(TESTS)))
    return found


def test_every_requirement_that_is_due_is_shown() -> None:
    due = {requirement for requirement, (_, part) in REQUIREMENTS.items() if part <= PART}
    assert due - citations().keys() == set()


def test_no_test_cites_an_unknown_requirement() -> None:
    unknown = {requirement: files for requirement, files in citations().items() if requirement not in REQUIREMENTS}
    assert unknown == {}
