"""The compose deployment stopped, and started again with several replicas of each plane: nothing is lost, and it grows
without further ado."""

from __future__ import annotations

import time
import uuid

import pytest
from compose_application import AGENT, Application
from compose_stack import PLANES, REPLICAS, ComposeStack
from docker_engine import SDK

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(2400), pytest.mark.xdist_group("docker")]


def test_down_and_up_lose_nothing(application: Application, compose: ComposeStack) -> None:
    """EXE-6. Resources, events, keys, users' passwords: all are in volumes. Sessions end, and leave no container."""
    agent = application.deploy(compose.engine.image("compose", {"main.py": AGENT}, packages=SDK))
    memory = application.control.create_memory(name=f"kept_{uuid.uuid4().hex[:8]}", eventExpiryDuration=30)
    asked = {"memoryId": memory["memory"]["id"], "actorId": "alice", "sessionId": "kept"}
    application.data.create_event(**asked, eventTimestamp=time.time(), payload=[{"blob": {"kept": True}}])
    application.invoke(agent, str(uuid.uuid4()))
    assert compose.token("alice")
    compose.down()
    assert compose.engine.docker("ps", "--all", "--quiet") == ""
    if REPLICAS not in compose.files:
        compose.files = (*compose.files, REPLICAS)
    print(f"up again in {compose.up():.0f} s")
    assert [len(compose.replicas(plane)) for plane in PLANES] == [3, 2, 2, 2, 2]
    assert compose.operator() == application.operator
    assert len(application.data.list_events(**asked)["events"]) == 1
    assert compose.token("alice")
    session = str(uuid.uuid4())
    assert application.invoke(agent, session, memory=asked)["events"] == 1
    application.stop(agent, session)
