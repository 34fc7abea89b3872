"""Attacks on users' consents and on the tokens they give, each a test. Where a provider matters, it is a certified one.

Alice is the user whose agent asks; Mallory is somebody else, with an account at the same provider.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import httpx
import pytest
from aiohttp import web
from consent_stand import OPERATOR, ConsentStand, session_call
from exchange_server import ExchangeServer
from openid_provider import OpenIdServer, query

from agentkeep.core.call import Call, CallerKind, allowed_callers
from agentkeep.core.errors import (
    AccessDeniedException,
    ResourceNotFoundException,
    ServiceError,
    ThrottlingException,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.identity.operations import IdentityPlane
from agentkeep.storage.interface import partition
from agentkeep.storage.valkey import ValkeyKeyValueStore

URI = "urn:ietf:params:oauth:request_uri:"


@pytest.fixture
async def connected(stand: ConsentStand, openid: OpenIdServer) -> ConsentStand:
    await stand.workload()
    await stand.connect(openid)
    return stand


async def answer_for(stand: ConsentStand, user: str, authorization_url: str) -> str:
    """The URL that the provider sends the user's browser back to; the browser does not go there."""
    return await stand.browser(user).visit(authorization_url, f"{stand.url}/identities/oauth2/callback/")


def changed(url: str, **parameters: str | None) -> str:
    """With other query parameters; None removes one."""
    kept = {name: value for name, value in {**query(url), **parameters}.items() if value is not None}
    return urlunsplit(urlsplit(url)._replace(query=urlencode(kept)))


def assert_refused(response: httpx.Response) -> None:
    assert response.status_code == 400
    assert "location" not in response.headers
    assert response.text.startswith("This sign-in cannot be finished")
    assert response.headers["content-type"].startswith("text/plain")


# The browser's way back.


async def test_a_replayed_state(connected: ConsentStand, openid: OpenIdServer) -> None:
    """The same answer again, then and later; and other codes with a state that was used."""
    token = await connected.token_of("alice")
    asked = await connected.ask(token)
    back = await answer_for(connected, "alice", asked["authorizationUrl"])
    assert (await connected.get(back)).status_code == 302
    assert_refused(await connected.get(back))
    assert_refused(await connected.get(changed(back, code="another")))
    assert_refused(await connected.get(changed(back, code=None, error="access_denied")))
    await connected.complete("alice", asked["sessionUri"])
    assert_refused(await connected.get(back))
    answer = await connected.ask(token, sessionUri=asked["sessionUri"])
    assert openid.user_of(answer["accessToken"]) == "alice"


async def test_the_callback_twice_at_once(connected: ConsentStand) -> None:
    asked = await connected.ask(await connected.token_of("alice"))
    back = await answer_for(connected, "alice", asked["authorizationUrl"])
    responses = await asyncio.gather(*(connected.get(changed(back, code=f"code-{n}")) for n in range(8)))
    assert sorted(response.status_code for response in responses) == [302] + [400] * 7


async def test_a_forged_state(connected: ConsentStand) -> None:
    """None, an empty one, one of somebody's making, one that was changed, and what else the platform seals."""
    workload_token = await connected.token_of("alice")
    asked = await connected.ask(workload_token)
    back = await answer_for(connected, "alice", asked["authorizationUrl"])
    state = query(back)["state"]
    middle = len(state) // 2
    other = "A" if state[middle] != "A" else "B"
    session_id = asked["sessionUri"].removeprefix(URI)
    for forged in (
        None, "", "x", state[:-1], state + "A", state[:middle] + other + state[middle + 1 :], workload_token,
        session_id, asked["sessionUri"], secrets.token_urlsafe(len(state)), "\u00e9", "%00",
    ):  # fmt: skip
        assert_refused(await connected.get(changed(back, state=forged)))
    assert (await connected.get(back)).status_code == 302, "and none of it did any harm"


async def test_mixed_up_providers(connected: ConsentStand, openid: OpenIdServer) -> None:
    """RFC 9700, 4.4: each provider has a callback URL of its own, and answers for one are not taken at another's."""
    other = await connected.connect(openid, "other")
    token = await connected.token_of("alice")
    asked = await connected.ask(token)
    back = await answer_for(connected, "alice", asked["authorizationUrl"])
    at_other = other["redirect_uris"][0] + "?" + urlsplit(back).query
    assert_refused(await connected.get(at_other))
    for path in ("", "x", "../" + other["client_id"], urlsplit(back).path.rsplit("/", 1)[1] + "/"):
        elsewhere = f"{connected.url}/identities/oauth2/callback/{path}?{urlsplit(back).query}"
        assert (await connected.get(elsewhere)).status_code in (400, 401, 403, 404)
    assert (await connected.get(back)).status_code == 302


async def test_an_answer_that_names_another_issuer(connected: ConsentStand, openid: OpenIdServer) -> None:
    """RFC 9207: `iss` is checked, and missed where the provider says that it gives it."""
    asked = await connected.ask(await connected.token_of("alice"))
    back = await answer_for(connected, "alice", asked["authorizationUrl"])
    assert query(back)["iss"] == openid.url
    for issuer in (None, "", "https://attacker.example", openid.url + "/", openid.url.upper()):
        assert_refused(await connected.get(changed(back, iss=issuer)))
    assert (await connected.get(back)).status_code == 302


async def test_an_issuer_that_was_not_promised(stand: ConsentStand, exchange: ExchangeServer) -> None:
    """Metadata without the promise: `iss` may be missing, but not be wrong."""
    await stand.workload()
    callback = await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    for issuer, status in (({"iss": "https://attacker.example"}, 400), ({"iss": exchange.url}, 302), ({}, 302)):
        asked = await stand.ask(await stand.token_of("alice"))
        state = query(asked["authorizationUrl"])["state"]
        answer = urlencode({"code": "c", "state": state, **issuer})
        assert (await stand.get(f"{callback}?{answer}")).status_code == status


async def test_an_injected_code(connected: ConsentStand, openid: OpenIdServer) -> None:
    """RFC 9700, 4.5: Mallory's code, brought to Alice's session, so that her agent would act on his account. PKCE binds
    a code to the request it answers: the provider refuses it."""
    alices, mallorys = await connected.token_of("alice"), await connected.token_of("mallory")
    begun = await connected.ask(alices)
    injected = query(
        await answer_for(connected, "mallory", (await connected.ask(mallorys))["authorizationUrl"])
    )["code"]  # fmt: skip
    own = await answer_for(connected, "alice", begun["authorizationUrl"])
    assert (await connected.get(changed(own, code=injected))).status_code == 302
    with pytest.raises(ValidationException, match=r"refused \(invalid_grant\)"):
        await connected.complete("alice", begun["sessionUri"])
    assert (await connected.ask(alices, sessionUri=begun["sessionUri"]))["sessionStatus"] == "FAILED"
    assert "authorizationUrl" in await connected.ask(alices)


@pytest.mark.parametrize(
    "tail",
    [
        "",
        "&code=a&code=b",
        "&state=x",
        "&code=" + "c" * 5000,
        "&x=" + "y" * 20000,
        "&code=",
        "&" + "a=b&" * 40,
        "&code=%ff",
    ],
    ids=lambda tail: tail[:12],
)
async def test_answers_without_form(connected: ConsentStand, tail: str) -> None:
    """Doubled, missing, endless parameters: refused, and the session waits for the real answer."""
    asked = await connected.ask(await connected.token_of("alice"))
    back = await answer_for(connected, "alice", asked["authorizationUrl"])
    given = query(back)
    base = f"{back.partition('?')[0]}?state={quote(given['state'])}&iss={quote(given['iss'])}"
    assert (await connected.get(base + tail)).status_code in (400, 414, 431)
    assert (await connected.get(back)).status_code == 302


async def test_nothing_of_a_request_comes_back(connected: ConsentStand) -> None:
    """No script of Mallory's in a page of the platform's; no code in a referrer or a cache; no other methods."""
    asked = await connected.ask(await connected.token_of("alice"))
    back = await answer_for(connected, "alice", asked["authorizationUrl"])
    script = "<script>alert(1)</script>"
    page = await connected.get(changed(back, state=script, error=script, error_description=script))
    assert_refused(page)
    assert "script" not in page.text
    async with httpx.AsyncClient() as client:
        for method in ("POST", "HEAD", "PUT", "DELETE"):
            assert (await client.request(method, back)).status_code in (403, 405)
    sent = await connected.get(back)
    for response in (page, sent):
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
    assert not {"code", "iss", "error"} & query(sent.headers["location"]).keys()
    begun = await connected.ask(await connected.token_of("alice"))
    back = await answer_for(connected, "alice", begun["authorizationUrl"])
    assert (await connected.get(changed(back, code=None, error=script))).status_code == 302
    with pytest.raises(ValidationException, match="server answered unknown"):
        await connected.complete("alice", begun["sessionUri"])


# Where the browser goes then.


@pytest.mark.parametrize(
    "url",
    [
        "http://app.example/back", "http://app.example/back?tab=1&x=2", "http://app.example/back?tab=1#x",
        "http://app.example/back?tab=1/", "http://APP.example/back?tab=1", "https://app.example/back?tab=1",
        "http://app.example/back%3Ftab=1", "http://app.example@evil.example/back?tab=1",
        "http://app.example.evil.example/back?tab=1", "http://app.example:80/back?tab=1",
        "http://app.example/other/../back?tab=1", "//app.example/back?tab=1", "javascript:alert(1)",
        "http://app.example\\@evil.example/back?tab=1", "http://evil.example/?http://app.example/back?tab=1",
    ],
)  # fmt: skip
async def test_an_open_redirect(connected: ConsentStand, url: str) -> None:
    """A return URL is on the workload identity's list, character by character, or it is none."""
    with pytest.raises(ValidationException, match="not among the allowed return URLs of workload identity agent"):
        await connected.ask(await connected.token_of("alice"), resourceOauth2ReturnUrl=url)


async def test_return_urls_of_others(connected: ConsentStand) -> None:
    """Another workload's list is another's; none is not a way around; a list of nothing allows nothing."""
    await connected.workload("http://evil.example/", name="other-agent")
    token = await connected.token_of("alice")
    with pytest.raises(ValidationException, match="not among the allowed"):
        await connected.ask(token, resourceOauth2ReturnUrl="http://evil.example/")
    with pytest.raises(ValidationException, match="resourceOauth2ReturnUrl is needed"):
        await connected.ask(token, resourceOauth2ReturnUrl=None)
    update: Any = {"name": "agent", "allowedResourceOauth2ReturnUrls": []}
    await connected.plane.update_workload_identity(OPERATOR, update)
    with pytest.raises(ValidationException, match="UpdateWorkloadIdentity with name=agent"):
        await connected.ask(token)


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "data:text/html,x", "FILE:///etc/passwd", "http://a/\u00e9", "http://a/\x7f", "http://[a/"],
)
async def test_return_urls_that_are_no_place(connected: ConsentStand, url: str) -> None:
    """Even where an operator was talked into allowing one."""
    await connected.workload(url, name="other-agent")
    with pytest.raises(ValidationException, match="that a browser can be sent to"):
        await connected.ask(await connected.token_of("alice", "other-agent"), resourceOauth2ReturnUrl=url)


async def test_a_return_url_that_is_no_longer_allowed(connected: ConsentStand) -> None:
    asked = await connected.ask(await connected.token_of("alice"))
    back = await answer_for(connected, "alice", asked["authorizationUrl"])
    update: Any = {"name": "agent", "allowedResourceOauth2ReturnUrls": ["http://elsewhere.example/"]}
    await connected.plane.update_workload_identity(OPERATOR, update)
    assert_refused(await connected.get(back))


@pytest.mark.parametrize(
    "parameters",
    [{"redirect_uri": "http://evil.example/"}, {"state": "s"}, {"code_challenge": "c"}, {"CLIENT_ID": "evil"},
     {"response_type": "token"}, {"request_uri": "http://evil.example/"}, {"request": "jwt"}, {"scope": "all"},
     {"response_mode": "form_post"}, {"redirect.uri": "http://evil.example/"}],
    ids=lambda parameters: next(iter(parameters)),
)  # fmt: skip
async def test_parameters_that_would_change_the_flow(connected: ConsentStand, parameters: dict[str, str]) -> None:
    with pytest.raises(ValidationException, match="is set by the flow itself"):
        await connected.ask(await connected.token_of("alice"), customParameters=parameters)


async def test_what_was_consented_to_is_not_used_for_more(stand: ConsentStand, exchange: ExchangeServer) -> None:
    """Other scopes, resources, audiences, and other parameters that say what is granted or by which account: the user
    is asked, whether less is wanted than was granted, or more. How he is asked makes no difference."""
    await stand.workload()
    callback = await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    token = await stand.token_of("alice")
    count = 0

    async def given(request: web.Request) -> web.StreamResponse:
        answer = {"access_token": f"token-{count}", "refresh_token": "r", "token_type": "Bearer", "expires_in": 300}
        return web.json_response(answer)

    exchange.answer = given
    asked: list[dict[str, Any]] = [
        {"scopes": ["read", "write"]},
        {"scopes": ["read"]},
        {"scopes": ["read", "write", "admin"]},
        {"scopes": []},
        {"scopes": ["read"], "resources": ["https://a.example"]},
        {"scopes": ["read"], "audiences": ["https://a.example"]},
        {"scopes": ["read"], "customParameters": {"audience": "https://a.example"}},
        {"scopes": ["read"], "customParameters": {"authorization_details": "[]"}},
        {"scopes": ["read"], "customParameters": {"login_hint": "alice@work.example"}},
    ]
    for count, members in enumerate(asked):
        begun = await stand.ask(token, **members)
        assert "accessToken" not in begun, members
        state = query(begun["authorizationUrl"])["state"]
        await stand.get(f"{callback}?{urlencode({'state': state, 'code': 'c'})}")
        await stand.complete("alice", begun["sessionUri"])
        polled = {**members, "customParameters": None} if count % 2 else members
        assert (await stand.ask(token, sessionUri=begun["sessionUri"], **polled))["accessToken"] == f"token-{count}"
    for number, members in enumerate(asked):
        custom = {**members.get("customParameters", {}), "prompt": "consent", "access_type": "offline"}
        assert await stand.ask(token, **{**members, "customParameters": custom}) == {"accessToken": f"token-{number}"}


# Whose consent it is.


async def test_consent_completed_by_another_user(connected: ConsentStand, openid: OpenIdServer) -> None:
    """Mallory sends Alice a link that his own agent made; she consents. The application knows that it is Alice who came
    back, and says so: nobody gets the token, Mallory neither, whatever he says afterwards; the code is never used."""
    mallorys = await connected.token_of("mallory")
    begun = await connected.ask(mallorys)
    back = await connected.browser("alice").visit(begun["authorizationUrl"])
    exchanged = openid.asked().get("authorization_code", 0)
    with pytest.raises(AccessDeniedException, match="belongs to another user, and has been ended"):
        await connected.complete("alice", query(back)["session_id"])
    with pytest.raises(ValidationException, match="has failed: another user tried to complete it"):
        await connected.complete("mallory", begun["sessionUri"])
    assert openid.asked().get("authorization_code", 0) == exchanged
    ended = {"sessionUri": begun["sessionUri"], "sessionStatus": "FAILED"}
    assert await connected.ask(mallorys, sessionUri=begun["sessionUri"]) == ended
    for user in ("alice", "mallory"):
        assert "authorizationUrl" in await connected.ask(await connected.token_of(user))


async def test_consent_that_nobody_confirms(connected: ConsentStand, openid: OpenIdServer) -> None:
    """Consent alone gives no token, however often the agent asks."""
    token = await connected.token_of("mallory")
    begun = await connected.ask(token)
    await connected.browser("alice").visit(begun["authorizationUrl"])
    exchanged = openid.asked().get("authorization_code", 0)
    for _ in range(3):
        assert (await connected.ask(token, sessionUri=begun["sessionUri"]))["sessionStatus"] == "IN_PROGRESS"
        assert "authorizationUrl" in await connected.ask(token)
    assert openid.asked().get("authorization_code", 0) == exchanged


async def test_agents_confirm_nobody(connected: ConsentStand) -> None:
    """An agent that was talked into it would confirm whom it likes: operators' keys only."""
    assert allowed_callers(connected.plane.complete_resource_token_auth) == {CallerKind.OPERATOR}
    assert allowed_callers(connected.plane.get_resource_oauth2_token) == {CallerKind.OPERATOR, CallerKind.SESSION}


async def test_confirmed_before_the_browser_came_back(connected: ConsentStand) -> None:
    token = await connected.token_of("alice")
    begun = await connected.ask(token)
    with pytest.raises(ValidationException, match="has not consented yet"):
        await connected.complete("alice", begun["sessionUri"])
    await connected.browser("alice").visit(begun["authorizationUrl"])
    await connected.complete("alice", begun["sessionUri"])
    assert "accessToken" in await connected.ask(token, sessionUri=begun["sessionUri"])


async def test_a_user_of_another_issuer(connected: ConsentStand, provider: Any) -> None:
    """`alice` by id, and the subject `alice` of a provider, are two users; a token that does not verify is nobody's."""
    begun = await connected.ask(await connected.token_of("alice"))
    await connected.browser("alice").visit(begun["authorizationUrl"])

    async def complete(user_token: str) -> None:
        request: Any = {"userIdentifier": {"userToken": user_token}, "sessionUri": begun["sessionUri"]}
        await connected.plane.complete_resource_token_auth(OPERATOR, request)

    for bad in (provider.token()[:-4] + "AAAA", provider.token(exp=1), provider.token(iss="https://evil.example")):
        with pytest.raises(UnauthorizedException):
            await complete(bad)
    with pytest.raises(AccessDeniedException, match="belongs to another user"):
        await complete(provider.token())


async def test_concurrent_completes(
    connected: ConsentStand, openid: OpenIdServer, make_plane: Callable[..., IdentityPlane]
) -> None:
    """Of one user, at two replicas: the code is sent once, or the provider would revoke what it gave."""
    token = await connected.token_of("alice")
    begun = await connected.ask(token)
    await connected.browser("alice").visit(begun["authorizationUrl"])
    before = openid.asked()
    replicas = [connected.plane, make_plane()]
    await asyncio.gather(*(connected.complete("alice", begun["sessionUri"], replicas[n % 2]) for n in range(10)))
    after = openid.asked()
    assert after["authorization_code"] == before.get("authorization_code", 0) + 1
    assert after.get("invalid_grant", 0) == before.get("invalid_grant", 0)
    answer = await connected.ask(token, sessionUri=begun["sessionUri"])
    assert openid.user_of(answer["accessToken"]) == "alice"


@pytest.mark.parametrize("first", ["alice", "mallory"])
async def test_two_users_complete_at_once(connected: ConsentStand, openid: OpenIdServer, first: str) -> None:
    """Either the user it was begun for gets the token, or nobody does."""
    token = await connected.token_of("alice")
    begun = await connected.ask(token)
    await connected.browser("alice").visit(begun["authorizationUrl"])
    second = "mallory" if first == "alice" else "alice"
    outcome = dict(
        zip(
            (first, second),
            await asyncio.gather(
                *(connected.complete(user, begun["sessionUri"]) for user in (first, second)), return_exceptions=True
            ),
            strict=True,
        )
    )
    assert isinstance(outcome["mallory"], AccessDeniedException)
    answer = await connected.ask(token, sessionUri=begun["sessionUri"])
    if outcome["alice"] is None:
        assert openid.user_of(answer["accessToken"]) == "alice"
    else:
        assert isinstance(outcome["alice"], ServiceError)
        assert answer["sessionStatus"] == "FAILED"
    assert "authorizationUrl" in await connected.ask(await connected.token_of("mallory"))


# Sessions, guessed and stolen.


async def test_session_id_guessing(connected: ConsentStand) -> None:
    """256 bits. What was never there, and what is another user's or agent's, is answered alike."""
    alices = await connected.token_of("alice")
    begun = await connected.ask(alices)
    assert len(begun["sessionUri"].removeprefix(URI)) == 64
    await connected.workload(name="other-agent")
    said = set()
    for token, uri in (
        (alices, URI + "0" * 64),
        (alices, begun["sessionUri"][:-1] + "g"),
        (await connected.token_of("mallory"), begun["sessionUri"]),
        (await connected.token_of("alice", "other-agent"), begun["sessionUri"]),
    ):
        with pytest.raises(ResourceNotFoundException) as error:
            await connected.ask(token, sessionUri=uri)
        said.add(error.value.message)
    for user in ("alice", "mallory"):
        with pytest.raises(ResourceNotFoundException) as error:
            await connected.complete(user, URI + secrets.token_hex(32))
        said.add(error.value.message)
    assert len(said) == 1
    with pytest.raises(ValidationException, match="begun with other scopes"):
        await connected.ask(alices, sessionUri=begun["sessionUri"], scopes=["openid", "offline_access"])
    with pytest.raises(ResourceNotFoundException):
        await connected.ask(alices, sessionUri=begun["sessionUri"], resourceCredentialProviderName="absent")


async def test_the_session_is_not_in_the_link(connected: ConsentStand) -> None:
    """Whoever sees the link, or the provider's log, cannot ask for the token or end the session."""
    begun = await connected.ask(await connected.token_of("alice"))
    session = begun["sessionUri"].removeprefix(URI)
    assert session not in begun["authorizationUrl"]
    with pytest.raises(ResourceNotFoundException):
        await connected.complete("alice", URI + query(begun["authorizationUrl"])["state"])


async def test_an_agent_that_asks_without_end(connected: ConsentStand) -> None:
    """The store is not filled with links; other users, and other agents of the same user, are not kept waiting."""
    token = await connected.token_of("alice")
    for _ in range(50):
        asked = await connected.ask(token)
    with pytest.raises(ThrottlingException, match="begun 50 consents"):
        await connected.ask(token)
    assert await connected.ask(token, sessionUri=asked["sessionUri"]) == asked
    await connected.workload(name="other-agent")
    for other in (await connected.token_of("bob"), await connected.token_of("alice", "other-agent")):
        assert "authorizationUrl" in await connected.ask(other)


async def test_an_expired_session(connected: ConsentStand, clock: Any) -> None:
    """Ten minutes for everything: coming back, confirming, and asking how it stands."""
    token = await connected.token_of("alice")
    early, late = await connected.ask(token), await connected.ask(token)
    await connected.browser("alice").visit(early["authorizationUrl"])
    back = await answer_for(connected, "alice", late["authorizationUrl"])
    clock.move(599)
    assert (await connected.ask(token, sessionUri=late["sessionUri"]))["sessionStatus"] == "IN_PROGRESS"
    clock.move(1)
    assert_refused(await connected.get(back))
    with pytest.raises(ValidationException, match="has expired"):
        await connected.complete("alice", early["sessionUri"])
    for session in (early, late):
        assert (await connected.ask(token, sessionUri=session["sessionUri"]))["sessionStatus"] == "FAILED"


# Tokens of others.


async def test_another_agents_workload_token(
    connected: ConsentStand, session_of: Callable[..., Call], clock: Any
) -> None:
    """Stolen from another agent, or from another user's session of the same agent: worth nothing in this session."""
    await connected.consent("alice")
    alices = await connected.token_of("alice")
    assert "accessToken" in await connected.ask(alices, call=session_call("alice"))
    for thief in (session_call("mallory"), session_call("alice", "other-agent"), session_of("agent", None)):
        with pytest.raises(AccessDeniedException):
            await connected.ask(alices, call=thief)
        with pytest.raises(AccessDeniedException):
            await connected.ask(alices, "M2M", thief)
    for bad in (alices[:-1], "x", alices.swapcase(), "\u00e9"):
        with pytest.raises(UnauthorizedException):
            await connected.ask(bad)
    clock.move(3601)
    with pytest.raises(UnauthorizedException, match="expired"):
        await connected.ask(alices)


async def test_a_name_that_another_agent_had(connected: ConsentStand) -> None:
    """A workload identity that is deleted takes what it was granted along: nobody inherits it with the name."""
    await connected.consent("alice")
    begun = await connected.ask(await connected.token_of("alice"), forceAuthentication=True)
    back = await answer_for(connected, "alice", begun["authorizationUrl"])
    await connected.plane.delete_workload_identity(OPERATOR, {"name": "agent"})
    assert_refused(await connected.get(back))
    await connected.workload()
    assert_refused(await connected.get(back))
    token = await connected.token_of("alice")
    assert "authorizationUrl" in await connected.ask(token)
    with pytest.raises(ResourceNotFoundException):
        await connected.ask(token, sessionUri=begun["sessionUri"])


async def test_a_name_that_another_provider_had(connected: ConsentStand, exchange: ExchangeServer) -> None:
    """Codes and tokens of one configuration are never sent to the endpoints of another."""
    await connected.consent("alice")
    token = await connected.token_of("alice")
    begun = await connected.ask(token, forceAuthentication=True)
    await connected.browser("alice").visit(begun["authorizationUrl"])
    await connected.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    with pytest.raises(ValidationException, match="provider was changed"):
        await connected.complete("alice", begun["sessionUri"])
    assert (await connected.ask(token))["authorizationUrl"].startswith(f"{exchange.url}/authorize?")
    assert exchange.requests == []


@pytest.mark.parametrize("grant", ["client_credentials", "authorization_code", "refresh_token"])
@pytest.mark.parametrize("change", ["deleted", "updated"])
async def test_a_provider_that_goes_while_its_server_is_asked(
    stand: ConsentStand, exchange: ExchangeServer, store: ValkeyKeyValueStore, clock: Any, grant: str, change: str
) -> None:
    """Nothing is kept of what the server gives then."""
    await stand.workload()
    callback = await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    revision = (await stand.plane._oauth2.client("tickets")).revision
    token = await stand.token_of("alice")

    async def answer(request: web.Request) -> web.StreamResponse:
        if (await request.post())["grant_type"] == grant:
            if change == "deleted":
                await stand.plane.delete_oauth2_credential_provider(OPERATOR, {"name": "tickets"})
            else:
                await stand.credential_provider(exchange.metadata, exchange.client_id, "an0ther")
        tokens = {"access_token": "t0ken", "refresh_token": "r3fresh", "token_type": "Bearer", "expires_in": 300}
        return web.json_response(tokens)

    exchange.answer = answer
    if grant == "client_credentials":
        await stand.ask(token, "M2M")
    else:
        begun = await stand.ask(token)
        state = query(begun["authorizationUrl"])["state"]
        await stand.get(f"{callback}?{urlencode({'state': state, 'code': 'c'})}")
        await stand.complete("alice", begun["sessionUri"])
        if grant == "refresh_token":
            clock.move(250)
            await stand.ask(token)
    grants = partition("identity", "token-vaults", "default", "grants", "tickets", revision)
    assert await store.query(grants, limit=10) == []


async def test_a_secret_does_not_go_to_other_endpoints(connected: ConsentStand) -> None:
    """While a provider is updated, a client is read either as it was or as it is: never the secret of the one with the
    endpoints of the other."""
    ends = asyncio.Event()
    seen = set()

    async def update() -> None:
        for number in range(40):
            await connected.credential_provider(f"https://idp-{number % 2}.example", "agent", f"secret-{number % 2}")
        ends.set()

    async def read() -> None:
        while not ends.is_set():
            client = await connected.plane._oauth2.client("tickets")
            seen.add((client.discovery["discoveryUrl"], client.credentials.secret))

    await connected.credential_provider("https://idp-0.example", "agent", "secret-0")
    await asyncio.gather(update(), *(read() for _ in range(8)))
    assert seen == {(f"https://idp-{number}.example", f"secret-{number}") for number in range(2)}


async def test_keys_of_nobody(connected: ConsentStand) -> None:
    """IDN-5: both operations want a signature; only the callback is open."""
    async with httpx.AsyncClient() as client:
        for path in ("/identities/oauth2/token", "/identities/CompleteResourceTokenAuth"):
            answer = await client.post(connected.url + path, json={"sessionUri": URI + "x"})
            assert answer.status_code in (401, 403)
