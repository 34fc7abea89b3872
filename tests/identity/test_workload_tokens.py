"""Workload access tokens: which agent, for which user; forged, stolen and stale ones (IDN-2, IDN-3)."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkeep.core.call import Call, CallerKind, User
from agentkeep.core.errors import (
    AccessDeniedException,
    ResourceNotFoundException,
    ServiceUnavailableException,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings

LINKED = "WorkloadIdentity is linked to a service and cannot retrieve an access token by the caller"


@pytest.fixture
async def agent(plane: IdentityPlane, operator: Call) -> str:
    await plane.create_workload_identity(operator, {"name": "agent"})
    return "agent"


@pytest.fixture
async def impostor(provider: Any, new_signing_key: Any, clock: Any) -> AsyncIterator[Any]:
    """Another provider that is trusted."""
    impostor = type(provider)(clock)
    impostor.keys = [new_signing_key("ES256", "impostor")]
    await impostor.start()
    yield impostor
    await impostor.stop()


@pytest.fixture
async def helper(plane: IdentityPlane) -> str:
    """A runtime's identity."""
    await plane.workload_tokens.create_for_service("helper-1234567890")
    return "helper-1234567890"


# The three forms.


async def test_for_the_workload_alone(plane: IdentityPlane, operator: Call, agent: str, clock: Any) -> None:
    answer = await plane.get_workload_access_token(operator, {"workloadName": agent})
    claims = await plane.workload_tokens.verify(answer["workloadAccessToken"], operator.caller)
    assert (claims.workload, claims.user, claims.user_token) == ("agent", None, None)
    assert abs((claims.expires - clock.now()).total_seconds() - 3600) < 1


async def test_for_a_users_token(plane: IdentityPlane, operator: Call, agent: str, provider: Any) -> None:
    token = provider.token()
    answer = await plane.get_workload_access_token_for_jwt(operator, {"workloadName": agent, "userToken": token})
    claims = await plane.workload_tokens.verify(answer["workloadAccessToken"], operator.caller)
    assert (claims.workload, claims.user, claims.user_token) == ("agent", User("alice", provider.url), token)


async def test_for_a_user_id(plane: IdentityPlane, operator: Call, agent: str) -> None:
    """IDN-2: an operator vouches. That it is on record: test_acting_for_users.py."""
    request: Any = {"workloadName": agent, "userId": "alice"}
    answer = await plane.get_workload_access_token_for_user_id(operator, request)
    claims = await plane.workload_tokens.verify(answer["workloadAccessToken"], operator.caller)
    assert (claims.workload, claims.user, claims.user_token) == ("agent", User("alice"), None)


async def test_an_unknown_identity(plane: IdentityPlane, operator: Call, provider: Any) -> None:
    for refused in (
        plane.get_workload_access_token(operator, {"workloadName": "absent"}),
        plane.get_workload_access_token_for_jwt(operator, {"workloadName": "absent", "userToken": provider.token()}),
        plane.get_workload_access_token_for_user_id(operator, {"workloadName": "absent", "userId": "alice"}),
        plane.workload_tokens.issue("absent", User("alice")),
    ):
        with pytest.raises(ResourceNotFoundException, match="absent"):
            await refused


# Users' tokens: verified, or refused.


async def test_a_user_token_must_verify(plane: IdentityPlane, operator: Call, agent: str, provider: Any) -> None:
    for token, match in (
        (provider.token(exp=1), "expired"),
        (provider.token(header={"alg": "none"}), "algorithm"),
        (provider.token()[:-4] + "AAAA", "signature"),
        ("a.b.c", "not a signed"),
        (provider.token(iss="https://evil.example.com"), "AGENTKEEP_IDENTITY_TRUSTED_ISSUERS"),
        (provider.token(iss=None), "AGENTKEEP_IDENTITY_TRUSTED_ISSUERS"),
    ):
        with pytest.raises(UnauthorizedException, match=match):
            await plane.get_workload_access_token_for_jwt(operator, {"workloadName": agent, "userToken": token})


async def test_without_trusted_issuers_no_user_token_is_believed(
    make_plane: Any, operator: Call, agent: str, provider: Any
) -> None:
    """Fail closed, and say which setting is missing."""
    with pytest.raises(UnauthorizedException, match="AGENTKEEP_IDENTITY_TRUSTED_ISSUERS"):
        await make_plane().get_workload_access_token_for_jwt(
            operator, {"workloadName": agent, "userToken": provider.token()}
        )


async def test_one_trusted_issuers_outage_is_not_anothers(
    make_plane: Any, operator: Call, agent: str, provider: Any
) -> None:
    away = "http://127.0.0.1:1/.well-known/openid-configuration"
    plane = make_plane(trusted_issuers=[away, provider.discovery_url])
    request: Any = {"workloadName": agent, "userToken": provider.token()}
    assert await plane.get_workload_access_token_for_jwt(operator, request)
    request["userToken"] = provider.token(iss="http://127.0.0.1:1")
    with pytest.raises(ServiceUnavailableException):
        await plane.get_workload_access_token_for_jwt(operator, request)


async def test_one_trusted_issuers_slowness_is_not_anothers(
    make_plane: Any, operator: Call, agent: str, provider: Any, impostor: Any
) -> None:
    """Where the discovery URL says whose it is; and where it does not, once that is known."""
    request: Any = {"workloadName": agent, "userToken": provider.token()}
    impostor.delay = 30
    urls = [impostor.discovery_url, provider.discovery_url]
    plane = make_plane(trusted_issuers=urls)
    async with asyncio.timeout(3):
        assert await plane.get_workload_access_token_for_jwt(operator, request)
    provider.metadata = {"issuer": "https://idp.example"}
    request["userToken"] = provider.token(iss="https://idp.example")
    plane = make_plane(IdentitySettings(provider_timeout=0.5), trusted_issuers=urls)
    assert await plane.get_workload_access_token_for_jwt(operator, request)
    async with asyncio.timeout(0.4):
        assert await plane.get_workload_access_token_for_jwt(operator, request)


async def test_no_trusted_issuer_passes_for_another(
    make_plane: Any, operator: Call, agent: str, provider: Any, impostor: Any
) -> None:
    """Its metadata says that it is the other, its tokens that they are of the other's alice; nor while that is away."""
    impostor.metadata = {"issuer": provider.url}
    request: Any = {"workloadName": agent, "userToken": impostor.token(iss=provider.url)}
    urls = [impostor.discovery_url, provider.discovery_url]
    with pytest.raises(UnauthorizedException, match="a key that its issuer does not publish"):
        await make_plane(trusted_issuers=urls).get_workload_access_token_for_jwt(operator, request)
    provider.up = False
    with pytest.raises(ServiceUnavailableException):
        await make_plane(trusted_issuers=urls).get_workload_access_token_for_jwt(operator, request)


# Who may ask.


async def test_nobody_mints_for_a_service(
    plane: IdentityPlane, operator: Call, session_of: Any, helper: str, provider: Any
) -> None:
    """Contract notes 4.3: neither an operator nor the agent itself; its token comes with each invocation."""
    for call in (operator, session_of(helper)):
        for refused in (
            plane.get_workload_access_token(call, {"workloadName": helper}),
            plane.get_workload_access_token_for_jwt(call, {"workloadName": helper, "userToken": provider.token()}),
        ):
            with pytest.raises(ValidationException) as error:
                await refused
            assert error.value.message == LINKED
    with pytest.raises(ValidationException, match=LINKED):
        await plane.get_workload_access_token_for_user_id(operator, {"workloadName": helper, "userId": "alice"})


async def test_a_session_gets_nothing_of_others(
    plane: IdentityPlane, session_of: Any, agent: str, helper: str, provider: Any
) -> None:
    call = session_of("another-1234567890")
    for name in (agent, helper, "absent"):
        for refused in (
            plane.get_workload_access_token(call, {"workloadName": name}),
            plane.get_workload_access_token_for_jwt(call, {"workloadName": name, "userToken": provider.token()}),
        ):
            with pytest.raises(AccessDeniedException, match=name):
                await refused


async def test_only_operators_name_users(plane: IdentityPlane, session_of: Any, operator: Call, agent: str) -> None:
    user_caller = replace(operator.caller, kind=CallerKind.USER, user=User("bob"))
    for call in (session_of(agent), replace(operator, caller=user_caller)):
        with pytest.raises(AccessDeniedException, match="only an operator may"):
            await plane.get_workload_access_token_for_user_id(call, {"workloadName": agent, "userId": "alice"})


# The token handed to a session.


async def test_a_session_without_a_user_gets_no_token(plane: IdentityPlane, helper: str) -> None:
    """IDN-2."""
    assert await plane.workload_tokens.issue(helper, None) is None


async def test_a_sessions_token(plane: IdentityPlane, session_of: Any, helper: str) -> None:
    alice = User("alice", "https://idp.example.com")
    token = await plane.workload_tokens.issue(helper, alice, "user.jwt.token")
    assert token is not None
    claims = await plane.workload_tokens.verify(token, session_of(helper, alice).caller)
    assert (claims.workload, claims.user, claims.user_token) == (helper, alice, "user.jwt.token")


async def test_another_agent_or_user_cannot_present_it(
    plane: IdentityPlane, session_of: Any, operator: Call, helper: str
) -> None:
    """A stolen token is of no use to another session."""
    alice = User("alice", "https://idp.example.com")
    token = await plane.workload_tokens.issue(helper, alice)
    assert token is not None
    nobody = replace(operator.caller, kind=CallerKind.USER)
    for caller in (
        session_of("another-1234567890", alice).caller,
        session_of(helper, User("bob", "https://idp.example.com")).caller,
        session_of(helper, User("alice", "https://evil.example.com")).caller,
        session_of(helper, User("alice")).caller,
        session_of(helper, None).caller,
        nobody,
    ):
        with pytest.raises(AccessDeniedException, match="another agent or user"):
            await plane.workload_tokens.verify(token, caller)


# Forged and stale.


async def test_a_token_expires(plane: IdentityPlane, operator: Call, agent: str, clock: Any) -> None:
    token = (await plane.get_workload_access_token(operator, {"workloadName": agent}))["workloadAccessToken"]
    clock.move(3599)
    assert await plane.workload_tokens.verify(token, operator.caller)
    clock.move(1)
    with pytest.raises(UnauthorizedException, match="expired"):
        await plane.workload_tokens.verify(token, operator.caller)


async def test_a_deleted_identitys_tokens_die_even_if_its_name_returns(
    plane: IdentityPlane, operator: Call, agent: str
) -> None:
    token = (await plane.get_workload_access_token(operator, {"workloadName": agent}))["workloadAccessToken"]
    await plane.delete_workload_identity(operator, {"name": agent})
    for _ in range(2):
        with pytest.raises(UnauthorizedException, match="deleted"):
            await plane.workload_tokens.verify(token, operator.caller)
        await plane.create_workload_identity(operator, {"name": "agent" if _ == 0 else "other"})


async def test_tokens_are_opaque_and_never_equal(plane: IdentityPlane, operator: Call, agent: str) -> None:
    request: Any = {"workloadName": agent, "userId": "alice-the-user"}
    tokens = [
        (await plane.get_workload_access_token_for_user_id(operator, request))["workloadAccessToken"] for _ in range(3)
    ]
    assert len(set(tokens)) == 3
    for token in tokens:
        raw = base64.urlsafe_b64decode(token + "==")
        assert b"alice" not in raw
        assert b"agent" not in raw


async def test_tokens_of_another_platform_are_refused(make_plane: Any, operator: Call, agent: str) -> None:
    other = make_plane(master_key=FileMasterKey(b"o" * 32))
    token = (await other.get_workload_access_token(operator, {"workloadName": agent}))["workloadAccessToken"]
    with pytest.raises(UnauthorizedException, match="not one that this platform issued"):
        await make_plane().workload_tokens.verify(token, operator.caller)


async def test_a_session_token_is_no_workload_token(plane: IdentityPlane, session_of: Any, helper: str) -> None:
    """Each kind of sealed token opens for its own purpose only."""
    call = session_of(helper)
    credentials = await plane.keys.issue_for_session(call.caller.session, call.caller.user)
    with pytest.raises(UnauthorizedException):
        await plane.workload_tokens.verify(credentials.session_token, call.caller)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
async def test_changed_tokens_are_refused(
    plane: IdentityPlane, operator: Call, agent: str, data: st.DataObject
) -> None:
    token = (await plane.get_workload_access_token(operator, {"workloadName": agent}))["workloadAccessToken"]
    index = data.draw(st.integers(0, len(token) - 1))
    changed = token[:index] + data.draw(st.text(max_size=3)) + token[index + 1 :]
    if changed != token:
        with pytest.raises(UnauthorizedException):
            await plane.workload_tokens.verify(changed, operator.caller)


async def test_tokens_stay_out_of_logs_and_repr(
    plane: IdentityPlane, operator: Call, agent: str, provider: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    user_token = provider.token()
    answer = await plane.get_workload_access_token_for_jwt(operator, {"workloadName": agent, "userToken": user_token})
    claims = await plane.workload_tokens.verify(answer["workloadAccessToken"], operator.caller)
    shown = f"{claims!r} {claims!s} {caplog.text}"
    assert user_token not in shown
    assert answer["workloadAccessToken"] not in shown
