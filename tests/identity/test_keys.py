"""Access keys: issued, found, ended (IDN-4, IDN-5)."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import orjson
import pytest

from agentkeep.core.call import CallerKind, SessionRef, User
from agentkeep.core.errors import ConflictException, ResourceNotFoundException, ValidationException
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.interface import KeyValueStore, Put, partition
from agentkeep.storage.valkey import ValkeyKeyValueStore

SESSION = SessionRef("helper-1234567890", "s" * 36)
ALICE = User("alice", "https://idp.example.com")
DEPLOYMENT = Deployment("us-west-2", "123456789012")


@pytest.fixture
def keys(store: ValkeyKeyValueStore, master_key: FileMasterKey, clock: Any, settings: IdentitySettings) -> AccessKeys:
    return AccessKeys(store, master_key, DEPLOYMENT, clock, settings)


@pytest.fixture
def replica(
    store: ValkeyKeyValueStore, master_key: FileMasterKey, clock: Any, settings: IdentitySettings
) -> AccessKeys:
    """The same keys in another process."""
    return AccessKeys(store, master_key, DEPLOYMENT, clock, settings)


async def test_an_operator_key(keys: AccessKeys, replica: AccessKeys) -> None:
    issued = await keys.issue_operator_key("admin")
    assert re.fullmatch("AKIA[A-Z0-9]{16}", issued.id)
    assert re.fullmatch("[A-Za-z0-9+/]{40}", issued.secret)
    for finder in (keys, replica):
        found = await finder.find(issued.id)
        assert found is not None
        assert found.secret == issued.secret
        assert (found.session_token, found.expires) == (None, None)
        assert found.caller.kind is CallerKind.OPERATOR
        assert found.caller.principal == "arn:aws:iam::123456789012:user/admin"
        assert found.caller.access_key_id == issued.id
        assert (found.caller.user, found.caller.session) == (None, None)


async def test_a_session_key_says_which_agent_user_and_session(
    keys: AccessKeys, replica: AccessKeys, clock: Any
) -> None:
    """IDN-4: agent, user and session are known from the key, not from what the agent says."""
    issued = await keys.issue_for_session(SESSION, ALICE)
    assert re.fullmatch("ASIA[A-Z0-9]{16}", issued.access_key_id)
    assert 3598 <= (issued.expiration - clock.now()).total_seconds() <= 3600
    for finder in (keys, replica):
        found = await finder.find(issued.access_key_id)
        assert found is not None
        assert found.secret == issued.secret_access_key
        assert found.session_token == issued.session_token
        assert found.expires == issued.expiration
        caller = found.caller
        assert (caller.kind, caller.user, caller.session) == (CallerKind.SESSION, ALICE, SESSION)
        assert caller.principal == f"arn:aws:sts::123456789012:assumed-role/helper-1234567890/{'s' * 36}"
    nobody = await keys.find((await keys.issue_for_session(SESSION, None)).access_key_id)
    assert nobody is not None
    assert nobody.caller.user is None


async def test_every_key_has_its_own_secret_and_token(keys: AccessKeys) -> None:
    issued = [await keys.issue_for_session(SESSION, ALICE) for _ in range(3)]
    assert len({key.access_key_id for key in issued}) == 3
    assert len({key.secret_access_key for key in issued}) == 3
    assert len({key.session_token for key in issued}) == 3


async def test_a_session_token_is_opaque(keys: AccessKeys) -> None:
    issued = await keys.issue_for_session(SESSION, ALICE)
    assert re.fullmatch("[A-Za-z0-9_-]{40,2048}", issued.session_token)
    import base64

    raw = base64.urlsafe_b64decode(issued.session_token + "==")
    assert b"alice" not in raw
    assert b"helper" not in raw


@pytest.mark.parametrize(
    "key_id", ["", "AKIA", "AKIAAAAAAAAAAAAAAAAA", "ASIAAAAAAAAAAAAAAAAA", "x" * 5000, "AKIA../../../life", "ключ"]
)
async def test_an_unknown_key_is_not_found(keys: AccessKeys, key_id: str) -> None:
    """IDN-5."""
    assert keys.cached(key_id) is None
    assert await keys.find(key_id) is None


async def test_the_cache_answers_without_waiting_and_not_for_long(
    keys: AccessKeys, clock: Any, settings: IdentitySettings
) -> None:
    issued = await keys.issue_operator_key("admin")
    assert keys.cached(issued.id) is None
    found = await keys.find(issued.id)
    assert keys.cached(issued.id) is found
    clock.move(settings.key_cache)
    assert keys.cached(issued.id) is None


async def test_the_cache_is_bounded(store: KeyValueStore, master_key: FileMasterKey, clock: Any) -> None:
    keys = AccessKeys(store, master_key, DEPLOYMENT, clock, IdentitySettings(key_cache_size=2))
    issued = [await keys.issue_for_session(SESSION, ALICE) for _ in range(3)]
    for key in issued:
        await keys.find(key.access_key_id)
    assert [keys.cached(key.access_key_id) is not None for key in issued] == [False, True, True]


async def test_a_key_dies_when_it_expires(keys: AccessKeys, replica: AccessKeys, clock: Any) -> None:
    issued = await keys.issue_for_session(SESSION, ALICE)
    clock.move(3595)
    assert await keys.find(issued.access_key_id) is not None
    clock.move(4)  # cached, and still dead
    assert keys.cached(issued.access_key_id) is not None
    clock.move(1)
    assert keys.cached(issued.access_key_id) is None
    assert await keys.find(issued.access_key_id) is None
    assert await replica.find(issued.access_key_id) is None


async def test_earlier_keys_live_on_when_renewed(keys: AccessKeys, clock: Any) -> None:
    first = await keys.issue_for_session(SESSION, ALICE)
    clock.move(1800)
    second = await keys.issue_for_session(SESSION, ALICE)
    assert await keys.find(first.access_key_id) is not None
    clock.move(1801)
    assert await keys.find(first.access_key_id) is None
    assert await keys.find(second.access_key_id) is not None


async def test_the_end_of_a_session_kills_its_keys(
    keys: AccessKeys, replica: AccessKeys, clock: Any, settings: IdentitySettings
) -> None:
    """IDN-4: at once here; in another process within the age of its cache, five seconds, even if it held them."""
    issued = [await keys.issue_for_session(SESSION, ALICE) for _ in range(3)]
    other = await keys.issue_for_session(SessionRef(SESSION.runtime_id, "t" * 36), ALICE)
    for key in issued:
        assert await keys.find(key.access_key_id) is not None
    await replica.find(issued[0].access_key_id)

    await keys.end_session(SESSION)

    for key in issued:
        assert keys.cached(key.access_key_id) is None
        assert await keys.find(key.access_key_id) is None
    assert await keys.find(other.access_key_id) is not None
    assert await replica.find(issued[1].access_key_id) is None  # it was not cached there
    assert settings.key_cache == 5
    clock.move(5)
    assert await replica.find(issued[0].access_key_id) is None


async def test_the_end_is_durable(
    keys: AccessKeys, store: KeyValueStore, master_key: FileMasterKey, clock: Any
) -> None:
    issued = await keys.issue_for_session(SESSION, ALICE)
    await keys.end_session(SESSION)
    restarted = AccessKeys(store, master_key, DEPLOYMENT, clock, IdentitySettings())
    assert await restarted.find(issued.access_key_id) is None


async def test_a_session_id_used_again_does_not_revive_old_keys(keys: AccessKeys) -> None:
    """IDN-4: AgentCore lets a stopped session's id start a new environment."""
    old = await keys.issue_for_session(SESSION, ALICE)
    await keys.end_session(SESSION)
    new = await keys.issue_for_session(SESSION, User("bob"))
    assert await keys.find(old.access_key_id) is None
    found = await keys.find(new.access_key_id)
    assert found is not None
    assert found.caller.user == User("bob")


async def test_ending_a_session_without_keys_is_no_error(keys: AccessKeys) -> None:
    await keys.end_session(SESSION)
    await keys.end_session(SESSION)


class Held:
    """A store that pauses where a test wants to step in."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self.before: asyncio.Event | None = None
        self.reached = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, partition: str, sort: str) -> bytes | None:
        value = await self._store.get(partition, sort)
        if self.before is not None and sort == "life":
            self.reached.set()
            await self.before.wait()
        return value


async def test_a_look_up_under_way_does_not_bring_a_dead_key_back(
    store: KeyValueStore, master_key: FileMasterKey, clock: Any, settings: IdentitySettings
) -> None:
    held = Held(store)
    keys = AccessKeys(held, master_key, DEPLOYMENT, clock, settings)  # type: ignore[arg-type]
    issued = await keys.issue_for_session(SESSION, ALICE)
    held.before = asyncio.Event()
    look_up = asyncio.create_task(keys.find(issued.access_key_id))
    await held.reached.wait()
    await keys.end_session(SESSION)
    held.before.set()
    await look_up
    assert keys.cached(issued.access_key_id) is None
    assert await keys.find(issued.access_key_id) is None


async def test_an_issue_under_way_does_not_outlive_the_end(
    store: KeyValueStore, master_key: FileMasterKey, clock: Any, settings: IdentitySettings
) -> None:
    """IDN-4: the credentials endpoint may be answering as the session ends."""
    held = Held(store)
    keys = AccessKeys(held, master_key, DEPLOYMENT, clock, settings)  # type: ignore[arg-type]
    await keys.issue_for_session(SESSION, ALICE)
    held.before = asyncio.Event()
    issue = asyncio.create_task(keys.issue_for_session(SESSION, ALICE))
    await held.reached.wait()
    await keys.end_session(SESSION)
    held.before.set()
    with pytest.raises(ConflictException, match="ended while credentials were issued"):
        await issue


async def test_first_keys_issued_at_once_share_a_life(keys: AccessKeys, replica: AccessKeys) -> None:
    issued = await asyncio.gather(*(issuer.issue_for_session(SESSION, ALICE) for issuer in (keys, replica) * 5))
    assert all([await keys.find(key.access_key_id) for key in issued])
    await keys.end_session(SESSION)
    assert not any([await keys.find(key.access_key_id) for key in issued])


async def test_operator_keys_are_listed_without_secrets_and_revoked(
    keys: AccessKeys, replica: AccessKeys, clock: Any
) -> None:
    issued = [await keys.issue_operator_key(name) for name in ("admin", "ci", "admin")]
    await keys.issue_for_session(SESSION, ALICE)
    listed = await replica.list_operator_keys()
    assert {(key.id, key.name) for key in listed} == {(key.id, key.name) for key in issued}
    assert not any(key.secret in repr(listed) for key in issued)
    assert abs((listed[0].created - clock.now()).total_seconds()) < 1

    await keys.find(issued[0].id)
    await keys.revoke_operator_key(issued[0].id)
    assert keys.cached(issued[0].id) is None
    assert await keys.find(issued[0].id) is None
    assert await replica.find(issued[0].id) is None
    assert len(await keys.list_operator_keys()) == 2
    with pytest.raises(ResourceNotFoundException):
        await keys.revoke_operator_key(issued[0].id)


@pytest.mark.parametrize("name", ["", "a" * 65, "a/b", "a b", "a\n", "é"])
async def test_an_operators_name_must_fit_an_arn(keys: AccessKeys, name: str) -> None:
    with pytest.raises(ValidationException, match="cannot name an operator"):
        await keys.issue_operator_key(name)


async def test_another_master_key_makes_other_secrets(store: KeyValueStore, keys: AccessKeys, clock: Any) -> None:
    """A copy of the store alone opens nothing."""
    issued = await keys.issue_operator_key("admin")
    thief = AccessKeys(store, FileMasterKey(b"x" * 32), DEPLOYMENT, clock, IdentitySettings())
    found = await thief.find(issued.id)
    assert found is not None
    assert found.secret != issued.secret


async def test_no_secret_is_stored_shown_or_logged(
    keys: AccessKeys, store: KeyValueStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    operator = await keys.issue_operator_key("admin")
    session = await keys.issue_for_session(SESSION, ALICE)
    found = [await keys.find(operator.id), await keys.find(session.access_key_id)]
    stored = b"".join(item.value for item in await store.query("identity/access-keys"))
    assert operator.name.encode() in stored
    shown = f"{operator!r} {session!r} {found!r} {found!s} {vars(keys)!r} {caplog.text}".encode() + stored
    for secret in (operator.secret, session.secret_access_key, session.session_token):
        assert secret.encode() not in shown


async def test_a_key_acts_for_users_only_if_it_was_issued_so(keys: AccessKeys, replica: AccessKeys) -> None:
    """IDN-2: kept with the key, seen by every process; by default it does not."""
    plain = await keys.issue_operator_key("admin")
    acting = await keys.issue_operator_key("app", acts_for_users=True)
    for issued, acts in ((plain, False), (acting, True)):
        for process in (keys, replica):
            found = await process.find(issued.id)
            assert found is not None
            assert found.caller.acts_for_users is acts
    assert {key.name: key.acts_for_users for key in await keys.list_operator_keys()} == {"admin": False, "app": True}


async def test_the_first_operators_key_follows_its_setting(keys: AccessKeys, store: KeyValueStore) -> None:
    """IDN-2: at each start; a key of an older version, whose record says nothing, acts for nobody until then."""
    first = await keys.operator_key("operator", acts_for_users=False)
    where = partition("identity", "access-keys")
    record = orjson.loads(await store.get(where, first.id) or b"")
    del record["acts_for_users"]
    await store.transact([Put(where, first.id, orjson.dumps(record))])
    assert not (await keys.operator_key("operator", acts_for_users=False)).caller.acts_for_users
    for acts in (True, False, True):
        found = await keys.operator_key("operator", acts_for_users=acts)
        assert (found.id, found.secret, found.caller.acts_for_users) == (first.id, first.secret, acts)
