"""Embedding by a model that is asked over a network: batches, tries again, texts that are too long, answers that are
none. Who asks which service how is in embedding_openai and embedding_bedrock."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from agentkeep.storage.embedding import EmbeddingUnavailable
from agentkeep.storage.search import Vector
from agentkeep.storage.search_values import unit

__all__ = ["EmbeddingRefused", "EmbeddingService", "RemoteEmbedder", "TryAgain"]

logger = logging.getLogger(__name__)

#: How often a request is sent; seconds before the second time, doubled before each further one, and the most of them.
ATTEMPTS: Final = 3
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 5.0
#: Of a longer text the beginning counts. Where a model takes less, the text is halved until it does, but not below.
CHARACTERS: Final = 20_000
FEWEST_CHARACTERS: Final = 500


class TryAgain(Exception):
    """Busy, broken off or not reached. `after`: seconds that the service asks for; None: it says nothing."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class EmbeddingRefused(Exception):
    """These texts are not taken: too long, perhaps."""


class EmbeddingService(Protocol):
    """`batch`: texts of one request; `at_once`: requests at the same time."""

    batch: int
    at_once: int

    async def ask(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """A vector for each text. Raises TryAgain, EmbeddingRefused, and EmbeddingUnavailable for all else."""
        ...

    async def close(self) -> None: ...


class RemoteEmbedder:
    """`name`: of service and model, as it is recorded with the vectors."""

    def __init__(self, name: str, dimensions: int, service: EmbeddingService) -> None:
        self.name = name
        self.dimensions = dimensions
        self._service = service
        self._asking = asyncio.Semaphore(service.at_once)

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        # A text without anything to read is refused by most.
        whole = [text[:CHARACTERS] if text.strip() else "-" for text in texts]
        size = self._service.batch
        tasks = [asyncio.ensure_future(self._batch(whole[at : at + size])) for at in range(0, len(whole), size)]
        try:
            return [vector for vectors in await asyncio.gather(*tasks) for vector in vectors]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        await self._service.close()

    async def _batch(self, texts: Sequence[str]) -> list[Vector]:
        try:
            return await self._asked(texts)
        except EmbeddingRefused as refusal:
            if len(texts) == 1:
                return [await self._shortened(texts[0], refusal)]
            # One of them, perhaps: alone, none depends on the others.
            return [vector for text in texts for vector in await self._batch([text])]

    async def _shortened(self, text: str, refusal: EmbeddingRefused) -> Vector:
        while len(text) // 2 >= FEWEST_CHARACTERS:
            text = text[: len(text) // 2]
            try:
                return (await self._asked([text]))[0]
            except EmbeddingRefused as again:
                refusal = again
        raise EmbeddingUnavailable(f"{self.name} does not take a text of {len(text)} characters: {refusal}")

    async def _asked(self, texts: Sequence[str]) -> list[Vector]:
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._asking:
                    answer = await self._service.ask(texts)
            except TryAgain as error:
                if attempt == ATTEMPTS:
                    raise EmbeddingUnavailable(f"{self.name} does not answer: {error}") from error
                wait = min(error.after if error.after is not None else pause, LONGEST_PAUSE)
                await asyncio.sleep(wait * random.uniform(0.75, 1.25))  # noqa: S311
                pause *= 2
            else:
                return self._checked(answer, len(texts))
        raise AssertionError("not reached")

    def _checked(self, answer: Sequence[Sequence[float]], wanted: int) -> list[Vector]:
        if len(answer) != wanted:
            raise EmbeddingUnavailable(f"{self.name} gave {len(answer)} vectors for {wanted} texts")
        vectors = [np.asarray(numbers, np.float32) for numbers in answer]
        for vector in vectors:
            if vector.shape != (self.dimensions,):
                raise EmbeddingUnavailable(
                    f"{self.name} answers with vectors of {vector.size} numbers and not {self.dimensions}: "
                    "set AGENTKEEP_MEMORY_EMBEDDING_DIMENSIONS to what the model gives"
                )
        try:
            return [unit(vector, self.dimensions) for vector in vectors]
        except ValueError:
            raise EmbeddingUnavailable(f"{self.name} answers with a vector that has no direction") from None
