"""What is told of a run: of each attack how often it was tried, refused, leaked or not carried out, and its control."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

__all__ = ["Exit", "Finding", "Report", "Row"]

EVIDENCE = 10  # leaks of one attack that are told


class Exit(IntEnum):
    """The command's exit status. 2 is the command line's own."""

    PASSED = 0
    LEAKED = 1
    INCOMPLETE = 3


@dataclass(frozen=True)
class Finding:
    """One attack in one session. `outcome` and `control`: `succeeded`, `failed`, `not run`, `no control`."""

    phase: str
    attack: str
    tries: str
    session: str
    outcome: str
    detail: str
    control: str
    control_detail: str
    seconds: float = 0.0


@dataclass
class Row:
    phase: str
    attack: str
    tries: str
    findings: list[Finding] = field(default_factory=list)

    def _count(self, outcome: str) -> int:
        return sum(finding.outcome == outcome for finding in self.findings)

    @property
    def tried(self) -> int:
        return len(self.findings)

    @property
    def refused(self) -> int:
        return self._count("failed")

    @property
    def leaked(self) -> int:
        return self._count("succeeded")

    @property
    def not_run(self) -> int:
        return self._count("not run")

    @property
    def control(self) -> str:
        """`ok`: aimed at a session's own it succeeded, in at least one session and wherever it was possible."""
        outcomes = {finding.control for finding in self.findings}
        return "ok" if "succeeded" in outcomes and outcomes <= {"succeeded", "no control"} else "failed"

    def gaps(self) -> list[str]:
        """Why it says less than it should."""
        found = [f"{one.session}: {one.detail}" for one in self.findings if one.outcome == "not run"]
        if self.control == "failed":
            wrong = [one for one in self.findings if one.control != "succeeded"]
            found += [f"{one.session}: control {one.control}: {one.control_detail}" for one in wrong]
        return list(dict.fromkeys(found))[:EVIDENCE]

    def evidence(self) -> list[str]:
        return [f"{one.session}: {one.detail}" for one in self.findings if one.outcome == "succeeded"][:EVIDENCE]

    def document(self) -> dict[str, Any]:
        return {
            "phase": self.phase, "attack": self.attack, "tries": self.tries, "tried": self.tried,
            "refused": self.refused, "leaked": self.leaked, "notRun": self.not_run, "control": self.control,
            "seconds": round(max(one.seconds for one in self.findings), 3),
            "evidence": self.evidence(), "gaps": self.gaps(),
        }  # fmt: skip


@dataclass
class Report:
    """`gaps`: what of the suite as a whole could not be carried out; `left`: what could not be removed."""

    run: str
    sessions: int = 0
    users: str = ""
    driver: str = ""
    gaps: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            key = (finding.phase, finding.attack)
            row = self.rows.setdefault(key, Row(finding.phase, finding.attack, finding.tries))
            row.findings.append(finding)

    @property
    def leaked(self) -> int:
        return sum(row.leaked for row in self.rows.values())

    def all_gaps(self) -> list[str]:
        gaps = [*self.gaps]
        for row in self.rows.values():
            gaps += [f"{row.phase}, {row.attack}: {gap}" for gap in row.gaps()]
        return gaps if self.rows else [*gaps, "no attack was carried out"]

    @property
    def exit(self) -> Exit:
        if self.leaked:
            return Exit.LEAKED
        return Exit.INCOMPLETE if self.all_gaps() or self.left else Exit.PASSED

    def document(self) -> dict[str, Any]:
        return {
            "run": self.run, "result": self.exit.name.lower(), "exit": int(self.exit), "sessions": self.sessions,
            "users": self.users, "driver": self.driver, "attacks": [row.document() for row in self.rows.values()],
            "gaps": self.all_gaps(), "left": self.left,
        }  # fmt: skip
