"""What identity puts on record: tokens asked for and given, secrets used, consents from step to step, resources
changed, and what was refused. Never a secret, a token, a code or a state.

Nothing happens that is not on record first: a secret is given, a token exchanged, a resource changed when its record is
durable, and not where it cannot be. A refusal needs no record to be one. What comes again is counted, and told once a
minute (`Tally`): so a token that lies in the vault costs a write at its first use by a session, and no more.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from agentkeep.core.acting import Tally
from agentkeep.core.call import Caller, SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import ServiceError, StoreUnavailable
from agentkeep.core.ports import Audit, AuditRecord
from agentkeep.identity.oauth2.token_endpoint import TokenRefused

__all__ = ["BROWSER", "Attempt", "Trail"]

logger = logging.getLogger(__name__)

#: Who comes back to the callback URL. Nobody has proved anything about it.
BROWSER: Final = "a browser at the callback URL"


@dataclass(slots=True)
class Attempt:
    """What `principal` tries to get or do. `workload` and `user` are there once they are proved; `resource` says what
    it is about in words, where neither provider nor workload does."""

    principal: str
    session: SessionRef | None = None
    user: User | None = None
    workload: str | None = None
    provider: str | None = None
    flow: str | None = None
    resource: str | None = None
    access_key: str | None = None

    @classmethod
    def of(
        cls, caller: Caller, *, workload: str | None = None, provider: str | None = None, flow: str | None = None
    ) -> Attempt:
        return cls(
            caller.principal, caller.session, caller.user, workload, provider, flow, access_key=caller.access_key_id
        )

    @property
    def who(self) -> tuple[object, ...]:
        """Two attempts of which this is equal are the same again."""
        issuer = self.user.issuer if self.user is not None else None
        user = self.user.id if self.user is not None else None
        return (self.principal, self.session, user, issuer, self.workload, self.provider, self.flow, self.resource)


class Trail:
    """`close` writes what waits."""

    def __init__(self, audit: Audit, clock: Clock) -> None:
        self._tally = Tally(audit, clock)
        self._audit = audit
        self._clock = clock

    async def happens(self, kind: str, did: str, by: Attempt, **details: str) -> None:
        """One record, durable when it returns. Raises StoreUnavailable: then it must not happen."""
        await self._audit.record(self._record(kind, did, by, details))

    async def repeats(self, kind: str, did: str, by: Attempt, **details: str) -> None:
        """The same, of what may happen often."""
        key = (kind, *by.who, *details.values())
        await self._tally.note(key, lambda: self._record(kind, did, by, details))

    async def ended(self, kind: str, did: str, by: Attempt, **details: str) -> None:
        """How it came out, of what was on record before. Returns in any case: it has happened."""
        try:
            await self.repeats(kind, did, by, **details)
        except StoreUnavailable as unavailable:
            logger.warning("%s %s, which is not on record: %s", by.principal, did, unavailable)

    async def refused(self, kind: str, what: str, by: Attempt, code: str, **details: str) -> None:
        """Returns in any case: that a refusal cannot be put on record does not make it less of one."""
        if code == "ResourceNotFoundException":
            by = replace(by, provider=None)  # of what is not there anybody can name any number
        try:
            await self.repeats(kind, f"was refused {what}: {code}", by, outcome="refused", code=code, **details)
        except StoreUnavailable as unavailable:
            logger.warning("%s was refused %s (%s), which is not on record: %s", by.principal, what, code, unavailable)

    @asynccontextmanager
    async def refusals(self, kind: str, what: str, by: Attempt) -> AsyncIterator[Attempt]:
        """Puts a ServiceError on record that leaves it, with `by` as it is then."""
        try:
            yield by
        except ServiceError as error:
            # Of an authorization server's refusal the caller is told its code in a sentence; it is the error's context.
            answered = error.__context__
            said = {"server": answered.error} if isinstance(answered, TokenRefused) else {}
            await self.refused(kind, what, by, error.code, **said)
            raise

    @asynccontextmanager
    async def change(self, caller: Caller, noun: str, verb: str, name: str) -> AsyncIterator[None]:
        """An operator changes the `noun` called `name` here. On record before it begins; and again if it fails."""
        by = Attempt.of(caller)
        by.resource = f"{noun} {name}"
        await self.happens("identity-change", f"asked to {verb} {by.resource}", by, action=verb)
        async with self.refusals("identity-change-refused", f"to {verb} {by.resource}", by):
            yield

    async def close(self) -> None:
        await self._tally.close()

    def _record(self, kind: str, did: str, by: Attempt, details: dict[str, str]) -> AuditRecord:
        told = {
            "workload": by.workload,
            "provider": by.provider,
            "flow": by.flow,
            "resource": by.resource,
            "issuer": by.user.issuer if by.user is not None else None,
            "access-key": by.access_key,
        }
        known = {name: value for name, value in told.items() if value is not None} | details
        whom = f" for user {by.user.id}" if by.user is not None else ""
        return AuditRecord(
            kind,
            f"{by.principal} {did}{whom}.",
            by.principal,
            by.session,
            by.user.id if by.user is not None else None,
            self._clock.now(),
            known,
        )
