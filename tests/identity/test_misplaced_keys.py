"""Keys presented at /sts where they are worth nothing: refused, and told, as everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from role_stand import RoleStand

from agentkeep.core.alarm import MISPLACED_KEY, Alarm
from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.identity.operations import IdentityPlane
from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.storage.valkey import ValkeyKeyValueStore


async def test_a_sessions_keys_at_the_public_sts(
    make_plane: Callable[..., IdentityPlane], store: ValkeyKeyValueStore, free_tcp_port: int, clock: Any
) -> None:
    """IDN-4: whoever carried them out of the session learns nothing, and operators learn of it."""
    alerts, audit = KeyValueAlerts(store, days=1), KeyValueAudit(store)
    alarm = Alarm(alerts, SystemClock(), audit)
    stand = RoleStand(make_plane(audit=audit, alarm=alarm), audit, free_tcp_port, clock)
    await stand.start()
    session, alice = SessionRef("agent", "s" * 33), User("alice")
    await stand.plane.keys.begin_session(session, alice)
    keys = await stand.plane.keys.issue_for_session(session, alice)
    given = {
        "AccessKeyId": keys.access_key_id,
        "SecretAccessKey": keys.secret_access_key,
        "SessionToken": keys.session_token,
    }
    try:
        with pytest.raises(ClientError, match="InvalidClientTokenId"):
            await stand.call(given, "sts", lambda sts: sts.get_caller_identity())
        await alarm.close()
        told = await alerts.latest()
        assert [(one.alert.kind, one.alert.session) for one in told] == [(MISPLACED_KEY, None)]
        assert "s" * 33 in str(told[0].alert.details)
    finally:
        await stand.stop()
        await alerts.close()
