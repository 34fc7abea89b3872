"""Inbound JWT authorizers: which tokens pass, and every way round them that is known (IDN-5)."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agentkeep.core.call import User
from agentkeep.core.errors import (
    AccessDeniedException,
    ServiceError,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings


def authorizer(provider: Any, **members: Any) -> dict[str, Any]:
    return {"discoveryUrl": provider.discovery_url, **(members or {"allowedAudience": ["support"]})}


async def refused(plane: IdentityPlane, provider: Any, token: str, match: str, **members: Any) -> None:
    with pytest.raises(UnauthorizedException, match=match):
        await plane.authorizers.verify(authorizer(provider, **members), token)
    assert plane.authorizers.cached(authorizer(provider, **members), token) is None


# What passes.


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
)
async def test_each_allowed_algorithm(
    plane: IdentityPlane, provider: Any, new_signing_key: Any, algorithm: str
) -> None:
    provider.keys = [new_signing_key(algorithm, "k")]
    user = await plane.authorizers.verify(authorizer(provider), provider.token())
    assert user == User("alice", provider.url)


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
async def test_each_token_type(plane: IdentityPlane, provider: Any, kind: str) -> None:
    assert await plane.authorizers.verify(authorizer(provider), provider.token(header={"typ": kind}))


async def test_headers_nobody_asked_for_are_ignored(plane: IdentityPlane, provider: Any) -> None:
    """Entra ID sends a nonce header, others certificates; RFC 7515 says to ignore what is not understood."""
    header = {"nonce": "n", "x5t": "dGVzdA", "made-up": {"a": 1}}
    assert await plane.authorizers.verify(authorizer(provider), provider.token(header=header))


async def test_keys_without_ids(plane: IdentityPlane, provider: Any, new_signing_key: Any) -> None:
    provider.keys = [new_signing_key("RS256"), new_signing_key("ES256"), new_signing_key("RS256")]
    for key in provider.keys:
        assert await plane.authorizers.verify(authorizer(provider), provider.token(key))


# Signatures.


async def test_no_signature_is_refused(plane: IdentityPlane, provider: Any) -> None:
    """The `none` algorithm, in each spelling."""
    for name in ("none", "None", "NONE", "nOnE", ""):
        head, claims, signature = provider.token(header={"alg": name}).split(".")
        for token in (f"{head}.{claims}.", f"{head}.{claims}.{signature}"):
            await refused(plane, provider, token, "algorithm that is not accepted")


async def test_key_confusion_is_refused(plane: IdentityPlane, provider: Any) -> None:
    """HS256 with the provider's public key, in each form an attacker has it, for the secret."""
    key = provider.keys[0]
    for secret in (key.pem, key.pem.strip(), json.dumps(key.jwk).encode(), key.jwk["n"].encode()):
        await refused(plane, provider, provider.hmac_token(secret), "algorithm that is not accepted")


async def test_a_shared_secret_among_the_published_keys_is_ignored(plane: IdentityPlane, provider: Any) -> None:
    secret = {
        "kty": "oct",
        "kid": "first",
        "k": base64.urlsafe_b64encode(b"s" * 32).decode().rstrip("="),
        "alg": "HS256",
    }
    provider.jwks = lambda: web.json_response({"keys": [secret]})
    await refused(plane, provider, provider.hmac_token(b"s" * 32), "algorithm that is not accepted")
    await refused(plane, provider, provider.token(), "key that its issuer does not publish")


async def test_keys_in_the_header_are_not_used(plane: IdentityPlane, provider: Any, new_signing_key: Any) -> None:
    """A token that brings its own key, or says where to fetch one."""
    mine = new_signing_key("RS256", "first")
    for header in (
        {"jwk": mine.jwk},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/certificate"},
        {"jwk": mine.jwk, "kid": None},
    ):
        token = provider.token(mine, header={name: value for name, value in header.items() if value is not None})
        await refused(plane, provider, token, "signature is wrong")


async def test_another_algorithm_of_the_same_key_type_is_refused(plane: IdentityPlane, provider: Any) -> None:
    """A key published for RS256 verifies nothing else."""
    for other in ("PS256", "RS512", "ES256", "EdDSA"):
        await refused(plane, provider, provider.token(header={"alg": other}), "does not publish")


async def test_curves_are_not_mixed_up(plane: IdentityPlane, provider: Any, new_signing_key: Any) -> None:
    key = new_signing_key("ES256", "k")
    jwk = {name: value for name, value in key.jwk.items() if name != "alg"}
    provider.jwks = lambda: web.json_response({"keys": [jwk]})
    provider.keys = [key]
    assert await plane.authorizers.verify(authorizer(provider), provider.token())
    await refused(plane, provider, provider.token(header={"alg": "ES384"}), "does not publish")


async def test_a_changed_token_is_refused(plane: IdentityPlane, provider: Any) -> None:
    head, claims, signature = provider.token().split(".")
    _, other, _ = provider.token(sub="bob").split(".")
    flipped = ("A" if signature[5] != "A" else "B").join((signature[:5], signature[6:]))
    for token in (f"{head}.{other}.{signature}", f"{head}.{claims}.{flipped}", f"{head}.{claims}.{signature[:-4]}"):
        await refused(plane, provider, token, "signature is wrong")


async def test_another_providers_key_is_refused(plane: IdentityPlane, provider: Any, new_signing_key: Any) -> None:
    await refused(plane, provider, provider.token(new_signing_key("RS256", "first")), "signature is wrong")


@pytest.mark.parametrize("bits", [1024, 2040])
async def test_short_rsa_keys_are_ignored(plane: IdentityPlane, provider: Any, new_signing_key: Any, bits: int) -> None:
    provider.keys = [new_signing_key("RS256", "short", bits)]
    await refused(plane, provider, provider.token(), "does not publish")


async def test_rsa_keys_that_keep_a_verifier_busy_are_ignored(plane: IdentityPlane, provider: Any) -> None:
    huge = base64.urlsafe_b64encode(b"\x7f" + b"\xff" * 255).decode().rstrip("=")
    for change in ({"e": huge}, {"n": base64.urlsafe_b64encode(b"\xff" * 2048).decode().rstrip("=")}):
        provider.jwks = lambda change=change: web.json_response({"keys": [{**provider.keys[0].jwk, **change}]})
        await refused(plane, provider, provider.token(), "does not publish")
        plane._parts.openid_providers._providers.clear()


async def test_encryption_keys_are_ignored(plane: IdentityPlane, provider: Any) -> None:
    for change in (
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"alg": "RSA-OAEP"},
        {"kid": 7},
        {"kty": "XYZ"},
        {"n": "!"},
    ):
        provider.jwks = lambda change=change: web.json_response(
            {"keys": [{**provider.keys[0].jwk, **change}, "x", None]}
        )
        await refused(plane, provider, provider.token(), "does not publish")
        plane._parts.openid_providers._providers.clear()


@pytest.mark.parametrize("kind", ["logout+jwt", "secevent+jwt", "dpop+jwt", "JWE", ""])
async def test_tokens_for_other_purposes_are_refused(plane: IdentityPlane, provider: Any, kind: str) -> None:
    await refused(plane, provider, provider.token(header={"typ": kind}), "another purpose")


async def test_logout_tokens_are_refused(plane: IdentityPlane, provider: Any) -> None:
    """OpenID Connect Back-Channel Logout, 2.4: each client of a user's gets one, signed, for its own audience; older
    providers do not say so in the header."""
    events = {"http://schemas.openid.net/event/backchannel-logout": {}}
    await refused(plane, provider, provider.token(events=events), "it tells of events")
    for harmless in (["concert"], {"next": "concert"}, "x"):
        await plane.authorizers.verify(authorizer(provider), provider.token(events=harmless))


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"b64": False}, {"crit": ["b64"], "b64": False}, {"crit": []}])
async def test_critical_extensions_are_refused(plane: IdentityPlane, provider: Any, header: dict[str, Any]) -> None:
    await refused(plane, provider, provider.token(header=header), "token (demands extensions|is not a signed)")


# Claims every token must have right.


async def test_the_issuer_must_be_the_providers(plane: IdentityPlane, provider: Any) -> None:
    fetched = await plane.authorizers.verify(authorizer(provider), provider.token())
    assert fetched
    for issuer in (provider.url + "/", provider.url.upper(), "https://evil.example.com", None, [provider.url], ""):
        await refused(plane, provider, provider.token(iss=issuer), "another issuer")
    assert provider.fetches == 1


async def test_expiry_with_a_minutes_tolerance(plane: IdentityPlane, provider: Any, clock: Any) -> None:
    token = provider.token()
    clock.move(359)
    assert await plane.authorizers.verify(authorizer(provider), token)
    clock.move(2)
    await refused(plane, provider, token, "has expired")


async def test_a_remembered_token_expires_too(plane: IdentityPlane, provider: Any, clock: Any) -> None:
    token = provider.token()
    assert await plane.authorizers.verify(authorizer(provider), token)
    clock.move(359)
    assert plane.authorizers.cached(authorizer(provider), token) == User("alice", provider.url)
    clock.move(2)
    assert plane.authorizers.cached(authorizer(provider), token) is None
    await refused(plane, provider, token, "has expired")


@pytest.mark.parametrize("name", ["nbf", "iat"])
async def test_not_yet_valid(plane: IdentityPlane, provider: Any, clock: Any, name: str) -> None:
    soon = int(clock.now().timestamp()) + 100
    token = provider.token(**{name: soon})
    await refused(plane, provider, token, f"not valid yet.*{name}")
    clock.move(45)
    assert await plane.authorizers.verify(authorizer(provider), token)


@pytest.mark.parametrize("value", ["1999999999", True, [1999999999], {}, 10**400, 1e308 * 10])
async def test_times_must_be_times(plane: IdentityPlane, provider: Any, value: Any) -> None:
    await refused(plane, provider, provider.token(exp=value), "exp claim is not a time|not a signed JSON Web Token")


async def test_a_token_must_expire_and_name_a_user(plane: IdentityPlane, provider: Any) -> None:
    await refused(plane, provider, provider.token(exp=None), "no exp claim")
    for subject in (None, "", 7, ["alice"]):
        await refused(plane, provider, provider.token(sub=subject), "no sub claim")


# What the authorizer configures.


@pytest.mark.parametrize(
    ("members", "claims", "rule"),
    [
        ({"allowedAudience": ["support", "x"]}, {"aud": "support"}, None),
        ({"allowedAudience": ["support"]}, {"aud": ["a", "support"]}, None),
        ({"allowedAudience": ["support"]}, {"aud": "supporter"}, "allowedAudience"),
        ({"allowedAudience": ["support"]}, {"aud": None}, "allowedAudience"),
        ({"allowedAudience": ["support"]}, {"aud": {"support": 1}}, "allowedAudience"),
        ({"allowedClients": ["web"]}, {"client_id": "web", "azp": None}, None),
        ({"allowedClients": ["web"]}, {"azp": "web"}, None),
        ({"allowedClients": ["web"]}, {"client_id": "other", "azp": "web"}, "allowedClients"),
        ({"allowedClients": ["web"]}, {"client_id": ["web"]}, "allowedClients"),
        ({"allowedClients": ["web"]}, {"azp": None}, "allowedClients"),
        ({"allowedScopes": ["chat", "admin"]}, {"scope": "openid chat"}, None),
        ({"allowedScopes": ["chat"]}, {"scope": ["openid", "chat"]}, None),
        ({"allowedScopes": ["chat"]}, {"scope": None, "scp": "chat"}, None),
        ({"allowedScopes": ["chat"]}, {"scope": None, "scp": ["chat"]}, None),
        ({"allowedScopes": ["chat"]}, {"scope": "openid", "scp": "chat"}, "allowedScopes"),
        ({"allowedScopes": ["chat"]}, {"scope": "chats chat2"}, "allowedScopes"),
        ({"allowedScopes": ["chat"]}, {"scope": None}, "allowedScopes"),
        # every configured rule must hold
        ({"allowedAudience": ["support"], "allowedScopes": ["chat"]}, {}, "allowedScopes"),
        ({"allowedAudience": ["no"], "allowedClients": ["web"]}, {}, "allowedAudience"),
        ({"allowedAudience": ["support"], "allowedClients": ["web"], "allowedScopes": ["profile"]}, {}, None),
    ],
)
async def test_rules(
    plane: IdentityPlane, provider: Any, members: dict[str, Any], claims: dict[str, Any], rule: str | None
) -> None:
    token = provider.token(**claims)
    if rule is None:
        assert await plane.authorizers.verify(authorizer(provider, **members), token)
    else:
        with pytest.raises(AccessDeniedException, match=rule):
            await plane.authorizers.verify(authorizer(provider, **members), token)


def claim(name: str, kind: str, operator: str, value: str | list[str]) -> dict[str, Any]:
    member = "matchValueString" if isinstance(value, str) else "matchValueStringList"
    return {
        "inboundTokenClaimName": name,
        "inboundTokenClaimValueType": kind,
        "authorizingClaimMatchValue": {"claimMatchValue": {member: value}, "claimMatchOperator": operator},
    }


@pytest.mark.parametrize(
    ("rule", "value", "passes"),
    [
        (claim("team", "STRING", "EQUALS", "red"), "red", True),
        (claim("team", "STRING", "EQUALS", "red"), "RED", False),
        (claim("team", "STRING", "EQUALS", "red"), ["red"], False),
        (claim("team", "STRING", "EQUALS", "red"), None, False),
        (claim("team", "STRING_ARRAY", "CONTAINS", "red"), ["blue", "red"], True),
        (claim("team", "STRING_ARRAY", "CONTAINS", "red"), ["redder"], False),
        (claim("team", "STRING_ARRAY", "CONTAINS", "red"), "red", False),
        (claim("team", "STRING_ARRAY", "CONTAINS", "red"), [["red"], {"red": 1}, 1], False),
        (claim("team", "STRING_ARRAY", "CONTAINS", ["red", "blue"]), ["green", "blue"], True),
        (claim("team", "STRING_ARRAY", "CONTAINS", ["red", "blue"]), ["green"], False),
        (claim("team", "STRING_ARRAY", "CONTAINS_ANY", ["red", "blue"]), ["blue"], True),
        (claim("team", "STRING_ARRAY", "CONTAINS_ANY", ["red", "blue"]), ["green"], False),
        (claim("team", "STRING_ARRAY", "CONTAINS_ANY", ["red", "blue"]), [], False),
        (claim("cognito:groups", "STRING_ARRAY", "CONTAINS", "red"), None, False),
    ],
)
async def test_custom_claims(plane: IdentityPlane, provider: Any, rule: Any, value: Any, passes: bool) -> None:
    token = provider.token(team=value)
    if passes:
        assert await plane.authorizers.verify(authorizer(provider, customClaims=[rule]), token)
    else:
        with pytest.raises(AccessDeniedException, match="customClaims"):
            await plane.authorizers.verify(authorizer(provider, customClaims=[rule]), token)


async def test_all_custom_claims_must_hold(plane: IdentityPlane, provider: Any) -> None:
    rules = [claim("a", "STRING", "EQUALS", "1"), claim("b", "STRING", "EQUALS", "2")]
    assert await plane.authorizers.verify(authorizer(provider, customClaims=rules), provider.token(a="1", b="2"))
    with pytest.raises(AccessDeniedException, match="claim b"):
        await plane.authorizers.verify(authorizer(provider, customClaims=rules), provider.token(a="1", b="3"))


# Authorizers that cannot be honoured are refused when made, and accept nobody if they come to be used.


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"discoveryUrl": "http://idp.example.com/.well-known/openid-configuration"}, "must be https"),
        ({"discoveryUrl": "http://127.0.0.1.example.com/.well-known/openid-configuration"}, "must be https"),
        ({"discoveryUrl": "http://10.0.0.1/.well-known/openid-configuration"}, "must be https"),
        ({"discoveryUrl": "file:///.well-known/openid-configuration"}, "is not the URL"),
        ({"discoveryUrl": "https://u:p@idp.example.com/.well-known/openid-configuration"}, "is not the URL"),
        ({"allowedAudience": []}, "at least one of allowedAudience"),
        ({"allowedAudience": None}, "at least one of allowedAudience"),
        (
            {"allowedWorkloadConfiguration": {"workloadIdentities": ["gw"]}},
            "allowedWorkloadConfiguration.*not supported",
        ),
        ({"privateEndpoint": {"managedVpcResource": {}}}, "privateEndpoint.*not supported: names VPC Lattice"),
        ({"privateEndpointOverrides": [{"domain": "x"}]}, "privateEndpointOverrides.*PROVIDER_ADDRESSES"),
        ({"certificateConfigurations": [{"s3": {"uri": "s3://b/c"}}]}, "certificateConfigurations.*SSL_CERT_FILE"),
        ({"somethingNew": True}, "somethingNew: is not supported"),
        ({"customClaims": [claim("a", "STRING", "CONTAINS", "x")]}, "CONTAINS does not fit STRING; use EQUALS"),
        ({"customClaims": [claim("a", "STRING_ARRAY", "EQUALS", "x")]}, "use CONTAINS, CONTAINS_ANY"),
        ({"customClaims": [claim("a", "STRING", "EQUALS", ["x"])]}, "compares with matchValueString"),
        ({"customClaims": [claim("a", "STRING_ARRAY", "CONTAINS_ANY", "x")]}, "compares with matchValueStringList"),
    ],
)
async def test_what_cannot_be_honoured(
    plane: IdentityPlane, provider: Any, members: dict[str, Any], match: str
) -> None:
    broken = {**authorizer(provider), **members}
    with pytest.raises(ValidationException, match=match) as error:
        await plane.authorizers.check(broken)
    assert error.value.fields
    assert error.value.fields[0].name.startswith("customJWTAuthorizer")
    with pytest.raises(AccessDeniedException, match=match):
        await plane.authorizers.verify(broken, provider.token())


async def test_what_can_be_honoured(plane: IdentityPlane) -> None:
    for url in (
        "https://idp.example.com/realms/x/.well-known/openid-configuration",
        "https://idp.example.com/.well-known/oauth-authorization-server/tenant",
        "http://127.0.0.1:4780/oidc/.well-known/openid-configuration",
        "http://localhost:8080/.well-known/openid-configuration",
        "http://[::1]:8080/.well-known/openid-configuration",
    ):
        await plane.authorizers.check(
            {"discoveryUrl": url, "allowedScopes": ["a"], "advertisedScopeMapping": {"a": "b"}, "privateEndpoint": None}
        )


# What is remembered.


async def test_a_token_is_remembered_for_the_authorizer_it_passed(plane: IdentityPlane, provider: Any) -> None:
    token = provider.token()
    passed = authorizer(provider)
    assert plane.authorizers.cached(passed, token) is None
    user = await plane.authorizers.verify(passed, token)
    assert plane.authorizers.cached(dict(reversed(passed.items())), token) == user
    assert plane.authorizers.cached(authorizer(provider, allowedAudience=["other"]), token) is None
    with pytest.raises(AccessDeniedException):
        await plane.authorizers.verify(authorizer(provider, allowedAudience=["other"]), token)
    assert plane.authorizers.cached(passed, token + "A") is None


async def test_memory_for_tokens_is_bounded(make_plane: Any, provider: Any) -> None:
    plane = make_plane(IdentitySettings(verified_tokens=2))
    tokens = [provider.token() for _ in range(3)]
    for token in tokens:
        await plane.authorizers.verify(authorizer(provider), token)
    remembered = [plane.authorizers.cached(authorizer(provider), token) is not None for token in tokens]
    assert remembered == [False, True, True]


# Input from anyone.


async def test_an_empty_token(plane: IdentityPlane, provider: Any) -> None:
    await refused(plane, provider, "", "no bearer token")


async def test_a_long_token_is_refused_unread(plane: IdentityPlane, provider: Any) -> None:
    await refused(plane, provider, provider.token(padding="x" * 20_000), "longer than 16384")
    assert provider.fetches == 0


@pytest.mark.parametrize(
    "token",
    [
        "a", "a.b", "a.b.c", "..", "a.b.c.d.e", "é.b.c", "\ud800.b.c", "\0", "A" * 300,
        "W10.W10.W10", "bnVsbA.bnVsbA.", "IiI.e30.", "ImFsZyI.e30.", "e30.e30.",
        "eyJhbGciOjF9.e30.", "eyJhbGciOltdfQ.e30.",
        base64.urlsafe_b64encode(b"[" * 2000).decode().rstrip("=") + ".e30.",
        base64.urlsafe_b64encode(b'{"alg":"RS256","a":' + b"[" * 2000).decode().rstrip("=") + ".e30.",
        "eyJhbGciOiJSUzI1NiJ9." + base64.urlsafe_b64encode(b"[" * 3000).decode().rstrip("=") + ".AA",
        "eyJhbGciOiJSUzI1NiJ9." + base64.urlsafe_b64encode(b'{"exp":NaN}').decode().rstrip("=") + ".AA",
        "eyJhbGciOiJSUzI1NiIsInR5cCI6N30.e30.AA", "eyJhbGciOiJSUzI1NiIsImtpZCI6W119.e30.AA",
        "eyJhbGciOiJSUzI1NiIsImNyaXQiOjF9.e30.AA", "eyJhbGciOiJSUzI1NiIsImp3ayI6MX0.e30.AA",
    ],
)  # fmt: skip
async def test_malformed_tokens(plane: IdentityPlane, provider: Any, token: str) -> None:
    await refused(plane, provider, token, "The token")


@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
async def test_mangled_tokens_never_pass(plane: IdentityPlane, provider: Any, data: st.DataObject) -> None:
    """Whatever is cut out of, put into or changed in a valid token: a refusal, never another error."""
    token = provider.token()
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(len(token), start + 40)))
    mangled = token[:start] + data.draw(st.text(max_size=30)) + token[end:]
    if mangled == token:
        return
    with pytest.raises(ServiceError) as error:
        await plane.authorizers.verify(authorizer(provider), mangled)
    assert isinstance(error.value, UnauthorizedException)


@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["iss", "sub", "aud", "azp", "client_id", "scope", "scp", "exp", "nbf", "iat", "team"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=5,
        ),
        min_size=1,
    )
)
async def test_odd_claims_are_refused_or_harmless(plane: IdentityPlane, provider: Any, claims: dict[str, Any]) -> None:
    """Signed by the provider, but of any shape."""
    members = {
        "allowedAudience": ["support"],
        "allowedClients": ["web"],
        "allowedScopes": ["openid"],
        "customClaims": [claim("team", "STRING", "EQUALS", "red")],
    }
    try:
        user = await plane.authorizers.verify(
            authorizer(provider, **members), provider.token(**{"team": "red", **claims})
        )
    except (UnauthorizedException, AccessDeniedException):
        return
    assert user.id == claims.get("sub", "alice")


async def test_tokens_stay_out_of_errors_and_logs(
    plane: IdentityPlane, provider: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    good = provider.token()
    bad = provider.token(iss="https://evil.example.com", secret_claim="canary-claim")
    await plane.authorizers.verify(authorizer(provider), good)
    messages = []
    for token in (bad, good[:-3], good + "x", provider.token(aud="canary-claim")):
        with pytest.raises(ServiceError) as error:
            await plane.authorizers.verify(authorizer(provider), token)
        messages.append(error.value.message)
    output = caplog.text + "".join(messages) + repr(plane.authorizers)
    for token in (good, bad):
        assert not any(part in output for part in token.split("."))
    assert "canary-claim" not in output
