"""What identity puts on record: who asked, with which agent, for which user, in which session, of which provider, by
which flow, and what became of it. And that nothing is given where it cannot be put on record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from consent_stand import OPERATOR, RETURN_URL, ConsentStand, session_call
from exchange_server import EXCHANGE, ExchangeServer
from openid_provider import OpenIdServer

from agentkeep.core.call import Call, SessionRef
from agentkeep.core.errors import (
    AccessDeniedException,
    ConflictException,
    ResourceNotFoundException,
    ServiceUnavailableException,
    StoreUnavailable,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.core.ports import AuditRecord, OutboundUse
from agentkeep.identity.operations import IdentityPlane
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.storage.valkey import ValkeyKeyValueStore

MakePlane = Callable[..., IdentityPlane]
SESSION = SessionRef("agent", "s" * 33)


class Audit:
    """The real one, and a way to it that tests cut."""

    def __init__(self, store: ValkeyKeyValueStore) -> None:
        self._kept = KeyValueAudit(store)
        self._order: list[str] = []  # the tests' clock stands still
        self.away = False

    async def record(self, record: AuditRecord) -> None:
        if self.away:
            raise StoreUnavailable("the records' store is away")
        await self._kept.record(record)
        self._order.append(record.id)

    async def told(self, **wanted: str) -> list[AuditRecord]:
        """As they came."""
        records, _ = await self._kept.page(AuditFilter(**wanted), 1000)  # type: ignore[arg-type]
        return sorted(records, key=lambda record: self._order.index(record.id))

    async def one(self, kind: str) -> AuditRecord:
        (record,) = await self.told(kind=kind)
        return record


@pytest.fixture
def audit(store: ValkeyKeyValueStore) -> Audit:
    return Audit(store)


@pytest.fixture
async def stand(
    make_plane: MakePlane, provider: Any, audit: Audit, free_tcp_port: int
) -> AsyncIterator[ConsentStand]:  # fmt: skip
    url = f"http://127.0.0.1:{free_tcp_port}"
    stand = ConsentStand(url, make_plane(trusted_issuers=[provider.discovery_url], public_url=url, audit=audit))
    await stand.start()
    yield stand
    await stand.stop()


@pytest.fixture
def plane(stand: ConsentStand) -> IdentityPlane:
    return stand.plane


def details(record: AuditRecord, *names: str) -> list[str | None]:
    return [record.details.get(name) for name in names]


async def api_key(plane: IdentityPlane, token: str, call: Call = OPERATOR, name: str = "weather") -> str:
    request: Any = {"workloadIdentityToken": token, "resourceCredentialProviderName": name}
    return (await plane.get_resource_api_key(call, request))["apiKey"]


async def test_a_consent_from_step_to_step(
    stand: ConsentStand, openid: OpenIdServer, audit: Audit, clock: Any
) -> None:  # fmt: skip
    """IDN-3"""
    await stand.workload()
    await stand.connect(openid)
    call, token = session_call("alice"), await stand.token_of("alice")
    asked = await stand.ask(token, call=call)
    await stand.browser("alice").visit(asked["authorizationUrl"])
    await stand.complete("alice", asked["sessionUri"])
    await stand.ask(token, call=call, sessionUri=asked["sessionUri"])
    clock.move(590)
    await stand.ask(token, call=call)
    openid.revoke_all()
    clock.move(590)
    assert (await stand.ask(token, call=call))["sessionStatus"] == "IN_PROGRESS"

    told = [
        record for record in await audit.told(user="alice") if record.kind.startswith(("consent", "oauth2"))
    ]  # fmt: skip
    assert [(record.kind, *details(record, "grant", "outcome")) for record in told] == [
        ("consent-begun", None, None),
        ("consent-given", None, None),
        ("oauth2-exchange", "authorization_code", None),
        ("oauth2-exchange-ended", "authorization_code", "given"),
        ("consent-completed", None, None),
        ("oauth2-token-used", None, None),
        ("oauth2-exchange", "refresh_token", None),
        ("oauth2-exchange-ended", "refresh_token", "given"),
        ("oauth2-token-used", None, None),
        ("oauth2-exchange", "refresh_token", None),
        ("oauth2-exchange-ended", "refresh_token", "refused"),
        ("consent-revoked", None, None),
        ("consent-begun", None, None),
    ]
    for record in told:
        assert details(record, "workload", "provider", "flow") == ["agent", "tickets", "USER_FEDERATION"], record
    principals = {record.kind: record.principal for record in told}
    assert principals["consent-given"] == "a browser at the callback URL"
    assert principals["consent-completed"] == OPERATOR.caller.principal
    assert principals["oauth2-token-used"] == call.caller.principal
    sessions = {record.kind: record.session for record in told}
    assert sessions["consent-begun"] == sessions["consent-given"] == sessions["consent-revoked"] == SESSION
    assert sessions["consent-completed"] is None


async def test_consents_that_come_to_nothing(stand: ConsentStand, openid: OpenIdServer, audit: Audit) -> None:
    """IDN-3: refused by the user, followed by another, brought back twice, completed out of turn."""
    await stand.workload()
    await stand.connect(openid)
    token = await stand.token_of("alice")
    asked = await stand.ask(token)
    with pytest.raises(ValidationException, match="not consented yet"):
        await stand.complete("alice", asked["sessionUri"])
    assert details(await audit.one("consent-refused"), "code", "provider") == ["ValidationException", "tickets"]
    await stand.browser("alice").visit(asked["authorizationUrl"], abort=True)
    assert details(await audit.one("consent-denied"), "workload", "provider") == ["agent", "tickets"]
    asked = await stand.ask(token)
    browser = stand.browser("mallory")
    await browser.visit(asked["authorizationUrl"])
    callback = next(url for url in browser.visited if "/identities/oauth2/callback/" in url)
    assert (await stand.get(callback)).status_code == 400
    with pytest.raises(AccessDeniedException):
        await stand.complete("mallory", asked["sessionUri"])
    with pytest.raises(ResourceNotFoundException):
        await stand.complete("mallory", "urn:ietf:params:oauth:request_uri:none")
    refused = await audit.told(kind="consent-refused", user="mallory")
    assert [details(record, "code", "workload", "provider") for record in refused] == [
        ["AccessDeniedException", "agent", "tickets"],
        ["ResourceNotFoundException", None, None],
    ]
    assert await audit.told(kind="consent-completed") == []


async def test_a_stored_key(stand: ConsentStand, plane: IdentityPlane, audit: Audit, provider: Any) -> None:
    """IDN-3: the first use by a session is on record before it is answered, the rest are counted; with the user's
    issuer, where a token proved him."""
    await stand.workload()
    await plane.create_api_key_credential_provider(OPERATOR, {"name": "weather", "apiKey": "k-1"})
    request: Any = {"workloadName": "agent", "userToken": provider.token()}
    by_token = (await plane.get_workload_access_token_for_jwt(OPERATOR, request))["workloadAccessToken"]
    token, call = await stand.token_of("alice"), session_call("alice")
    for _ in range(3):
        assert await api_key(plane, token, call) == "k-1"
    used = await audit.one("api-key-used")
    assert (used.principal, used.session, used.user_id, used.count) == (call.caller.principal, SESSION, "alice", 1)
    assert details(used, "workload", "provider", "issuer", "access-key") == ["agent", "weather", None, "ASIA"]
    await api_key(plane, by_token)
    assert details((await audit.told(kind="api-key-used"))[1], "issuer") == [provider.url]
    await plane.close()
    assert [record.count for record in await audit.told(kind="api-key-used", session="s" * 33)] == [1, 2]
    tokens = await audit.told(kind="workload-token")
    assert [record.details.get("issuer") for record in tokens] == [provider.url, None]


async def test_refusals(stand: ConsentStand, plane: IdentityPlane, audit: Audit, provider: Any) -> None:
    """IDN-2, IDN-3: whoever tries names after names of what is not there fills no store."""
    await stand.workload()
    alices, bob = await stand.token_of("alice"), session_call("bob")
    with pytest.raises(AccessDeniedException):
        await api_key(plane, alices, bob)
    with pytest.raises(UnauthorizedException):
        await api_key(plane, "made-up", bob)
    for name in ("absent", "another", "third"):
        with pytest.raises(ResourceNotFoundException):
            await api_key(plane, await stand.token_of("bob"), bob, name)
    refused = await audit.told(kind="api-key-refused")
    assert [details(record, "code", "outcome") for record in refused] == [
        ["AccessDeniedException", "refused"],
        ["UnauthorizedException", "refused"],
        ["ResourceNotFoundException", "refused"],
    ]
    assert {(record.principal, record.session, record.user_id) for record in refused} == {
        (bob.caller.principal, SESSION, "bob")
    }
    expired: Any = {"workloadName": "agent", "userToken": provider.token(exp=1)}
    with pytest.raises(UnauthorizedException):
        await plane.get_workload_access_token_for_jwt(OPERATOR, expired)
    with pytest.raises(AccessDeniedException):
        await plane.get_workload_access_token(session_call("bob", "other"), {"workloadName": "agent"})
    assert [details(record, "code", "workload") for record in await audit.told(kind="workload-token-refused")] == [
        ["UnauthorizedException", "agent"],
        ["AccessDeniedException", None],
    ]


async def test_exchanges(stand: ConsentStand, exchange: ExchangeServer, audit: Audit, provider: Any) -> None:
    """IDN-3: client credentials, and on behalf of a user; each request to the server, and each use; what the server
    said, where it refuses."""
    await stand.workload()
    await stand.credential_provider(
        exchange.metadata, exchange.client_id, exchange.client_secret,
        onBehalfOfTokenExchangeConfig={"grantType": "TOKEN_EXCHANGE"},
    )  # fmt: skip
    request: Any = {"workloadName": "agent", "userToken": provider.token(sub="bob")}
    token = (await stand.plane.get_workload_access_token_for_jwt(OPERATOR, request))["workloadAccessToken"]
    for flow in ("M2M", "ON_BEHALF_OF_TOKEN_EXCHANGE"):
        for _ in range(2):
            assert "accessToken" in await stand.ask(token, flow, scopes=["read"], audiences=["tickets"])
    for kind, expected in (
        ("oauth2-exchange", [["M2M", "client_credentials"], ["ON_BEHALF_OF_TOKEN_EXCHANGE", EXCHANGE]]),
        ("oauth2-exchange-ended", [["M2M", "client_credentials"], ["ON_BEHALF_OF_TOKEN_EXCHANGE", EXCHANGE]]),
        ("oauth2-token-used", [["M2M", None], ["ON_BEHALF_OF_TOKEN_EXCHANGE", None]]),
    ):
        told = await audit.told(kind=kind)
        assert [details(record, "flow", "grant") for record in told] == expected
        assert {record.user_id for record in told} == {"bob"}
    await stand.credential_provider(exchange.metadata, exchange.client_id, "wrong")
    with pytest.raises(ValidationException, match="invalid_client"):
        await stand.ask(token, "M2M", scopes=["read"])
    assert details(await audit.one("oauth2-token-refused"), "flow", "server") == ["M2M", "invalid_client"]
    ended = await audit.told(kind="oauth2-exchange-ended")
    assert details(ended[-1], "outcome", "server", "provider") == ["refused", "invalid_client", "tickets"]


async def test_every_exchange_has_an_end(
    stand: ConsentStand, exchange: ExchangeServer, audit: Audit, clock: Any
) -> None:
    """IDN-3: also where the agent goes on with the token it had, and hears of nothing; and a token that came is not
    lost for want of a record of it."""
    await stand.workload()
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    token = await stand.token_of("alice")
    first = await stand.ask(token, "M2M", scopes=["read"])

    async def broken(_: Any) -> web.Response:
        return web.Response(status=500)

    exchange.answer = broken
    clock.move(250)  # of 300
    assert await stand.ask(token, "M2M", scopes=["read"]) == first
    ends = [details(one, "grant", "outcome") for one in await audit.told(kind="oauth2-exchange-ended")]
    assert ends == [["client_credentials", "given"], ["client_credentials", "failed"]]

    async def answered(_: Any) -> web.Response:
        audit.away = True
        return web.json_response({"access_token": "came-all-the-same", "token_type": "Bearer"})

    exchange.answer = answered
    # That she uses such tokens was on record a moment ago.
    assert (await stand.ask(token, "M2M", scopes=["write"]))["accessToken"] == "came-all-the-same"
    audit.away = False
    assert (await stand.ask(token, "M2M", scopes=["write"]))["accessToken"] == "came-all-the-same"
    assert len(exchange.requests) == 3
    assert len(await audit.told(kind="oauth2-exchange-ended")) == 2


async def test_without_a_record_nothing_is_given(
    stand: ConsentStand, exchange: ExchangeServer, audit: Audit, make_plane: MakePlane
) -> None:
    """IDN-2, IDN-3: no key, no token, no link; the authorization server is not even asked, and nothing is changed. What
    is refused is refused all the same."""
    plane = stand.plane
    await stand.workload()
    await stand.credential_provider(exchange.metadata, exchange.client_id, exchange.client_secret)
    await plane.create_api_key_credential_provider(OPERATOR, {"name": "weather", "apiKey": "k-1"})
    token = await stand.token_of("alice")
    arn = (await plane.get_api_key_credential_provider(OPERATOR, {"name": "weather"}))["credentialProviderArn"]
    use = OutboundUse("arn:aws:iam::123456789012:user/app", None, None, None, "target t of gateway g")
    audit.away = True
    for attempt in (
        lambda: api_key(plane, token, session_call("alice")),
        lambda: plane.outbound.api_key(arn, use),
        lambda: stand.ask(token, "M2M", scopes=[]),
        lambda: stand.ask(token),
        lambda: plane.get_workload_access_token(OPERATOR, {"workloadName": "agent"}),
        lambda: plane.create_api_key_credential_provider(OPERATOR, {"name": "new", "apiKey": "k-2"}),
        lambda: plane.update_api_key_credential_provider(OPERATOR, {"name": "weather", "apiKey": "k-2"}),
        lambda: plane.delete_api_key_credential_provider(OPERATOR, {"name": "weather"}),
    ):
        with pytest.raises((StoreUnavailable, ServiceUnavailableException)):
            await attempt()
    assert exchange.requests == []
    with pytest.raises(UnauthorizedException):
        await api_key(plane, "made-up", session_call("alice"))
    audit.away = False
    assert await api_key(plane, token, session_call("alice")) == "k-1"
    with pytest.raises(ResourceNotFoundException):
        await plane.get_api_key_credential_provider(OPERATOR, {"name": "new"})


async def test_what_operators_change(plane: IdentityPlane, audit: Audit) -> None:
    """IDN-3: before it is changed, and again if that fails."""
    given: Any = {
        "name": "hub",
        "credentialProviderVendor": "GithubOauth2",
        "oauth2ProviderConfigInput": {"githubOauth2ProviderConfig": {"clientId": "c", "clientSecret": "s"}},
    }
    await plane.create_oauth2_credential_provider(OPERATOR, given)
    with pytest.raises(ConflictException):
        await plane.create_oauth2_credential_provider(OPERATOR, given)
    await plane.update_oauth2_credential_provider(OPERATOR, given)
    await plane.delete_oauth2_credential_provider(OPERATOR, {"name": "hub"})
    await plane.create_workload_identity(OPERATOR, {"name": "agent"})
    await plane.update_workload_identity(
        OPERATOR, {"name": "agent", "allowedResourceOauth2ReturnUrls": [RETURN_URL]}
    )  # fmt: skip
    await plane.set_token_vault_cmk(OPERATOR, {"kmsConfiguration": {"keyType": "ServiceManagedKey"}})
    changes = await audit.told(kind="identity-change")
    assert [details(record, "action", "resource") for record in changes] == [
        ["create", "OAuth2 credential provider hub"],
        ["create", "OAuth2 credential provider hub"],
        ["update", "OAuth2 credential provider hub"],
        ["delete", "OAuth2 credential provider hub"],
        ["create", "workload identity agent"],
        ["update", "workload identity agent"],
        ["give another key to", "token vault default"],
    ]
    assert {record.principal for record in changes} == {OPERATOR.caller.principal}
    assert details(await audit.one("identity-change-refused"), "code") == ["ConflictException"]
