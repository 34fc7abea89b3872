"""What sealing costs: an event written, an event listed, a search among one user's records, a session's start.

    python benchmarks/encryption.py [records]

Events in microseconds of this process's CPU, beside the same without sealing; searches on SQLite in milliseconds, of
a sealed store and one in clear by turns, so that both meet the same machine. Starts of sandboxed sessions likewise:
with environment variables in clear, sealed under a key that is known, and under one that the key service is asked for.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from agentkeep.core.clock import SystemClock
from agentkeep.core.data_keys import DataKeys
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.memory.keys import MemoryKey
from agentkeep.memory.short_term.event import Place, decode, encode
from agentkeep.runtime.agents.catalogue import Catalogue
from agentkeep.runtime.agents.sealed_variables import VARIABLES, SealedVariables
from agentkeep.runtime.drivers.driver import VersionSpec
from agentkeep.runtime.drivers.process.driver import ProcessDriver
from agentkeep.runtime.records import Status, Version
from agentkeep.storage.search import Document, SearchStore
from agentkeep.storage.search_sealed import sealed_search
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.testing.driver import make_spec, request

DIMENSIONS = 384
SEARCHES = 200
PARTITION = "memory/records/m-0123456789/of/alice"
EVENT = "0000001777863721234#0000000000000000"
PAYLOAD = [{"conversational": {"role": "USER", "content": {"text": "My name is Alice, my order is A-1001. " * 10}}}]
METADATA = {"topic": "orders", "channel": "web"}


def microseconds(work: Callable[[], object], times: int = 20_000) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e6


def events(name: str, metadata: dict[str, str]) -> None:
    place = Place(MemoryKey(secrets.token_bytes(32)), "memory/events/m-0123456789/alice/session", "session")
    before = Place(MemoryKey(secrets.token_bytes(32), mixed=True), "", "")
    head = {"metadata": metadata} if metadata else {}
    value = encode(place, EVENT, PAYLOAD, None, metadata, None)
    clear = orjson.dumps(head) + b"\n" + orjson.dumps(PAYLOAD)
    written = microseconds(lambda: encode(place, EVENT, PAYLOAD, None, metadata, None))
    listed = microseconds(lambda: decode(place, EVENT, value, payload=True))
    unsealed = microseconds(lambda: orjson.dumps(head) + b"\n" + orjson.dumps(PAYLOAD))
    read = microseconds(lambda: decode(before, EVENT, clear, payload=True))
    print(f"{name}: written {written:.1f} us, {written - unsealed:.1f} more than in clear")
    print(
        f"{name}: listed {listed:.1f} us, {listed - read:.1f} more than in clear; {len(value) - len(clear)} bytes more"
    )


def document(random: np.random.Generator, words: list[str], number: int) -> Document:
    return Document(
        f"mem-{number}",
        " ".join(random.choice(words, size=14)),
        number,
        context=" ".join(random.choice(words, size=28)),
        vector=random.normal(size=DIMENSIONS).astype(np.float32),
        namespaces=["/facts/alice/"],
        metadata={"$strategy": "facts-0123456789"},
        body=orjson.dumps({"owner": "alice", "strategy": "facts-0123456789", "timestamp": 1.5}),
    )


async def searches(count: int) -> None:
    random = np.random.default_rng(1)
    words = [f"{stem}{number}" for stem in ("tea", "order", "trip", "house", "music") for number in range(400)]
    key = MemoryKey(secrets.token_bytes(32))

    async def key_of(_: str) -> MemoryKey:
        return key

    with tempfile.TemporaryDirectory() as folder:
        clear, beneath = (SqliteSearchStore(Path(folder) / name, dimensions=DIMENSIONS) for name in ("a.db", "b.db"))
        stores: dict[str, SearchStore] = {"in clear": clear, "sealed": sealed_search(beneath, key_of)}
        taken: dict[str, list[float]] = {name: [] for name in stores}
        for start in range(0, count, 500):
            batch = [document(random, words, number) for number in range(start, min(start + 500, count))]
            for name, store in stores.items():
                began = time.perf_counter()
                await store.upsert(PARTITION, batch)
                taken[name].append((time.perf_counter() - began) * 1e3 / len(batch))
        for name, times in taken.items():
            print(f"{name}: written in {np.median(times):.2f} ms a record, in batches of 500")
        taken = {name: [] for name in stores}
        for turn in range(SEARCHES + 10):
            query: dict[str, Any] = {
                "text": " ".join(random.choice(words, size=6)),
                "vector": random.normal(size=DIMENSIONS).astype(np.float32),
            }
            for name, store in stores.items():
                began = time.perf_counter()
                await store.search(PARTITION, **query, limit=100)
                if turn >= 10:
                    taken[name].append((time.perf_counter() - began) * 1e3)
        for name, times in taken.items():
            p50, p95 = np.percentile(times, (50, 95))
            print(f"{name}: search among {count} records p50 {p50:.2f} ms, p95 {p95:.2f} ms")
        await clear.close()
        await beneath.close()


async def starts(count: int) -> None:
    variables = {f"NAME_{number}": secrets.token_urlsafe(40) for number in range(60)}  # nearly all there may be
    now, clock = datetime.now(UTC), SystemClock()
    version = Version("agent-0123456789", 1, Status.READY, {VARIABLES: variables}, now, now)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        folder.chmod(0o755)
        bundle = folder / "bundle"
        bundle.mkdir()
        (bundle / "main.py").write_text(Path(__file__).with_name("_light_agent.py").read_text())
        spec = VersionSpec("agent-0123456789", "1", bundle=bundle, entry_point=("main.py",))
        driver = ProcessDriver(folder / "driver")
        async with EmbeddedValkey(folder / "valkey") as valkey:
            store = ValkeyKeyValueStore(valkey.url)
            service = LocalKeyService(secrets.token_bytes(32), folder / "keys")
            keeping, asking = (
                SealedVariables(Catalogue(store, Deployment()), DataKeys(service, clock, settings), clock)
                for settings in (KeySettings(), KeySettings(cache=0))
            )
            sealed = await keeping.seal(version)
            ways = {
                "in clear": (keeping, version),
                "sealed": (keeping, sealed),
                "sealed, key asked for": (asking, sealed),
            }
            opened: dict[str, list[float]] = {name: [] for name in ways}
            ready: dict[str, list[float]] = {name: [] for name in ways}
            try:
                await driver.prepare(spec)
                for turn in range(count + 3):
                    for name, (way, kept) in random.sample(sorted(ways.items()), len(ways)):
                        began = time.perf_counter()
                        given = await way.open(kept)
                        has = time.perf_counter()
                        environment = await driver.start(make_spec(spec, given))
                        await request(environment, "GET", "/ping")
                        if turn >= 3:
                            opened[name].append((has - began) * 1e6)
                            ready[name].append((time.perf_counter() - began) * 1e3)
                        await environment.stop(0)
            finally:
                await driver.close()
                await store.close()
    clear = np.median(ready["in clear"])
    for name in ways:
        start, opening = np.median(ready[name]), np.median(opened[name])
        print(
            f"variables {name}: a start p50 {start:.1f} ms, {start / clear:.2f} of one in clear, "
            f"{opening:.0f} us of it to open them ({opening / start / 10:.2f} %)"
        )


if __name__ == "__main__":
    events("a message", {})
    events("a message with metadata", METADATA)
    asyncio.run(starts(40))
    asyncio.run(searches(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
