"""An agent given as a container image, over the public API, with unmodified boto3 outside and inside."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from docker_engine import SDK, DockerEngine, docker_engine  # noqa: F401 -- a fixture
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]

AGENT = b"""
import os, uuid
import boto3
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
born = str(uuid.uuid4())

@app.entrypoint
def invoke(payload, context):
    # Its own keys, from the container-credentials endpoint; its own user's events.
    memory = boto3.client("bedrock-agentcore")
    events = memory.list_events(memoryId=payload["memory"], actorId="alice", sessionId="chat")["events"]
    print("asked for", len(events), "events", flush=True)
    return {"session": context.session_id, "events": len(events), "born": born, "uid": os.getuid()}

app.run()
"""


def create(platform: PlatformProcess, image: str) -> tuple[str, str]:
    """The runtime's ARN, and the status it came to."""
    control = platform.client("bedrock-agentcore-control")
    made = control.create_agent_runtime(
        agentRuntimeName=f"image_{uuid.uuid4().hex[:8]}",
        agentRuntimeArtifact={"containerConfiguration": {"containerUri": image}},
        roleArn="arn:aws:iam::123456789012:role/agent",
        networkConfiguration={"networkMode": "PUBLIC"},
    )
    deadline = time.monotonic() + 60
    while True:
        found = control.get_agent_runtime(agentRuntimeId=made["agentRuntimeId"])
        if found["status"] != "CREATING":
            return made["agentRuntimeArn"], found["status"] + found.get("failureReason", "")
        assert time.monotonic() < deadline
        time.sleep(0.1)


def invoke(platform: PlatformProcess, arn: str, session: str, memory: str) -> Any:
    answer = platform.client("bedrock-agentcore").invoke_agent_runtime(
        agentRuntimeArn=arn,
        runtimeSessionId=session,
        runtimeUserId="alice",
        payload=json.dumps({"memory": memory}).encode(),
    )
    return json.loads(answer["response"].read())


def test_an_image_is_an_agent_and_its_sessions_outlive_a_killed_platform(
    docker_engine: DockerEngine,  # noqa: F811
    tmp_path: Path,
) -> None:
    """EXE-1, EXE-6: deployed, invoked, its memory reached by its own keys; the platform is killed, and the same
    process goes on in the same session, with its session endpoint."""
    image = docker_engine.image("e2e", {"main.py": AGENT}, packages=SDK)
    settings = {
        "AGENTKEEP_RUNTIME_DOCKER": "true",
        "AGENTKEEP_RUNTIME_DOCKER_SOCKET": str(docker_engine.socket),
    }
    session = str(uuid.uuid4())
    with running_platform(tmp_path / "data", **settings) as platform:
        memory = platform.client("bedrock-agentcore-control").create_memory(name="e2e", eventExpiryDuration=30)
        memory_id = memory["memory"]["id"]
        arn, status = create(platform, image)
        assert status == "READY"
        _, refused = create(platform, "127.0.0.1:9/no-such-agent:1")
        assert refused.startswith("CREATE_FAILED") and "no-such-agent:1 is not on this machine" in refused
        first = invoke(platform, arn, session, memory_id)
        assert (first["session"], first["events"]) == (session, 0)
        assert first["uid"] > 100_000
        assert "asked for 0 events" in platform.run("logs", session).stdout
        os.kill(platform.pid, signal.SIGKILL)
        time.sleep(1)
    with running_platform(tmp_path / "data", **settings) as platform:
        second = invoke(platform, arn, session, memory_id)
        assert second == first
        other = invoke(platform, arn, str(uuid.uuid4()), memory_id)
        assert other["born"] != first["born"] and other["uid"] != first["uid"]
        platform.client("bedrock-agentcore").stop_runtime_session(agentRuntimeArn=arn, runtimeSessionId=session)
        assert len(docker_engine.docker("ps", "-q").split()) == 1
    assert docker_engine.docker("ps", "-aq") == ""
