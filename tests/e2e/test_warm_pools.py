"""Warm pools through the whole platform, with unmodified boto3: processes and containers."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from docker_engine import DockerEngine, docker_engine  # noqa: F401 -- a fixture
from platform_process import PlatformProcess, running_platform

from agentkeep.testing.driver import AGENT

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]

ROLE = "arn:aws:iam::123456789012:role/agent"


def create(platform: PlatformProcess, image: str, pool: str) -> str:
    control = platform.client("bedrock-agentcore-control")
    made = control.create_agent_runtime(
        agentRuntimeName=f"warm_{uuid.uuid4().hex[:8]}",
        agentRuntimeArtifact={"containerConfiguration": {"containerUri": image}},
        roleArn=ROLE,
        networkConfiguration={"networkMode": "PUBLIC"},
        tags={"agentkeep:warm-pool": pool},
    )
    return str(made["agentRuntimeArn"])


def containers(engine: DockerEngine) -> set[str]:
    return set(engine.docker("ps", "--format", "{{.Names}}").split())


def wait_for(condition: Any, patience: float = 90) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ask(platform: PlatformProcess, arn: str, session: str, do: str, **given: Any) -> Any:
    answer = platform.client("bedrock-agentcore").invoke_agent_runtime(
        agentRuntimeArn=arn,
        runtimeSessionId=session,
        runtimeUserId="alice",
        payload=json.dumps({"do": do, **given}).encode(),
    )
    return json.loads(answer["response"].read())


def ready(platform: PlatformProcess) -> int:
    listed = platform.run("sessions").stdout
    return sum(int(line.split(" of ")[0]) for line in listed.splitlines() if " wait for " in line)


def test_containers_that_wait_are_claimed_and_do_not_outlive_a_killed_platform(
    docker_engine: DockerEngine,  # noqa: F811
    tmp_path: Path,
) -> None:
    """EXE-1, EXE-6: a claimed one goes on with its session; those that were nobody's are ended, and new ones started;
    nothing is left at the end."""
    image = docker_engine.image("contract", {AGENT.name: AGENT.read_bytes()})
    settings = {
        "AGENTKEEP_RUNTIME_DOCKER": "true",
        "AGENTKEEP_RUNTIME_DOCKER_SOCKET": str(docker_engine.socket),
    }
    session, data = str(uuid.uuid4()), tmp_path / "data"
    with running_platform(data, **settings) as platform:
        arn = create(platform, image, "2")
        wait_for(lambda: ready(platform) == 2)
        waiting = containers(docker_engine)
        assert len(waiting) == 2
        seen = ask(platform, arn, session, "environment")
        keys = json.loads(ask(platform, arn, session, "endpoint", path=seen["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]))
        assert keys["AccessKeyId"]
        place = ask(platform, arn, session, "place")
        wait_for(lambda: ready(platform) == 2)
        before = containers(docker_engine)
        assert len(before) == 3
        assert waiting <= before  # none was used up but by the session
        os.kill(platform.pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{platform.pid}").exists())
    with running_platform(data, **settings) as platform:
        assert ask(platform, arn, session, "place") == place
        wait_for(lambda: ready(platform) == 2)
        after = containers(docker_engine)
        assert len(after) == 3
        assert len(after & before) == 1
        platform.client("bedrock-agentcore").stop_runtime_session(agentRuntimeArn=arn, runtimeSessionId=session)
        assert not containers(docker_engine) & before
    assert containers(docker_engine) == set()
