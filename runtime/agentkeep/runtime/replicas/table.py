"""The table of replicas: which there are, where each is reached, which of them live, and who looks after the dead.

A replica lives as long as it is registered, and proves it by beats, small writes. None looks at another's clock: a
replica whose beat has not changed for a whole lease, as seen from here, may be declared dead; the declaration happens
only if neither its beat nor its registration has changed meanwhile. Whoever shares the data volume need not wait: the
lock on the dead one's slot is free (`slots.py`).

    registered ──▶ declared dead: heir named ──▶ forgotten      (its sessions taken over or ended by the heir)
         └──────▶ retired (it ended its sessions itself)

The other side of the bargain: a replica that could not beat for a whole lease serves nothing until it has (`holds`),
and one that finds itself declared dead has lost every session (`DeclaredDead`). Both count from before the write, so
its lease has always run out when another may think so.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agentkeep.core.clock import Clock
from agentkeep.core.errors import ConditionFailed, StoreUnavailable
from agentkeep.runtime.replicas.slots import Slot
from agentkeep.storage.interface import ABSENT, Check, Delete, KeyValueStore, Put, Write, partition
from agentkeep.storage.records import Stored, decode, encode

__all__ = ["DeclaredDead", "Place", "Replica", "Replicas"]

log = logging.getLogger(__name__)

REPLICAS = partition("runtime", "replicas")
BEATS = partition("runtime", "replica-beats")
_MOST: Final = 1000
_POLL_SECONDS: Final = 0.2


class DeclaredDead(Exception):
    """Another replica has declared this one dead: its sessions are others' now."""


@dataclass(frozen=True)
class Replica:
    """A replica's registration. `incarnation` is unlike at every registration. `public` and `internal`: the listeners
    as `host:port` for other replicas; None where it can be reached by none. `heir`: who declared it dead and looks
    after its sessions."""

    name: str
    incarnation: str
    public: str | None = None
    internal: str | None = None
    lock: str | None = None
    heir: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Of this process among the replicas: its name, its listeners as others reach them, its slot of the volume."""

    name: str
    public: str | None = None
    internal: str | None = None
    slot: Slot | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    registration: bytes
    beat: bytes | None
    since: float


class Replicas:
    """`name` is this replica's, the same after a restart with the same data. Without `public` it has no part in the
    bargain above: it is alone, and goes on while the store is away."""

    def __init__(
        self,
        store: KeyValueStore,
        clock: Clock,
        name: str,
        lease: float,
        public: str | None = None,
        internal: str | None = None,
        slot: Slot | None = None,
    ) -> None:
        self.name = name
        self.lease = lease
        self._store = store
        self._clock = clock
        self._public = public
        self._internal = internal
        self._slot = slot
        self._registration: bytes | None = None
        self._beats = 0
        self._until = 0.0  # on the clock's monotonic seconds
        self._seen: dict[str, _Seen] = {}
        self._known: dict[str, Replica] = {}
        self._keeping = asyncio.Lock()
        self._lost: Callable[[], None] = lambda: None

    def when_lost(self, lost: Callable[[], None]) -> None:
        """`lost` is called when this replica finds itself declared dead, before anything else happens."""
        self._lost = lost

    @property
    def is_alone(self) -> bool:
        return self._public is None

    # This replica.

    def holds(self) -> bool:
        """Whether no other can think that this replica is dead."""
        return self._public is None or (self._registration is not None and self._clock.monotonic() < self._until)

    async def confirm(self) -> None:
        """Returns when this replica holds. Raises StoreUnavailable."""
        if not self.holds():
            await self.keep()

    async def keep(self) -> None:
        """Beats; registers anew if it was declared dead. Raises StoreUnavailable."""
        async with self._keeping:
            begun = self._clock.monotonic()
            if self._registration is not None and self._until - begun > self.lease * 0.9:
                return  # somebody else just has
            try:
                await self._beat(begun)
            except DeclaredDead:
                if self._registration is not None:
                    log.error("this replica was declared dead by another: its sessions are lost")
                self._registration = None
                self._lost()
                await self.register()

    async def _beat(self, begun: float) -> None:
        """Raises DeclaredDead, StoreUnavailable."""
        if self._registration is None:
            raise DeclaredDead(self.name)
        self._beats += 1
        writes: list[Write] = [
            Check(REPLICAS, self.name, self._registration),
            Put(BEATS, self.name, b"%d" % self._beats),
        ]
        try:
            await self._store.transact(writes)
        except ConditionFailed:
            raise DeclaredDead(self.name) from None
        self._until = begun + self.lease

    async def register(self) -> None:
        """Waits while another looks after what this one left when it was declared dead. Raises StoreUnavailable."""
        deadline = self._clock.monotonic() + 3 * self.lease
        while True:
            raw = await self._store.get(REPLICAS, self.name)
            before = None if raw is None else decode(Replica, raw)
            late = self._clock.monotonic() >= deadline
            if before is not None and before.heir is not None and not late and await self._lives(before.heir):
                await asyncio.sleep(_POLL_SECONDS)
                continue
            begun = self._clock.monotonic()
            lock = self._slot.lock if self._slot is not None else None
            own = encode(Replica(self.name, secrets.token_hex(8), self._public, self._internal, lock))
            try:
                await self._store.transact(
                    [Put(REPLICAS, self.name, own, ABSENT if raw is None else raw), Put(BEATS, self.name, b"0")]
                )
            except ConditionFailed:
                continue
            self._registration, self._until, self._beats = own, begun + self.lease, 0
            return

    async def retire(self) -> None:
        """At the end: what it had is ended."""
        registration, self._registration = self._registration, None
        if registration is None:
            return
        try:
            await self._store.transact([Delete(REPLICAS, self.name, registration), Delete(BEATS, self.name)])
        except (ConditionFailed, StoreUnavailable):
            pass  # it was declared dead, or will be

    def mine(self) -> Sequence[Write]:
        """For transactions that only a living replica may do."""
        if self._registration is None and self.is_alone:
            return ()
        return [Check(REPLICAS, self.name, self._registration or b"not registered")]

    # The others.

    async def find(self, name: str) -> Stored[Replica] | None:
        raw = await self._store.get(REPLICAS, name)
        if raw is None:
            self._known.pop(name, None)
            return None
        found = Stored(decode(Replica, raw), raw)
        self._known[name] = found.record
        return found

    async def responsible(self, name: str) -> Replica | None:
        """The living replica that answers for the sessions of `name`: itself, or the heir of a dead one, who may be
        this replica; None: nobody does any more."""
        for _ in range(5):
            found = await self.find(name)
            if found is None or found.record.heir is None:
                return None if found is None else found.record
            name = found.record.heir
        return None

    def known_to_live(self, replica: Replica) -> bool:
        """As of the last look at the table."""
        known = self._known.get(replica.name)
        return known is not None and known.heir is None and known.incarnation == replica.incarnation

    async def _lives(self, name: str) -> bool:
        found = await self.find(name)
        return found is not None and found.record.heir is None

    async def observe(self) -> list[str]:
        """Looks at all others, and declares dead who is. Returns whose heir this replica is, and has to look after.
        Raises StoreUnavailable."""
        registered = {item.sort: item.value for item in await self._store.query(REPLICAS, limit=_MOST)}
        beats = {item.sort: item.value for item in await self._store.query(BEATS, limit=_MOST)}
        now = self._clock.monotonic()
        self._known = {name: decode(Replica, raw) for name, raw in registered.items()}
        inherited = []
        for name, other in list(self._known.items()):
            if name == self.name:
                continue
            raw = registered[name]
            if other.heir is not None:
                heir = self._known.get(other.heir)
                heir_lives = heir is not None and heir.heir is None
                if other.heir == self.name or (not heir_lives and await self._inherit(other, [], raw)):
                    inherited.append(name)
            elif self._has_ended(other):
                if await self._inherit(other, [], raw):
                    inherited.append(name)
            else:
                beat = beats.get(name)
                seen = self._seen.get(name)
                if seen is None or (seen.registration, seen.beat) != (raw, beat):
                    self._seen[name] = _Seen(raw, beat, now)
                elif now - seen.since > self.lease:
                    unchanged = Check(BEATS, name, ABSENT if beat is None else beat)
                    if await self._inherit(other, [unchanged], raw):
                        inherited.append(name)
        for name in self._seen.keys() - registered.keys():
            del self._seen[name]
        return inherited

    async def suspect(self, name: str) -> bool:
        """Whether a replica that takes no connections is dead, now that it was looked at. Raises StoreUnavailable."""
        found = await self.find(name)
        if found is None or found.record.heir is not None:
            return True
        return self._has_ended(found.record) and await self._inherit(found.record, [], found.raw)

    def _has_ended(self, other: Replica) -> bool:
        return self._slot is not None and other.lock is not None and self._slot.has_ended(other.lock)

    async def inherit(self, name: str) -> bool:
        """For sessions of a replica of which nothing else is known."""
        return await self._inherit(Replica(name, ""), [], None)

    async def _inherit(self, dead: Replica, conditions: Sequence[Write], raw: bytes | None) -> bool:
        """Whether this replica declared it dead: exactly one does."""
        expect = ABSENT if raw is None else raw
        declared = replace(dead, heir=self.name)
        writes = [*conditions, *self.mine(), Put(REPLICAS, dead.name, encode(declared), expect)]
        try:
            await self._store.transact([*writes, Delete(BEATS, dead.name)])
        except ConditionFailed:
            return False  # it lives after all, another was faster, or we are dead ourselves
        self._known[dead.name] = declared
        log.warning("replica %s is dead; this one looks after what it left", dead.name)
        return True

    async def forget(self, name: str) -> None:
        """Nothing is left of a replica whose heir this one is."""
        found = await self.find(name)
        if found is None or found.record.heir != self.name:
            return
        try:
            await self._store.transact([Delete(REPLICAS, name, found.raw)])
        except (ConditionFailed, StoreUnavailable):
            pass  # it is looked at again
