"""Raises alerts on behalf of a refusal, and never stands in its way.

The refusal holds whatever happens here: a store that is away delays it by no more than `PATIENCE` and changes nothing
of it; then the log has the alert. A caller who leaves early does not stop it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from agentkeep.core.acting import Tally
from agentkeep.core.call import Call, Caller, SessionRef
from agentkeep.core.clock import Clock
from agentkeep.core.errors import CrossAgentAccess, CrossUserAccess, RoleRefused
from agentkeep.core.ports import Alert, Alerts, Audit, AuditRecord

__all__ = ["Alarm"]

logger = logging.getLogger(__name__)

CROSS_USER_ACCESS = "cross-user-access"
CROSS_AGENT_ACCESS = "cross-agent-access"
MISPLACED_KEY = "misplaced-key"
ROLE_DENIED = "role-denied"
#: Seconds.
PATIENCE = 2.0
#: Alerts on their way at one time; of more the log alone tells. Each kind, principal and session makes one a minute.
MOST_UNDER_WAY = 256


class Alarm:
    """`audit`: where each attempt is put on record, too: the first at once, the rest of a loop once a minute."""

    def __init__(self, alerts: Alerts, clock: Clock, audit: Audit | None = None) -> None:
        self._alerts = alerts
        self._records = Tally(audit, clock) if audit is not None else None
        self._clock = clock
        self._under_way: set[asyncio.Task[None]] = set()

    async def crossed(self, call: Call, refused: CrossUserAccess) -> None:
        """An operation was refused because it named what is another user's. Returns when the alert is kept, or told in
        the log; raises nothing."""
        await asyncio.shield(self._raise(self._crossing(call.caller, call.operation, call.request_id, refused)))

    def crossed_soon(self, caller: Caller, operation: str, request_id: str, refused: CrossUserAccess) -> None:
        """The same, without waiting for it."""
        self._raise(self._crossing(caller, operation, request_id, refused))

    def misplaced(self, principal: str, place: SessionRef | None) -> None:
        """A key was presented where it is worth nothing: a session's on another's listener or the public one, an
        operator's within a session. Nobody has proved to hold it: who did it is whoever was at that listener."""
        who = f"session {place.session_id} of {place.runtime_id}" if place is not None else "a public client"
        details = {"key-of": principal}
        summary = f"{who} presented a key of {principal}; it was refused."
        self._raise(Alert(MISPLACED_KEY, summary, who, place, None, self._clock.now(), details))

    def denied(self, caller: Caller, refused: RoleRefused) -> None:
        """A role's policies did not allow something: on record, no alert. Like ones of a key are told together whatever
        they were on: names are made up easily."""
        if self._records is None:
            return
        summary = f"{caller.principal} is not allowed {refused.action} on {refused.resource}; it was refused."
        details = {"action": refused.action, "resource": refused.resource, "access-key": caller.access_key_id or "-"}
        record = AuditRecord(ROLE_DENIED, summary, caller.principal, None, None, self._clock.now(), details)
        key = (ROLE_DENIED, caller.principal, caller.access_key_id, refused.action)
        if not self._records.again(key, lambda: record):
            self._start(partial(self._records.note, key, lambda: record), f"{ROLE_DENIED}: {summary}")

    async def close(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=PATIENCE)
        if self._records is not None:
            await self._records.close()

    def _crossing(self, caller: Caller, operation: str, request_id: str, refused: CrossUserAccess) -> Alert:
        return Alert(
            CROSS_AGENT_ACCESS if isinstance(refused, CrossAgentAccess) else CROSS_USER_ACCESS,
            f"{caller.principal} tried {operation} on {refused.resource}, which is {refused.whose}; it was refused.",
            caller.principal,
            caller.session,
            caller.user.id if caller.user is not None else None,
            self._clock.now(),
            {"operation": operation, "resource": refused.resource, "request-id": request_id},
        )

    def _raise(self, alert: Alert) -> asyncio.Task[None]:
        async def kept() -> None:
            await asyncio.gather(self._alerts.raise_alert(alert), self._put_on_record(alert))

        return self._start(kept, f"{alert.kind}: {alert.summary}")

    def _start(self, keeping: Callable[[], Awaitable[None]], told: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._keep(keeping, told, len(self._under_way)), name="alert")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _keep(self, keeping: Callable[[], Awaitable[None]], told: str, before: int) -> None:
        try:
            if before >= MOST_UNDER_WAY:
                raise TimeoutError("too many alerts are on their way")
            async with asyncio.timeout(PATIENCE):
                await keeping()
        except Exception as error:
            # Fails open on the record, never on the refusal.
            logger.error("alert not kept (%r): %s", error, told)

    async def _put_on_record(self, alert: Alert) -> None:
        if self._records is None:
            return
        await self._records.note(
            (alert.kind, alert.principal, alert.session, alert.user_id, alert.details.get("operation")),
            lambda: AuditRecord(
                alert.kind, alert.summary, alert.principal, alert.session, alert.user_id, alert.at, alert.details
            ),
        )
