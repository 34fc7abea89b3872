"""The claims of a user's token on their way to policies: session, its record, its keys."""

from __future__ import annotations

import uuid
from typing import Any

from agentkeep.core.call import SessionRef


async def test_a_sessions_keys_bring_its_users_claims(platform: Any, provider: Any) -> None:
    """IDN-4: what policies see of a user is what his token says, through a restart too."""
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    ref = SessionRef(runtime_id, str(uuid.uuid4()))

    async def claims() -> dict[str, str]:
        living = platform.plane._parts.sessions.live(ref)
        issued = await platform.identity.keys.issue_for_session(ref, living.user)
        platform.identity.keys._cache.clear()  # as another process looks it up
        found = await platform.identity.keys.find(issued.access_key_id)
        assert found is not None and found.caller.user is not None and found.caller.user.id == "alice"
        return dict(found.caller.user.claims)

    (await platform.begin(runtime_id, ref.session_id, bearer=provider.token("alice", groups=["staff"]))).end()
    first = await claims()
    assert (first["sub"], first["groups"]) == ("alice", "staff")
    record = (await platform.plane._parts.table.find(ref)).record
    assert record.user.claims == first

    # The same user with a newer token: the same session, with what the newer token says.
    (await platform.begin(runtime_id, ref.session_id, bearer=provider.token("alice", groups=["boss"]))).end()
    assert (await claims())["groups"] == "boss"
