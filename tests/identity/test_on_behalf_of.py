"""ON_BEHALF_OF_TOKEN_EXCHANGE: the user's own token for one at another service (RFC 8693, RFC 7523)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from consent_stand import OPERATOR, ConsentStand
from exchange_server import ACCESS_TOKEN, ASSERTION, EXCHANGE, ExchangeServer

from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import AccessDeniedException, UnauthorizedException, ValidationException
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings

FLOW = "ON_BEHALF_OF_TOKEN_EXCHANGE"


async def configured(stand: ConsentStand, exchange: ExchangeServer, config: dict[str, Any] | None, **more: Any) -> None:
    members = {**({"onBehalfOfTokenExchangeConfig": config} if config else {}), **more}
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret, **members)


async def token_for(stand: ConsentStand, user_token: str) -> str:
    request: Any = {"workloadName": "agent", "userToken": user_token}
    return (await stand.plane.get_workload_access_token_for_jwt(OPERATOR, request))["workloadAccessToken"]


async def test_token_exchange(stand: ConsentStand, exchange: ExchangeServer, provider: Any, clock: Any) -> None:
    """RFC 8693; several audiences and resources. Kept for this token of the user's, until shortly before it ends."""
    await stand.workload()
    await configured(stand, exchange, {"grantType": "TOKEN_EXCHANGE"})
    user_token = provider.token(exp=int(clock.now().timestamp()) + 3000)
    token = await token_for(stand, user_token)
    members = {"scopes": ["a", "b"], "audiences": ["x", "y"], "resources": ["https://r.example", "https://s.example"]}
    first = (await stand.ask(token, FLOW, **members))["accessToken"]
    assert exchange.shown(first) == {
        "sub": "alice", "client": "agent", "scope": "a b", "grant": EXCHANGE, "audience": ["x", "y"],
        "resource": ["https://r.example", "https://s.example"],
    }  # fmt: skip
    (asked,) = exchange.requests
    assert ("subject_token", user_token) in asked
    assert ("subject_token_type", ACCESS_TOKEN) in asked
    assert "actor_token" not in dict(asked)

    assert (await stand.ask(token, FLOW, **members))["accessToken"] == first
    clock.move(239)
    assert (await stand.ask(token, FLOW, **members))["accessToken"] == first
    clock.move(2)
    assert (await stand.ask(token, FLOW, **members))["accessToken"] != first
    assert (await stand.ask(token, FLOW, scopes=[], audiences=["x"]))["accessToken"] != first
    assert "scope" not in dict(exchange.requests[-1])

    asked_before = len(exchange.requests)
    again = await token_for(stand, provider.token(jti="another"))
    await stand.ask(again, FLOW, **members)
    assert len(exchange.requests) == asked_before + 1, "another token of the same user is exchanged for itself"
    bob = (await stand.ask(await token_for(stand, provider.token(sub="bob")), FLOW, **members))["accessToken"]
    assert exchange.shown(bob)["sub"] == "bob"


async def test_the_actor_is_the_client(stand: ConsentStand, exchange: ExchangeServer, provider: Any) -> None:
    """RFC 8693, 4.1: the token says who acts for whom."""
    await stand.workload()
    actor = {"actorTokenContent": "M2M", "actorTokenScopes": ["act", "as"]}
    await configured(stand, exchange, {"grantType": "TOKEN_EXCHANGE", "tokenExchangeGrantTypeConfig": actor})
    token = await token_for(stand, provider.token())
    shown = exchange.shown((await stand.ask(token, FLOW))["accessToken"])
    assert (shown["sub"], shown["act"]["sub"], shown["act"]["scope"]) == ("alice", "agent", "act as")
    assert [dict(asked)["grant_type"] for asked in exchange.requests] == ["client_credentials", EXCHANGE]
    nobody = {"grantType": "TOKEN_EXCHANGE", "tokenExchangeGrantTypeConfig": {"actorTokenContent": "NONE"}}
    await configured(stand, exchange, nobody)
    assert "act" not in exchange.shown((await stand.ask(token, FLOW))["accessToken"])


async def test_jwt_bearer(stand: ConsentStand, exchange: ExchangeServer, provider: Any) -> None:
    """RFC 7523, 2.1."""
    await stand.workload()
    await configured(stand, exchange, {"grantType": "JWT_AUTHORIZATION_GRANT"})
    user_token = provider.token()
    answer = await stand.ask(await token_for(stand, user_token), FLOW, scopes=["files.read"])
    shown = exchange.shown(answer["accessToken"])
    assert (shown["sub"], shown["grant"], shown["scope"], shown["use"]) == ("alice", ASSERTION, "files.read", None)
    assert ("assertion", user_token) in exchange.requests[0]


async def test_an_exchange_without_a_client(stand: ConsentStand, exchange: ExchangeServer, provider: Any) -> None:
    """NO_CLIENT: neither id nor secret is sent, not even those the provider has."""
    await stand.workload()
    alone = {
        "grantType": "TOKEN_EXCHANGE", "onBehalfOfAuthenticationConfig": {"clientAuthenticationMethod": "NO_CLIENT"}
    }  # fmt: skip
    await configured(stand, exchange, alone)
    answer = await stand.ask(await token_for(stand, provider.token()), FLOW)
    assert exchange.shown(answer["accessToken"])["client"] is None
    assert exchange.authorization == [None]
    assert not {"client_id", "client_secret"} & dict(exchange.requests[0]).keys()


async def test_whose_token_is_exchanged(stand: ConsentStand, exchange: ExchangeServer, provider: Any) -> None:
    """IDN-2: only a user who was there, by a token that was verified; a name is not enough."""
    await stand.workload()
    await configured(stand, exchange, {"grantType": "TOKEN_EXCHANGE"})
    named = await stand.token_of("alice")
    with pytest.raises(ValidationException, match="made without one; get one with GetWorkloadAccessTokenForJWT"):
        await stand.ask(named, FLOW)
    with pytest.raises(UnauthorizedException):
        await token_for(stand, provider.token()[:-4] + "AAAA")
    assert exchange.requests == []
    # What the runtime hands to a session has the user's token in it.
    await stand.plane.workload_tokens.create_for_service("helper-1234567890")
    alice = User("alice", provider.url)
    handed = await stand.plane.workload_tokens.issue("helper-1234567890", alice, provider.token())
    session = SessionRef("helper-1234567890", "s" * 33)
    call = Call("bedrock-agentcore", "Test", Caller(CallerKind.SESSION, "arn", "ASIA", alice, session), "r")
    answer = await stand.ask(str(handed), FLOW, call)
    assert exchange.shown(answer["accessToken"])["sub"] == "alice"


async def test_a_token_that_is_not_accepted_there(stand: ConsentStand, exchange: ExchangeServer, provider: Any) -> None:
    await stand.workload()
    await configured(stand, exchange, {"grantType": "TOKEN_EXCHANGE"})
    with pytest.raises(AccessDeniedException, match=r"no longer accepts the user's token \(invalid_grant\)"):
        await stand.ask(await token_for(stand, provider.token(aud="elsewhere")), FLOW)
    await configured(stand, exchange, None)
    with pytest.raises(ValidationException, match="not configured for ON_BEHALF_OF_TOKEN_EXCHANGE"):
        await stand.ask(await token_for(stand, provider.token()), FLOW)


async def test_entra_ids_own_flow(
    stand: ConsentStand, exchange: ExchangeServer, provider: Any, make_plane: Callable[..., IdentityPlane]
) -> None:
    """MicrosoftOauth2 has no exchange to configure: its on-behalf-of flow is jwt-bearer with a parameter of its own."""
    await stand.workload()
    exchange.known_as = "https://login.microsoftonline.com"
    settings = IdentitySettings(provider_addresses=f"{exchange.known_as}={exchange.url}")
    plane = make_plane(settings=settings)
    client = {"clientId": exchange.client_id, "clientSecret": exchange.client_secret, "tenantId": "contoso"}
    request: Any = {
        "name": "tickets",
        "credentialProviderVendor": "MicrosoftOauth2",
        "oauth2ProviderConfigInput": {"microsoftOauth2ProviderConfig": client},
    }
    await plane.create_oauth2_credential_provider(OPERATOR, request)
    answer = await stand.ask(await token_for(stand, provider.token()), FLOW, plane=plane)
    shown = exchange.shown(answer["accessToken"])
    assert (shown["sub"], shown["grant"], shown["use"]) == ("alice", ASSERTION, "on_behalf_of")
