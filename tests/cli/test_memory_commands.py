"""MEM-4: what operators do about memory as a whole: erase a user, compact, see what a record is made of."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from platform_process import PlatformProcess
from typer.testing import CliRunner

from agentkeep.cli.main import app
from agentkeep.cli.output import CommandError


@pytest.fixture
def memory(platform: PlatformProcess) -> str:
    name = "m" + uuid.uuid4().hex
    created = platform.client("bedrock-agentcore-control").create_memory(name=name, eventExpiryDuration=7)
    return str(created["memory"]["id"])


def run(platform: PlatformProcess, *arguments: str) -> str:
    """What the command prints; here, for a process of its own costs a second. Raises what it raises."""
    done = CliRunner().invoke(app, [*arguments, "--data-dir", str(platform.data_dir)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def ask(platform: PlatformProcess, *arguments: str) -> Any:
    return json.loads(run(platform, *arguments, "--json"))


def fill(platform: PlatformProcess, memory: str, *actors: str) -> None:
    data = platform.client("bedrock-agentcore")
    now = datetime.now(UTC)
    for actor in actors:
        said = {"conversational": {"role": "USER", "content": {"text": "a secret"}}}
        data.create_event(memoryId=memory, actorId=actor, sessionId="s", eventTimestamp=now, payload=[said])
        records = [
            {
                "requestIdentifier": str(number),
                "namespaces": [f"/facts/{actor}/"],
                "content": {"text": "Has a dog"},
                "timestamp": now,
            }
            for number in range(2)
        ]
        data.batch_create_memory_records(memoryId=memory, records=records)


def records(platform: PlatformProcess, memory: str, actor: str) -> list[dict[str, Any]]:
    data = platform.client("bedrock-agentcore")
    found = data.list_memory_records(memoryId=memory, namespace=f"/facts/{actor}/")["memoryRecordSummaries"]
    return list(found)


def test_erase(platform: PlatformProcess, memory: str) -> None:
    user, other = f"u{uuid.uuid4().hex}", f"o{uuid.uuid4().hex}"
    fill(platform, memory, user, f"{user}/more", other)
    with pytest.raises(SystemExit):  # nobody is there to say yes
        run(platform, "memory", "erase", user, "--memory", memory)
    assert len(records(platform, memory, user)) == 2
    report = ask(platform, "memory", "erase", user, "--yes")
    assert report["status"] == "ENDED"
    assert report["removed"][memory] == {"events": 1, "sessions": 1, "records": 2}
    assert (report["foundAfter"], report["inFiles"], report["beneath"]) == ({}, False, {memory: 2})
    assert records(platform, memory, user) == []
    assert len(records(platform, memory, f"{user}/more")) == len(records(platform, memory, other)) == 2
    again = ask(platform, "memory", "report", report["id"])
    assert {**again, "livingSessions": []} == report
    shown = run(platform, "memory", "report", report["id"])
    assert "1 events, 1 sessions, 2 records" in shown
    assert "A search afterwards found nothing" in shown
    assert "AGENTKEEP_OBSERVABILITY_SPAN_DAYS" in shown
    assert report["id"] in [one["id"] for one in ask(platform, "memory", "reports")["reports"]]
    kinds = [one["kind"] for one in ask(platform, "audit", "--user", user)["records"]]
    assert {"actor-erasure-requested", "actor-erased"} <= set(kinds)
    with pytest.raises(CommandError, match="no memory"):
        run(platform, "memory", "erase", user, "--memory", "nothing", "--yes")


def test_compact_and_see_what_a_record_is_made_of(platform: PlatformProcess, memory: str) -> None:
    fill(platform, memory, "alice", "bob")
    before = [one["memoryRecordId"] for one in records(platform, memory, "alice")]
    dry = ask(platform, "memory", "compact", memory, "--older-than", "0d", "--actor", "alice", "--dry-run")
    assert (dry["seen"], dry["merged"], dry["written"], dry["complete"]) == (2, 1, 0, True)
    assert len(records(platform, memory, "alice")) == 2
    said = run(platform, "memory", "compact", memory.rpartition("-")[0], "--older-than", "0", "--actor", "alice")
    assert "1 of them are gone, for which 1 stand now" in said
    (left,) = records(platform, memory, "alice")
    assert len(records(platform, memory, "bob")) == 2
    made = ask(platform, "memory", "record", memory, left["memoryRecordId"])
    (gone,) = set(before) - {left["memoryRecordId"]}
    assert made["sources"] == [{"sessionId": None, "eventId": None, "memoryRecordId": gone}]
    assert (made["actorId"], made["text"]) == ("alice", "Has a dog")
    assert f"from record {gone}" in run(platform, "memory", "record", memory, left["memoryRecordId"])
    on_record = ask(platform, "audit", "--user", "alice", "--kind", "acted-for-user")["records"]
    assert any(memory in json.dumps(one) for one in on_record)
    with pytest.raises(CommandError, match="not found"):
        run(platform, "memory", "record", memory, "mem-" + "x" * 36)
    assert ask(platform, "memory", "jobs", memory) == {"jobs": []}


def test_what_cannot_be_asked_for(platform: PlatformProcess, memory: str) -> None:
    for arguments, why in (
        (("compact", memory, "--older-than", "soon"), "no number of days"),
        (("compact", memory, "--namespace", "/facts/*/"), "wildcards"),
        (("report", "erasure-1"), "Report not found"),
        (("report", "compaction-1"), "Report not found"),
    ):
        with pytest.raises(CommandError, match=why):
            run(platform, "memory", *arguments)
