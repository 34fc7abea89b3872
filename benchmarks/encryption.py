"""What sealing costs: an event written, an event listed, a search among one user's records.

    python benchmarks/encryption.py [records]

Events in microseconds of this process's CPU, beside the same without sealing; searches on SQLite in milliseconds, of
a sealed store and one in clear by turns, so that both meet the same machine.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from agentkeep.memory.keys import MemoryKey
from agentkeep.memory.short_term.event import Place, decode, encode
from agentkeep.storage.search import Document, SearchStore
from agentkeep.storage.search_sealed import sealed_search
from agentkeep.storage.search_sqlite import SqliteSearchStore

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


if __name__ == "__main__":
    events("a message", {})
    events("a message with metadata", METADATA)
    asyncio.run(searches(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
