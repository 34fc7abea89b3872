"""Which agents are started with AgentCore's OpenTelemetry distribution, and what must not be imported before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.command import INSTRUMENT, instruments_itself, plan_work, reason_for_cold
from agentkeep.runtime.drivers.process.interpreter import Interpreter
from agentkeep.runtime.drivers.process.preload import modules_for

ON = {"AGENT_OBSERVABILITY_ENABLED": "true"}


def version(tmp_path: Path, *packages: str, entry_point: tuple[str, ...] = ("main.py",)) -> VersionSpec:
    for package in packages:
        (tmp_path / f"{package}.dist-info").mkdir()
    return VersionSpec("support", "1", bundle=tmp_path, dependencies=tmp_path, entry_point=entry_point, python="3.11")


def plan(of: VersionSpec, given: dict[str, str], cold_reason: str = "") -> Any:
    interpreter = Interpreter(Path("/usr/bin/python3"), (), ())
    return plan_work(of, given, interpreter, cold_reason, instruments_itself(of))[0]


DISTRIBUTION = "aws_opentelemetry_distro-0.21.0"


@pytest.mark.parametrize(
    ("packages", "given", "instrumented"),
    [
        ((DISTRIBUTION,), ON, True),
        ((DISTRIBUTION,), {}, False),
        ((DISTRIBUTION,), ON | {"DISABLE_ADOT_OBSERVABILITY": "true"}, False),
        ((), ON, False),
        (("opentelemetry_sdk-1.44.0",), ON, False),
    ],
)
def test_an_agent_with_the_distribution_is_instrumented(
    tmp_path: Path, packages: tuple[str, ...], given: dict[str, str], instrumented: bool
) -> None:
    """OBS-1: without a line in the agent, or a word in its entry point."""
    work = plan(version(tmp_path, *packages), given)
    assert (work.instrument, work.command) == (instrumented, None)


def test_it_is_instrumented_in_an_interpreter_of_its_own_too(tmp_path: Path) -> None:
    work = plan(version(tmp_path, DISTRIBUTION), ON | {"OMP_NUM_THREADS": "1"})
    assert not work.instrument
    assert "auto_instrumentation" in work.command[2]


def test_the_entry_point_may_say_so(tmp_path: Path) -> None:
    said = version(tmp_path, entry_point=(INSTRUMENT, "main.py"))
    reason = reason_for_cold(said)
    assert INSTRUMENT in reason
    assert "auto_instrumentation" in plan(said, ON, reason).command[2]


def test_nothing_is_imported_that_instrumentation_must_meet_first(tmp_path: Path) -> None:
    names = ("starlette", "bedrock_agentcore", "opentelemetry_api", "boto3", "pydantic")
    version(tmp_path, *(f"{name}-1.0" for name in names))
    plain, instrumented = modules_for(tmp_path), modules_for(tmp_path, True)
    assert {"starlette.routing", "bedrock_agentcore", "opentelemetry.trace", "boto3"} <= set(plain)
    roots = {name.partition(".")[0] for name in instrumented}
    assert not roots & {"starlette", "bedrock_agentcore", "opentelemetry"}
    assert {"boto3", "pydantic"} <= roots
