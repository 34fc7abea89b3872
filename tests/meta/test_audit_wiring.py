"""No record goes to a log alone because somebody forgot to pass the audit on.

Parts can be made without one, for tests and tools; what is deployed makes none so. Every call in the sources that makes
something which takes an audit, or what keeps records by one, must give it. So what a composition root (the embedded
platform, each of the five services) has, all below it have; and each root has the real one.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentkeep.core.acting import LoggedAudit
from agentkeep.core.call import Call
from agentkeep.core.clock import Clock
from agentkeep.core.ports import Audit

ROOT = Path(__file__).parents[2]
PORTIONS = ("core", "runtime", "gateway", "memory", "identity", "observability")
SOURCES = [
    source
    for portion in PORTIONS
    for source in sorted((ROOT / portion / "agentkeep").rglob("*.py"))
    if not {"testing", "probe", "types"} & set(source.parts)
]
#: What is left out there is the service's own.
KNOWN = {("Composed", "alarm")}
#: Audit, and what is made of one.
KEEPERS = re.compile(r"\b(Audit|ActingForUsers|Alarm|Tally|Trail)\b")
#: Where a part falls back to the log. Nobody else may.
FALLBACKS = {"audit or LoggedAudit()", "ActingForUsers(LoggedAudit(), clock)"}
ROOTS = ("embedded/platform", "distributed/identity", "distributed/memory", "distributed/runtime")


def module(source: Path) -> Any:
    parts = source.relative_to(ROOT).with_suffix("").parts[1:]
    return importlib.import_module(".".join(part for part in parts if part != "__init__"))


def called(names: dict[str, Any], call: ast.Call) -> Callable[..., Any] | None:
    """The class or function of ours that `call` calls by name; None where it is none, or is not found so."""
    match call.func:
        case ast.Name(id=name):
            found = names.get(name)
        case ast.Attribute(value=ast.Name(id=holder), attr=name) if inspect.ismodule(names.get(holder)):
            found = getattr(names[holder], name, None)
        case _:
            return None
    ours = (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__.startswith("agentkeep.")
    return found if ours else None


def forgotten(names: dict[str, Any], tree: ast.AST) -> Iterator[str]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        subject = called(names, call)
        if subject is None or any(isinstance(argument, ast.Starred) for argument in call.args):
            continue
        try:
            parameters = list(inspect.signature(subject).parameters.values())
        except (TypeError, ValueError):
            continue
        given = {parameter.name: value for parameter, value in zip(parameters, call.args, strict=False)}
        given |= {word.arg: word.value for word in call.keywords if word.arg is not None}
        for parameter in parameters:
            if not KEEPERS.search(str(parameter.annotation)) or "Callable" in str(parameter.annotation):
                continue
            if (subject.__name__, parameter.name) in KNOWN:
                continue
            value = given.get(parameter.name)
            if value is None or (isinstance(value, ast.Constant) and value.value is None):
                yield f"line {call.lineno}: {subject.__name__} is made without {parameter.name}"


def test_the_audit_is_passed_on() -> None:
    """IDN-2."""
    found: dict[str, list[str]] = {}
    for source in SOURCES:
        text = source.read_text()
        if KEEPERS.search(text) is None and "Plane(" not in text:
            continue
        faults = list(forgotten(vars(module(source)), ast.parse(text)))
        if source.name != "acting.py":
            for line in text.splitlines():
                if "LoggedAudit()" in line and not any(fallback in line for fallback in FALLBACKS):
                    faults.append(line.strip())
        if faults:
            found[str(source.relative_to(ROOT))] = faults
    assert found == {}


@pytest.mark.parametrize("root", ROOTS)
def test_each_root_has_the_real_one(root: str) -> None:
    """IDN-2: of the roots that keep records by themselves; the gateway's are kept by identity and its own trail."""
    text = (ROOT / "core" / "agentkeep" / f"{root}.py").read_text()
    assert "LoggedAudit" not in text
    real = {"KeyValueAudit(store", "service.audit", "service.port(AUDIT)"}
    assert any(each in text for each in real)


class _Part:
    def __init__(self, clock: Clock, audit: Audit | None = None) -> None: ...


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("_Part(clock)", 1),
        ("_Part(clock, None)", 1),
        ("_Part(clock, audit=None)", 1),
        ("_Part(clock, audit)", 0),
        ("_Part(clock, audit=audit)", 0),
        ("Call(clock)", 0),
    ],
)
def test_what_is_forgotten_is_found(call: str, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Part, "__module__", "agentkeep.somewhere")
    names = {"_Part": _Part, "Call": Call, "LoggedAudit": LoggedAudit}
    assert len(list(forgotten(names, ast.parse(call)))) == found
