"""A warm pool: environments of one version and endpoint, started ahead, healthy, and nobody's until they are claimed.

STARTING ──▶ ready ──▶ taken ──▶ bound to a session, and ended with it
    │          │          └────▶ put back (the session could not begin)
    └──────────┴───────────────▶ ended (surplus, too old, drained, dead)
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from agentkeep.core.clock import Clock
from agentkeep.core.errors import AgentkeepError, DependencyError, ServiceError
from agentkeep.runtime.agents.artifacts import ArtifactError
from agentkeep.runtime.agents.prepared import PreparedVersion, PreparedVersions
from agentkeep.runtime.drivers.driver import Environment
from agentkeep.runtime.environments.late_binding import LateBinding
from agentkeep.runtime.environments.making import Environments
from agentkeep.runtime.records import Version

__all__ = ["Pooled", "WarmPool"]

log = logging.getLogger(__name__)

FIRST_PAUSE = 2.0
LONGEST_PAUSE = 300.0


@dataclass(eq=False, slots=True)
class Pooled:
    """`since`: monotonic seconds."""

    pool: WarmPool
    environment: Environment
    prepared: PreparedVersion
    binding: LateBinding
    since: float
    watching: asyncio.Task[None] | None = field(default=None)

    def bind(self, endpoint: Callable[[], asyncio.Protocol], log: Callable[[bytes], None]) -> None:
        """It is a session's from now on, and never anybody else's."""
        if self.watching is not None:
            self.watching.cancel()
        self.binding.bind(endpoint, log)


class WarmPool:
    """`changed` is called when one has come, gone or failed to start. `start_seconds`: what a start took lately."""

    def __init__(
        self,
        version: Version,
        endpoint: str,
        prepared: PreparedVersions,
        environments: Environments,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self.version = version
        self.endpoint = endpoint
        self.start_seconds = 1.0
        self.problem = ""  # why the last start failed; empty after one that did not
        self._prepared = prepared
        self._environments = environments
        self._clock = clock
        self._changed = changed
        self._ready: deque[Pooled] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._not_before = 0.0
        self._drained = False

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def starting(self) -> int:
        return len(self._starting)

    # Claiming.

    def take(self) -> Pooled | None:
        """One that is ready. It is the caller's: to bind, to put back or to discard."""
        return self._ready.popleft() if self._ready else None

    def put_back(self, pooled: Pooled) -> None:
        """One that was taken and not bound."""
        if self._drained or pooled.watching is None or pooled.watching.done():
            self.discard(pooled)
        else:
            self._ready.append(pooled)
            self._changed()

    def discard(self, pooled: Pooled) -> asyncio.Task[None]:
        """Ends it, in a task of its own."""
        if pooled.watching is not None:
            pooled.watching.cancel()
        task = asyncio.create_task(self._stop(pooled.environment), name=f"warm-pool-end-{pooled.environment.id}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _stop(self, environment: Environment) -> None:
        try:
            await environment.stop(0)
        except DependencyError as error:
            log.warning("an environment of a warm pool did not stop: %s", error)

    # Filling.

    def fit(self, size: int, max_age: float) -> int:
        """Ends what is too many, the oldest first; returns how many are to be started. One that is too old is replaced
        before it is ended, so that there is no gap; but if that takes longer than it should, it is ended all the
        same."""
        now = self._clock.monotonic()
        for pooled in [each for each in self._ready if now - each.since >= 2 * max_age]:
            self._ready.remove(pooled)
            self.discard(pooled)
        while len(self._ready) > size:
            oldest = min(self._ready, key=lambda pooled: pooled.since)
            self._ready.remove(oldest)
            self.discard(oldest)
        fresh = sum(1 for pooled in self._ready if now - pooled.since < max_age)
        for task in list(self._starting)[: max(0, fresh + len(self._starting) - size)]:
            task.cancel()
        if now < self._not_before:
            return 0
        wanted = size - fresh - len(self._starting)
        return max(0, min(wanted, 1) if self._failures else wanted)

    @property
    def next_attempt(self) -> float:
        """Seconds until a start may be tried again after failures."""
        return max(0.0, self._not_before - self._clock.monotonic())

    def start(self) -> None:
        """One more, ahead."""
        task = asyncio.create_task(self._start(), name=f"warm-pool-{self.version.runtime_id}")
        self._starting.add(task)
        task.add_done_callback(self._started)

    async def _start(self) -> None:
        begun = self._clock.monotonic()
        binding = LateBinding()
        try:
            prepared = await self._prepared.get(self.version)
            environment = await self._environments.make(prepared, self.endpoint, binding.endpoint, binding.log)
        except (DependencyError, ServiceError, ArtifactError) as error:
            self._failed(str(error))
            return
        now = self._clock.monotonic()
        pooled = Pooled(self, environment, prepared, binding, now)
        pooled.watching = asyncio.create_task(self._watch(pooled))
        self.start_seconds = max(now - begun, 0.1)
        self._failures, self._not_before, self.problem = 0, 0.0, ""
        self.put_back(pooled)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("starting ahead failed", exc_info=error)
            self._failed("an internal error; the platform's log has the details")
        self._changed()

    async def _watch(self, pooled: Pooled) -> None:
        try:
            reason = (await pooled.environment.wait()).reason
        except AgentkeepError as error:
            reason = f"the driver lost it ({error})"
        if pooled in self._ready:
            self._ready.remove(pooled)
            self._failed(f"it ended while it waited: {reason}")
            self._changed()

    def _failed(self, reason: str) -> None:
        """Sessions start cold meanwhile, and tell their callers what is wrong if the same happens to them."""
        pause = min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE)
        self._failures += 1
        self._not_before = self._clock.monotonic() + pause
        self.problem = reason.splitlines()[0] if reason else "no reason given"
        log.warning(
            "no environment of %s (%s, version %d) could be started ahead: %r; again in %g s",
            self.version.runtime_id,
            self.endpoint,
            self.version.number,
            self.problem,
            pause,
        )

    # Ending.

    def drain(self) -> None:
        """Ends what is ready and what is being started; what is taken and put back later as well."""
        self._drained = True
        while self._ready:
            self.discard(self._ready.popleft())
        for task in self._starting:
            task.cancel()

    def give_way(self) -> asyncio.Task[None] | None:
        """Ends one, to make room elsewhere: the task that does; None if there is none."""
        if self._ready:
            return self.discard(self._ready.popleft())
        for task in self._starting:
            if not task.cancelling():
                task.cancel()
                return task
        return None

    @property
    def is_drained(self) -> bool:
        """Nothing is left of it."""
        return self._drained and not self._starting and not self._ending

    async def drained(self) -> None:
        """Returns when nothing is left of what was ended."""
        while tasks := self._starting | self._ending:
            await asyncio.wait(tasks)
