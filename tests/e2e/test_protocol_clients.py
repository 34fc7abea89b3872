"""Clients of A2A and AG-UI, unmodified, through the running platform."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from botocore.exceptions import ClientError
from platform_process import PlatformProcess, clean_environment, running_platform
from uv import find_uv_bin
from websockets.asyncio.client import connect

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

AGENTS = Path(__file__).parents[1] / "agents"
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
#: No package of this project's environment: installed once for a machine.
A2A = "a2a-sdk[http-server]==1.3.0"
A2A_FOLDER = Path("/var/tmp/agentkeep-tests-a2a-1.3.0")

#: As its README does it: the agent is known by its URL, all else by its card.
A2A_CLIENT = """
import asyncio, json, sys
import httpx
from a2a.client import ClientConfig, create_client
from a2a.helpers import get_artifact_text, new_text_message
from a2a.types import GetTaskRequest, Role, SendMessageRequest

async def main(url, session, token):
    headers = {"Authorization": f"Bearer {token}", "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": session}
    said = {}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        for streaming in (True, False):
            config = ClientConfig(streaming=streaming, httpx_client=http)
            client = await create_client(url, client_config=config)
            answers, task = [], None
            message = SendMessageRequest(message=new_text_message("two words", role=Role.ROLE_USER))
            async for event in client.send_message(message):
                kind = event.WhichOneof("payload")
                if kind == "artifact_update":
                    answers.append(get_artifact_text(event.artifact_update.artifact))
                    task = event.artifact_update.task_id
                elif kind == "task":
                    task = event.task.id
                    answers += [get_artifact_text(found) for found in event.task.artifacts]
            kept = await client.get_task(GetTaskRequest(id=task))
            said["stream" if streaming else "whole"] = answers
            said["kept"] = [get_artifact_text(found) for found in kept.artifacts]
        said["card"] = client._card.name
        said["url"] = client._card.supported_interfaces[0].url
    print(json.dumps(said))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    with running_platform(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


def a2a_client() -> None:
    A2A_FOLDER.mkdir(exist_ok=True)
    with (A2A_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (A2A_FOLDER / "installed").exists():
            command = ["pip", "install", "-q", "--python", sys.executable, "--target", str(A2A_FOLDER), A2A]
            subprocess.run([find_uv_bin(), *command], check=True, capture_output=True, timeout=200)
            (A2A_FOLDER / "installed").touch()


def deployed(platform: PlatformProcess, name: str, protocol: str, *options: str) -> tuple[str, str]:
    """ARN and address."""
    arn = platform.json("deploy", str(AGENTS / protocol), "--name", name, "--protocol", protocol, *options)
    arn = arn["agentRuntimeArn"]
    return arn, f"{platform.endpoint}/runtimes/{quote(arn, safe='')}/invocations"


def token(platform: PlatformProcess, user: str) -> str:
    return str(platform.json("login", "--user", user)["access_token"])


def test_the_official_a2a_client_talks_to_an_agent(platform: PlatformProcess) -> None:
    """EXE-1: card, a message whole and as a stream, the task again; its agent is served by the SDK's `serve_a2a`."""
    a2a_client()
    _, url = deployed(platform, "helper", "a2a")
    session = str(uuid.uuid4())
    done = subprocess.run(
        [sys.executable, "-c", A2A_CLIENT, url, session, token(platform, "alice")],
        env=clean_environment() | {"PYTHONPATH": str(A2A_FOLDER)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    expected = ["two", "words", f"{session} token"]
    assert said == {"stream": expected, "whole": expected, "kept": expected, "card": "agent", "url": f"{url}/"}


def test_boto3_reads_the_card_and_the_agents_errors(platform: PlatformProcess) -> None:
    """EXE-1"""
    arn, url = deployed(platform, "signed", "a2a", "--iam")
    client = platform.client("bedrock-agentcore", retries={"total_max_attempts": 1})
    session = str(uuid.uuid4())
    found = client.get_agent_card(agentRuntimeArn=arn, runtimeSessionId=session)
    assert found["statusCode"] == 200 and found["runtimeSessionId"] == session
    assert found["agentCard"]["supportedInterfaces"][0]["url"] == f"{url}/"
    call = {"jsonrpc": "2.0", "id": "1", "method": "GetTask", "params": {"id": "none"}}
    answer = client.invoke_agent_runtime(agentRuntimeArn=arn, runtimeSessionId=session, payload=json.dumps(call))
    assert json.loads(answer["response"].read())["error"], "an A2A error is the agent's answer"
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client.get_agent_card(agentRuntimeArn=arn, qualifier="nowhere")


async def test_an_ag_ui_client(platform: PlatformProcess) -> None:
    """EXE-1: events as server-sent events and over the WebSocket; the platform's errors as events."""
    _, url = deployed(platform, "screen", "agui")
    headers = {"Authorization": f"Bearer {token(platform, 'alice')}", SESSION: str(uuid.uuid4())}
    run: dict[str, Any] = {"threadId": "t", "runId": "r", "state": {}, "tools": [], "context": [],
                           "messages": [{"id": "1", "role": "user", "content": "hello there"}]}  # fmt: skip
    expected = ["RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_CONTENT",
                "TEXT_MESSAGE_END", "RUN_FINISHED"]  # fmt: skip
    async with httpx.AsyncClient(headers=headers | {"accept": "text/event-stream"}, timeout=60) as http:
        async with http.stream("POST", url, json=run) as answer:
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
            events = [json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: ")]
        assert [event["type"] for event in events] == expected
        broken = await http.post(url, content=b"no JSON")
        assert broken.status_code == 200 and broken.headers["content-type"] == "text/event-stream"
        event = json.loads(broken.text.removeprefix("data: "))
        assert (event["type"], event["code"]) == ("RUN_ERROR", "AGENT_ERROR")
        refused = await http.post(url, json=run, headers={"Authorization": "Bearer nonsense"})
        assert refused.status_code == 401 and json.loads(refused.text[6:])["code"] == "UNAUTHORIZED"
    where = url.replace("http://", "ws://").removesuffix("invocations") + "ws"
    async with connect(where, additional_headers=headers, proxy=None) as socket:
        await socket.send(json.dumps(run))
        assert [json.loads(event)["type"] async for event in socket] == expected
