"""All runs under way, and for a short while those that are over: found again by their clients' retries."""

from __future__ import annotations

from agentkeep.runtime.pump.limits import PumpLimits
from agentkeep.runtime.pump.run import Run

__all__ = ["Runs"]

_OVERHEAD = 1024  # roughly what a run holds besides its answer, bytes


class Runs:
    """A run is forgotten when its client has asked for something else on the same connection (so it got the answer),
    when `retry_grace` has passed, or when the answers kept are too many."""

    def __init__(self, limits: PumpLimits) -> None:
        self._limits = limits
        self._active: set[Run] = set()
        self._by_key: dict[object, Run] = {}
        self._kept: dict[Run, float] = {}  # when each ended; oldest first
        self._kept_size = 0
        self.now = 0.0

    def add(self, run: Run) -> None:
        self._active.add(run)
        if run.key is None:
            return
        before = self._by_key.setdefault(run.key, run)
        if before is run:
            return
        if before.over:
            self._drop(before)
            self._by_key[run.key] = run
        else:
            run.key = None  # two first attempts of one invocation: only one of them can be retried

    def get(self, key: object) -> Run | None:
        return self._by_key.get(key)

    def ended(self, run: Run) -> None:
        self._active.discard(run)
        if run.key is None:
            return
        if not run.attachable:
            self._drop(run)
            return
        self._kept[run] = self.now
        self._kept_size += _OVERHEAD + run.recorded_size
        while self._kept_size > self._limits.kept_answers:
            self._drop(next(iter(self._kept)))

    def release(self, run: Run) -> None:
        """From now on no retry finds it."""
        if self._by_key.get(run.key) is run:
            del self._by_key[run.key]
        run.key = None

    def forget(self, run: Run) -> None:
        """Nobody will ask for it again. One under way stays until it ends."""
        if run.over:
            self._drop(run)

    def sweep(self, now: float) -> None:
        self.now = now
        for run in [run for run in self._active if run.deadline < now]:
            run.expire()
        for run in [run for run in self._active if run.replica_lost]:
            run.on_agent_lost()
        oldest = now - self._limits.retry_grace
        for run in [run for run in self._active if run.detached_since < oldest]:
            run.give_up()
        while self._kept and (run := next(iter(self._kept))) and self._kept[run] < oldest:
            self._drop(run)

    def give_up(self) -> None:
        """At the end of the platform."""
        for run in list(self._active):
            run.give_up()

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._active)

    def _drop(self, run: Run) -> None:
        if self._kept.pop(run, None) is not None:
            self._kept_size -= _OVERHEAD + run.recorded_size
        if self._by_key.get(run.key) is run:
            del self._by_key[run.key]
