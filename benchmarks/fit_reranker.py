"""Fits the weights of memory/agentkeep/memory/long_term/reranking.py, and prints them.

On conversations that _conversations.py makes of its first pool, with other seeds than the benchmark's: the
best records of every question as the first look finds them, those that answer it against those that do not. Logistic
regression with a ridge, by Newton's method.

  python benchmarks/fit_reranker.py
"""

from __future__ import annotations

import asyncio
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import _conversations
import numpy as np

from agentkeep.core.clock import SystemClock
from agentkeep.memory.long_term.record import Record
from agentkeep.memory.long_term.reranking import DEPTH
from agentkeep.memory.long_term.retrieval import Retrieval
from agentkeep.memory.long_term.writing import RecordWriter
from agentkeep.storage.embedding_minilm import MiniLmEmbedder
from agentkeep.storage.search import Selection
from agentkeep.storage.search_sqlite import SqliteSearchStore

SEEDS = range(101, 109)
RIDGE = 1.0
STEPS = 30


async def rows() -> tuple[Any, Any]:
    """Features, and whether each is evidence."""
    inputs, outputs = [], []
    embedder = MiniLmEmbedder()
    with tempfile.TemporaryDirectory() as folder:
        search = SqliteSearchStore(Path(folder) / "r.db", dimensions=embedder.dimensions, model=embedder.name)
        retrieval, writer = Retrieval(search, embedder, SystemClock()), RecordWriter(search)
        for seed in SEEDS:
            talk = _conversations.generate(_conversations.SETS[0], seed)
            home = f"fit/{seed}"
            await writer.add(home, await records(talk, retrieval))
            for question in talk.questions:
                found = await retrieval.looked_at(home, question.text, Selection(namespace="/talk/"), DEPTH)
                inputs.append(found.features)
                outputs.append([record.id in question.evidence for record in found.records])
        await search.close()
    await embedder.close()
    return np.concatenate(inputs), np.concatenate(outputs).astype(float)


async def records(talk: _conversations.Conversation, retrieval: Retrieval) -> list[Record]:
    texts = [f"{turn.speaker}: {turn.text}" for turn in talk.turns]
    return [
        Record(turn.id, text, "ann", "/talk/", None, datetime.fromisoformat(turn.at), n, None, {}, vector)
        for n, (turn, text, vector) in enumerate(zip(talk.turns, texts, await retrieval.vectors(texts), strict=True))
    ]


def fitted(inputs: Any, outputs: Any) -> Any:
    inputs = np.column_stack([inputs, np.ones(len(inputs))])
    weights = np.zeros(inputs.shape[1])
    ridge = RIDGE * np.eye(len(weights))
    ridge[-1, -1] = 0
    for _ in range(STEPS):
        odds = 1 / (1 + np.exp(-(inputs @ weights)))
        slope = inputs.T @ (odds - outputs) + ridge @ weights
        weights -= np.linalg.solve((inputs * (odds * (1 - odds))[:, None]).T @ inputs + ridge, slope)
    return weights


def main() -> None:
    weights = fitted(*asyncio.run(rows()))
    print(f"_WEIGHTS: Final = ({', '.join(f'{weight:.2f}' for weight in weights)})")


if __name__ == "__main__":
    main()
