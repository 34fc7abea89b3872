"""MEM-6: what users said is in no file in a form that can be read, and is gone with its memory's key."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from extraction_stand import settled
from kms_stand_in import KmsStandIn, key_arn, running_kms

from agentkeep.backend.own import SelfBackend
from agentkeep.core.errors import (
    KeyRefused,
    KeyServiceUnavailable,
    ResourceNotFoundException,
    SealBroken,
    ValidationException,
)
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service import KeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import Delete, KeyValueStore, Put, partition
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore

from .conftest import OPERATOR, Client, SetClock, session_of

SECRET = b"the secret of this deployment..."
#: Words that nothing else says. Each place has its own.
PLACES = (
    *("payload", "document", "blob", "metadata", "branch", "record", "topic", "guests", "updated"),
    *("ingested", "extracted", "summary"),
)
FACTS = {"semanticMemoryStrategy": {"name": "facts", "namespaces": ["/facts/{actorId}/"]}}
SUMMARY = {"summaryMemoryStrategy": {"name": "sums", "namespaces": ["/sums/{actorId}/{sessionId}/"]}}
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def canary(place: str) -> str:
    """A word, with letters that a stemmer leaves alone."""
    return f"quokka{place}zz"


def found_in(folder: Path, words: list[str]) -> set[str]:
    data = b"".join(path.read_bytes().lower() for path in sorted(folder.rglob("*")) if path.is_file())
    return {word for word in words if word.encode() in data}


@asynccontextmanager
async def platform(folder: Path, keys: KeyService, clock: SetClock) -> AsyncIterator[tuple[MemoryPlane, Any]]:
    """A memory plane on its own Valkey and SQLite file in `folder`."""
    async with EmbeddedValkey(folder / "valkey", appendfsync="no") as valkey:
        store = ValkeyKeyValueStore(valkey.url, clock=clock)
        search = SqliteSearchStore(folder / "search" / "records.db", dimensions=None, clock=clock)
        plane = MemoryPlane(store, Deployment(), clock, search, key_service=keys)
        try:
            yield plane, store
        finally:
            await plane.close()
            await search.close()
            await store.close()


def said(text: str) -> list[dict[str, Any]]:
    return [{"conversational": {"role": "USER", "content": {"text": text}}}]


async def plant(plane: MemoryPlane) -> str:
    """A canary in every place that holds what users say; the memory's id."""
    operator, alice = (Client(SelfBackend(plane.operations), caller) for caller in (OPERATOR, session_of("alice")))
    made = await operator.create_memory(
        name="m",
        eventExpiryDuration=7,
        memoryStrategies=[FACTS, SUMMARY],
        indexedKeys=[{"key": "topic", "type": "STRING"}, {"key": "guests", "type": "STRINGLIST"}],
    )
    memory = str(made["memory"]["id"])
    where: dict[str, Any] = {"memoryId": memory, "actorId": "alice", "sessionId": "s"}
    event = await alice.create_event(
        **where,
        eventTimestamp=NOON,
        payload=[
            *said(f"I like {canary('payload')}"),
            {"json": {"content": {"x": canary("document")}}},
            {"blob": canary("blob")},
        ],
        metadata={"kind": {"stringValue": canary("metadata")}},
    )
    root = event["event"]["eventId"]
    branch = {"name": canary("branch"), "rootEventId": root}
    await alice.create_event(
        **where, eventTimestamp=NOON, payload=said(f"My name is {canary('extracted')}"), branch=branch
    )
    answer = await alice.batch_create_memory_records(
        memoryId=memory,
        records=[
            {
                "requestIdentifier": "1",
                "namespaces": ["/facts/alice/"],
                "content": {"text": f"Alice met {canary('record')}"},
                "timestamp": NOON,
                "metadata": {
                    "topic": {"stringValue": canary("topic")},
                    "guests": {"stringListValue": [canary("guests")]},
                },
            }
        ],
    )
    record = answer["successfulRecords"][0]["memoryRecordId"]
    await alice.batch_update_memory_records(
        memoryId=memory,
        records=[
            {
                "memoryRecordId": record,
                "timestamp": NOON,
                "content": {"text": f"Alice met {canary('record')} and {canary('updated')}"},
            }
        ],
    )
    await alice.ingest_data(
        memoryId=memory,
        actorId="alice",
        contentTimestamp=NOON,
        source={"inline": {"payload": said(f"I live in {canary('ingested')}")}},
    )
    return memory


async def read(plane: MemoryPlane, memory: str) -> set[str]:
    """The places whose canaries come back to the user."""
    alice = Client(SelfBackend(plane.operations), session_of("alice"))
    answers = [
        await alice.list_events(memoryId=memory, actorId="alice", sessionId="s"),
        await alice.list_events(
            memoryId=memory,
            actorId="alice",
            sessionId="s",
            filter={"branch": {"name": canary("branch"), "includeParentBranches": True}},
        ),
        await alice.list_memory_records(memoryId=memory, namespacePath="/facts/alice/", maxResults=100),
        await alice.list_memory_records(memoryId=memory, namespacePath="/sums/alice/", maxResults=100),
        await alice.retrieve_memory_records(
            memoryId=memory,
            namespace="/facts/alice/",
            searchCriteria={
                "searchQuery": canary("record"),
                "metadataFilters": [
                    {
                        "left": {"metadataKey": "topic"},
                        "operator": "EQUALS_TO",
                        "right": {"metadataValue": {"stringValue": canary("topic")}},
                    }
                ],
            },
        ),
    ]
    assert len(answers[1]["events"]) == 2
    assert len(answers[4]["memoryRecordSummaries"]) == 1
    text = repr(answers)
    return {place for place in PLACES if canary(place) in text}


async def test_no_file_says_what_users_said(tmp_path: Path, clock: SetClock) -> None:
    """Every byte of Valkey's and SQLite's files, before and after the extraction, and after a restart."""
    keys = KeySettings().services(SECRET, tmp_path / "keys")
    words = [canary(place) for place in PLACES]
    async with platform(tmp_path / "data", keys, clock) as (plane, store):
        memory = await plant(plane)
        await store.transact([Put("control", "control", canary("control").encode())])
        assert found_in(tmp_path / "data", [*words, canary("control")]) == {canary("control")}  # it would be found
        plane.extraction.worker.start()
        await settled(plane)
        assert {"payload", "document", "blob", "metadata", "branch", "record", "topic", "guests"} <= await read(
            plane, memory
        )
        assert found_in(tmp_path / "data", words) == set()
    assert found_in(tmp_path / "data", words) == set()
    assert found_in(tmp_path / "data", ["quokka"]) == {"quokka"}  # the control's
    async with platform(tmp_path / "data", keys, clock) as (plane, _):
        assert {"ingested", "extracted", "updated"} <= await read(plane, memory)


async def test_without_its_key_a_copy_is_of_no_use(tmp_path: Path, clock: SetClock) -> None:
    """MEM-4: what was copied before the memory was deleted, wrapped key included, does not open after it, even with the
    deployment's secret. With the half that was erased it would: so that is what keeps it shut."""
    keys = KeySettings().services(SECRET, tmp_path / "keys")
    async with platform(tmp_path / "data", keys, clock) as (plane, _):
        memory = await plant(plane)
        kept = await plant_other(plane)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    shutil.copytree(tmp_path / "data", tmp_path / "second copy")
    shutil.copytree(tmp_path / "keys", tmp_path / "copied keys")
    async with platform(tmp_path / "data", keys, clock) as (plane, _):
        await Client(SelfBackend(plane.operations), OPERATOR).delete_memory(memoryId=memory)
        await plane.deletions.finish()
    async with platform(tmp_path / "copy", keys, clock) as (plane, _):
        alice = Client(SelfBackend(plane.operations), session_of("alice"))
        for reading in (
            alice.list_events(memoryId=memory, actorId="alice", sessionId="s"),
            alice.list_memory_records(memoryId=memory, namespacePath="/facts/alice/"),
            alice.retrieve_memory_records(
                memoryId=memory, namespace="/facts/alice/", searchCriteria={"searchQuery": canary("record")}
            ),
        ):
            with pytest.raises(KeyRefused, match="erased"):
                await reading
        assert await alice.texts(kept, "alice", "s") == ["of another memory"]
    other = KeySettings().services(SECRET, tmp_path / "copied keys")
    async with platform(tmp_path / "second copy", other, clock) as (plane, _):
        assert "record" in await read(plane, memory)
    await keys.close()
    await other.close()


async def plant_other(plane: MemoryPlane) -> str:
    operator = Client(SelfBackend(plane.operations), OPERATOR)
    memory = str((await operator.create_memory(name="other", eventExpiryDuration=7))["memory"]["id"])
    await Client(SelfBackend(plane.operations), session_of("alice")).event(memory, "alice", "s", "of another memory")
    return memory


KEYS = partition("memory", "keys")


def events(memory: str, actor: str, session: str = "s") -> str:
    return partition("memory", "events", memory, actor, session)


async def test_nothing_that_was_moved_opens(
    operator: Client, backend: SelfBackend, store: KeyValueStore, clock: SetClock
) -> None:
    """MEM-2: by who can write to the store: an event to another user, session or memory, or to another's key."""
    memories = [
        str((await operator.create_memory(name=name, eventExpiryDuration=7))["memory"]["id"]) for name in ("a", "b")
    ]
    alice = Client(backend, session_of("alice"))
    event = await alice.event(memories[0], "alice", "s", "hers", metadata={"k": {"stringValue": "v"}})
    other = await alice.event(memories[0], "alice", "s", "hers, too", metadata={"k": {"stringValue": "w"}})
    [value, later] = await store.get_many(events(memories[0], "alice"), [event, other])
    assert value is not None and later is not None
    head = 5 + int.from_bytes(value[1:5], "big")
    mixed = value[:head] + later[5 + int.from_bytes(later[1:5], "big") :]
    for memory, actor, session, id, planted in (
        (memories[0], "bob", "s", event, value),
        (memories[0], "alice", "t", event, value),
        (memories[0], "alice", "s", event[:-1] + "#", value),
        (memories[1], "alice", "s", event, value),
        (memories[0], "alice", "s", event, mixed),
        (memories[0], "alice", "s", event, b'{}\n[{"blob":"forged"}]'),
        (memories[0], "alice", "s", event, b"\x01\0\0\0\0" + value[head:]),
    ):
        await store.transact([Put(events(memory, actor, session), id, planted)])
        with pytest.raises(SealBroken):
            await operator.get_event(memoryId=memory, actorId=actor, sessionId=session, eventId=id)
        await store.transact([Delete(events(memory, actor, session), id)])
    # Nor does one memory's key open for another.
    key = await store.get(KEYS, memories[0])
    assert key is not None
    await store.transact([Put(KEYS, memories[1], key)])
    await clock.sleep(24 * 3600)  # nothing is remembered any more
    with pytest.raises(KeyRefused):
        await alice.event(memories[1], "alice", "s", "x")


async def test_memories_from_before_there_were_keys(
    operator: Client, backend: SelfBackend, store: KeyValueStore, search: SqliteSearchStore, memory: str
) -> None:
    """What they have in clear stays readable; what comes is sealed."""
    await store.transact([Delete(KEYS, memory)])
    event_id = "0000001767225600000#0000000000000000"
    old = b'{"branch":{"name":"main"},"metadata":{"k":"v"}}\n[{"blob":"old"}]'
    await store.transact([Put(events(memory, "alice"), event_id, old)])
    await store.transact(
        [Put(partition("memory", "branches", memory, "alice", "s"), "b", b'{"root":"1","parent":"main"}')]
    )
    alice = Client(backend, session_of("alice"))
    await alice.event(memory, "alice", "s", "new", at=1, metadata={"k": {"stringValue": "v"}})
    only = {
        "eventMetadata": [
            {"left": {"metadataKey": "k"}, "operator": "EQUALS_TO", "right": {"metadataValue": {"stringValue": "v"}}}
        ]
    }
    assert await alice.texts(memory, "alice", "s") == ["new", "old"]
    assert await alice.texts(memory, "alice", "s", filter=only) == ["new", "old"]
    assert b"old" in (await store.get(events(memory, "alice"), event_id) or b"")
    items = await store.query(events(memory, "alice"))
    assert not any(b"new" in item.value for item in items)
    # Nobody gets a key made for a memory that is not there.
    with pytest.raises(ResourceNotFoundException):
        await alice.event("nowhere-0123456789", "alice", "s", "x")
    assert await store.get(KEYS, "nowhere-0123456789") is None


@pytest.fixture
async def kms(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KmsStandIn]:
    async with running_kms(monkeypatch) as stand_in:
        yield stand_in


async def test_a_memory_under_a_key_of_its_customers(
    kms: KmsStandIn, store: KeyValueStore, search: SqliteSearchStore, clock: SetClock
) -> None:
    """It works on while KMS is away, for a while; then nothing is read or written in another way. Disabling the key
    ends it within the cache's time; describing the memory needs no key."""
    settings = KeySettings(kms_endpoint_url=kms.url, kms_timeout=20, cache=60, outage=600)
    keys = settings.services(SECRET)
    plane = MemoryPlane(store, Deployment(), clock, search, key_service=keys, key_settings=settings)
    backend = SelfBackend(plane.operations)
    operator, alice = Client(backend, OPERATOR), Client(backend, session_of("alice"))
    made = await operator.create_memory(name="m", eventExpiryDuration=7, encryptionKeyArn=key_arn())
    memory = made["memory"]["id"]
    assert made["memory"]["encryptionKeyArn"] == key_arn()
    assert kms.contexts == [{"agentkeep:memory": memory}]
    await alice.event(memory, "alice", "s", "one")
    asked = sum(kms.asked.values())
    await alice.event(memory, "alice", "s", "two", at=1)
    assert sum(kms.asked.values()) == asked  # it is remembered

    await kms.stop()
    await clock.sleep(300)
    await alice.event(memory, "alice", "s", "three", at=2)
    assert await alice.texts(memory, "alice", "s") == ["three", "two", "one"]
    await clock.sleep(600)
    for call in (
        alice.event(memory, "alice", "s", "four", at=3),
        alice.texts(memory, "alice", "s"),
        operator.create_memory(name="n", eventExpiryDuration=7, encryptionKeyArn=key_arn()),
    ):
        with pytest.raises(KeyServiceUnavailable):
            await call
    for view in ({}, {"view": "without_decryption"}):
        assert (await operator.get_memory(memoryId=memory, **view))["memory"]["name"] == "m"
    assert len((await operator.list_memories())["memories"]) == 1
    await kms.start()
    assert await alice.texts(memory, "alice", "s") == ["three", "two", "one"]

    kms.disabled.add(key_arn())
    await clock.sleep(61 + 600)
    with pytest.raises(KeyRefused, match="DisabledException"):
        await alice.texts(memory, "alice", "s")
    await operator.delete_memory(memoryId=memory)  # needs no key either
    await plane.deletions.finish()
    with pytest.raises(ResourceNotFoundException):
        await operator.get_memory(memoryId=memory)
    await plane.close()
    await keys.close()


async def test_a_key_that_cannot_be_used_makes_no_memory(operator: Client, store: KeyValueStore) -> None:
    with pytest.raises(ValidationException, match="AWS KMS"):
        await operator.create_memory(name="m", eventExpiryDuration=7, encryptionKeyArn=key_arn())
    assert (await operator.list_memories())["memories"] == []
    await operator.create_memory(name="m", eventExpiryDuration=7)
    assert len(await store.query(KEYS)) == 1
    with pytest.raises(ValidationException, match="already exists"):
        await operator.create_memory(name="m", eventExpiryDuration=7)
    assert len(await store.query(KEYS)) == 1


async def test_a_memory_that_was_not_made_leaves_no_half(
    store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, tmp_path: Path
) -> None:
    keys = KeySettings().services(SECRET, tmp_path / "keys")
    plane = MemoryPlane(store, Deployment(), clock, search, key_service=keys)
    operator = Client(SelfBackend(plane.operations), OPERATOR)
    for _ in range(2):
        await operator.create_memory(name="m", eventExpiryDuration=7, token="t")
    with pytest.raises(ValidationException):
        await operator.create_memory(name="m", eventExpiryDuration=7)
    assert len(list((tmp_path / "keys").iterdir())) == 1
    [memory] = (await operator.list_memories())["memories"]
    await operator.delete_memory(memoryId=memory["id"])
    await plane.deletions.finish()
    assert list((tmp_path / "keys").iterdir()) == []
    await plane.close()
    await keys.close()
