"""Evidence recall of retrieval from long-term memory: of the turns that answer a question, how many are among the best
1, 5 and 10; beside BM25, vectors, and both joined by reciprocal rank fusion, in the same run.

Every conversation becomes one user's memory, one record a turn, by BatchCreateMemoryRecords on the real memory plane
with SQLite, and `ours` is RetrieveMemoryRecords there. The baselines rank the same records: BM25 (k1 1.2, b 0.75, words
stemmed, stop words left out of the query) on texts with the speakers' names, and the cosine of the same embeddings.
Of the two generated sets, weights were chosen on `friends` alone. `facts` has no conversation: single statements in no
order, which must not suffer by their neighbours.

  python benchmarks/retrieval.py                      the generated sets
  python benchmarks/retrieval.py --data FILE ...      conversations of a file, see _conversations.py for the forms
  python benchmarks/retrieval.py --write FOLDER       writes the generated sets in our form
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _conversations import SETS, Conversation, as_document, facts, generate, read
from _history import keep

from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.memory.long_term.retrieval import telling
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.embedding import Embedder
from agentkeep.storage.embedding_minilm import MiniLmEmbedder
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.search_words import K1, B, Stemmer
from agentkeep.storage.valkey import ValkeyKeyValueStore

DEPTHS = (1, 5, 10)
METHODS = ("BM25", "vectors", "rank fusion", "ours")
BATCH = 100
SEEDS = range(1, 6)
#: The usual constant of reciprocal rank fusion.
FUSION = 60

OPERATOR = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/benchmark")


class Result(NamedTuple):
    method: str
    kind: str
    recall: tuple[float, ...]


class Remembering:
    """Embeds a text once, for the plane and the baselines."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, Any] = {}
        self.name, self.dimensions = embedder.name, embedder.dimensions

    async def embed(self, texts: Sequence[str]) -> list[Any]:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, await self._embedder.embed(new), strict=True))
        return [self._known[text] for text in texts]

    async def close(self) -> None:
        await self._embedder.close()


class Baselines:
    """Over the texts of one conversation, each with its speaker's name."""

    def __init__(self, conversation: Conversation, embedder: Embedder) -> None:
        self._texts = [said(turn.speaker, turn.text) for turn in conversation.turns]
        self._embedder = embedder
        self._stems = Stemmer()
        self._counts = [Counter(self._stems.of(text)) for text in self._texts]
        self._lengths = np.array([sum(one.values()) for one in self._counts], float)

    async def rankings(self, query: str) -> dict[str, list[int]]:
        words, meaning = self._bm25(query), await self._cosine(query)
        places = [np.argsort(np.argsort(-scores, kind="stable")) for scores in (words, meaning)]
        fused = sum(1 / (FUSION + place + 1) for place in places)
        scores = {"BM25": words, "vectors": meaning, "rank fusion": np.asarray(fused)}
        return {method: np.argsort(-one, kind="stable").tolist() for method, one in scores.items()}

    def _bm25(self, query: str) -> Any:
        stems = dict.fromkeys(self._stems.of(telling(query)))
        counts = np.array([[one[stem] for stem in stems] for one in self._counts], float)
        found = np.count_nonzero(counts, axis=0)
        rarity = np.log1p((len(counts) - found + 0.5) / (found + 0.5))
        length = K1 * (1 - B + B * self._lengths / self._lengths.mean())
        return (counts * (K1 + 1) / (counts + length[:, None])) @ rarity

    async def _cosine(self, query: str) -> Any:
        [vector] = await self._embedder.embed([query])
        return np.array(await self._embedder.embed(self._texts)) @ vector


class Ours:
    """The memory plane, asked by a session of the conversation's user."""

    def __init__(self, plane: MemoryPlane, memory: str, user: str) -> None:
        self._backend = SelfBackend(plane.operations)
        self._memory = memory
        self._user = user
        self.milliseconds: list[float] = []

    async def write(self, conversation: Conversation) -> None:
        for at in range(0, len(conversation.turns), BATCH):
            records = [
                {
                    "requestIdentifier": turn.id,
                    "namespaces": [f"/facts/{self._user}/"],
                    "content": {"text": said(turn.speaker, turn.text)},
                    "timestamp": datetime.fromisoformat(turn.at),
                    "metadata": {"turn": {"stringValue": turn.id}},
                }
                for turn in conversation.turns[at : at + BATCH]
            ]
            await self._call("BatchCreateMemoryRecords", records=records)

    async def best(self, query: str) -> list[str]:
        began = time.perf_counter()
        answer = await self._call(
            "RetrieveMemoryRecords",
            namespace=f"/facts/{self._user}/",
            searchCriteria={"searchQuery": query, "topK": max(DEPTHS)},
            maxResults=max(DEPTHS),
        )
        self.milliseconds.append((time.perf_counter() - began) * 1000)
        return [one["metadata"]["turn"]["stringValue"] for one in answer["memoryRecordSummaries"]]

    async def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        role = f"arn:aws:sts::000000000000:assumed-role/agent/{self._user}"
        session = SessionRef("agent", self._user)
        caller = Caller(CallerKind.SESSION, role, user=User(self._user), session=session)
        call = Call("bedrock-agentcore", operation, caller, "benchmark")
        return await self._backend.invoke(call, {"memoryId": self._memory, **request})


def said(speaker: str, text: str) -> str:
    return f"{speaker}: {text}" if speaker else text


async def measure(conversations: Sequence[Conversation], embedder: Embedder) -> tuple[list[Result], list[float]]:
    results: list[Result] = []
    milliseconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedValkey(Path(folder)) as valkey:
            store = ValkeyKeyValueStore(valkey.url)
            search = SqliteSearchStore(Path(folder) / "records.db", dimensions=embedder.dimensions, model=embedder.name)
            keys = LocalKeyService(bytes(32))
            plane = MemoryPlane(store, Deployment(), SystemClock(), search, embedder, key_service=keys)
            asked = {"name": "benchmark", "eventExpiryDuration": 7}
            created = await SelfBackend(plane.operations).invoke(
                Call("bedrock-agentcore-control", "CreateMemory", OPERATOR, "benchmark"), asked
            )
            for conversation in conversations:
                user = re.sub(r"[^\w-]", "-", conversation.name)
                ours = Ours(plane, created["memory"]["id"], user)
                await ours.write(conversation)
                results += await compare(conversation, ours, Baselines(conversation, embedder), embedder)
                milliseconds += ours.milliseconds
            await plane.close()
            await search.close()
            await store.close()
    return results, milliseconds


async def compare(conversation: Conversation, ours: Ours, baselines: Baselines, embedder: Embedder) -> list[Result]:
    results = []
    for question in conversation.questions:
        found = {
            method: [conversation.turns[index].id for index in order[: max(DEPTHS)]]
            for method, order in (await baselines.rankings(question.text)).items()
        }
        found["ours"] = await ours.best(question.text)
        evidence = set(question.evidence)
        for method, ids in found.items():
            recall = tuple(len(evidence.intersection(ids[:depth])) / len(evidence) for depth in DEPTHS)
            results.append(Result(method, question.kind, recall))
    return results


def table(title: str, results: Sequence[Result]) -> dict[str, Any]:
    """Printed; and as figures."""
    kinds = sorted({result.kind for result in results})
    figures: dict[str, dict[str, list[float]]] = defaultdict(dict)
    print(f"\n{title}: recall at {', '.join(map(str, DEPTHS))}")
    print(f"{'':24}{'questions':>10}" + "".join(f"{method:>20}" for method in METHODS))
    for kind in (*kinds, "all"):
        chosen = [result for result in results if kind in (result.kind, "all")]
        line = f"  {kind:22}{len(chosen) // len(METHODS):10}"
        for method in METHODS:
            recalls = np.mean([result.recall for result in chosen if result.method == method], axis=0) * 100
            figures[method][kind] = [round(float(recall), 1) for recall in recalls]
            line += f"{'  '.join(f'{recall:5.1f}' for recall in figures[method][kind]):>20}"
        print(line, flush=True)
    return dict(figures)


async def run(sets: dict[str, list[Conversation]]) -> dict[str, Any]:
    embedder = Remembering(MiniLmEmbedder())
    figures: dict[str, Any] = {}
    for name, conversations in sets.items():
        results, milliseconds = await measure(conversations, embedder)
        figures[name] = table(name, results)
        p50, p95 = np.percentile(milliseconds, (50, 95))
        figures[name]["ms"] = {"p50": round(float(p50), 1), "p95": round(float(p95), 1)}
        turns = [len(one.turns) for one in conversations]
        print(f"  {len(turns)} of {min(turns)} to {max(turns)} records; p50 {p50:.1f} ms, p95 {p95:.1f} ms a query")
    await embedder.close()
    return figures


def generated() -> dict[str, list[Conversation]]:
    sets = {name: [generate(name, seed) for seed in SEEDS] for name in SETS}
    return {**sets, "facts": [facts(name, seed) for name in SETS for seed in (1, 2)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    sets = {path.stem: read(path) for path in given.data} or generated()
    if given.write is not None:
        for name, conversations in sets.items():
            (given.write / f"{name}.json").write_text(json.dumps([as_document(one) for one in conversations], indent=1))
        return
    figures = asyncio.run(run(sets))
    if not given.data:
        keep("retrieval", figures)


if __name__ == "__main__":
    main()
