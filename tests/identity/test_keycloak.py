"""Inbound JWT authorizers with tokens that a real Keycloak made (IDN-5)."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from containers import PASSWORD

from agentkeep.core.call import User
from agentkeep.core.errors import AccessDeniedException, UnauthorizedException
from agentkeep.identity.operations import IdentityPlane

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LIFETIME = 300  # seconds, of access tokens


@dataclass(frozen=True)
class Realm:
    """With a user, and clients at whose terminals the user signs in with a password."""

    name: str
    issuer: str
    keycloak: httpx.Client

    def authorizer(self, **rules: Any) -> dict[str, Any]:
        return {"discoveryUrl": f"{self.issuer}/.well-known/openid-configuration", **rules}

    def sign_in(self, client: str = "web", scope: str = "openid") -> dict[str, str]:
        form = {"grant_type": "password", "client_id": client, "username": "alice", "password": PASSWORD}
        answer = self.keycloak.post(f"{self.issuer}/protocol/openid-connect/token", data={**form, "scope": scope})
        tokens: dict[str, str] = answer.raise_for_status().json()
        return tokens

    def add(self, kind: str, body: dict[str, Any]) -> None:
        administer(self.keycloak, f"/{self.name}/{kind}", body)


def administer(keycloak: httpx.Client, path: str, body: dict[str, Any]) -> None:
    form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": PASSWORD}
    token = keycloak.post("/realms/master/protocol/openid-connect/token", data=form).raise_for_status().json()
    bearer = {"Authorization": f"Bearer {token['access_token']}"}
    keycloak.post(f"/admin/realms{path}", json=body, headers=bearer).raise_for_status()


def mapper(name: str, kind: str, **config: str) -> dict[str, Any]:
    shown = {"access.token.claim": "true", "id.token.claim": "false"}
    return {
        "name": name,
        "protocol": "openid-connect",
        "protocolMapper": f"oidc-{kind}-mapper",
        "config": {**shown, **config},
    }


def client(name: str, *mappers: dict[str, Any]) -> dict[str, Any]:
    rules = {"publicClient": True, "directAccessGrantsEnabled": True, "standardFlowEnabled": False}
    return {"clientId": name, **rules, "protocolMappers": list(mappers)}


AUDIENCE = mapper("audience", "audience", **{"included.custom.audience": "support"})
ROLES = mapper("roles", "usermodel-realm-role", **{"claim.name": "roles", "multivalued": "true"})
USER = {
    "username": "alice",
    "enabled": True,
    "email": "alice@example.com",
    "emailVerified": True,
    "firstName": "Alice",
    "lastName": "Example",
    "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
    "realmRoles": ["refunds"],
}


@pytest.fixture(scope="module")
def realms(keycloak_url: str) -> Iterator[list[Realm]]:
    """Two, alike in everything but their names."""
    with httpx.Client(base_url=keycloak_url, timeout=120) as keycloak:
        made = []
        for number in (1, 2):
            name = f"test-{number}-{secrets.token_hex(4)}"
            representation = {
                "realm": name,
                "enabled": True,
                "sslRequired": "none",
                "accessTokenLifespan": LIFETIME,
                "roles": {"realm": [{"name": "refunds"}]},
                "clients": [client("web", AUDIENCE, ROLES), client("elsewhere", ROLES)],
                "users": [USER],
            }
            administer(keycloak, "", representation)
            made.append(Realm(name, f"{keycloak_url}/realms/{name}", keycloak))
        yield made


@pytest.fixture
def realm(realms: list[Realm]) -> Realm:
    return realms[0]


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded


async def test_a_user_by_audience(plane: IdentityPlane, realm: Realm) -> None:
    """Keycloak names an audience only where a mapper says so."""
    authorizer = realm.authorizer(allowedAudience=["support"])
    token = realm.sign_in()["access_token"]
    user = await plane.authorizers.verify(authorizer, token)
    assert user == User(claims(token)["sub"], realm.issuer)
    assert plane.authorizers.cached(authorizer, token) == user
    other = realm.sign_in("elsewhere")["access_token"]
    assert claims(other)["sub"] == user.id
    with pytest.raises(AccessDeniedException, match="allowedAudience"):
        await plane.authorizers.verify(authorizer, other)


async def test_a_user_by_client(plane: IdentityPlane, realm: Realm) -> None:
    """Keycloak's tokens have azp and no client_id."""
    authorizer = realm.authorizer(allowedClients=["web"])
    assert await plane.authorizers.verify(authorizer, realm.sign_in("web")["access_token"])
    with pytest.raises(AccessDeniedException, match="allowedClients"):
        await plane.authorizers.verify(authorizer, realm.sign_in("elsewhere")["access_token"])


async def test_a_user_by_scope_and_role(plane: IdentityPlane, realm: Realm) -> None:
    token = realm.sign_in(scope="openid email")["access_token"]
    assert await plane.authorizers.verify(realm.authorizer(allowedScopes=["email"]), token)
    with pytest.raises(AccessDeniedException, match="allowedScopes"):
        await plane.authorizers.verify(realm.authorizer(allowedScopes=["phone"]), token)

    def role(name: str) -> dict[str, Any]:
        match = {"claimMatchOperator": "CONTAINS", "claimMatchValue": {"matchValueString": name}}
        return {
            "inboundTokenClaimName": "roles",
            "inboundTokenClaimValueType": "STRING_ARRAY",
            "authorizingClaimMatchValue": match,
        }

    assert await plane.authorizers.verify(realm.authorizer(customClaims=[role("refunds")]), token)
    with pytest.raises(AccessDeniedException, match="claim roles"):
        await plane.authorizers.verify(realm.authorizer(customClaims=[role("administrators")]), token)


async def test_an_expired_token(plane: IdentityPlane, realm: Realm, clock: Any) -> None:
    authorizer = realm.authorizer(allowedAudience=["support"])
    token = realm.sign_in()["access_token"]
    assert await plane.authorizers.verify(authorizer, token)
    clock.move(claims(token)["exp"] - clock.now().timestamp() + 61)
    with pytest.raises(UnauthorizedException, match="expired"):
        await plane.authorizers.verify(authorizer, token)


async def test_another_realm_of_the_same_server(plane: IdentityPlane, realms: list[Realm]) -> None:
    first, second = realms
    for mine, other in ((first, second), (second, first)):
        token = other.sign_in()["access_token"]
        with pytest.raises(UnauthorizedException):
            await plane.authorizers.verify(mine.authorizer(allowedAudience=["support"]), token)


async def test_tokens_for_other_purposes(plane: IdentityPlane, realm: Realm) -> None:
    """A refresh token is signed with a key that only Keycloak has; an identity token is for the client."""
    tokens = realm.sign_in()
    authorizer = realm.authorizer(allowedAudience=["support"])
    with pytest.raises(UnauthorizedException):
        await plane.authorizers.verify(authorizer, tokens["refresh_token"])
    with pytest.raises(AccessDeniedException, match="allowedAudience"):
        await plane.authorizers.verify(authorizer, tokens["id_token"])


async def test_a_changed_token(plane: IdentityPlane, realm: Realm) -> None:
    head, body, signature = realm.sign_in()["access_token"].split(".")
    other = realm.sign_in("elsewhere")["access_token"].split(".")[1]
    for token in (f"{head}.{other}.{signature}", f"{head}.{body}.", f"{head}.{body}"):
        with pytest.raises(UnauthorizedException):
            await plane.authorizers.verify(realm.authorizer(allowedClients=["web", "elsewhere"]), token)


async def test_keys_are_followed_when_they_change(plane: IdentityPlane, realm: Realm, clock: Any) -> None:
    """Keycloak signs with a new key from one moment to the next."""
    authorizer = realm.authorizer(allowedAudience=["support"])
    former = realm.sign_in()["access_token"]
    assert await plane.authorizers.verify(authorizer, former)
    kind = "org.keycloak.keys.KeyProvider"
    key = {"name": "newer", "providerId": "rsa-generated", "providerType": kind, "config": {"priority": ["200"]}}
    realm.add("components", key)
    newer = realm.sign_in()["access_token"]
    assert newer.split(".")[0] != former.split(".")[0]
    clock.move(11)
    assert await plane.authorizers.verify(authorizer, newer)
    assert await plane.authorizers.verify(authorizer, former)
