"""From a client's first call of a session to the first byte of its answer, through the whole platform.

Unmodified boto3 against a platform started by the command; the agent is the SDK's app. CPU is that of the platform and
all its children (fork server, sessions, Valkey) together.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import psutil
from _history import keep
from botocore.config import Config

AGENT = """
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()

@app.entrypoint
def invoke(payload):
    return payload

app.run()
"""
SESSIONS = 20


class Platform:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "agentkeep.cli", *arguments, "--data-dir", str(self.folder / "data"), "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def client(self) -> Any:
        variables = self.run("env")
        return boto3.client(
            "bedrock-agentcore",
            endpoint_url=variables["AWS_ENDPOINT_URL_BEDROCK_AGENTCORE"],
            region_name=variables["AWS_REGION"],
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            config=Config(max_pool_connections=SESSIONS),
        )


@contextmanager
def running() -> Iterator[tuple[Platform, int]]:
    with tempfile.TemporaryDirectory() as folder:
        platform = Platform(Path(folder))
        pid = platform.run("up", "--detach", "--port", "0")["pid"]
        try:
            yield platform, pid
        finally:
            platform.run("down")


def cpu(pid: int) -> float:
    """Seconds used so far by the platform and everything below it that lives."""
    root = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:2]) for process in (root, *root.children(recursive=True)))


def first_byte(client: Any, arn: str, session: str) -> float:
    """Milliseconds until the answer's first byte is here."""
    began = time.perf_counter()
    answer = client.invoke_agent_runtime(agentRuntimeArn=arn, runtimeSessionId=session, payload=b"{}")
    answer["response"].read(1)
    return (time.perf_counter() - began) * 1e3


def measured(pid: int, work: Callable[[], list[float]]) -> dict[str, float]:
    used = cpu(pid)
    times = sorted(work())
    return {
        "p50_ms": round(statistics.median(times), 1),
        "p95_ms": round(times[int(len(times) * 0.95) - 1], 1),
        "max_ms": round(times[-1], 1),
        "cpu_ms_each": round((cpu(pid) - used) * 1e3 / len(times), 1),
    }


def main() -> None:
    with running() as (platform, pid):
        agent = platform.folder / "agent"
        agent.mkdir()
        (agent / "main.py").write_text(AGENT)
        (agent / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
        arn = platform.run("deploy", str(agent), "--name", "first_call", "--iam")["agentRuntimeArn"]
        client = platform.client()
        first_byte(client, arn, str(uuid.uuid4()))  # the fork server's own start is not a session's
        sessions = [str(uuid.uuid4()) for _ in range(SESSIONS)]

        def at_once() -> list[float]:
            with ThreadPoolExecutor(SESSIONS) as pool:
                return list(pool.map(lambda _: first_byte(client, arn, str(uuid.uuid4())), range(SESSIONS)))

        figures: dict[str, Any] = {
            "new session": measured(pid, lambda: [first_byte(client, arn, session) for session in sessions]),
            "the same session again": measured(pid, lambda: [first_byte(client, arn, session) for session in sessions]),
            f"new sessions, {SESSIONS} at once": measured(pid, at_once),
        }
    figures["new / again, p50"] = round(
        figures["new session"]["p50_ms"] / figures["the same session again"]["p50_ms"], 1
    )
    for name, values in figures.items():
        print(f"{name:28} {values}")
    keep("first_call", figures)


if __name__ == "__main__":
    main()
