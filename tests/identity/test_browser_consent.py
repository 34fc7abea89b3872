"""Consent as people give it: Chromium, the pages of real providers, and an application that knows its visitors."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from aiohttp import web
from botocore.exceptions import ClientError
from chromium import visit
from consent_stand import OPERATOR, ConsentStand
from containers import PASSWORD
from openid_provider import OpenIdServer

from agentkeep.identity.operations import IdentityPlane

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Shop:
    """The application at the return URL. It knows visitors by its own cookie, and says who came back. `referers`: from
    where browsers said that they came there."""

    def __init__(self, stand: ConsentStand) -> None:
        self._data = stand.client("bedrock-agentcore")
        self.referers: list[str | None] = []
        app = web.Application()
        app.router.add_get("/hello/{visitor}", self._hello)
        app.router.add_get("/back", self._back)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self.url = ""

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    @property
    def return_url(self) -> str:
        return f"{self.url}/back?tab=1"

    async def _hello(self, request: web.Request) -> web.Response:
        answer = web.Response(text="Hello")
        answer.set_cookie("shop-visitor", request.match_info["visitor"], httponly=True, samesite="Lax")
        return answer

    async def _back(self, request: web.Request) -> web.Response:
        self.referers.append(request.headers.get("referer"))
        who = {"userId": request.cookies["shop-visitor"]}
        try:
            await asyncio.to_thread(
                self._data.complete_resource_token_auth, userIdentifier=who, sessionUri=request.query["session_id"]
            )
        except ClientError as error:
            return web.Response(text=f"Not connected: {error.response['Error']['Code']}")
        return web.Response(text=f"Connected, tab {request.query['tab']}")


@pytest.fixture
async def shop(stand: ConsentStand) -> AsyncIterator[Shop]:
    shop = Shop(stand)
    await shop.start()
    yield shop
    await shop.stop()


async def follows(shop: Shop, visitor: str, link: str, **fields: str) -> tuple[str, list[str]]:
    """What the application says in the end, and the headings of the provider's pages."""
    seen = await asyncio.to_thread(
        visit, f"{shop.url}/hello/{visitor}", link, until=f"{shop.url}/back", fields=fields
    )  # fmt: skip
    return seen.text, seen.pages


async def test_a_certified_provider_in_a_real_browser(stand: ConsentStand, openid: OpenIdServer, shop: Shop) -> None:
    """IDN-3: sign-in, consent, callback, return; the token is the user's. Whoever follows another user's link
    consents for nobody. The application never learns the address with the code in it."""
    await stand.workload(shop.return_url)
    await stand.connect(openid)
    workload = await stand.token_of("alice")
    asking = {"resourceOauth2ReturnUrl": shop.return_url}
    asked = await stand.ask(workload, **asking)
    said, pages = await follows(shop, "mallory", asked["authorizationUrl"], login="mallory", password="any")
    assert said == "Not connected: AccessDeniedException"
    assert (await stand.ask(workload, sessionUri=asked["sessionUri"], **asking))["sessionStatus"] == "FAILED"

    asked = await stand.ask(workload, **asking)
    said, pages = await follows(shop, "alice", asked["authorizationUrl"], login="alice", password="any")
    assert said == "Connected, tab 1"
    assert pages == ["Sign-in", "Authorize"]
    given = await stand.ask(workload, sessionUri=asked["sessionUri"], **asking)
    assert openid.user_of(given["accessToken"]) == "alice"
    assert shop.referers == [None, None]


async def test_keycloak_in_a_real_browser(
    stand: ConsentStand, shop: Shop, make_plane: Callable[..., IdentityPlane], keycloak_url: str, clock: Any
) -> None:
    """IDN-3, IDN-5: Keycloak's own sign-in and consent pages; its refresh token is used; consent withdrawn at Keycloak
    is asked for again. And its client's own tokens (M2M), and a user's token for another by RFC 8693."""
    realm, secret = f"consent-{secrets.token_hex(4)}", secrets.token_hex(16)
    await stand.workload(shop.return_url)
    discovery = f"{keycloak_url}/realms/{realm}/.well-known/openid-configuration"
    exchange = {"grantType": "TOKEN_EXCHANGE"}
    callback = await stand.credential_provider(discovery, "tickets", secret, onBehalfOfTokenExchangeConfig=exchange)
    async with httpx.AsyncClient(base_url=keycloak_url, timeout=120) as keycloak:
        alice = await _realm(keycloak, realm, secret, callback)
        workload = await stand.token_of("alice")
        asking = {"resourceOauth2ReturnUrl": shop.return_url, "scopes": ["openid"]}
        asked = await stand.ask(workload, **asking)
        said, pages = await follows(shop, "alice", asked["authorizationUrl"], username="alice", password=PASSWORD)
        assert said == "Connected, tab 1", pages
        assert len(pages) == 2, pages
        first = (await stand.ask(workload, sessionUri=asked["sessionUri"], **asking))["accessToken"]
        assert await _user(keycloak, realm, first) == "alice"

        own = await stand.ask(workload, "M2M", scopes=[])
        assert _claims(own["accessToken"])["azp"] == "tickets"
        trusting = make_plane(trusted_issuers=[discovery])
        form = {"grant_type": "password", "client_id": "web", "username": "alice", "password": PASSWORD}
        signed_in = await keycloak.post(f"/realms/{realm}/protocol/openid-connect/token", data=form)
        hers = signed_in.raise_for_status().json()["access_token"]
        request: Any = {"workloadName": "agent", "userToken": hers}
        by_token = (await trusting.get_workload_access_token_for_jwt(OPERATOR, request))["workloadAccessToken"]
        exchanged = await stand.ask(by_token, "ON_BEHALF_OF_TOKEN_EXCHANGE", plane=trusting, scopes=[])
        assert exchanged["accessToken"] != hers
        assert (_claims(hers)["azp"], _claims(exchanged["accessToken"])["azp"]) == ("web", "tickets")
        assert _claims(exchanged["accessToken"])["sub"] == alice

        clock.move(400)  # its access tokens live 300 seconds
        renewed = (await stand.ask(workload, **asking))["accessToken"]
        assert renewed != first
        assert await _user(keycloak, realm, renewed) == "alice"

        await _administer(keycloak, "DELETE", f"/{realm}/users/{alice}/consents/tickets")
        clock.move(400)
        again = await stand.ask(workload, **asking)
        assert again["sessionStatus"] == "IN_PROGRESS"
        assert again["authorizationUrl"].startswith(keycloak_url)


async def _realm(keycloak: httpx.AsyncClient, realm: str, secret: str, callback: str) -> str:
    """The id of its user alice."""
    client = {
        "clientId": "tickets",
        "secret": secret,
        "redirectUris": [callback],
        "consentRequired": True,
        "serviceAccountsEnabled": True,
        "attributes": {"standard.token.exchange.enabled": "true"},
    }
    mapper = {
        "name": "audience", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper",
        "config": {"included.client.audience": "tickets", "access.token.claim": "true"},
    }  # fmt: skip
    web = {"clientId": "web", "publicClient": True, "directAccessGrantsEnabled": True, "protocolMappers": [mapper]}
    user = {
        "username": "alice", "enabled": True, "email": "alice@example.com", "emailVerified": True,
        "firstName": "Alice", "lastName": "Example",
        "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
    }  # fmt: skip
    await _administer(keycloak, "POST", "", {
        "realm": realm, "enabled": True, "sslRequired": "none", "accessTokenLifespan": 300, "clients": [client, web],
        "users": [user],
    })  # fmt: skip
    users = await _administer(keycloak, "GET", f"/{realm}/users?username=alice")
    return str(users.json()[0]["id"])


async def _administer(keycloak: httpx.AsyncClient, method: str, path: str, body: Any = None) -> httpx.Response:
    form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": PASSWORD}
    token = (await keycloak.post("/realms/master/protocol/openid-connect/token", data=form)).raise_for_status().json()
    bearer = {"Authorization": f"Bearer {token['access_token']}"}
    return (await keycloak.request(method, f"/admin/realms{path}", json=body, headers=bearer)).raise_for_status()


async def _user(keycloak: httpx.AsyncClient, realm: str, token: str) -> str:
    """By Keycloak's own word."""
    bearer = {"Authorization": f"Bearer {token}"}
    answer = await keycloak.get(f"/realms/{realm}/protocol/openid-connect/userinfo", headers=bearer)
    return str(answer.raise_for_status().json()["preferred_username"])


def _claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims
