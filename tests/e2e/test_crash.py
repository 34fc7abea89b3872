"""The platform killed at any moment: nothing acknowledged is lost, nothing of it is left running."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

KILLS = 3


class Writer(threading.Thread):
    """Creates events as fast as it can; keeps the ids of those that were acknowledged."""

    def __init__(self, platform: PlatformProcess, memory: str, actor: str) -> None:
        super().__init__(daemon=True)
        self.client = platform.client("bedrock-agentcore", retries={"total_max_attempts": 1}, connect_timeout=2)
        self.memory, self.actor = memory, actor
        self.acknowledged: list[str] = []

    def run(self) -> None:
        number = 0
        while True:
            try:
                answer = self.client.create_event(
                    memoryId=self.memory,
                    actorId=self.actor,
                    sessionId="crash",
                    eventTimestamp=datetime.now(UTC),
                    payload=[{"blob": f"event {number}"}],
                )
            except (BotoCoreError, ClientError, OSError):
                return
            self.acknowledged.append(answer["event"]["eventId"])
            number += 1


def events(platform: PlatformProcess, memory: str, actor: str) -> set[str]:
    pages = platform.client("bedrock-agentcore").get_paginator("list_events").paginate(
        memoryId=memory, actorId=actor, sessionId="crash"
    )  # fmt: skip
    return {event["eventId"] for page in pages for event in page["events"]}


def test_kill_at_any_moment_loses_no_acknowledged_event(tmp_path: Path) -> None:
    """EXE-6, MEM-1: SIGKILL of the platform under writes and with sessions alive, several times over."""
    agent = tmp_path / "agent"
    agent.mkdir()
    (agent / "agent.py").write_text((Path(__file__).parents[1] / "agents" / "echo" / "agent.py").read_text())
    (agent / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    data_dir = tmp_path / "data"
    acknowledged: dict[str, set[str]] = {}
    memory = ""
    for kill in range(KILLS):
        with running_platform(data_dir) as platform:
            if not memory:
                control = platform.client("bedrock-agentcore-control")
                memory = control.create_memory(name="crash", eventExpiryDuration=30)["memory"]["id"]
                platform.json("deploy", str(agent), "--name", "echo", "--iam")
            for actor, known in acknowledged.items():
                assert known <= events(platform, memory, actor), f"lost events of {actor}"
            session = str(uuid.uuid4())
            assert platform.json("invoke", "echo", "hello", "--session-id", session)["session_id"] == session
            assert [s["sessionId"] for s in platform.json("sessions")] == [session], "a half-owned session is left"
            family = psutil.Process(platform.pid).children(recursive=True)
            assert len(family) >= 3, "Valkey, a fork server, a session"
            writers = [Writer(platform, memory, f"actor-{kill}-{n}") for n in range(4)]
            for writer in writers:
                writer.start()
            time.sleep(0.5 + 0.37 * kill)
            os.kill(platform.pid, signal.SIGKILL)
            _, alive = psutil.wait_procs(family, timeout=5)
            assert not alive, f"left running: {alive}"
            for writer in writers:
                writer.join(30)
                acknowledged[writer.actor] = set(writer.acknowledged)
    assert sum(map(len, acknowledged.values())) > 100
    with running_platform(data_dir) as platform:
        for actor, known in acknowledged.items():
            assert known <= events(platform, memory, actor), f"lost events of {actor}"
    print(f"{KILLS} kills, {sum(map(len, acknowledged.values()))} acknowledged events, none lost")


def test_a_clean_stop_leaves_nothing(tmp_path: Path) -> None:
    with running_platform(tmp_path) as platform:
        main = psutil.Process(platform.pid)
        family = [main, *main.children(recursive=True)]
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
