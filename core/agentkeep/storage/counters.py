"""Counters that never overshoot: rate limits and budgets, exact whatever the number of replicas.

One call is one atomic step in the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Counter", "CounterStore", "Exceeded"]


@dataclass(frozen=True, slots=True)
class Counter:
    """`amount` (0 or more) is added to the counter `key` if the sum stays within `limit`.

    `window_ms`: the counter begins at zero with each window of this length of the store's clock (fixed windows, aligned
    to the epoch); None: it never does. It is forgotten `keep_ms` after it was last written (without a window). One key
    with two windows, or with and without one, is two counters.
    """

    key: str
    amount: int
    limit: int
    window_ms: int | None = None
    keep_ms: int = 30 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Exceeded:
    """`index` of the counter that has no room for its amount; `value` is what it stands at; `retry_after_ms` until its
    window ends, None where it has none."""

    index: int
    value: int
    retry_after_ms: int | None


class CounterStore(Protocol):
    """Raises StoreUnavailable when the store does not answer; the amounts may then have been added."""

    async def take(self, counters: Sequence[Counter]) -> Exceeded | None:
        """Adds all the amounts or none: the first counter without room is returned."""
        ...

    async def give_back(self, key: str, amount: int, token: str) -> None:
        """Takes `amount` off a counter without a window, never below zero; once for each `token` (kept with the
        counter). A negative amount adds, whatever the limit. Where there is no such counter, nothing happens."""
        ...

    async def value(self, key: str) -> int:
        """What a counter without a window stands at; 0 where there is none."""
        ...
