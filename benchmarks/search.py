"""What long-term memory's search stores cost: SQLite beside OpenSearch, in one run, as records and users grow.

The records are of random words with random vectors; a query has four words and a vector, as `Retrieval` asks, and goes
to a user drawn by lot: once when nothing of that user is in this process's memory ("first"), and again ("again").
OpenSearch runs in a container, as the tests start it (tests/images). Wall time on a shared machine is an upper bound;
CPU is of this process, which for SQLite is the search itself and for OpenSearch the asking and the reading of answers.

    python benchmarks/search.py                               small, a minute
    python benchmarks/search.py --sizes                       1 k, 100 k and 1 M records of 1, 100 and 10,000 users
    python benchmarks/search.py --store sqlite 1000000x100    one size of one store
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _history import keep

from agentkeep.core.clock import SystemClock, epoch_ms
from agentkeep.storage.opensearch import OpenSearchClient
from agentkeep.storage.search import Beneath, Document, SearchStore
from agentkeep.storage.search_opensearch import OpenSearchSearchStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from containers import OPENSEARCH, start
from images.engine import engine

DIMENSIONS = 384
QUERIES = 40
BATCH = 500  # records in one write, at the most
FILLING = 240.0  # seconds; what is there by then is measured
EXPIRING = 100  # one record in so many

random = np.random.default_rng(3)
# As in a language: few words are frequent, most are rare.
WORDS = np.array([f"word{number}" for number in range(20_000)])
ODDS = np.cumsum(1 / np.arange(1, len(WORDS) + 1))
ODDS /= ODDS[-1]


@dataclass(frozen=True)
class Size:
    """`largest`: what one user has of all the records; None: all have as many."""

    records: int
    users: int
    largest: int | None = None

    @classmethod
    def parse(cls, text: str) -> Size:
        """`100000x100`, or `100000x100x10000`."""
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        most = f", {self.largest} of them one user's" if self.largest is not None else ""
        return f"{self.records} records of {self.users} users{most}"

    def of_user(self, user: int) -> int:
        if self.largest is None:
            return self.records // self.users
        return self.largest if user == 0 else (self.records - self.largest) // (self.users - 1)


SMALL = (Size(1_000, 1), Size(10_000, 1), Size(10_000, 100))
#: What the aim is stated for: 10,000 records of one user and 100,000 in all.
AIM = Size(100_000, 91, 10_000)
LARGE = (
    *(Size(1_000, users) for users in (1, 100)),
    AIM,
    *(Size(records, users) for records in (100_000, 1_000_000) for users in (1, 100, 10_000)),
)


def texts(count: int, words: int) -> list[str]:
    drawn = WORDS[np.searchsorted(ODDS, random.random((count, words)))]
    return [" ".join(row) for row in drawn.tolist()]


def records(count: int, first: int = 0) -> list[Document]:
    vectors = random.standard_normal((count, DIMENSIONS), np.float32)
    said, around = texts(count, 20), texts(count, 20)
    soon = epoch_ms(SystemClock().now()) + 1000
    return [
        Document(
            f"r{first + n}",
            said[n],
            first + n,
            context=around[n],
            vector=vectors[n],
            namespaces=["/facts/"],
            body=b"{}",
            expires_ms=soon if n % EXPIRING == EXPIRING - 1 else None,
        )
        for n in range(count)
    ]


def partition(user: int) -> str:
    return f"m/u{user}"


def batches(size: Size) -> Iterator[tuple[int, int, int]]:
    """User, first record, how many: users in turn, so that they lie mixed, as they come in life."""
    for first in range(0, max(size.of_user(user) for user in (0, size.users - 1)), BATCH):
        for user in range(size.users):
            if (count := min(BATCH, size.of_user(user) - first)) > 0:
                yield user, first, count


async def fill(store: SearchStore, size: Size) -> dict[str, Any]:
    spent, written, began = 0.0, 0, time.perf_counter()
    for user, first, count in batches(size):
        documents = records(count, first)
        before = time.perf_counter()
        await store.upsert(partition(user), documents)
        spent += time.perf_counter() - before
        written += count
        if time.perf_counter() - began > FILLING:
            break
    return {"records": written, "write ms a record": round(spent * 1000 / max(written, 1), 3)}


async def timed(call: Callable[..., Awaitable[object]], each: Iterable[tuple[Any, ...]]) -> dict[str, float]:
    """Of calls one after another, with each of the arguments."""
    samples = []
    cpu = time.process_time()
    for arguments in each:
        began = time.perf_counter()
        await call(*arguments)
        samples.append((time.perf_counter() - began) * 1000)
    used = (time.process_time() - cpu) * 1000 / len(samples)
    p50, p95 = np.percentile(samples, (50, 95))
    return {"p50 ms": round(float(p50), 1), "p95 ms": round(float(p95), 1), "CPU ms here": round(used, 1)}


async def measure(store: SearchStore, size: Size, fresh: Callable[[], SearchStore]) -> dict[str, Any]:
    """`fresh`: a store on the same data, which remembers nothing."""
    users = [0 if size.largest is not None else int(user) for user in random.integers(0, size.users, QUERIES)]
    queries = [(text, random.standard_normal(DIMENSIONS, np.float32)) for text in texts(QUERIES, 4)]
    asked = [(user, *query) for user, query in zip(users, queries, strict=True)]
    mine = partition(users[0])

    def search(store: SearchStore) -> Callable[..., Awaitable[object]]:
        return lambda user, text, vector: store.search(partition(user), text=text, vector=vector)

    figures: dict[str, Any] = {}
    new = fresh()
    await new.get(mine, ["r0"])  # opens it
    figures["search first"] = await timed(search(new), {one[0]: one for one in asked}.values())
    await new.close()
    await timed(search(store), asked)
    figures["search again"] = await timed(search(store), asked)
    figures["newest 100"] = await timed(store.newest, [(partition(user),) for user in users])
    figures["newest 100 of all users"] = await timed(store.newest, [(Beneath("m"),)] * 3)
    documents = records(100, 10_000_000)
    figures["upsert of 100"] = await timed(store.upsert, [(partition(user), documents) for user in users[:10]])
    changed = [replace(document, context="a new turn beside it") for document in documents[:20]]
    figures["one record's context changed"] = await timed(store.upsert, [(mine, [one]) for one in changed])
    figures["search after a write"] = await timed(search(store), asked[:1])
    figures["delete of 1"] = await timed(store.delete, [(mine, [one.id]) for one in documents[:10]])
    await asyncio.sleep(1)
    figures["purge of the expired 1 %"] = await timed(store.purge, [()])
    figures["deletion of one user"] = await timed(store.delete_partition, [(mine,)])
    return figures


def megabytes(paths: Iterator[Path]) -> float:
    return round(sum(path.stat().st_size for path in paths) / 1e6, 1)


async def run(kind: str, size: Size, url: str, folder: Path) -> dict[str, Any]:
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, Any] = {}
    if kind == "SQLite":
        path = folder / f"{size.records}-{size.users}.db"
        sqlite = SqliteSearchStore(path, dimensions=DIMENSIONS)
        figures |= await fill(sqlite, size)
        figures["disk MB"] = megabytes(folder.glob(f"{path.name}*"))
        figures |= await measure(sqlite, size, lambda: SqliteSearchStore(path, dimensions=DIMENSIONS))
        await sqlite.close()
        for each in folder.glob(f"{path.name}*"):
            each.unlink()
    else:
        name = f"benchmark-{size.records}-{size.users}"

        def store() -> OpenSearchSearchStore:
            return OpenSearchSearchStore(OpenSearchClient(url, time_limit=120), dimensions=DIMENSIONS, name=name)

        opensearch, client = store(), OpenSearchClient(url, time_limit=120)
        figures |= await fill(opensearch, size)
        stats = await client.request("GET", f"/{name}-1/_stats/store")
        figures["disk MB"] = round(stats["_all"]["primaries"]["store"]["size_in_bytes"] / 1e6, 1)
        figures |= await measure(opensearch, size, store)
        await opensearch.close()
        await client.request("DELETE", f"/{name}-1")
        await client.close()
    figures["memory MB here, more at most"] = round(
        (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1e3
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="*", type=Size.parse, help="RECORDSxUSERS, or RECORDSxUSERSxLARGEST")
    parser.add_argument("--sizes", action="store_true", help="all of them, up to a million records")
    parser.add_argument("--store", choices=("sqlite", "opensearch"), help="only this one")
    options = parser.parse_args()
    sizes = options.size or (LARGE if options.sizes else SMALL)
    kinds = [kind for kind in ("SQLite", "OpenSearch") if options.store in (None, kind.lower())]
    figures = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        url = ""
        if "OpenSearch" in kinds:
            url = f"http://127.0.0.1:{start(stack.enter_context(engine()), OPENSEARCH)}"
        for size in sizes:
            for kind in kinds:
                found = figures[f"{kind}, {size}"] = asyncio.run(run(kind, size, url, folder))
                print(
                    f"{kind}, {size}", *(f"    {name}: {value}" for name, value in found.items()), sep="\n", flush=True
                )
    keep("search", figures)


if __name__ == "__main__":
    main()
