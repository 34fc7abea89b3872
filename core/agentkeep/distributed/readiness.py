"""Whether a service can do its work: what /readyz says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from agentkeep.core.errors import AgentkeepError, StoreUnavailable
from agentkeep.storage.interface import KeyValueStore

__all__ = ["Check", "Readiness", "store_check"]

logger = logging.getLogger(__name__)

#: Returns if the part answers; False or an AgentkeepError if it does not.
Check = Callable[[], Awaitable[bool]]

_SECONDS: Final = 2.0
#: How long an answer holds: whoever asks without pause asks no part without pause.
_HOLDS: Final = 0.5
_PAUSE: Final = 0.25
_TELL_EVERY: Final = 20


class Readiness:
    """`checks` by the part they ask. Besides, `state` is a part while the service starts or stops."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self.state: str | None = "starting"
        self._checks = checks
        self._asked = float("-inf")
        self._answer: asyncio.Task[list[str]] | None = None

    async def missing(self) -> list[str]:
        """The parts that do not answer now."""
        now = asyncio.get_running_loop().time()
        if self._answer is None or (self._answer.done() and now - self._asked > _HOLDS):
            self._asked = now
            self._answer = asyncio.create_task(self._ask())
        found = await asyncio.shield(self._answer)
        return found if self.state is None else [self.state, *found]

    async def wait(self) -> None:
        """Returns when all parts answer: a service may be started before what it needs."""
        told = 0
        while found := await self._ask():
            if told % _TELL_EVERY == 0:
                logger.warning("waiting for %s", ", ".join(found))
            told += 1
            await asyncio.sleep(_PAUSE)

    async def until_stored(self, step: Callable[[], Awaitable[None]]) -> None:
        """Takes `step`, again while a store does not answer it: under load it may answer checks and not yet work."""
        while True:
            try:
                await step()
                return
            except StoreUnavailable as error:
                logger.warning("starting waits: %s", error)
            await asyncio.sleep(_PAUSE)
            await self.wait()

    async def _ask(self) -> list[str]:
        asked = dict(self._checks)  # more may be added meanwhile
        answers = await asyncio.gather(*map(_answers, asked.values()))
        return [part for part, answered in zip(asked, answers, strict=True) if not answered]


async def _answers(check: Check) -> bool:
    try:
        async with asyncio.timeout(_SECONDS):
            return await check()
    except (AgentkeepError, OSError, TimeoutError):
        return False


def store_check(store: KeyValueStore) -> Check:
    async def check() -> bool:
        await store.get("readiness", "")
        return True

    return check
