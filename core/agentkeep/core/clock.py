"""Time, so that tests need not wait for it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class Clock(Protocol):
    """Wall time for what is stored and shown, monotonic time for durations."""

    def now(self) -> datetime:
        """Wall time, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds; only differences mean anything."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def sleep_until(event: asyncio.Event, clock: Clock, at_most: float) -> None:
    """Returns when the event is set, or after so many seconds."""
    waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(at_most))]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970, the resolution in which AgentCore orders events. Rounded down, exactly: the detour by
    a float of seconds is one off for some."""
    return (moment - _EPOCH) // _MILLISECOND


def from_epoch_ms(milliseconds: int) -> datetime:
    """The moment, aware, UTC, exactly; so `from_epoch_ms(epoch_ms(moment))` is it without its microseconds."""
    seconds, rest = divmod(milliseconds, 1000)
    return _EPOCH + timedelta(0, seconds, rest * 1000)
