"""What is on record of sessions' ways out: like ones are counted, and told once a minute together."""

from __future__ import annotations

import logging
from typing import Final

from agentkeep.core.acting import Tally
from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import StoreUnavailable
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Audit, AuditRecord
from agentkeep.runtime.egress.destinations import Destination

__all__ = ["OPENED", "REFUSED", "EgressRecords"]

logger = logging.getLogger(__name__)

OPENED: Final = "egress-opened"
REFUSED: Final = "egress-refused"


class EgressRecords:
    """`close` writes what waits."""

    def __init__(self, audit: Audit, clock: Clock, deployment: Deployment) -> None:
        self._tally = Tally(audit, clock)
        self._clock = clock
        self._deployment = deployment

    async def opened(self, session: SessionRef, user: User | None, wanted: Destination, rule: str) -> None:
        """On record when it returns. Raises StoreUnavailable: then it is not, and must not be opened."""
        await self._tally.note(
            (OPENED, session, wanted, rule),
            lambda: self._record(
                OPENED, "An agent reached a host outside", session, user,
                {"host": wanted.host, "port": str(wanted.port), "rule": rule},
            ),
        )  # fmt: skip

    async def refused(
        self, session: SessionRef, user: User | None, wanted: Destination | None, rule: str, code: str
    ) -> None:
        """Of one session, those of one code are told together by the first, whatever hosts an agent thinks of. That it
        cannot be recorded makes it no less of a refusal."""
        details = {"rule": rule, "code": code}
        if wanted is not None:
            details |= {"host": wanted.host, "port": str(wanted.port)}
        try:
            await self._tally.note(
                (REFUSED, session, code),
                lambda: self._record(REFUSED, "Refused an agent a host outside", session, user, details),
            )
        except StoreUnavailable as error:
            logger.warning("a refusal of egress is not on record: %s", error)

    def _record(
        self, kind: str, summary: str, session: SessionRef, user: User | None, details: dict[str, str]
    ) -> AuditRecord:
        principal = f"arn:aws:sts::{self._deployment.account}:assumed-role/{session.runtime_id}/{session.session_id}"
        return AuditRecord(
            kind, summary, principal, session, user.id if user is not None else None, self._clock.now(), details
        )

    async def close(self) -> None:
        await self._tally.close()
