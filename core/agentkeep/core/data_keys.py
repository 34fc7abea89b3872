"""Data keys in use: unwrapped ones are remembered for a while, so that a key service that is away stops nothing."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from agentkeep.core.clock import Clock
from agentkeep.core.errors import KeyServiceUnavailable
from agentkeep.core.key_service import Context, DataKey, KeyService
from agentkeep.core.key_settings import KeySettings

__all__ = ["DataKeys"]

_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Unwrapped:
    plain: bytes = field(repr=False)
    since: float


class DataKeys:
    """A key older than `cache` seconds is asked for again, and used up to `outage` seconds longer while the key service
    does not answer; what it refuses is forgotten."""

    def __init__(self, service: KeyService, clock: Clock, settings: KeySettings | None = None) -> None:
        self._service = service
        self._clock = clock
        self._settings = settings or KeySettings()
        self._known: OrderedDict[tuple[bytes, frozenset[tuple[str, str]]], _Unwrapped] = OrderedDict()

    async def generate(self, context: Context, arn: str | None = None) -> DataKey:
        """As KeyService."""
        made = await self._service.generate(context, arn)
        self._remember(made.wrapped, context, made.plain)
        return made

    async def unwrap(self, wrapped: bytes, context: Context) -> bytes:
        """As KeyService."""
        known = self._known.get((wrapped, frozenset(context.items())))
        age = self._clock.monotonic() - known.since if known is not None else 0.0
        if known is not None and age < self._settings.cache:
            return known.plain
        try:
            plain = await self._service.unwrap(wrapped, context)
        except KeyServiceUnavailable:
            if known is not None and age < self._settings.cache + self._settings.outage:
                return known.plain
            raise
        except BaseException:
            self._known.pop((wrapped, frozenset(context.items())), None)
            raise
        self._remember(wrapped, context, plain)
        return plain

    async def erase(self, wrapped: bytes) -> None:
        """As KeyService; and nothing is opened here any more with what was remembered of it."""
        for place in [place for place in self._known if place[0] == wrapped]:
            del self._known[place]
        await self._service.erase(wrapped)

    def _remember(self, wrapped: bytes, context: Context, plain: bytes) -> None:
        place = wrapped, frozenset(context.items())
        self._known[place] = _Unwrapped(plain, self._clock.monotonic())
        self._known.move_to_end(place)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
