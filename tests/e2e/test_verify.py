"""`agentkeep verify isolation`: what it says of a deployment that keeps its sessions apart, and of ones that do not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_platform import broken_platform
from platform_process import COMMAND, PlatformProcess, clean_environment, running_platform

from agentkeep.verify.report import Exit, Finding, Report

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

SESSIONS = 10


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    with running_platform(tmp_path_factory.mktemp("verified") / "data") as platform:
        yield platform


def verify(platform: PlatformProcess, *arguments: str) -> tuple[int, dict[str, Any]]:
    ran = platform.run("verify", "isolation", *arguments, "--json", check=False, timeout=240)
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout)


def made(platform: PlatformProcess) -> list[str]:
    """What there is on the deployment that a run could have made."""
    control = platform.client("bedrock-agentcore-control")
    return [
        *(one["agentRuntimeId"] for one in control.list_agent_runtimes()["agentRuntimes"]),
        *(one["id"] for one in control.list_memories()["memories"]),
        *(one["gatewayId"] for one in control.list_gateways()["items"]),
        *(one["policyEngineId"] for one in control.list_policy_engines()["policyEngines"]),
        *(one["name"] for one in control.list_api_key_credential_providers()["credentialProviders"]),
        *(one["sessionId"] for one in platform.json("sessions")),
    ]


def rows(report: dict[str, Any], phase: str = "at once") -> dict[str, dict[str, Any]]:
    return {row["attack"]: row for row in report["attacks"] if row["phase"] == phase}


def test_a_deployment_that_keeps_sessions_apart_passes(platform: PlatformProcess) -> None:
    """EXE-5, EXE-1, MEM-2, IDN-4, GOV-1: ten users at once, and those who come after them; by the deployment's endpoint
    and the operator's key, without its data folder."""
    ran = subprocess.run(
        [*COMMAND, "verify", "isolation", "--endpoint", platform.endpoint, "--sessions", str(SESSIONS), "--json"],
        capture_output=True, text=True, timeout=240, env=platform.environment,
    )  # fmt: skip
    assert ran.stdout, ran.stderr
    status, report = ran.returncode, json.loads(ran.stdout)
    assert (status, report["result"], report["gaps"], report["left"]) == (0, "passed", [], [])
    assert report["users"] == "5 named by the operator (SigV4), 5 by tokens of the deployment's issuer"
    at_once, afterwards, outside = (rows(report, phase) for phase in ("at once", "afterwards", "from outside"))
    assert {row["tried"] for row in at_once.values()} == {row["refused"] for row in at_once.values()} == {SESSIONS}
    assert len(at_once) > 60 and at_once.keys() == afterwards.keys() and len(outside) >= 6
    assert {row["control"] for row in report["attacks"]} == {"ok"}
    assert made(platform) == []


def test_sessions_that_share_an_environment_are_a_leak(tmp_path: Path) -> None:
    """EXE-5: files, processes, memory, sockets, shared memory, keys: each attack finds what others planted."""
    with broken_platform("sessions_share_an_environment", tmp_path / "data") as platform:
        status, report = verify(platform, "--sessions", "4")
        assert (status, report["result"]) == (1, "leaked")
        found = rows(report)
        for attack in (
            "files_of_others", "any_name_of_others", "secrets_in_any_file", "process_arguments_of_others",
            "secrets_in_own_memory", "abstract_sockets_of_others", "loopback_ports_of_others", "system_v_shared_memory",
            "events_of_other_users", "records_of_other_users", "tools_of_others_seen", "keys_of_other_sessions",
        ):  # fmt: skip
            assert found[attack]["leaked"] > 0, attack
            assert found[attack]["evidence"]
        assert found["new_namespaces"]["leaked"] == 0  # what the hole does not touch
        assert made(platform) == []


def test_a_memory_without_authorization_is_a_leak(tmp_path: Path) -> None:
    """EXE-5, MEM-2: and nothing else is said to leak; as people read it. What is to be kept stays."""
    with broken_platform("memory_is_open_to_all", tmp_path / "data") as platform:
        ran = platform.run("verify", "isolation", "--sessions", "3", "--keep", check=False, timeout=240)
        left = made(platform)
    assert ran.returncode == 1
    told = [line.split(": ")[1:] for line in ran.stdout.splitlines() if line.startswith("LEAK: ")]
    assert ["at once, events_of_other_users", "List another user's events."] in told
    leaked = {attack.removeprefix("at once, ") for attack, _ in told if attack.startswith("at once")}
    assert {"events_of_other_users", "events_by_id", "events_written_for_others", "names_of_other_users"} <= leaked
    assert {name.partition("_")[0] for name in leaked} <= {"events", "records", "sessions", "names"}
    assert {"verify_signed", "verify_tokens"} <= {name.rpartition("_")[0] for name in left}, left
    assert len(left) >= 5


def test_finding_nothing_where_nothing_is_to_be_found_is_no_pass(tmp_path: Path) -> None:
    """EXE-5: where a session does not even find what is its own user's, not finding others' proves nothing."""
    with broken_platform("memory_is_closed_to_all", tmp_path / "data") as platform:
        status, report = verify(platform, "--sessions", "2")
        assert (status, report["result"]) == (3, "incomplete")
        row = rows(report)["events_of_other_users"]
        assert (row["leaked"], row["refused"], row["control"]) == (0, 2, "failed")
        assert any("events_of_other_users" in gap and "closed" in gap for gap in report["gaps"])
        assert rows(report)["files_of_others"]["control"] == "ok"
        assert made(platform) == []


def test_what_cannot_be_carried_out_is_no_pass(platform: PlatformProcess) -> None:
    """EXE-5: no driver for images here; nobody at the address."""
    status, report = verify(platform, "--sessions", "2", "--image", "no-such-probe:1")
    assert (status, report["result"], report["attacks"]) == (3, "incomplete", [])
    assert "cannot be made" in report["gaps"][0] or "FAILED" in report["gaps"][0]
    assert made(platform) == []
    nowhere = subprocess.run(
        [*COMMAND, "verify", "isolation", "--endpoint", "http://127.0.0.1:9", "--json"],
        capture_output=True, text=True, timeout=120,
        env=clean_environment() | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"},
    )  # fmt: skip
    assert nowhere.returncode == 3, nowhere.stdout + nowhere.stderr


def test_an_interrupted_run_removes_what_it_made(platform: PlatformProcess) -> None:
    """By SIGTERM, which becomes what Ctrl-C is."""
    command = [*COMMAND, "verify", "isolation", "--sessions", "2", "--data-dir", str(platform.data_dir)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        deadline = time.monotonic() + 60
        while not platform.json("sessions"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=90)
    assert process.returncode not in (0, 1)
    assert made(platform) == []


def finding(outcome: str, control: str, session: str = "s") -> Finding:
    return Finding("at once", "attack", "Tries.", session, outcome, "what happened", control, "of the control")


@pytest.mark.parametrize(
    ("findings", "exit"),
    [
        ([finding("failed", "succeeded")], Exit.PASSED),
        ([finding("failed", "succeeded"), finding("failed", "no control")], Exit.PASSED),
        ([finding("failed", "no control")], Exit.INCOMPLETE),
        ([finding("failed", "succeeded"), finding("failed", "failed")], Exit.INCOMPLETE),
        ([finding("failed", "succeeded"), finding("not run", "succeeded")], Exit.INCOMPLETE),
        ([finding("failed", "succeeded"), finding("succeeded", "succeeded")], Exit.LEAKED),
        ([finding("succeeded", "failed"), finding("not run", "not run")], Exit.LEAKED),
        ([], Exit.INCOMPLETE),
    ],
)
def test_the_exit_status(findings: list[Finding], exit: Exit) -> None:
    report = Report("run")
    report.add(findings)
    assert report.exit is exit
    assert report.document()["exit"] == int(exit)


def test_what_is_left_behind_is_said() -> None:
    report = Report("run", left=["memory m"])
    report.add([finding("failed", "succeeded")])
    assert report.exit is Exit.INCOMPLETE
