"""Runs the official suites against a platform started for the purpose."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from official.model_server import model_server
from official.suites import AGENTCORE, FILES_LEFT_OUT, SUITES, Suite
from platform_process import REPOSITORY, PlatformProcess, running_platform

pytestmark = [pytest.mark.official, pytest.mark.slow, pytest.mark.timeout(900)]

#: Whose records the prepopulated memory has.
ACTOR, SESSION = "integ-test-actor", "integ-test-session"

#: As the suites expect the prepopulated memory to have, and langgraph-checkpoint-aws its own.
STRATEGIES: list[dict[str, Any]] = [
    {"semanticMemoryStrategy": {"name": "facts", "namespaces": ["/facts/{actorId}/"]}},
    {"userPreferenceMemoryStrategy": {"name": "preferences", "namespaces": ["/preferences/{actorId}/"]}},
    {"summaryMemoryStrategy": {"name": "summaries", "namespaces": ["/summaries/{actorId}/{sessionId}/"]}},
    {
        "summaryMemoryStrategy": {
            "name": "actors",
            "namespaces": ["/summaries/actors/{actorId}/sessions/{sessionId}/"],
        }
    },
]

CACHE = REPOSITORY / "tests" / ".cache" / "official"


@pytest.fixture(scope="module")
def distributions() -> Path:
    """The unpacked source distributions, fetched once and checked by hash."""
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = {suite.distribution for suite in SUITES}
    if not all((CACHE / f"{name}.tar.gz").exists() for name in wanted):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
             "--require-hashes", "-r", str(REPOSITORY / "requirements" / "official.txt"), "-d", str(CACHE)],
            check=True,
        )  # fmt: skip
    for name in wanted:
        if not (CACHE / name).exists():
            shutil.unpack_archive(CACHE / f"{name}.tar.gz", CACHE)  # known by its hash
    return CACHE


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    with (
        model_server() as models,
        running_platform(
            tmp_path_factory.mktemp("platform"),
            **models.platform_settings,
        ) as platform,
    ):
        yield platform


@pytest.fixture(scope="module")
def variables(platform: PlatformProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the suites ask their environment for: a memory, a runtime, a code bundle, dummy ARNs."""
    agent = tmp_path_factory.mktemp("agent")
    (agent / "agent.py").write_text((REPOSITORY / "tests" / "agents" / "echo" / "agent.py").read_text())
    deployed = platform.json("deploy", str(agent), "--name", "official", "--iam")
    runtime = platform.client("bedrock-agentcore-control").get_agent_runtime(agentRuntimeId=deployed["agentRuntimeId"])
    code = runtime["agentRuntimeArtifact"]["codeConfiguration"]["code"]["s3"]
    memory = platform.client("bedrock-agentcore-control").create_memory(
        name="official", eventExpiryDuration=30, memoryStrategies=STRATEGIES
    )
    prepopulate(platform, memory["memory"]["id"])
    account = runtime["agentRuntimeArn"].split(":")[4]
    role = f"arn:aws:iam::{account}:role/official"
    region = platform.variables["AWS_REGION"]
    return platform.environment | {
        "BEDROCK_TEST_REGION": region,
        "RUNTIME_ROLE_ARN": role,
        "RUNTIME_S3_CODE_URI": f"s3://{code['bucket']}/{code['prefix']}",
        "RESOURCE_POLICY_TEST_ARN": runtime["agentRuntimeArn"],
        "RESOURCE_POLICY_TEST_PRINCIPAL": role,
        "MEMORY_ROLE_ARN": role,
        "GATEWAY_ROLE_ARN": role,
        "MEMORY_KINESIS_ARN": f"arn:aws:kinesis:{region}:{account}:stream/official",
        "MEMORY_PREPOPULATED_ID": memory["memory"]["id"],
        "MEMORY_PREPOPULATED_ACTOR_ID": ACTOR,
        "MEMORY_PREPOPULATED_SESSION_ID": SESSION,
        "AGENTCORE_MEMORY_ID": memory["memory"]["id"],
        "COGNITO_POOL_ID": "us-west-2_dummy",
        "COGNITO_CLIENT_ID": "dummy",
        "COGNITO_CLIENT_SECRET": "dummy",
    }


def prepopulate(platform: PlatformProcess, memory_id: str) -> None:
    """The records that the SDK's suite expects to find, as its TESTING.md says where."""
    texts = {
        f"/facts/{ACTOR}/": "The user is a developer who works on distributed systems.",
        f"/preferences/{ACTOR}/": "Prefers Python as programming language.",
        f"/summaries/{ACTOR}/{SESSION}/": "The conversation was about consensus in distributed systems.",
    }
    answer = platform.client("bedrock-agentcore").batch_create_memory_records(
        memoryId=memory_id,
        records=[
            {
                "requestIdentifier": f"r{number}",
                "namespaces": [namespace],
                "content": {"text": text},
                "timestamp": datetime.now(UTC),
            }
            for number, (namespace, text) in enumerate(texts.items())
        ],
    )
    assert len(answer["successfulRecords"]) == len(texts), answer


def test_every_file_on_runtime_and_memory_is_run_or_named(distributions: Path) -> None:
    folder = distributions / AGENTCORE
    there = {
        str(file.relative_to(folder))
        for part in ("async", "memory", "runtime", "services")
        for file in (folder / "tests_integ" / part).rglob("test_*.py")
    }
    run = {suite.path for suite in SUITES if suite.distribution == AGENTCORE}
    assert there == (there & run) | FILES_LEFT_OUT.keys()
    assert not run & FILES_LEFT_OUT.keys()


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: Path(suite.path).stem)
def test_suite(suite: Suite, distributions: Path, variables: dict[str, str], tmp_path: Path) -> None:
    """Every test of the suite passes, but those left out by name."""
    report = tmp_path / "report.xml"
    left_out = [argument for name in suite.left_out for argument in ("--deselect", f"{suite.path}::{name}")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", suite.path, "-q", "--order-scope=module", "-p", "no:cacheprovider",
         "-p", "no:randomly", "-p", "no:anyio", "--tb=short", f"--junitxml={report}", *left_out],
        cwd=distributions / suite.distribution,
        env=variables,
        capture_output=True,
        text=True,
        timeout=800,
    )  # fmt: skip
    cases = ElementTree.parse(report).getroot().iter("testcase")
    outcomes = {f"{case.get('classname')}::{case.get('name')}": [child.tag for child in case] for case in cases}
    print(f"{suite.path}: {len(outcomes)} run, {len(suite.left_out)} left out")
    for name, reason in suite.left_out.items():
        print(f"  left out: {name}: {reason}")
    not_run = [name for name, tags in outcomes.items() if "skipped" in tags]
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert outcomes, "the suite ran no test"
    assert not not_run, f"skipped without being named in suites.py: {not_run}"
