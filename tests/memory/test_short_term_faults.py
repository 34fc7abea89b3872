"""Faults of short-term memory: its store dies in mid-write, and clocks jump."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import StoreUnavailable
from agentkeep.core.identifiers import Deployment
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore

from .conftest import KEY_SERVICE, OPERATOR, Client, SetClock

KILLS = 3
WRITERS = 6


@pytest.fixture
def own_valkey(tmp_path: Path) -> Any:
    server = EmbeddedValkey(tmp_path / "valkey")
    server.start_and_wait()
    yield server
    server.stop_and_wait()


@pytest.fixture
async def mortal(own_valkey: EmbeddedValkey, search: SqliteSearchStore) -> AsyncIterator[Client]:
    """An operator of a memory plane whose Valkey dies."""
    store = ValkeyKeyValueStore(own_valkey.url)
    plane = MemoryPlane(store, Deployment(), SystemClock(), search, key_service=KEY_SERVICE)
    yield Client(SelfBackend(plane.operations), OPERATOR)
    await plane.close()
    await store.close()


class Writer:
    """Writes event after event; every third begins a branch at the one before. With `tokens` each until it is
    acknowledged, as boto3 does; else it goes on, and does not know of those in `unanswered`."""

    def __init__(self, operator: Client, memory: str, session: str, *, tokens: bool) -> None:
        self._operator = operator
        self._tokens = tokens
        self.where = {"memoryId": memory, "actorId": f"actor-of-{session}", "sessionId": session}
        self.stops = False
        self.acknowledged: dict[str, str] = {}  # event id -> what it says
        self.unanswered: set[str] = set()

    async def run(self) -> None:
        number, last = 0, ""
        while not self.stops:
            text = f"{number} " + "x" * (number % 7 * 2000)
            request: dict[str, Any] = {
                **self.where,
                "eventTimestamp": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number),
                "payload": [{"blob": text}, {"blob": {"again": text}}],
            }
            if last and number % 3 == 2:
                request["branch"] = {"name": f"branch-{number}", "rootEventId": last}
            event_id = await self._write(request, uuid.uuid4().hex if self._tokens else None)
            if event_id is not None:
                self.acknowledged[event_id] = text
                last = event_id
            else:
                self.unanswered.add(text)
            number += 1

    async def _write(self, request: dict[str, Any], token: str | None) -> str | None:
        while True:
            try:
                return str((await self._operator.create_event(token, **request))["event"]["eventId"])
            except StoreUnavailable:
                if token is None:
                    return None
                await asyncio.sleep(0.02)


async def _whole(operator: Client, where: dict[str, str]) -> tuple[dict[str, str], set[str]]:
    """What a session has: event id -> what it says; and the names of its branches."""
    found: dict[str, str] = {}
    branches: set[str] = set()
    token: dict[str, Any] = {}
    while True:
        page = await operator.list_events(**where, maxResults=100, **token)
        for event in page["events"]:
            blob, again = (part["blob"] for part in event["payload"])
            assert again == {"again": blob}
            assert event["eventId"] not in found
            found[event["eventId"]] = blob
            branches |= {event["branch"]["name"]} if "branch" in event else set()
        if "nextToken" not in page:
            return found, branches
        token = {"nextToken": page["nextToken"]}


@pytest.mark.slow
async def test_a_store_killed_in_mid_write(mortal: Client, own_valkey: EmbeddedValkey) -> None:
    """EXE-6, MEM-1. SIGKILL of Valkey under writes: every acknowledged event is there, once and whole, listed with its
    session, actor and branch; and what nobody was told of, whole or not at all."""
    memory = str((await mortal.create_memory(name="m", eventExpiryDuration=7))["memory"]["id"])
    writers = [Writer(mortal, memory, f"s{number}", tokens=number % 2 == 0) for number in range(WRITERS)]
    running = [asyncio.create_task(writer.run()) for writer in writers]
    for kill in range(KILLS):
        before = sum(len(writer.acknowledged) for writer in writers)
        async with asyncio.timeout(30):
            while sum(len(writer.acknowledged) for writer in writers) < before + 100:
                await asyncio.sleep(0.01 + 0.007 * kill)
        os.kill(own_valkey.pid, signal.SIGKILL)  # whoever keeps it starts it again
    for writer in writers:
        writer.stops = True
    async with asyncio.timeout(60):
        await asyncio.gather(*running)
    assert any(writer.unanswered for writer in writers), "nothing was under way when it died"
    for writer in writers:
        found, branches = await _whole(mortal, writer.where)
        assert writer.acknowledged.items() <= found.items()
        more = [text for event, text in found.items() if event not in writer.acknowledged]
        assert len(more) == len(set(more))
        assert set(more) <= writer.unanswered
        (session,) = (await mortal.list_sessions(memoryId=memory, actorId=writer.where["actorId"]))["sessionSummaries"]
        assert session["sessionId"] == writer.where["sessionId"]
        for name in sorted(branches)[:3]:
            asked = {"branch": {"name": name, "includeParentBranches": True}}
            lineage = await mortal.list_events(**writer.where, filter=asked, maxResults=100)
            assert len(lineage["events"]) > 1, "a branch without the events before it"
    actors = (await mortal.list_actors(memoryId=memory, maxResults=100))["actorSummaries"]
    assert {actor["actorId"] for actor in actors} == {writer.where["actorId"] for writer in writers}


async def test_a_clock_that_jumps(operator: Client, memory: str, clock: SetClock) -> None:
    """MEM-1. Back and forth by hours, between events of one millisecond and of many: ids are unlike, the order is that
    of timestamps and then of insertion, pages are whole."""
    inserted: list[tuple[float, int, str]] = []
    for number, jump in enumerate((0, 7200, -7200, -86_400, 3, 86_397, 0, -1, 1)):
        clock.moment += timedelta(seconds=jump)
        for at in (number / 1000, 5.0):
            inserted.append((at, number, await operator.event(memory, "alice", "s", f"{at} {number}", at=at)))
    assert len({event for _, _, event in inserted}) == len(inserted)
    newest_first = [f"{at} {number}" for at, number, _ in sorted(inserted, reverse=True)]
    assert await operator.texts(memory, "alice", "s") == newest_first
    assert await operator.texts(memory, "alice", "s", maxResults=1) == newest_first
    (session,) = (await operator.list_sessions(memoryId=memory, actorId="alice"))["sessionSummaries"]
    assert session["sessionId"] == "s"


async def test_two_replicas_whose_clocks_differ(
    operator: Client, memory: str, clock: SetClock, store: KeyValueStore, search: SqliteSearchStore
) -> None:
    """MEM-1. By an hour: every event is there once, wherever it is read, page by page, while both write."""
    ahead = SetClock()
    ahead.moment = clock.moment + timedelta(hours=1)
    other = MemoryPlane(store, Deployment("eu-west-1", "123456789012"), ahead, search, key_service=KEY_SERVICE)
    behind = Client(SelfBackend(other.operations), OPERATOR)
    for number in range(40):
        await (operator, behind)[number % 2].event(memory, "alice", "s", number, at=number // 8)
    for reader in (operator, behind):
        found = await reader.texts(memory, "alice", "s", maxResults=3)
        assert sorted(found) == list(range(40))
        assert [number // 8 for number in found] == sorted((number // 8 for number in range(40)), reverse=True)
    await other.close()


async def test_what_expires_expires_once_the_clock_says_so(operator: Client, memory: str, clock: SetClock) -> None:
    """MEM-4. A day back and forth takes nothing away; the seventh day does."""
    await operator.event(memory, "alice", "s", "first")
    for jump in (-1, 2, 4):
        clock.moment += timedelta(days=jump)
        assert "first" in await operator.texts(memory, "alice", "s")
        await operator.event(memory, "alice", "s", f"after {jump}", at=1)
    clock.moment += timedelta(days=2, seconds=1)  # the seventh since the first
    texts = await operator.texts(memory, "alice", "s")
    assert "first" not in texts
    assert {"after 2", "after 4"} <= set(texts)
    clock.moment -= timedelta(days=1)
    assert {"after 2", "after 4"} <= set(await operator.texts(memory, "alice", "s"))
