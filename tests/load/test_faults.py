"""Agents that do what agents should not, and a store that is killed: others are served meanwhile, nothing is left."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(240)]

AGENT = Path(__file__).parents[1] / "agents" / "faulty"
SETTINGS = {
    "AGENTKEEP_RUNTIME_SESSION_MEMORY": str(160 << 20),
    "AGENTKEEP_RUNTIME_SESSION_DISK": str(24 << 20),
    "AGENTKEEP_RUNTIME_SESSION_PROCESSES": "40",
    "AGENTKEEP_RUNTIME_STOP_GRACE": "1",
}


class Place:
    def __init__(self, platform: PlatformProcess) -> None:
        self.platform = platform
        self.arn = platform.json("deploy", str(AGENT), "--name", "faulty", "--iam")["agentRuntimeArn"]
        self.data = platform.client("bedrock-agentcore", retries={"total_max_attempts": 1}, read_timeout=120)

    def invoke(self, session: str, **payload: Any) -> dict[str, Any]:
        answer = self.data.invoke_agent_runtime(
            agentRuntimeArn=self.arn,
            runtimeSessionId=session,
            runtimeUserId="ann",
            payload=json.dumps(payload).encode(),
        )
        found: dict[str, Any] = json.loads(answer["response"].read())
        return found

    def stop(self, session: str) -> None:
        self.data.stop_runtime_session(agentRuntimeArn=self.arn, runtimeSessionId=session)

    def below(self) -> int:
        """Processes of the platform, its sessions' included."""
        return len(psutil.Process(self.platform.pid).children(recursive=True))


def _until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running_platform(tmp_path_factory.mktemp("faults"), **SETTINGS) as platform:
        yield Place(platform)


@pytest.fixture
def bystander(place: Place) -> Iterator[Callable[[], None]]:
    """Another session. Called: it is served still, by the environment it had, which has its own disk."""
    session = str(uuid.uuid4())
    instance = place.invoke(session)["instance"]

    def served() -> None:
        assert place.invoke(session, do="write")["instance"] == instance

    yield served
    served()
    place.stop(session)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"do": "fork_without_end"}, {"error": errno.EAGAIN}),
        ({"do": "fill_disk"}, {"error": errno.ENOSPC}),
        ({"do": "burn", "seconds": 2}, {}),
        ({"do": "print_without_end", "seconds": 2}, {}),
        ({"do": "daemon"}, {}),
        ({"do": "deaf"}, {}),
    ],
)
def test_a_session_reaches_its_limits_and_goes_without_a_trace(
    place: Place, bystander: Callable[[], None], payload: dict[str, Any], expected: dict[str, Any]
) -> None:
    """EXE-3, EXE-6: it forks, fills its disk, burns its processors, floods its log, detaches, hears no SIGTERM."""
    before = place.below()
    session = str(uuid.uuid4())
    place.invoke(session)
    answers: list[dict[str, Any]] = []
    worker = threading.Thread(target=lambda: answers.append(place.invoke(session, **payload)))
    worker.start()
    bystander()
    worker.join(120)
    assert answers, "it was not answered"
    assert expected.items() <= answers[0].items()
    bystander()
    place.stop(session)
    _until(lambda: place.below() <= before, "processes of the session are left")


@pytest.mark.parametrize("do", ["fill_memory", "crash in the answer"])
def test_a_session_that_dies_in_a_turn_is_begun_anew(place: Place, bystander: Callable[[], None], do: str) -> None:
    """EXE-6: the turn fails, never as an answer that looks whole; the next call has a new environment."""
    session = str(uuid.uuid4())
    instance = place.invoke(session)["instance"]
    with pytest.raises((ClientError, BotoCoreError)):
        place.invoke(session, do=do)
    bystander()

    def anew() -> str | None:
        try:
            return str(place.invoke(session)["instance"])
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 424):
                raise
            return None  # the old one is ending

    assert _until(anew, "the session does not begin anew") != instance
    place.stop(session)


def test_the_store_is_killed_under_load(place: Place) -> None:
    """EXE-6, MEM-1: SIGKILL of Valkey, twice, while events are written and sessions run and begin. Sessions that run
    go on; what was acknowledged is there; what needs the store works again without anybody's help."""
    control = place.platform.client("bedrock-agentcore-control")
    memory = control.create_memory(name=f"faults_{uuid.uuid4().hex[:8]}", eventExpiryDuration=30)["memory"]["id"]
    ending = threading.Event()
    acknowledged: list[str] = []
    refused: list[int] = []
    begun: list[str] = []

    def write() -> None:
        number = 0
        while not ending.is_set():
            number += 1
            try:
                answer = place.platform.client("bedrock-agentcore", retries={"total_max_attempts": 1}).create_event(
                    memoryId=memory, actorId="ann", sessionId="faults", eventTimestamp=datetime.now(UTC),
                    payload=[{"blob": f"{number}"}],
                )  # fmt: skip
                acknowledged.append(answer["event"]["eventId"])
            except ClientError as error:
                refused.append(error.response["ResponseMetadata"]["HTTPStatusCode"])
                time.sleep(0.02)

    def begin() -> None:
        while not ending.is_set():
            session = str(uuid.uuid4())
            try:
                place.invoke(session)
            except ClientError as error:
                refused.append(error.response["ResponseMetadata"]["HTTPStatusCode"])
                time.sleep(0.02)
                continue
            begun.append(session)
            place.stop(session)

    session = str(uuid.uuid4())
    instance = place.invoke(session)["instance"]
    workers = [threading.Thread(target=write), threading.Thread(target=begin)]
    for worker in workers:
        worker.start()

    def valkey() -> psutil.Process | None:
        found = [one for one in psutil.Process(place.platform.pid).children() if "valkey" in one.name()]
        return found[0] if found else None

    try:
        for _ in range(2):
            events, sessions = len(acknowledged), len(begun)
            _until(lambda: len(acknowledged) > events + 20 and len(begun) > sessions, "it is not under load")  # noqa: B023
            killed = _until(valkey, "no Valkey").pid
            os.kill(killed, signal.SIGKILL)
            for _ in range(5):  # a session that runs needs no store
                assert place.invoke(session)["instance"] == instance
            _until(lambda: (one := valkey()) and one.pid != killed, "Valkey is not back")  # noqa: B023
            events, sessions = len(acknowledged), len(begun)
            _until(lambda: len(acknowledged) > events + 20 and len(begun) > sessions, "it does not work again")  # noqa: B023
    finally:
        ending.set()
        for worker in workers:
            worker.join(120)
    assert set(refused) <= {409, 424, 500, 503}, set(refused)
    pages = place.data.get_paginator("list_events").paginate(memoryId=memory, actorId="ann", sessionId="faults")
    assert set(acknowledged) <= {event["eventId"] for page in pages for event in page["events"]}
    place.stop(session)
    _until(lambda: place.platform.json("sessions") == [], "half a session is left")
