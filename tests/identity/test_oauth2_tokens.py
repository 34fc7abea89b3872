"""OAuth2 tokens from a certified provider: the client's own, and users' by consent. Real pages, codes and tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import web
from consent_stand import OPERATOR, RETURN_URL, ConsentStand, session_call
from exchange_server import ExchangeServer
from openid_provider import RESOURCE, OpenIdServer, query

from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import (
    AccessDeniedException,
    ResourceNotFoundException,
    ServiceUnavailableException,
    ValidationException,
)
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.operations import IdentityPlane
from agentkeep.storage.valkey import ValkeyKeyValueStore

TICKETS = {"scopes": ["tickets:read"], "resources": [RESOURCE]}


# M2M.


async def test_the_clients_own_token_is_kept_until_shortly_before_it_ends(
    stand: ConsentStand, openid: OpenIdServer, clock: Any, make_plane: Callable[..., IdentityPlane]
) -> None:
    """IDN-3. The ten minutes are the provider's."""
    await stand.workload()
    client = await stand.connect(openid)
    token = await stand.token_of("alice")
    first = (await stand.ask(token, "M2M", **TICKETS))["accessToken"]
    shown = openid.introspect(first, client)
    assert (shown["active"], shown["client_id"], shown["scope"]) == (True, client["client_id"], "tickets:read")
    given = openid.asked()["client_credentials"]

    assert (await stand.ask(token, "M2M", **TICKETS))["accessToken"] == first
    other_user = await stand.token_of("bob")
    assert (await stand.ask(other_user, "M2M", **TICKETS))["accessToken"] == first, "it is nobody's"
    session = await stand.ask(token, "M2M", session_call("alice"), **TICKETS)
    assert session["accessToken"] == first
    assert (await stand.ask(token, "M2M", plane=make_plane(), **TICKETS))["accessToken"] == first, "in the vault"
    clock.move(539)
    assert (await stand.ask(token, "M2M", **TICKETS))["accessToken"] == first
    assert openid.asked()["client_credentials"] == given
    clock.move(2)
    renewed = (await stand.ask(token, "M2M", **TICKETS))["accessToken"]
    assert renewed != first
    assert openid.asked()["client_credentials"] == given + 1

    # What is another token is asked for anew; the order of scopes is none.
    both: Any = {"scopes": ["tickets:read", "tickets:write"], "resources": [RESOURCE]}
    more = (await stand.ask(token, "M2M", **both))["accessToken"]
    assert more not in (first, renewed)
    both["scopes"] = both["scopes"][::-1]
    assert (await stand.ask(token, "M2M", **both))["accessToken"] == more
    assert (await stand.ask(token, "M2M", forceAuthentication=True, **both))["accessToken"] != more
    await stand.workload(name="other-agent")
    other = await stand.token_of("alice", "other-agent")
    assert (await stand.ask(other, "M2M", **TICKETS))["accessToken"] not in (first, renewed)


async def test_one_fetch_for_all_who_ask_at_one_moment(
    stand: ConsentStand, openid: OpenIdServer, store: ValkeyKeyValueStore, master_key: Any, settings: Any
) -> None:
    """Of two replicas, too."""
    await stand.workload()
    await stand.connect(openid)
    token = await stand.token_of("alice")
    replicas = [IdentityPlane(store, master_key, Deployment(), SystemClock(), settings) for _ in range(2)]
    before = openid.asked().get("client_credentials", 0)
    answers = await asyncio.gather(
        *(stand.ask(token, "M2M", plane=replicas[number % 2], **TICKETS) for number in range(20))
    )
    for replica in replicas:
        await replica.close()
    assert len({answer["accessToken"] for answer in answers}) == 1
    assert openid.asked()["client_credentials"] == before + 1


async def test_odd_characters_of_a_client_arrive(stand: ConsentStand, openid: OpenIdServer) -> None:
    """RFC 6749, 2.3.1: encoded as forms are, inside HTTP Basic."""
    await stand.workload()
    await stand.credential_provider(openid.discovery_url, "odd:client+id", "s3cret%2F+:&= /end")
    assert (await stand.ask(await stand.token_of("alice"), "M2M", **TICKETS))["accessToken"]
    await stand.credential_provider(openid.discovery_url, "odd:client+id", "s3cret%2F+:&= /other")
    with pytest.raises(ValidationException, match=r"refused .invalid_client.: its client id, secret"):
        await stand.ask(await stand.token_of("alice"), "M2M", **TICKETS)


@pytest.mark.parametrize("method", ["CLIENT_SECRET_BASIC", "CLIENT_SECRET_POST"])
async def test_clients_authenticate_as_configured(stand: ConsentStand, openid: OpenIdServer, method: str) -> None:
    await stand.workload()
    registered = {"token_endpoint_auth_method": method.lower()}
    client = openid.register(f"{stand.url}/unused", **registered)
    credentials = client["client_id"], client["client_secret"]
    await stand.credential_provider(openid.discovery_url, *credentials, clientAuthenticationMethod=method)
    assert (await stand.ask(await stand.token_of("alice"), "M2M", **TICKETS))["accessToken"]
    # A server that says what it takes is believed.
    static = {
        "issuer": openid.url,
        "authorizationEndpoint": f"{openid.url}/auth",
        "tokenEndpoint": f"{openid.url}/token",
        "tokenEndpointAuthMethods": [method.lower()],
    }
    await stand.credential_provider({"authorizationServerMetadata": static}, *credentials)
    assert (await stand.ask(await stand.token_of("alice"), "M2M", **TICKETS))["accessToken"]


async def test_what_the_server_refuses_is_said(stand: ConsentStand, openid: OpenIdServer) -> None:
    await stand.workload()
    await stand.connect(openid, scope="openid")
    token = await stand.token_of("alice")
    with pytest.raises(ValidationException, match=r"tickets refused .invalid_scope.: it does not give these scopes"):
        await stand.ask(token, "M2M", **TICKETS)
    with pytest.raises(ValidationException, match=r"tickets refused .invalid_target."):
        await stand.ask(token, "M2M", resources=["https://elsewhere.example"])
    with pytest.raises(ValidationException, match=r"scopes.2.member must be one scope"):
        await stand.ask(token, "M2M", scopes=["a", "b c"])
    with pytest.raises(ResourceNotFoundException, match="no OAuth2 credential provider named other"):
        await stand.ask(token, "M2M", resourceCredentialProviderName="other")


# Consent.


async def test_a_users_consent(stand: ConsentStand, openid: OpenIdServer) -> None:
    """IDN-3: authorization code with PKCE and state, the browser sent back to the application, the user confirmed, the
    token in the vault, for this user and this agent only."""
    await stand.workload()
    client = await stand.connect(openid)
    token = await stand.token_of("alice")
    asked = await stand.ask(token, customState="app&state=/", customParameters={"prompt": "consent"})
    assert asked["sessionStatus"] == "IN_PROGRESS"
    assert asked["sessionUri"].startswith("urn:ietf:params:oauth:request_uri:")
    url = query(asked["authorizationUrl"])
    assert asked["authorizationUrl"].startswith(f"{openid.url}/auth?")
    assert (url["client_id"], url["response_type"], url["scope"]) == (client["client_id"], "code", "openid")
    assert (url["code_challenge_method"], len(url["code_challenge"]), url["prompt"]) == ("S256", 43, "consent")
    assert url["redirect_uri"] == client["redirect_uris"][0]
    assert asked["sessionUri"].rsplit(":", 1)[1] not in asked["authorizationUrl"]

    polling = {"sessionUri": asked["sessionUri"]}
    assert await stand.ask(token, **polling) == asked
    back = await stand.browser("alice").visit(asked["authorizationUrl"])
    assert back.startswith(RETURN_URL + "&")
    assert query(back) == {"tab": "1", "session_id": asked["sessionUri"], "state": "app&state=/"}, "no code"
    waiting = {"sessionUri": asked["sessionUri"], "sessionStatus": "IN_PROGRESS"}
    assert await stand.ask(token, **polling) == waiting, "consented, but not yet confirmed"
    exchanged = openid.asked().get("authorization_code", 0)
    await stand.complete("alice", asked["sessionUri"])
    await stand.complete("alice", asked["sessionUri"])  # a retry
    assert openid.asked()["authorization_code"] == exchanged + 1

    answer = await stand.ask(token, **polling)
    assert answer.keys() == {"accessToken"}
    assert openid.user_of(answer["accessToken"]) == "alice"
    assert await stand.ask(token) == answer, "kept"
    assert await stand.ask(token, call=session_call("alice")) == answer
    assert "authorizationUrl" in await stand.ask(await stand.token_of("bob")), "another user"
    assert "authorizationUrl" in await stand.ask(token, scopes=["openid", "offline_access"])
    await stand.workload(name="other-agent")
    assert "authorizationUrl" in await stand.ask(await stand.token_of("alice", "other-agent")), "another agent"


async def test_a_user_by_token_is_confirmed_by_token(stand: ConsentStand, openid: OpenIdServer, provider: Any) -> None:
    """The user's JWT is verified each time; its issuer is part of who the user is."""
    await stand.workload()
    await stand.connect(openid)
    request: Any = {"workloadName": "agent", "userToken": provider.token()}
    token = (await stand.plane.get_workload_access_token_for_jwt(OPERATOR, request))["workloadAccessToken"]
    asked = await stand.ask(token)
    await stand.browser("alice").visit(asked["authorizationUrl"])
    confirmed: Any = {"userIdentifier": {"userToken": provider.token(jti="another")}, "sessionUri": asked["sessionUri"]}
    assert await stand.plane.complete_resource_token_auth(OPERATOR, confirmed) == {}
    answer = await stand.ask(token, sessionUri=asked["sessionUri"])
    assert openid.user_of(answer["accessToken"]) == "alice"
    assert "authorizationUrl" in await stand.ask(await stand.token_of("alice")), "an id is not a token's subject"


async def test_tokens_are_renewed_without_asking_again(
    stand: ConsentStand, openid: OpenIdServer, clock: Any, make_plane: Callable[..., IdentityPlane]
) -> None:
    """The provider gives a new refresh token each time, and revokes everything when one is used twice: so two replicas
    may not renew at one moment."""
    await stand.workload()
    await stand.connect(openid)
    token = await stand.token_of("alice")
    first = await stand.consent("alice")
    replicas = [stand.plane, make_plane()]
    renewals = openid.asked().get("refresh_token", 0)
    for round in range(3):
        clock.move(601)
        answers = await asyncio.gather(*(stand.ask(token, plane=replicas[number % 2]) for number in range(10)))
        (renewed,) = {answer["accessToken"] for answer in answers}
        assert renewed != first
        assert openid.user_of(renewed) == "alice"
        assert openid.asked()["refresh_token"] == renewals + round + 1
        first = renewed


async def test_a_revoked_grant_asks_for_consent_again(stand: ConsentStand, openid: OpenIdServer, clock: Any) -> None:
    await stand.workload()
    await stand.connect(openid)
    await stand.consent("alice")
    openid.revoke_all()
    clock.move(601)
    refused = openid.asked().get("invalid_grant", 0)
    token = await stand.token_of("alice")
    asked = await stand.ask(token)
    assert openid.asked()["invalid_grant"] == refused + 1
    assert asked["sessionStatus"] == "IN_PROGRESS"
    assert "authorizationUrl" in await stand.ask(token), "and what was revoked is forgotten"
    assert openid.asked()["invalid_grant"] == refused + 1
    again = await stand.consent("alice")
    assert openid.user_of(again) == "alice"


async def test_consent_can_be_asked_for_in_any_case(stand: ConsentStand, openid: OpenIdServer) -> None:
    """forceAuthentication: the session begun is the new one; what was granted before stays until it is replaced."""
    await stand.workload()
    await stand.connect(openid)
    first = await stand.consent("alice")
    token = await stand.token_of("alice")
    asked = await stand.ask(token, forceAuthentication=True)
    assert (await stand.ask(token, sessionUri=asked["sessionUri"]))["sessionStatus"] == "IN_PROGRESS"
    assert (await stand.ask(token))["accessToken"] == first
    await stand.browser("alice").visit(asked["authorizationUrl"])
    await stand.complete("alice", asked["sessionUri"])
    second = (await stand.ask(token, sessionUri=asked["sessionUri"]))["accessToken"]
    assert second != first
    assert (await stand.ask(token))["accessToken"] == second


async def test_a_user_who_says_no(stand: ConsentStand, openid: OpenIdServer) -> None:
    await stand.workload()
    await stand.connect(openid)
    token = await stand.token_of("alice")
    asked = await stand.ask(token)
    back = await stand.browser("alice").visit(asked["authorizationUrl"], abort=True)
    assert query(back) == {"tab": "1", "session_id": asked["sessionUri"]}
    failed = {"sessionUri": asked["sessionUri"], "sessionStatus": "FAILED"}
    assert await stand.ask(token, sessionUri=asked["sessionUri"]) == failed
    with pytest.raises(ValidationException, match=r"server answered access_denied\. Ask for the token again"):
        await stand.complete("alice", asked["sessionUri"])
    assert (await stand.ask(token))["sessionUri"] != asked["sessionUri"]


async def test_a_token_for_a_resource(stand: ConsentStand, openid: OpenIdServer) -> None:
    """RFC 8707: `resource` in the authorization request, the exchange of the code, and renewals."""
    await stand.workload()
    client = await stand.connect(openid)
    granted = await stand.consent("alice", scopes=["openid", "tickets:write"], resources=[RESOURCE])
    shown = openid.introspect(granted, client)
    assert (shown["sub"], shown["aud"], shown["scope"]) == ("alice", RESOURCE, "tickets:write")


async def test_a_changed_provider_forgets_what_was_granted(stand: ConsentStand, openid: OpenIdServer) -> None:
    await stand.workload()
    await stand.connect(openid)
    token = await stand.token_of("alice")
    await stand.consent("alice")
    begun = await stand.ask(token, forceAuthentication=True)
    await stand.browser("alice").visit(begun["authorizationUrl"])
    await stand.connect(openid)
    assert (await stand.ask(token, sessionUri=begun["sessionUri"]))["sessionStatus"] == "FAILED"
    with pytest.raises(ValidationException, match="provider was changed"):
        await stand.complete("alice", begun["sessionUri"])
    assert "authorizationUrl" in await stand.ask(token)
    await stand.consent("alice")
    await stand.plane.delete_oauth2_credential_provider(OPERATOR, {"name": "tickets"})
    await stand.connect(openid)
    assert "authorizationUrl" in await stand.ask(token)


# What is missing.


async def test_without_a_user(stand: ConsentStand, openid: OpenIdServer, session_of: Callable[..., Any]) -> None:
    """IDN-2: no consent for nobody; and a session without a user gets no token at all."""
    await stand.workload()
    await stand.connect(openid)
    request: Any = {"workloadName": "agent"}
    alone = (await stand.plane.get_workload_access_token(OPERATOR, request))["workloadAccessToken"]
    with pytest.raises(AccessDeniedException, match="names none; get one with GetWorkloadAccessTokenForJWT"):
        await stand.ask(alone)
    assert (await stand.ask(alone, "M2M", **TICKETS))["accessToken"]
    with pytest.raises(AccessDeniedException, match="this session has no user"):
        await stand.ask(alone, "M2M", session_of("agent", None), **TICKETS)


async def test_a_provider_that_is_away(stand: ConsentStand, free_tcp_port_factory: Callable[[], int]) -> None:
    """A clear error that clients retry (503); never a downgrade."""
    await stand.workload()
    token = await stand.token_of("alice")
    away = f"http://127.0.0.1:{free_tcp_port_factory()}"
    await stand.credential_provider(f"{away}/.well-known/openid-configuration", "agent", "s3cret")
    for flow in ("M2M", "USER_FEDERATION"):
        with pytest.raises(ServiceUnavailableException, match=r"cannot be reached.*Try again"):
            await stand.ask(token, flow)
    static = {"issuer": away, "authorizationEndpoint": f"{away}/auth", "tokenEndpoint": f"{away}/token"}
    await stand.credential_provider({"authorizationServerMetadata": static}, "agent", "s3cret")
    with pytest.raises(ServiceUnavailableException, match=r"did not answer as it should. Try again"):
        await stand.ask(token, "M2M")


async def test_an_outage_while_a_token_ends(stand: ConsentStand, exchange: ExchangeServer, clock: Any) -> None:
    """What is left of a token is used while it cannot be renewed; then the error is the one to retry."""

    async def away(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    await stand.workload()
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    token = await stand.token_of("alice")
    granted = (await stand.ask(token, "M2M"))["accessToken"]
    exchange.answer = away
    clock.move(299)
    assert (await stand.ask(token, "M2M"))["accessToken"] == granted
    assert len(exchange.requests) == 2, "it was tried"
    clock.move(1)
    with pytest.raises(ServiceUnavailableException):
        await stand.ask(token, "M2M")


async def test_an_outage_of_the_metadata_while_a_users_token_ends(
    stand: ConsentStand, exchange: ExchangeServer, make_plane: Any, clock: Any
) -> None:
    """The same of a user's, for a replica that has just begun and knows no metadata."""

    async def answer(request: web.Request) -> web.StreamResponse:
        tokens = {"access_token": "granted", "refresh_token": "r", "token_type": "Bearer", "expires_in": 300}
        return web.json_response(tokens)

    await stand.workload()
    discovery = f"{exchange.url}/.well-known/openid-configuration"
    await stand.credential_provider(discovery, exchange.client_id, exchange.client_secret)
    exchange.answer = answer
    token = await stand.token_of("alice")
    begun = await stand.ask(token)
    sent = query(begun["authorizationUrl"])
    await stand.get(f"{sent['redirect_uri']}?{urlencode({'state': sent['state'], 'code': 'c0de'})}")
    await stand.complete("alice", begun["sessionUri"])
    exchange.published = {"issuer": None}
    clock.move(299)
    new = make_plane()
    assert (await stand.ask(token, plane=new))["accessToken"] == "granted"
    clock.move(1)
    with pytest.raises(ServiceUnavailableException):
        await stand.ask(token, plane=new)


async def test_a_new_consent_is_not_overwritten_by_a_renewal(
    stand: ConsentStand, exchange: ExchangeServer, clock: Any
) -> None:
    """A renewal of the old grant that is under way when its user consents anew, to another account perhaps."""
    renewing, consented = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        if form["grant_type"] == "refresh_token":
            renewing.set()
            await consented.wait()
            if refuse:
                return web.json_response({"error": "invalid_grant"}, status=400)
        token = str(form.get("code", "renewed"))
        tokens = {"access_token": token, "refresh_token": "r"}
        return web.json_response({**tokens, "token_type": "Bearer", "expires_in": 300})

    async def consent(code: str) -> None:
        begun = await stand.ask(token, forceAuthentication=True)
        sent = query(begun["authorizationUrl"])
        back = await stand.get(f"{sent['redirect_uri']}?{urlencode({'state': sent['state'], 'code': code})}")
        assert back.status_code == 302
        await stand.complete("alice", begun["sessionUri"])

    await stand.workload()
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    token = await stand.token_of("alice")
    exchange.answer = answer
    for refuse in (False, True):  # noqa: B007 - the server looks at it
        renewing.clear()
        consented.clear()
        await consent("old")
        clock.move(301)
        asking = asyncio.create_task(stand.ask(token))
        await renewing.wait()
        await consent("new")
        consented.set()
        assert (await asking)["accessToken"] == "new"
        assert (await stand.ask(token))["accessToken"] == "new"
