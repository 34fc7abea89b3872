"""EXE-6: the platform is killed at any moment; what it acknowledged is there after its restart."""

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from platform_process import PlatformProcess, running_platform


@pytest.mark.slow
def test_no_acknowledged_event_is_lost(tmp_path: Path) -> None:
    acknowledged: list[tuple[str, str]] = []
    memory = ""

    def write(data: Any, session: str, stop: threading.Event) -> None:
        number = len(acknowledged)
        while not stop.is_set():
            text = f"{session} {number}"
            number += 1
            try:
                data.create_event(
                    memoryId=memory,
                    actorId="alice",
                    sessionId=session,
                    eventTimestamp=datetime.now(UTC),
                    payload=[{"blob": text}],
                )
            except (BotoCoreError, ClientError):
                return  # killed: nobody knows of this one, and nobody was told
            acknowledged.append((session, text))

    def found(data: Any) -> list[tuple[str, str]]:
        pages = [
            data.get_paginator("list_events").paginate(memoryId=memory, actorId="alice", sessionId=f"s{n}")
            for n in range(4)
        ]
        return [
            (event["sessionId"], event["payload"][0]["blob"])
            for one in pages
            for page in one
            for event in page["events"]
        ]

    with running_platform(tmp_path) as platform:
        control = platform.client("bedrock-agentcore-control")
        memory = control.create_memory(name="m", eventExpiryDuration=7)["memory"]["id"]
        for _ in range(2):
            stop = threading.Event()
            client = platform.client("bedrock-agentcore", retries={"total_max_attempts": 1})
            writers = [threading.Thread(target=write, args=(client, f"s{n}", stop)) for n in range(4)]
            for writer in writers:
                writer.start()
            time.sleep(0.5)
            before = len(acknowledged)
            killed = psutil.Process(platform.pid)
            family = [killed, *killed.children(recursive=True)]
            killed.kill()
            stop.set()
            for writer in writers:
                writer.join()
            assert before > 20
            _, alive = psutil.wait_procs(family, timeout=10)
            assert not alive
            platform.run("up", "--detach", "--port", "0")
            platform = PlatformProcess(tmp_path)  # its port is another
            kept = found(platform.client("bedrock-agentcore"))
            assert set(acknowledged) <= set(kept)
            assert len(kept) == len(set(kept))
