"""The development issuer, over HTTP, as `agentkeep login` and authorizers use it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote_plus

import aiohttp
import pytest
import uvicorn

from agentkeep.core.call import Call, SessionRef, User
from agentkeep.core.errors import AccessDeniedException, UnauthorizedException
from agentkeep.identity.access_keys.keys import IssuedOperatorKey
from agentkeep.identity.development.issuer import GRANT_TYPE, SUBJECT_TOKEN_TYPE, DevelopmentIssuer, discovery_url
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.valkey import ValkeyKeyValueStore

FORM = {"grant_type": GRANT_TYPE, "subject_token_type": SUBJECT_TOKEN_TYPE, "subject_token": "alice"}


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


class Served:
    """The issuer and the plane that trusts it, in one process."""

    def __init__(self, issuer: DevelopmentIssuer, plane: IdentityPlane, key: IssuedOperatorKey) -> None:
        self.issuer = issuer
        self.plane = plane
        self.key = key
        self.http = aiohttp.ClientSession()

    async def token(self, form: Any = None, **options: Any) -> tuple[int, dict[str, Any], Any]:
        options.setdefault("headers", basic(self.key.id, self.key.secret))
        data = FORM if form is None else form
        async with self.http.post(f"{self.issuer.url}/token", data=data, **options) as response:
            return response.status, await response.json(), response.headers


@pytest.fixture
async def served(
    store: ValkeyKeyValueStore, master_key: FileMasterKey, clock: Any, make_plane: Callable[..., IdentityPlane]
) -> AsyncIterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/oidc"
    plane = make_plane(trusted_issuers=[discovery_url(url)])
    issuer = DevelopmentIssuer(url, plane.keys, store, master_key, clock, IdentitySettings())
    server = uvicorn.Server(uvicorn.Config(issuer.app, log_config=None, lifespan="off"))
    with contextlib.suppress(ValueError):
        server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    loop = asyncio.create_task(server.main_loop())
    served = Served(issuer, plane, await plane.keys.issue_operator_key("admin", acts_for_users=True))
    yield served
    await served.http.close()
    server.should_exit = True
    await loop
    await plane.close()
    await server.shutdown(sockets=[listener])


def authorizer(served: Served, **members: Any) -> dict[str, Any]:
    return {"discoveryUrl": served.issuer.discovery_url, **(members or {"allowedClients": ["agentkeep"]})}


async def test_an_operator_gets_a_users_tokens(served: Served, clock: Any) -> None:
    status, answer, headers = await served.token()
    assert status == 200
    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 3600, "openid")
    assert answer["issued_token_type"] == "urn:ietf:params:oauth:token-type:access_token"
    assert headers["cache-control"] == "no-store"
    user = await served.plane.authorizers.verify(authorizer(served), answer["access_token"])
    assert user == User("alice", served.issuer.url)
    # the id token is made for the client, so it passes by audience
    audience = authorizer(served, allowedAudience=["agentkeep"])
    assert await served.plane.authorizers.verify(audience, answer["id_token"]) == user
    clock.move(3600 + 61)
    with pytest.raises(UnauthorizedException, match="expired"):
        await served.plane.authorizers.verify(authorizer(served), answer["access_token"])


async def test_audience_and_scope_as_asked(served: Served) -> None:
    form = [*FORM.items(), ("audience", "a"), ("audience", "b"), ("scope", "chat admin")]
    _, answer, _ = await served.token(form)
    assert answer["scope"] == "chat admin"
    assert "id_token" not in answer
    for members in ({"allowedAudience": ["b"]}, {"allowedScopes": ["admin"]}):
        assert await served.plane.authorizers.verify(authorizer(served, **members), answer["access_token"])
    with pytest.raises(AccessDeniedException):
        await served.plane.authorizers.verify(authorizer(served, allowedAudience=["c"]), answer["access_token"])


async def test_a_workload_token_for_its_users(served: Served, operator: Call) -> None:
    await served.plane.create_workload_identity(operator, {"name": "agent"})
    _, answer, _ = await served.token()
    request: Any = {"workloadName": "agent", "userToken": answer["access_token"]}
    token = (await served.plane.get_workload_access_token_for_jwt(operator, request))["workloadAccessToken"]
    assert (await served.plane.workload_tokens.verify(token, operator.caller)).user == User("alice", served.issuer.url)


async def test_discovery(served: Served) -> None:
    async with served.http.get(served.issuer.discovery_url) as response:
        metadata = await response.json()
    assert metadata["issuer"] == served.issuer.url
    assert metadata["development"] is True
    assert metadata["grant_types_supported"] == [GRANT_TYPE]
    async with served.http.get(metadata["jwks_uri"]) as response:
        keys = (await response.json())["keys"]
    assert [set(key) for key in keys] == [{"kty", "n", "e", "kid", "use", "alg"}]  # nothing private


async def test_only_operators(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """IDN-5: the tokens of any user are worth as much as the key that asks for them."""
    caplog.set_level(logging.DEBUG)
    revoked = await served.plane.keys.issue_operator_key("gone")
    await served.plane.keys.revoke_operator_key(revoked.id)
    session = await served.plane.keys.issue_for_session(SessionRef("r", "s"), User("alice"))
    for headers in (
        {},
        basic(served.key.id, "wrong"),
        basic(served.key.id, ""),
        basic(served.key.id, served.key.secret[:-1]),
        basic("AKIAAAAAAAAAAAAAAAAA", served.key.secret),
        basic(revoked.id, revoked.secret),
        basic(session.access_key_id, session.secret_access_key),
    ):
        status, answer, answered = await served.token(headers=headers)
        assert (status, answer["error"]) == (401, "invalid_client")
        assert answered["www-authenticate"].startswith("Basic ")
    for header in ("Bearer x", "Basic", "Basic !", "Basic " + base64.b64encode(b"\xff\xff").decode(), "Basic eA=="):
        status, answer, _ = await served.token(headers={"authorization": header})
        assert (status, answer["error"]) == (401, "invalid_client")
    assert served.key.secret not in caplog.text


async def test_both_spellings_of_basic(served: Served, clock: Any) -> None:
    """RFC 6749 has credentials form-encoded inside Basic; most clients forget, and a secret with + or / shows it."""
    key = served.key
    while not {"+", "/"} <= set(key.secret):
        key = await served.plane.keys.issue_operator_key("admin", acts_for_users=True)
    for id_, secret in ((key.id, key.secret), (quote_plus(key.id), quote_plus(key.secret))):
        status, _, _ = await served.token(headers=basic(id_, secret))
        assert status == 200


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "unsupported_grant_type"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:jwt"}, "invalid_request"),
        ({"subject_token": ""}, "invalid_request"),
        ({"subject_token": "a b"}, "invalid_request"),
        ({"subject_token": "alice@example.com"}, "invalid_request"),
        ({"subject_token": "../alice"}, "invalid_request"),
        ({"subject_token": "alice\n"}, "invalid_request"),
        ({"subject_token": "a" * 129}, "invalid_request"),
        ({"scope": 'a"b'}, "invalid_scope"),
        ({"scope": "a  b"}, "invalid_scope"),
    ],
)
async def test_wrong_requests(served: Served, change: dict[str, str], error: str) -> None:
    status, answer, _ = await served.token({**FORM, **change})
    assert (status, answer["error"]) == (400, error)
    assert answer["error_description"]


async def test_wrong_bodies(served: Served) -> None:
    for body, expected in (
        (b"", 400),
        (b"\xff\xfe", 400),
        (b'{"grant_type": 1}', 400),
        (b"a=b&" * 100, 400),
        (b"x=%ff", 400),
        (b"grant_type=a&grant_type=b", 400),
        (b"x" * 20_000, 413),
    ):
        status, answer, _ = await served.token(body, headers=basic(served.key.id, served.key.secret))
        assert (status, answer["error"]) == (expected, answer["error"])


async def test_tokens_outlive_a_restart_and_the_key_is_stored_sealed(
    served: Served, store: ValkeyKeyValueStore, master_key: FileMasterKey, clock: Any, make_plane: Any
) -> None:
    _, answer, _ = await served.token()
    stored = await store.query("identity/development-issuer")
    assert len(stored) == 1
    assert b"BEGIN" not in stored[0].value
    assert b'"d"' not in stored[0].value

    again = DevelopmentIssuer(served.issuer.url, served.plane.keys, store, master_key, clock, IdentitySettings())
    served.issuer.app.router.routes[:] = again.app.router.routes
    plane = make_plane()
    assert await plane.authorizers.verify(authorizer(served), answer["access_token"])


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/oidc",
        "http://agents.example.com/oidc",
        "http://0.0.0.0:4780/oidc",
        "http://10.0.0.1/oidc",
        "http://127.0.0.1:4780",
        "http://127.0.0.1:4780/",
        "/oidc",
    ],
)
async def test_it_is_served_on_loopback_only(
    store: ValkeyKeyValueStore, master_key: FileMasterKey, clock: Any, make_plane: Any, url: str
) -> None:
    """It cannot come into production by accident."""
    with pytest.raises(ValueError, match="loopback only"):
        DevelopmentIssuer(url, make_plane().keys, store, master_key, clock, IdentitySettings())


async def test_another_master_key_cannot_open_the_signing_key(
    served: Served, store: ValkeyKeyValueStore, clock: Any
) -> None:
    await served.token()
    thief = DevelopmentIssuer(
        served.issuer.url, served.plane.keys, store, FileMasterKey(b"t" * 32), clock, IdentitySettings()
    )
    with pytest.raises(ValueError, match="another master key"):
        await thief._signing_key.get()
