"""What of a token policies see, and where it travels."""

from __future__ import annotations

from typing import Any

import pytest

from agentkeep.core.call import INCOMPLETE_CLAIMS, Call, SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.inbound.claims import LONGEST, MOST, as_text, of_verified
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.runtime.records import EndReason, SessionRecord, SessionState
from agentkeep.storage.records import decode, encode
from agentkeep.storage.valkey import ValkeyKeyValueStore

SESSION = SessionRef("support-0123456789", "session-" + "1" * 32)
ALICE = User("alice", "https://issuer", {"groups": "admins staff", "level": "3"})


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"sub": "alice", "level": 3, "share": 0.5, "staff": True, "blocked": False}, {
            "sub": "alice", "level": "3", "share": "0.5", "staff": "true", "blocked": "false"}),
        ({"groups": ["admins", "staff"], "none": [], "nothing": None}, {"groups": "admins staff", "none": ""}),
        # An element cannot pass for two.
        ({"groups": ["not admins", "a\tb\nc"]}, {"groups": "not_admins a_b_c"}),
        ({"realm_access": {"roles": ["clerk"], "deep": {"er": {"est": {"x": 1}}}}}, {"realm_access.roles": "clerk"}),
        ({"a": {"b": "nested"}, "a.b": "own"}, {"a.b": "own"}),
        ({"a.b": "own", "a": {"b": "nested"}}, {"a.b": "own"}),
        ({"mixed": ["x", {"y": 1}, None, 2]}, {"mixed": "x 2"}),
        # The platform's own names are not for tokens.
        ({"agentkeep:agent": "support", "agentkeep": {"agent": "x"}}, {"agentkeep.agent": "x"}),
        ({"agentkeep:incomplete": "1", "agentkeep:x": {"y": 1}}, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_claims_become_text(claims: dict[str, Any], expected: dict[str, str]) -> None:
    assert as_text(claims) == expected


def test_claims_are_bounded_and_never_cut_short(caplog: pytest.LogCaptureFixture) -> None:
    found = as_text({"groups": "x" * LONGEST, "fits": "é" * ((LONGEST - 4) // 2), "too": "é" * (LONGEST // 2)})
    assert found == {"fits": found["fits"], INCOMPLETE_CLAIMS: "2"}
    found = as_text({f"c{i}": i for i in range(1000)})
    assert (len(found), found[INCOMPLETE_CLAIMS]) == (MOST + 1, str(1000 - MOST))
    assert "no policy will see them" in caplog.text and "xxx" not in caplog.text


def test_who_a_user_is_does_not_depend_on_claims() -> None:
    """IDN-4: a session is its user's, whatever the newest token says of him."""
    assert User("alice", "https://issuer") == ALICE and hash(User("alice", "https://issuer")) == hash(ALICE)
    assert User("alice", None, ALICE.claims) != ALICE
    assert "admins" not in repr(ALICE)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "a.W10.c", "a.!!.c", "é.é.é"])
def test_what_is_no_jwt_has_no_claims(token: str) -> None:
    assert of_verified(token) == {}


async def test_a_tokens_claims_are_its_users(plane: IdentityPlane, operator: Call, provider: Any) -> None:
    """By an authorizer, first and remembered; and in the workload access token made for him."""
    authorizer = {"discoveryUrl": provider.discovery_url, "allowedAudience": ["orders"]}
    token = provider.token(groups=["clerks", "night shift"], aud="orders")
    user = await plane.authorizers.verify(authorizer, token)
    assert user.claims["groups"] == "clerks night_shift" and user.claims["aud"] == "orders"
    remembered = plane.authorizers.cached(authorizer, token)
    assert remembered is not None and remembered.claims == user.claims

    await plane.workload_tokens.create_for_service("helper-1234567890")
    issued = await plane.workload_tokens.issue("helper-1234567890", user, token)
    assert issued is not None
    proved = await plane.workload_tokens.verify(issued, operator.caller)
    assert proved.user == user and proved.user is not None and proved.user.claims == user.claims


async def test_session_keys_bring_the_users_claims(store: ValkeyKeyValueStore) -> None:
    """IDN-4: found in another process too, where nothing is remembered."""
    keys, others = (
        AccessKeys(store, FileMasterKey(bytes(32)), Deployment(), SystemClock(), IdentitySettings()) for _ in range(2)
    )
    issued = await keys.issue_for_session(SESSION, ALICE)
    found = await others.find(issued.access_key_id)
    assert found is not None and found.caller.user == ALICE
    assert found.caller.user.claims == ALICE.claims
    # A token travels in a header; what policies want is kept in the store.
    assert len(issued.session_token) < 1000


def test_a_sessions_record_keeps_them() -> None:
    record = SessionRecord(
        *SESSION_FIELDS, user_id="alice", user_issuer="https://issuer", user_claims=dict(ALICE.claims), **REST
    )
    read = decode(SessionRecord, encode(record))
    assert read.user is not None and read.user == ALICE and read.user.claims == ALICE.claims
    without = decode(SessionRecord, encode(record).replace(b'"user_claims"', b'"unknown"'))
    assert without.user == ALICE  # as written by the version before


NOW = SystemClock().now()
SESSION_FIELDS = (SESSION.runtime_id, SESSION.session_id, SessionState.READY, "replica", 1)
REST: dict[str, Any] = {
    "version": 1, "endpoint": "DEFAULT", "created_at": NOW, "updated_at": NOW, "end_reason": EndReason.IDLE
}  # fmt: skip
