"""How many environments wait in a warm pool: a fixed number, or as many as demand asks for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

__all__ = ["MOST", "WARM_POOL_TAG", "Demand", "PoolSize", "pool_size"]

WARM_POOL_TAG: Final = "agentkeep:warm-pool"
MOST: Final = 100  # in one pool
_AUTO: Final = "auto"
_AUTO_MOST: Final = 10
_REMEMBERED: Final = 1000  # arrivals


@dataclass(frozen=True, slots=True)
class PoolSize:
    """`follows_demand`: between 0 and `most`; else `most`."""

    most: int
    follows_demand: bool = False


def pool_size(text: str) -> PoolSize:
    """Of the setting's or tag's value: `3`, `0`, `auto`, `auto:5`. Raises ValueError."""
    name, colon, number = text.partition(":")
    follows_demand = name == _AUTO
    digits = (number if colon else str(_AUTO_MOST)) if follows_demand else text
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 4 or int(digits) > MOST:
        raise ValueError(
            f"is the size of a warm pool: a number up to {MOST}, 'auto' (follows demand, up to {_AUTO_MOST}) or "
            f"'auto:N' (up to N); not {text!r}"
        )
    return PoolSize(int(digits), follows_demand)


class Demand:
    """When sessions of one endpoint began. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=_REMEMBERED)

    def arrived(self, now: float) -> None:
        self._arrivals.append(now)

    def size(self, now: float, start_seconds: float, memory: float) -> int:
        """As many as began, within the last `memory` seconds, in the busiest stretch that a start takes: a pool of that
        size has one for each of them, and is full again when the next stretch begins. 0 when none came."""
        while self._arrivals and self._arrivals[0] < now - memory:
            self._arrivals.popleft()
        window: deque[float] = deque()
        most = 0
        for arrival in self._arrivals:
            window.append(arrival)
            while window[0] < arrival - start_seconds:
                window.popleft()
            most = max(most, len(window))
        return most
