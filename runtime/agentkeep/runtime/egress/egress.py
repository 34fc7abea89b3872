"""What decides whether a session may reach a host, and reaches it: session, rule, record, addresses, connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakKeyDictionary

from agentkeep.core.addresses import Address, Standing, standing
from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ServiceError, StoreUnavailable
from agentkeep.runtime.egress.destinations import BadDestination, Destination, parse_destination
from agentkeep.runtime.egress.limits import EgressLimits
from agentkeep.runtime.egress.names import Names
from agentkeep.runtime.egress.records import EgressRecords
from agentkeep.runtime.egress.rules import SETTING, EgressRule, EgressRules
from agentkeep.runtime.sessions.living import LivingSessions
from agentkeep.runtime.sessions.session import Cuttable, Session

__all__ = ["Egress", "EgressRefused", "Place"]

_LONGEST: Final = 400
_AGAIN: Final = "Try again in a moment"


class EgressRefused(Exception):
    """`status`, `code` and the message, one line of ASCII, are for the agent; `kept`: whether it is put on record."""

    def __init__(self, status: int, code: str, message: str, *, kept: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = "".join(one if " " <= one <= "~" else "?" for one in message[:_LONGEST])
        self.kept = kept


class _OfSession:
    def __init__(self, limits: EgressLimits) -> None:
        self.open = 0
        self.notes = 0
        self.hosts: set[Destination] = set()
        self.lookups = asyncio.Semaphore(limits.lookups)


class Place:
    """One connection's, in its session and among all; it ends with the session. `wanted` and `rule` once known."""

    def __init__(self, ref: SessionRef, session: Session, of_session: _OfSession) -> None:
        self.ref = ref
        self.session = session
        self.of_session = of_session
        self.wanted: Destination | None = None
        self.rule: EgressRule | None = None


class Egress:
    """`rules` None: nothing is open."""

    def __init__(
        self,
        rules: EgressRules | None,
        living: LivingSessions,
        records: EgressRecords,
        names: Names,
        limits: EgressLimits,
    ) -> None:
        self.limits = limits
        self._rules = rules
        self._living = living
        self._records = records
        self._names = names
        self._open = 0
        self._of_sessions: WeakKeyDictionary[Session, _OfSession] = WeakKeyDictionary()
        self._recording: set[asyncio.Task[None]] = set()

    def serves(self, runtime_id: str) -> bool:
        """Whether some rule is for this agent: it is then told of the proxy."""
        return self._rules is not None and self._rules.name(runtime_id)

    async def close(self) -> None:
        self._names.close()
        if self._recording:
            await asyncio.wait(self._recording)
        await self._records.close()

    # A connection, step by step. All raise EgressRefused.

    def take(self, ref: SessionRef, connection: Cuttable) -> Place:
        """To be given back (`leave`). From now on `connection` is cut when the session ends."""
        try:
            session = self._living.find(ref)
        except ServiceError as error:
            raise EgressRefused(403, "SessionEnded", error.message) from None
        of_session = self._of_sessions.get(session)
        if of_session is None:
            of_session = self._of_sessions[session] = _OfSession(self.limits)
        if of_session.open >= self.limits.connections_of_session or self._open >= self.limits.connections:
            refused = EgressRefused(
                429, "TooManyConnections", "Too many connections are open to hosts outside. Close some, or try again"
            )
            self._record(refused, ref, session)
            raise refused
        of_session.open += 1
        self._open += 1
        session.track(connection)
        return Place(ref, session, of_session)

    def leave(self, place: Place, connection: Cuttable) -> None:
        place.session.untrack(connection)
        place.of_session.open -= 1
        self._open -= 1

    async def admit(self, place: Place, authority: bytes) -> None:
        """By the rules, to a session that has its keys; on record."""
        try:
            wanted = place.wanted = parse_destination(authority)
        except BadDestination as error:
            raise EgressRefused(400, "BadDestination", f"This is no host to connect to: {error}") from None
        rule = place.rule = self._rules.choose(place.ref.runtime_id, wanted) if self._rules is not None else None
        if rule is None:
            raise EgressRefused(403, "NoRule", f"No rule of {SETTING} lets this agent reach {wanted}")
        hosts = place.of_session.hosts
        if wanted not in hosts and len(hosts) >= self.limits.hosts:
            raise EgressRefused(429, "TooManyHosts", f"A session reaches at most {self.limits.hosts} different hosts")
        try:
            await self._living.credentials(place.ref)
        except StoreUnavailable as error:
            raise _unavailable("The session's keys cannot be looked at now") from error
        except ServiceError as error:
            status = 503 if error.status == 503 else 403
            raise EgressRefused(status, error.code, error.message) from error
        hosts.add(wanted)
        try:
            await self._records.opened(place.ref, place.session.user, wanted, rule.name)
        except StoreUnavailable as error:
            raise _unavailable(f"A connection to {wanted} cannot be put on record now, and so is not made") from error

    async def connect(self, place: Place, protocol: Callable[[], asyncio.Protocol]) -> None:
        """To an address that was looked at, never to a name."""
        wanted, rule, limits = place.wanted, place.rule, self.limits
        assert wanted is not None and rule is not None, "it was admitted"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limits.connect) as total:
                addresses = self._checked(wanted, rule, await self._addresses(place, wanted))[: limits.addresses]
                for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
                    ends = total.when()
                    assert ends is not None
                    try:
                        # Of many, one that does not answer leaves time for the others.
                        async with asyncio.timeout_at(loop.time() + (ends - loop.time()) / left):
                            await loop.create_connection(protocol, str(address), wanted.port)
                        return
                    except (OSError, TimeoutError) as error:
                        failed: Exception = error
        except TimeoutError as error:
            failed = error
        if isinstance(failed, TimeoutError):
            raise EgressRefused(504, "NoAnswer", f"{wanted} does not answer", kept=False) from failed
        raise EgressRefused(502, "NotReached", f"{wanted} cannot be connected to", kept=False) from failed

    async def _addresses(self, place: Place, wanted: Destination) -> Iterable[Address]:
        if wanted.address is not None:
            return (wanted.address,)
        try:
            async with place.of_session.lookups:
                return await self._names.addresses(wanted.host)
        except (OSError, UnicodeError) as error:
            raise EgressRefused(502, "NotResolved", f"{wanted.host} cannot be resolved", kept=False) from error

    @staticmethod
    def _checked(wanted: Destination, rule: EgressRule, addresses: Iterable[Address]) -> list[Address]:
        """Of `addresses` those that may be connected to."""
        good = [one for one in addresses if standing(one, rule.networks) in (Standing.PUBLIC, Standing.OPENED)]
        if not good:
            raise EgressRefused(
                403,
                "AddressRefused",
                f"{wanted} has no public address, nor one in a network that its rule opens (networks in {SETTING})",
            )
        return good

    # Refusals.

    def tell(self, place: Place, refused: EgressRefused) -> None:
        """To whoever reads the session's log, too: clients may keep an answer's status line to themselves."""
        place.of_session.notes += 1
        if place.of_session.notes <= self.limits.notes:
            place.session.log.note(f"no way out ({refused.code}): {refused.message}")
        if refused.kept:
            self._record(refused, place.ref, place.session, place)

    def _record(self, refused: EgressRefused, ref: SessionRef, session: Session, place: Place | None = None) -> None:
        """In the background: it is refused already."""
        wanted, rule = (place.wanted, place.rule) if place is not None else (None, None)
        user, named = session.user, rule.name if rule is not None else "none"
        task = asyncio.create_task(self._records.refused(ref, user, wanted, named, refused.code), name="audit")
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)


def _unavailable(message: str) -> EgressRefused:
    return EgressRefused(503, "ServiceUnavailable", f"{message}. {_AGAIN}", kept=False)
