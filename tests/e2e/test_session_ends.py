"""MEM-3, MEM-4 through the whole platform: what a session leaves in memory when it has ended, and what goes with it."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

AGENT = '''
from datetime import UTC, datetime

import boto3
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
memory = boto3.client("bedrock-agentcore")


@app.entrypoint
def invoke(payload, context):
    """Keeps what the user says in each of some memories, and tells how much they have of the session."""
    told = []
    for memory_id in payload["memories"]:
        where = {"memoryId": memory_id, "actorId": payload["user"], "sessionId": context.session_id}
        said = [{"conversational": {"role": "USER", "content": {"text": text}}} for text in payload["say"]]
        if said:
            memory.create_event(**where, eventTimestamp=datetime.now(UTC), payload=said)
        told.append(len(memory.list_events(**where)["events"]))
    return told


app.run()
'''
FACTS = "/facts/{actorId}/"


class Deployment:
    def __init__(self, platform: PlatformProcess, at_end: str, kept: str) -> None:
        """`at_end`: a memory that extracts at the session's end, and keeps events until then; `kept`: another."""
        self.platform = platform
        self.at_end = at_end
        self.kept = kept
        self.data = platform.client("bedrock-agentcore")

    def say(self, user: str, session: str, *texts: str) -> Any:
        payload = {"user": user, "memories": [self.at_end, self.kept], "say": texts}
        told = self.platform.json("invoke", "diarist", json.dumps(payload), "--user", user, "--session-id", session)
        return json.loads(told["answer"])

    def events(self, memory: str, user: str, session: str) -> int:
        return len(self.data.list_events(memoryId=memory, actorId=user, sessionId=session)["events"])

    def facts(self, user: str) -> list[str]:
        found = self.data.list_memory_records(memoryId=self.at_end, namespace=f"/facts/{user}/")
        return [record["content"]["text"] for record in found["memoryRecordSummaries"]]


def wait_for(condition: Callable[[], bool], what: str, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_what_a_session_leaves(tmp_path: Path) -> None:
    """Its facts, made of its events when it has ended, and nothing else where the memory says so; a session of another
    user, and another memory, keep theirs. So too where the platform is killed: then its next start ends them."""
    folder, data = tmp_path / "diarist", tmp_path / "data"
    folder.mkdir()
    (folder / "main.py").write_text(AGENT)
    (folder / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    sessions = {user: f"{user}-{uuid.uuid4()}" for user in ("alice", "bob")}
    with running_platform(data) as platform:
        control = platform.client("bedrock-agentcore-control")
        strategy = {"semanticMemoryStrategy": {"name": "facts", "namespaceTemplates": [FACTS]}}
        at_end, kept = (
            control.create_memory(name=name, eventExpiryDuration=7, memoryStrategies=strategies, tags=tags)["memory"][
                "id"
            ]
            for name, strategies, tags in (
                (
                    "diary",
                    [strategy],
                    {"agentkeep:extraction": "at-session-end", "agentkeep:events": "until-session-end"},
                ),
                ("chronicle", [], {}),
            )
        )
        platform.run("deploy", str(folder), "--name", "diarist")
        diary = Deployment(platform, at_end, kept)
        diary.say("alice", sessions["alice"], "I live in Vienna.", "I prefer deliveries in the evening.")
        assert diary.say("alice", sessions["alice"], "My dog is called Bruno.") == [2, 2]
        assert diary.say("bob", sessions["bob"], "I live in Graz.") == [1, 1]
        assert diary.facts("alice") == []
        platform.run("stop", sessions["alice"])
        wait_for(lambda: diary.events(at_end, "alice", sessions["alice"]) == 0, "the events of the session stay")
        facts = diary.facts("alice")
        assert any("Vienna" in fact for fact in facts), facts
        assert any("Bruno" in fact for fact in facts), facts
        assert diary.data.list_sessions(memoryId=at_end, actorId="alice")["sessionSummaries"] == []
        assert diary.events(kept, "alice", sessions["alice"]) == 2
        assert diary.events(at_end, "bob", sessions["bob"]) == 1
        assert diary.facts("bob") == []
        # It begins again under its id: its memory is what it is now, and stays while it lives.
        assert diary.say("alice", sessions["alice"], "I moved to Linz.") == [1, 3]
        os.kill(platform.pid, signal.SIGKILL)
    with running_platform(data) as platform:
        diary = Deployment(platform, at_end, kept)
        for user, fact in (("alice", "Linz"), ("bob", "Graz")):
            wait_for(lambda user=user: diary.events(at_end, user, sessions[user]) == 0, f"events of {user} stay")  # type: ignore[misc]
            assert any(fact in one for one in diary.facts(user)), user
