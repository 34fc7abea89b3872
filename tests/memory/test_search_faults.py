"""The stores of long-term memory fail: short-term memory goes on, what is refused is refused in time and can be tried
again, nothing that was acknowledged is lost, and nothing is served by halves."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
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
from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.storage.search import SearchStore
from agentkeep.storage.search_opensearch import OpenSearchSearchStore
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore

from .conftest import KEY_SERVICE, OPERATOR, Client, SetClock, session_of
from .test_records import put, record, texts

REFUSAL = b'{"error":{"type":"rejected_execution_exception","reason":"queue is full"},"status":429}'


@asynccontextmanager
async def opensearch_that(state: str) -> AsyncIterator[str]:
    """The URL of a server that is `away`, `silent`, or `overloaded`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while state == "overloaded" and (head := await reader.readuntil(b"\r\n\r\n")):
                lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)
                writer.write(
                    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL)
                )
            await reader.read()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if state == "away":
        server.close()
        await server.wait_closed()
    yield f"http://127.0.0.1:{port}"
    server.close()


def plane_on(store: KeyValueStore, search: SearchStore, clock: Any) -> MemoryPlane:
    return MemoryPlane(store, Deployment("eu-west-1", "123456789012"), clock, search, key_service=KEY_SERVICE)


@pytest.mark.parametrize(
    ("state", "reason"),
    [("away", "not to be reached"), ("silent", "time limit"), ("overloaded", "more to do than it can: try again")],
)
async def test_opensearch_fails(store: KeyValueStore, clock: SetClock, state: str, reason: str) -> None:
    """MEM-1: events are written and read as ever; calls on records end soon, and say why."""
    async with opensearch_that(state) as url:
        search = OpenSearchSearchStore(OpenSearchClient(url, time_limit=0.5), dimensions=None, clock=clock)
        plane = plane_on(store, search, clock)
        operator = Client(SelfBackend(plane.operations), OPERATOR)
        memory = (await operator.create_memory(name="notes", eventExpiryDuration=7))["memory"]["id"]
        event = await operator.event(memory, "alice", "s", "hello")
        records = [record("tea", "/facts/alice/")]
        where = {"memoryId": memory, "namespace": "/facts/alice/"}
        began = time.monotonic()
        for call in (
            operator.batch_create_memory_records(memoryId=memory, records=records, token="t"),
            operator.list_memory_records(**where),
            operator.retrieve_memory_records(**where, searchCriteria={"searchQuery": "tea"}),
            operator.get_memory_record(memoryId=memory, memoryRecordId="mem-" + "0" * 36),
            operator.delete_memory_record(memoryId=memory, memoryRecordId="mem-" + "0" * 36),
        ):
            with pytest.raises(StoreUnavailable, match=reason):
                await call
        assert time.monotonic() - began < 60
        assert await operator.texts(memory, "alice", "s") == ["hello"]
        await operator.delete_event(memoryId=memory, actorId="alice", sessionId="s", eventId=event)
        await operator.delete_memory(memoryId=memory)
        assert (await operator.get_memory(memoryId=memory))["memory"]["status"] == "DELETING"
        await plane.close()
        await search.close()


async def test_a_store_that_comes_back(
    store: KeyValueStore, clock: SetClock, search: SqliteSearchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXE-6: a batch that was refused is made once when it is repeated; a memory's deletion is finished."""
    plane = plane_on(store, search, clock)
    operator = Client(SelfBackend(plane.operations), OPERATOR)
    memory = (await operator.create_memory(name="notes", eventExpiryDuration=7))["memory"]["id"]
    batch = {"memoryId": memory, "records": [record("tea", "/facts/alice/")], "token": "t"}

    async def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as outage:
        for call in ("upsert", "get", "newest", "search", "delete", "delete_partition"):
            outage.setattr(search, call, away)
        with pytest.raises(StoreUnavailable):
            await operator.batch_create_memory_records(**batch)
    first = await operator.batch_create_memory_records(**batch)
    assert await operator.batch_create_memory_records(**batch) == first
    assert await texts(operator, memory, namespacePath="/") == ["tea"]
    with monkeypatch.context() as outage:
        outage.setattr(search, "delete_partition", away)
        outage.setattr(search, "delete", away)
        await operator.delete_memory(memoryId=memory)
        await asyncio.sleep(0)
    await operator.delete_memory(memoryId=memory)
    await plane.deletions.finish()
    assert (await operator.list_memories())["memories"] == []
    await plane.close()


async def test_valkey_restarts_among_batches_of_records(tmp_path: Path) -> None:
    """EXE-6: killed again and again while records are written with tokens: what was acknowledged is there, once, and
    of no batch is only a part served, at any time."""
    async with EmbeddedValkey(tmp_path / "valkey") as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        search = SqliteSearchStore(tmp_path / "records.db", dimensions=None)
        plane = plane_on(store, search, SystemClock())
        backend = SelfBackend(plane.operations)
        memory = (await Client(backend, OPERATOR).create_memory(name="notes", eventExpiryDuration=7))["memory"]["id"]
        running = True
        acknowledged: dict[str, set[str]] = {f"u{writer}": set() for writer in range(4)}

        async def write(user: str) -> None:
            client, number = Client(backend, session_of(user)), 0
            while running:
                name = f"{user}x{number}"
                batch = [record(f"{name} {part}", f"/facts/{user}/", timestamp=datetime.now(UTC)) for part in "abc"]
                try:
                    answer = await client.batch_create_memory_records(memoryId=memory, records=batch, token=name)
                except StoreUnavailable:
                    continue  # the same again, as clients do
                assert len(answer["successfulRecords"]) == 3
                acknowledged[user].add(name)
                number += 1

        async def whole(user: str) -> set[str]:
            """Batches that are served, of which there is nothing but three records each."""
            found = await texts(Client(backend, session_of(user)), memory, namespace=f"/facts/{user}/", maxResults=100)
            parts = sorted(found)
            names = {text.split()[0] for text in parts}
            # A page has the newest hundred: the oldest of its batches may go on behind it.
            assert len(parts) == 100 or parts == sorted(f"{name} {part}" for name in names for part in "abc")
            return names

        writers = [asyncio.create_task(write(user)) for user in acknowledged]
        deadline = time.monotonic() + 120
        for _ in range(2):
            await asyncio.sleep(0.1)
            killed, before = valkey.pid, {user: len(names) for user, names in acknowledged.items()}
            os.kill(killed, signal.SIGKILL)
            while valkey.pid == killed or any(len(acknowledged[user]) < before[user] + 2 for user in acknowledged):
                assert time.monotonic() < deadline
                assert not any(writer.done() for writer in writers)
                await asyncio.sleep(0.02)
                try:
                    await whole("u0")
                except StoreUnavailable:
                    continue
        running = False
        await asyncio.gather(*writers)
        for user, names in acknowledged.items():
            client = Client(backend, session_of(user))
            found: list[str] = []
            more: dict[str, Any] = {}
            while True:
                page = await client.list_memory_records(memoryId=memory, namespace=f"/facts/{user}/", **more)
                found += [one["content"]["text"] for one in page["memoryRecordSummaries"]]
                if "nextToken" not in page:
                    break
                more = {"nextToken": page["nextToken"]}
            assert sorted(found) == sorted(f"{name} {part}" for name in names for part in "abc")
        await plane.close()
        await search.close()
        await store.close()


async def test_the_records_file_is_damaged(store: KeyValueStore, clock: SetClock, tmp_path: Path) -> None:
    """Never silently empty: a read of a damaged file fails, and events go on."""
    path = tmp_path / "damaged.db"
    search = SqliteSearchStore(path, dimensions=None, clock=clock)
    plane = plane_on(store, search, clock)
    operator = Client(SelfBackend(plane.operations), OPERATOR)
    memory = (await operator.create_memory(name="notes", eventExpiryDuration=7))["memory"]["id"]
    await put(operator, memory, record("tea", "/facts/a/"))
    await search.close()
    path.write_bytes(b"\x00" * 4096 + path.read_bytes()[4096:])
    search = SqliteSearchStore(path, dimensions=None, clock=clock)
    plane = plane_on(store, search, clock)
    operator = Client(SelfBackend(plane.operations), OPERATOR)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await texts(operator, memory, namespacePath="/")
    await operator.event(memory, "a", "s", "hello")
    assert await operator.texts(memory, "a", "s") == ["hello"]
    await plane.close()
    await search.close()
