"""Embeddings: texts as vectors, near one another where they mean the same."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

from agentkeep.core.errors import ProviderError
from agentkeep.storage.search import Vector

__all__ = ["CachedEmbedder", "Embedder", "EmbeddingUnavailable"]


class EmbeddingUnavailable(ProviderError):
    """The model is not installed, does not load or does not answer; the message says which and what to do."""


class Embedder(Protocol):
    """`name` and `dimensions` are recorded with what is embedded: vectors of two models never compare."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector of length 1 for each text, in order; the same for the same text always. Raises
        EmbeddingUnavailable."""
        ...

    async def close(self) -> None: ...


class CachedEmbedder:
    """Remembers the vectors of the last `entries` texts, by digest; equal texts at the same time are embedded once.
    For queries, which repeat. Does not close what it wraps."""

    def __init__(self, embedder: Embedder, entries: int = 2048) -> None:
        self._embedder = embedder
        self._entries = entries
        self._known: OrderedDict[bytes, asyncio.Future[Vector]] = OrderedDict()

    async def embed(self, text: str) -> Vector:
        """Raises EmbeddingUnavailable."""
        key = sha256(text.encode()).digest()
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = asyncio.ensure_future(self._one(text))
            known.add_done_callback(lambda done: self._forget_failed(key, done))
            while len(self._known) > self._entries:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return await asyncio.shield(known)

    async def _one(self, text: str) -> Vector:
        [vector] = await self._embedder.embed([text])
        return vector

    def _forget_failed(self, key: bytes, done: asyncio.Future[Vector]) -> None:
        if (done.cancelled() or done.exception() is not None) and self._known.get(key) is done:
            del self._known[key]
