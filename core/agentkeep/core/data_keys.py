"""Data keys in use: unwrapped ones are remembered for a while, so that a key service that is away stops nothing."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from agentkeep.core.clock import Clock
from agentkeep.core.errors import KeyServiceUnavailable
from agentkeep.core.key_service import Context, DataKey, KeyService
from agentkeep.core.key_settings import KeySettings

__all__ = ["DataKeys"]

_MOST: Final = 10_000
#: Seconds between two questions while the key service does not answer: whoever asks waits for it.
_PAUSE: Final = 10.0

_Place = tuple[bytes, frozenset[tuple[str, str]]]


@dataclass(slots=True)
class _Unwrapped:
    """`until`: when the key service is asked again."""

    plain: bytes = field(repr=False)
    since: float
    until: float


class DataKeys:
    """A key older than `cache` seconds is asked for again, and used up to `outage` seconds longer while the key service
    does not answer; what it refuses is forgotten. Of those who ask for the same key at one time, one does."""

    def __init__(self, service: KeyService, clock: Clock, settings: KeySettings | None = None) -> None:
        self._service = service
        self._clock = clock
        self._settings = settings or KeySettings()
        self._known: OrderedDict[_Place, _Unwrapped] = OrderedDict()
        self._asking: dict[_Place, asyncio.Task[bytes]] = {}

    async def generate(self, context: Context, arn: str | None = None) -> DataKey:
        """As KeyService."""
        made = await self._service.generate(context, arn)
        self._remember(_place(made.wrapped, context), made.plain)
        return made

    async def unwrap(self, wrapped: bytes, context: Context) -> bytes:
        """As KeyService."""
        place = _place(wrapped, context)
        known = self._known.get(place)
        if known is not None and self._clock.monotonic() < known.until:
            return known.plain
        asking = self._asking.get(place)
        if asking is None:
            asking = self._asking[place] = asyncio.create_task(self._ask(place, wrapped, context))
            asking.add_done_callback(lambda done: self._answered(place, done))
        return await asyncio.shield(asking)

    async def erase(self, wrapped: bytes) -> None:
        """As KeyService; and nothing is opened here any more with what was remembered of it."""
        self._forget(wrapped)
        await self._service.erase(wrapped)
        self._forget(wrapped)

    async def _ask(self, place: _Place, wrapped: bytes, context: Context) -> bytes:
        try:
            plain = await self._service.unwrap(wrapped, context)
        except KeyServiceUnavailable:
            known, now = self._known.get(place), self._clock.monotonic()
            if known is None or (last := known.since + self._settings.cache + self._settings.outage) <= now:
                raise
            known.until = min(now + _PAUSE, last)
            return known.plain
        except Exception:
            self._known.pop(place, None)
            raise
        self._remember(place, plain)
        return plain

    def _answered(self, place: _Place, task: asyncio.Task[bytes]) -> None:
        del self._asking[place]
        if not task.cancelled():
            task.exception()  # seen, even where all who asked have gone

    def _remember(self, place: _Place, plain: bytes) -> None:
        now = self._clock.monotonic()
        self._known[place] = _Unwrapped(plain, now, now + self._settings.cache)
        self._known.move_to_end(place)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)

    def _forget(self, wrapped: bytes) -> None:
        for place in [place for place in self._known if place[0] == wrapped]:
            del self._known[place]


def _place(wrapped: bytes, context: Context) -> _Place:
    return wrapped, frozenset(context.items())
