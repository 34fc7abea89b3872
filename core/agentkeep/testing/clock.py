"""A clock that stands still until it is moved."""

from __future__ import annotations

from datetime import datetime, timedelta

__all__ = ["SetClock"]


class SetClock:
    """A `Clock`. Whoever sleeps on it moves it."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
