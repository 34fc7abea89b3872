"""No way to be nobody (IDN-2): a session of a user's does all that a session can; then it is stripped of each thing
that it goes by, one at a time. What needs that is refused with an error that names it; the rest goes on in the user's
name; and nothing is done in any other."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from botocore.credentials import Credentials
from exchange_server import EXCHANGE, ExchangeServer
from whole_session import QUIET, STEPS, Carried, WholeSession, whole_session

from agentkeep.core.call import SessionRef
from agentkeep.core.errors import ServiceError
from agentkeep.core.token_claims import claims_of
from agentkeep.storage.interface import Delete, partition
from agentkeep.storage.valkey import ValkeyKeyValueStore


@pytest.fixture
async def whole(
    store: ValkeyKeyValueStore, provider: Any, clock: Any, exchange: ExchangeServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[WholeSession]:  # fmt: skip
    async with whole_session(store, provider, clock, exchange, tmp_path, monkeypatch) as whole:
        yield whole


Prepare = Callable[[WholeSession, Carried, Any], Awaitable[Carried]]


@dataclass(frozen=True)
class Strip:
    """`prepare`: the session without the one thing. `refused`: what is said by each step that needs it. `begins`: what
    is said where there can be no session at all."""

    prepare: Prepare
    refused: dict[str, str] = field(default_factory=dict)
    begins: str | None = None


async def _without_user_token(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    return whole.alices(user_token=None)


async def _without_user(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    return whole.alices(user=None, user_token=None)


async def _nobodys_without_aws(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    """An agent that needs no AWS, in a session of nobody's, with what it may have stolen."""
    begun = await whole.begin(Carried(SessionRef(QUIET, "q" * 40), None, None))
    assert begun.workload_token is None
    return replace(begun, workload_token=alice.workload_token)


async def _expired(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    return whole.alices(user_token=whole.token("alice", exp=int(clock.now().timestamp()) - 61))


async def _without_keys(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    return replace(alice, keys=None)


async def _without_session_token(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    assert alice.keys is not None
    return replace(alice, keys=Credentials(alice.keys.access_key, alice.keys.secret_key))


async def _after_the_end(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    await whole.identity.keys.end_session(alice.session)
    del whole.sessions.users[alice.session]
    return alice


async def _keys_expired(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    clock.move(901)
    return replace(alice, user_token=whole.token("alice"))


async def _without_sts(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    await whole.sts.stop()
    return whole.alices()


async def _sts_refuses(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    whole.sts.fails("AccessDenied", 403)
    return whole.alices()


async def _without_bearer(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    return replace(alice, user_token=None)


async def _with_bobs_bearer(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    return replace(alice, user_token=whole.token("bob"))


async def _without_workload_token(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    return replace(alice, workload_token=None)


async def _workload_token_of_a_name(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    token = await whole.identity.workload_tokens.issue(alice.session.runtime_id, alice.user)
    return replace(alice, workload_token=token)


async def _workload_token_expired(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    clock.move(3601)
    fresh = await whole.begin(whole.alices())
    return replace(fresh, workload_token=alice.workload_token)


async def _without_secret(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    place = partition("identity", "token-vaults", "default", "apikey")
    await whole.store.transact([Delete(place, "weather")])
    return alice


async def _secret_of_another(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    whole.kms.keys.clear()
    clock.move(700)
    return await whole.begin(whole.alices())


async def _without_kms(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    await whole.kms.stop()
    clock.move(700)
    return await whole.begin(whole.alices())


async def _without_exchange(whole: WholeSession, alice: Carried, clock: Any) -> Carried:
    await whole.exchange.stop()
    return alice


ALL_SIGNED = ("memory", "model", "api key", "oauth token", "aws")
NO_USER = {
    "memory": "no user",
    "tool": "Missing Bearer token",
    "api key": "no user",
    "oauth token": "no user",
    "aws": "security token .* invalid",
}
STRIPS = {
    "the user's token": Strip(_without_user_token, begins="by their user's own token, and this session has none"),
    "the user's token, in time": Strip(_expired, begins="user's token, .* has expired"),
    "the user": Strip(_without_user, begins="by their user's own token, and this session has none"),
    "the user, where AWS is not asked": Strip(_nobodys_without_aws, NO_USER),
    "STS": Strip(_without_sts, begins="AWS STS, .*Nothing is given in its place. Try again"),
    "STS's consent": Strip(_sts_refuses, begins="does not let this user assume the role"),
    "the session's keys": Strip(_without_keys, dict.fromkeys(ALL_SIGNED, "[Mm]issing Authentication Token")),
    "the keys' session token": Strip(_without_session_token, dict.fromkeys(ALL_SIGNED, "security token .* invalid")),
    "the keys, in time": Strip(_keys_expired, dict.fromkeys(ALL_SIGNED, "security token .* (invalid|expired)")),
    "the session": Strip(
        _after_the_end,
        dict.fromkeys(ALL_SIGNED[:-1], "security token .* invalid") | {"tool": "session has ended"},
    ),
    "the user's token at the tool": Strip(_without_bearer, {"tool": "Missing Bearer token"}),
    "the user's own token at the tool": Strip(_with_bobs_bearer, {"tool": "not of the user"}),
    "the workload token": Strip(
        _without_workload_token, dict.fromkeys(("api key", "oauth token"), "workloadIdentityToken")
    ),
    "the user's token in it": Strip(_workload_token_of_a_name, {"oauth token": "made without one"}),
    "the workload token, in time": Strip(
        _workload_token_expired, dict.fromkeys(("api key", "oauth token"), "workload access token has expired")
    ),
    "the secret": Strip(_without_secret, {"api key": "no API key credential provider named weather"}),
    "the secret's key": Strip(_secret_of_another, dict.fromkeys(("api key", "oauth token"), "NotFoundException")),
    "the key service": Strip(_without_kms, dict.fromkeys(("api key", "oauth token"), "try again")),
    "the other service": Strip(_without_exchange, {"oauth token": "[Tt]ry again"}),
}
DONE = {"memory": 1, "tool": "A-1", "model": "hello alice", "api key": "s3cret", "oauth token": "alice", "aws": "alice"}


async def test_a_whole_session(whole: WholeSession) -> None:
    """IDN-1, IDN-2, IDN-3: the control: all of it, in her name."""
    alice = await whole.begin(whole.alices())
    assert {step: await whole.step(step, alice) for step in STEPS} == DONE
    in_no_other_name(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRIPS)
async def test_stripped_of(whole: WholeSession, clock: Any, name: str) -> None:
    """IDN-2: refused, by name; and nothing is done in the platform's name instead, nor in another user's."""
    strip = STRIPS[name]
    alice = await whole.begin(whole.alices())
    bare = await strip.prepare(whole, alice, clock)
    if strip.begins is not None:
        with pytest.raises(ServiceError) as said:
            await whole.begin(bare)
        assert re.search(strip.begins, said.value.message), said.value.message
        assert bare.keys is None
        in_no_other_name(whole)
        return
    for step in STEPS:
        expected = strip.refused.get(step)
        if expected is None:
            assert await whole.step(step, bare) == DONE[step], step
            continue
        with pytest.raises(PermissionError) as refused:
            await whole.step(step, bare)
        status, message = refused.value.args
        assert re.search(expected, message), (step, status, message)
        assert step == "tool" or status >= 400
    in_no_other_name(whole)


def in_no_other_name(whole: WholeSession) -> None:
    """Of what came to those outside: each call was alice's, or nobody's that needs none."""
    for _, _, headers, _ in whole.orders.asked:
        assert _user(headers["authorization"].removeprefix("Bearer ")) == "alice"
    for asked in whole.sts.requests:
        if asked.form["Action"] == "AssumeRoleWithWebIdentity":
            assert "authorization" not in asked.headers and _user(asked.form["WebIdentityToken"]) == "alice"
        assert "AKIAPLATFORMSROLE" not in asked.headers.get("authorization", "")
    assert all(given.arn.rpartition("/")[2].startswith("alice+") for given in whole.sts.given.values())
    for form in map(dict, whole.exchange.requests):
        assert form["grant_type"] == EXCHANGE and _user(form["subject_token"]) == "alice"
    for request in whole.models.requests:
        assert "the-platforms-own" not in str(request.headers) and "authorization" not in request.headers


def _user(token: str) -> Any:
    return claims_of(token)["sub"]
