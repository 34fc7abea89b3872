"""What retrieval from long-term memory costs: SQLite beside OpenSearch, in one run, at two sizes of one user's memory.

The records are of random words with random vectors, among those of other users; a query has four words and a vector, as
`Retrieval` asks. OpenSearch runs in a container, as the tests start it (tests/images). Wall time on a shared machine is
an upper bound; CPU is of this process, which for SQLite is the search itself and for OpenSearch the asking and the
reading of the answer.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _history import keep

from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.storage.search import Document, SearchStore
from agentkeep.storage.search_opensearch import OpenSearchSearchStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from containers import OPENSEARCH, start
from images.engine import engine

DIMENSIONS = 384
SIZES = (1_000, 10_000)
QUERIES = 40
OTHERS = 1_000  # records of another user
BATCH = 500

random = np.random.default_rng(3)
# As in a language: few words are frequent, most are rare.
WORDS = np.array([f"word{number}" for number in range(20_000)])
ODDS = 1 / np.arange(1, len(WORDS) + 1)
ODDS /= ODDS.sum()


def text(count: int) -> str:
    return " ".join(random.choice(WORDS, size=count, p=ODDS))


def records(count: int) -> list[Document]:
    vectors = random.normal(size=(count, DIMENSIONS)).astype(np.float32)
    return [Document(f"r{n}", text(20), n, context=text(20), vector=vectors[n], body=b"{}") for n in range(count)]


async def fill(store: SearchStore, partition: str, documents: list[Document]) -> float:
    began = time.perf_counter()
    for at in range(0, len(documents), BATCH):
        await store.upsert(partition, documents[at : at + BATCH])
    return time.perf_counter() - began


async def measure(store: SearchStore, partition: str, queries: list[tuple[str, Any]]) -> dict[str, float]:
    for words, vector in queries[:3]:
        await store.search(partition, text=words, vector=vector)
    samples = []
    cpu = time.process_time()
    for words, vector in queries:
        began = time.perf_counter()
        await store.search(partition, text=words, vector=vector)
        samples.append((time.perf_counter() - began) * 1000)
    used = (time.process_time() - cpu) * 1000 / len(queries)
    p50, p95 = np.percentile(samples, (50, 95))
    return {"p50 ms": round(float(p50), 1), "p95 ms": round(float(p95), 1), "CPU ms here": round(used, 1)}


async def run(url: str, folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    client = OpenSearchClient(url, time_limit=60)
    for size in SIZES:
        mine, others = records(size), records(OTHERS)
        queries = [(text(4), random.normal(size=DIMENSIONS).astype(np.float32)) for _ in range(QUERIES)]
        name = f"benchmark-{size}"
        stores: dict[str, SearchStore] = {
            "SQLite": SqliteSearchStore(folder / f"{size}.db", dimensions=DIMENSIONS),
            "OpenSearch": OpenSearchSearchStore(client, dimensions=DIMENSIONS, name=name),
        }
        for kind, store in stores.items():
            await fill(store, "m/other", others)
            written = await fill(store, "m/mine", mine)
            found = {"write ms a record": round(written * 1000 / size, 2), **await measure(store, "m/mine", queries)}
            figures[f"{kind}, {size} records"] = found
            print(f"{kind:10} {size:6} records: {found}", flush=True)
        await client.request("DELETE", f"/{name}-1")
    await client.close()
    return figures


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, engine() as socket:
        figures = asyncio.run(run(f"http://127.0.0.1:{start(socket, OPENSEARCH)}", Path(folder)))
    keep("search", figures)


if __name__ == "__main__":
    main()
