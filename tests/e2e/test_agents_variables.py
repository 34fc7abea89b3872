"""Secrets that agents are given as environment variables: who has them, and everywhere they are not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from canaries import canary, leaking_files, leaks
from kms_stand_in import KmsStandIn, key_arn
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

AGENT = """
import hashlib, http.server, json, os

class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"status": "Healthy"})

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"] or 0))
        self.answer(hashlib.sha256(os.environ.get("API_KEY", "").encode()).hexdigest())

    def answer(self, reply):
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
"""
FAILING = """
import os

connected_with = os.environ["API_KEY"]
raise SystemExit("no login with " + connected_with if "TALKATIVE" in os.environ else "the database is away")
"""
CONTROL = "found-if-it-is-looked-for"


@pytest.fixture
async def kms() -> AsyncIterator[KmsStandIn]:
    stand_in = KmsStandIn()
    await stand_in.start()
    yield stand_in
    await stand_in.stop()


class Operator:
    """boto3 without its own checks, so that bad requests arrive, and without retries, so that refusals come back.
    `said`: all that the platform answered but GetAgentRuntime, whose business it is."""

    def __init__(self, platform: PlatformProcess, folder: Path) -> None:
        config = {"parameter_validation": False, "retries": {"total_max_attempts": 1}, "read_timeout": 60}
        self.control, self.data = (
            boto3.client(
                service,
                endpoint_url=platform.endpoint,
                region_name=platform.variables["AWS_REGION"],
                aws_access_key_id=platform.variables["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=platform.variables["AWS_SECRET_ACCESS_KEY"],
                config=Config(**config),  # type: ignore[arg-type]
            )
            for service in ("bedrock-agentcore-control", "bedrock-agentcore")
        )
        self.platform = platform
        self.folder = folder
        self.said: list[Any] = []

    def deploy(self, name: str, code: str, *more: str) -> str:
        """As its developer does; any later version is made from the same code."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "main.py").write_text(code)
        done = self.platform.run("deploy", str(folder), "--name", name, "--iam", *more, check=False)
        self.said.append(done.stdout + done.stderr)
        listed = self.control.list_agent_runtimes()["agentRuntimes"]
        return str(next(one for one in listed if one["agentRuntimeName"] == name)["agentRuntimeId"])

    def settle(self, runtime_id: str, status: str = "READY") -> Any:
        deadline = time.monotonic() + 60
        while (found := self.control.get_agent_runtime(agentRuntimeId=runtime_id))["status"] != status:
            assert time.monotonic() < deadline, found["status"]
            time.sleep(0.1)
        return found

    def update(self, runtime_id: str, variables: dict[str, Any], **more: Any) -> None:
        found = self.control.get_agent_runtime(agentRuntimeId=runtime_id)
        kept = {name: found[name] for name in ("agentRuntimeArtifact", "roleArn", "networkConfiguration")}
        self.say(
            self.control.update_agent_runtime,
            agentRuntimeId=runtime_id,
            environmentVariables=variables,
            clientToken=uuid.uuid4().hex + "-more",
            **kept,
            **more,
        )

    def ask(self, runtime_id: str, session: str) -> str:
        arn = self.arn(runtime_id)
        answer = self.data.invoke_agent_runtime(agentRuntimeArn=arn, runtimeSessionId=session, payload=b"{}")
        return str(json.loads(answer["response"].read()))

    def arn(self, runtime_id: str) -> str:
        listed = self.control.list_agent_runtimes()["agentRuntimes"]
        return str(next(one for one in listed if one["agentRuntimeId"] == runtime_id)["agentRuntimeArn"])

    def pooled(self) -> None:
        """Returns when an environment waits in the warm pool."""
        deadline = time.monotonic() + 60
        while "1 of 1 wait for " not in (shown := self.platform.run("sessions").stdout):
            assert time.monotonic() < deadline, shown
            time.sleep(0.2)
        self.said.append(shown)

    def say(self, operation: Any, **request: Any) -> Any:
        answer = operation(**request)
        self.said.append(answer)
        return answer

    def refused(self, operation: Any, **request: Any) -> int:
        with pytest.raises(ClientError) as error:
            operation(**request)
        self.said.append((str(error.value), error.value.response))
        return int(error.value.response["ResponseMetadata"]["HTTPStatusCode"])


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def command_lines() -> Iterator[bytes]:
    """Of all processes of this machine, which anybody on it can read."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes()
        except OSError:
            continue


async def test_no_planted_variable_comes_out(tmp_path: Path, kms: KmsStandIn) -> None:
    """IDN-3: in no file of a platform that logs all it can, no answer, error, trace or command line, whatever becomes
    of the version; but in its sessions, and for an operator who asks for it. While the key service is away sessions go
    on and nothing is opened."""
    data_dir = tmp_path / "data"
    settings = {
        "AGENTKEEP_LOG_LEVEL": "DEBUG",
        "AGENTKEEP_KEYS_KMS_KEY_ARN": key_arn(),
        "AGENTKEEP_KEYS_KMS_ENDPOINT_URL": kms.url,
        "AGENTKEEP_KEYS_CACHE": "0",
        "AGENTKEEP_KEYS_OUTAGE": "0",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    names = ("first", "second", "failing", "broken", "refused", "away")
    secrets = {name: canary() for name in names}
    planted = list(secrets.values())

    platform_context = running_platform(data_dir, **settings)
    platform = await asyncio.to_thread(platform_context.__enter__)
    try:
        operator = await asyncio.to_thread(Operator, platform, tmp_path)
        sessions = [str(uuid.uuid4()) for _ in range(4)]
        runtime_id = await asyncio.to_thread(_lives, operator, secrets, sessions)
        commands = b"\n".join(command_lines())
        assert str(data_dir).encode() in commands, "the search finds what is there"
        assert not leaks(commands, planted)
        await kms.stop()
        await asyncio.to_thread(_outage, operator, secrets, sessions, runtime_id)
        await kms.start()
        assert await asyncio.to_thread(operator.ask, runtime_id, sessions[3]) == digest(secrets["second"])
        assert leaking_files(data_dir, planted) == []
        said = await asyncio.to_thread(_ends, operator, runtime_id)
    finally:
        await asyncio.to_thread(platform_context.__exit__, None, None, None)
    assert leaking_files(data_dir, planted) == []
    assert len(leaking_files(data_dir, [CONTROL])) >= 1, "the search finds what is there"
    assert leaking_files(data_dir, ["the database is away"]), "the failing agent's words were searched"
    for answer in said:
        assert not leaks(json.dumps(answer, default=str).encode(), planted)


def _lives(operator: Operator, secrets: dict[str, str], sessions: list[str]) -> str:
    """Versions made, replaced, tried and refused; returns the runtime that serves."""
    control, say = operator.control, operator.say
    runtime_id = operator.deploy("keeper", AGENT, "--env", f"API_KEY={secrets['first']}")
    assert operator.settle(runtime_id)["environmentVariables"] == {"API_KEY": secrets["first"]}
    assert operator.ask(runtime_id, sessions[0]) == digest(secrets["first"])
    say(control.tag_resource, resourceArn=operator.arn(runtime_id), tags={"agentkeep:warm-pool": "1"})
    operator.update(runtime_id, {"API_KEY": secrets["second"]}, description=CONTROL)
    assert operator.settle(runtime_id)["environmentVariables"] == {"API_KEY": secrets["second"]}
    first = control.get_agent_runtime(agentRuntimeId=runtime_id, agentRuntimeVersion="1")
    assert first["environmentVariables"] == {"API_KEY": secrets["first"]}
    for listed in (
        say(control.list_agent_runtimes)["agentRuntimes"],
        say(control.list_agent_runtime_versions, agentRuntimeId=runtime_id)["agentRuntimes"],
    ):
        assert all("environmentVariables" not in one for one in listed)
    operator.pooled()
    assert operator.ask(runtime_id, sessions[1]) == digest(secrets["second"])

    file = operator.folder / "variables"
    file.write_text(f"# of the database\n\n{secrets['failing']}\nAPI_KEY={secrets['failing']}\n")
    done = operator.platform.run("deploy", str(operator.folder / "keeper"), "--env-file", str(file), check=False)
    assert done.returncode == 1
    assert "line 3, is not NAME=VALUE" in " ".join(done.stderr.split())
    operator.said.append(done.stdout + done.stderr)
    file.write_text(f"# of the database\n\nAPI_KEY={secrets['failing']}\n")
    failing = operator.deploy("failing", FAILING, "--env-file", str(file))
    assert operator.settle(failing)["environmentVariables"] == {"API_KEY": secrets["failing"]}
    request = {"agentRuntimeArn": operator.arn(failing), "runtimeSessionId": str(uuid.uuid4()), "payload": b"{}"}
    assert operator.refused(operator.data.invoke_agent_runtime, **request) == 424
    hook = {"build": {"warmup": {"action": {"httpPost": {"path": "/"}}}}}
    operator.update(failing, {"API_KEY": secrets["broken"], "TALKATIVE": "yes"}, hooksConfiguration=hook)
    reason = operator.settle(failing, "UPDATE_FAILED")["failureReason"]
    assert "no login with ***" in reason
    operator.said.append(reason)

    secret = secrets["refused"]
    found = control.get_agent_runtime(agentRuntimeId=runtime_id)
    good = {name: found[name] for name in ("agentRuntimeArtifact", "roleArn", "networkConfiguration")}
    for variables in (
        {"AWS_ENDPOINT_URL": secret},
        {"API_KEY": secret + "\0"},
        {"API_KEY": secret * 200},
        {"API_KEY": {"nested": secret}},
        {"API_KEY": [secret]},
        {"": secret},
    ):
        for operation, more in (
            (control.create_agent_runtime, {"agentRuntimeName": "refused"}),
            (control.update_agent_runtime, {"agentRuntimeId": runtime_id}),
        ):
            status = operator.refused(operation, **good, **more, environmentVariables=variables)
            assert status == 400, (operation, type(variables))
    taken = {"agentRuntimeName": "keeper", "environmentVariables": {"API_KEY": secret}}
    assert operator.refused(control.create_agent_runtime, **good, **taken) == 409
    operator.pooled()
    return runtime_id


def _outage(operator: Operator, secrets: dict[str, str], sessions: list[str], runtime_id: str) -> None:
    control = operator.control
    arn = operator.arn(runtime_id)
    # One environment waits in the pool, and needs nothing any more; then there are none.
    operator.ask(runtime_id, sessions[2])
    for session in sessions[:3]:
        operator.ask(runtime_id, session)
    request = {"agentRuntimeArn": arn, "runtimeSessionId": sessions[3], "payload": b"{}"}
    assert operator.refused(operator.data.invoke_agent_runtime, **request) == 503
    found = {"agentRuntimeId": runtime_id}
    assert operator.refused(control.get_agent_runtime, **found) >= 500
    assert operator.say(control.list_agent_runtime_versions, **found)["agentRuntimes"]
    code = {"s3": {"bucket": "agents", "prefix": "absent"}}
    artifact = {"codeConfiguration": {"code": code, "runtime": "PYTHON_3_11", "entryPoint": ["main.py"]}}
    role = "arn:aws:iam::123456789012:role/agent"
    given = {"agentRuntimeArtifact": artifact, "roleArn": role, "networkConfiguration": {"networkMode": "PUBLIC"}}
    late = {"agentRuntimeName": "late", "environmentVariables": {"API_KEY": secrets["away"]}}
    assert operator.refused(control.create_agent_runtime, **given, **late) >= 500


def _ends(operator: Operator, runtime_id: str) -> list[Any]:
    """What was said in all."""
    for command in (("traces",), ("sessions",), ("status",)):
        done = operator.platform.run(*command, check=False)
        operator.said.append(done.stdout + done.stderr)
    operator.say(operator.control.delete_agent_runtime, agentRuntimeId=runtime_id)
    deadline = time.monotonic() + 60
    while any(one["agentRuntimeId"] == runtime_id for one in operator.control.list_agent_runtimes()["agentRuntimes"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return operator.said
