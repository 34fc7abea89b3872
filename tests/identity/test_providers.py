"""Providers' keys: rotated, withdrawn, slow, broken, away. Never a downgrade."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from agentkeep.core.errors import ProviderError, ServiceUnavailableException, UnauthorizedException
from agentkeep.identity.inbound.provider_documents import DocumentFetcher, parse_addresses, parse_issuer
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings


def authorizer(provider: Any) -> dict[str, Any]:
    return {"discoveryUrl": provider.discovery_url, "allowedAudience": ["support"]}


async def verify(plane: IdentityPlane, provider: Any, token: str | None = None) -> str:
    user = await plane.authorizers.verify(authorizer(provider), token or provider.token())
    return user.id


async def fetches_to(provider: Any, count: int) -> None:
    async with asyncio.timeout(5):
        while provider.fetches < count:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # and the keys behind it
    assert provider.fetches == count


async def test_one_fetch_serves_many(plane: IdentityPlane, provider: Any) -> None:
    """Single flight: a hundred tokens at once, one look at the provider."""
    provider.delay = 0.05
    await asyncio.gather(*(verify(plane, provider) for _ in range(100)))
    assert provider.fetches == 1


async def test_a_caller_who_leaves_does_not_end_the_fetch_for_others(plane: IdentityPlane, provider: Any) -> None:
    provider.delay = 0.1
    first, second = (asyncio.create_task(verify(plane, provider)) for _ in range(2))
    await asyncio.sleep(0.02)
    first.cancel()
    assert await second == "alice"
    assert provider.fetches == 1


async def test_a_rotated_key_is_found(plane: IdentityPlane, provider: Any, new_signing_key: Any, clock: Any) -> None:
    await verify(plane, provider)
    provider.keys = [new_signing_key("RS256", "second"), provider.keys[0]]
    clock.move(11)
    assert await verify(plane, provider) == "alice"
    assert provider.fetches == 2


async def test_a_rotated_key_without_an_id_is_found(
    plane: IdentityPlane, provider: Any, new_signing_key: Any, clock: Any
) -> None:
    """Where keys have no ids, a signature by a new one is at first a wrong one; and bad ones do not hammer."""
    provider.keys = [new_signing_key("ES256")]
    await verify(plane, provider)
    provider.keys = [new_signing_key("ES256")]
    clock.move(11)
    assert await verify(plane, provider) == "alice"
    fetched = provider.fetches
    for _ in range(10):
        with pytest.raises(UnauthorizedException, match="signature is wrong"):
            await verify(plane, provider, provider.token(new_signing_key("ES256")))
    assert provider.fetches == fetched


async def test_unknown_key_ids_do_not_hammer_the_provider(
    plane: IdentityPlane, provider: Any, new_signing_key: Any, clock: Any
) -> None:
    """Anyone can write a key id: one fetch in ten seconds, whatever they write."""
    await verify(plane, provider)
    stranger = new_signing_key("RS256", "unknown")
    for _ in range(3):
        for attempt in range(10):
            with pytest.raises(UnauthorizedException, match="does not publish"):
                await verify(plane, provider, provider.token(stranger, header={"kid": f"k{attempt}"}))
        clock.move(10)
    assert provider.fetches == 3  # the first, then one each time that ten seconds had gone by


async def test_foreign_tokens_cause_no_fetch(plane: IdentityPlane, provider: Any, clock: Any) -> None:
    await verify(plane, provider)
    clock.move(60)
    with pytest.raises(UnauthorizedException, match="another issuer"):
        await verify(plane, provider, provider.token(iss="https://evil.example.com", header={"kid": "x"}))
    assert provider.fetches == 1


async def test_a_withdrawn_key_is_refused_even_for_tokens_seen_before(
    plane: IdentityPlane, provider: Any, new_signing_key: Any, clock: Any
) -> None:
    token = provider.token(exp=int(clock.now().timestamp()) + 36_000)
    await verify(plane, provider, token)
    provider.keys = [new_signing_key("RS256", "second")]
    clock.move(601)
    await verify(plane, provider, token)  # starts the fetch that finds it out
    await fetches_to(provider, 2)
    assert plane.authorizers.cached(authorizer(provider), token) is None
    with pytest.raises(UnauthorizedException, match="does not publish"):
        await verify(plane, provider, token)


async def test_an_outage_is_ridden_out_for_an_hour(plane: IdentityPlane, provider: Any, clock: Any) -> None:
    await verify(plane, provider)
    provider.up = False
    clock.move(3590)
    assert await verify(plane, provider) == "alice"
    seen = provider.token()
    assert await verify(plane, provider, seen) == "alice"
    await fetches_to(provider, 2)
    clock.move(20)
    assert plane.authorizers.cached(authorizer(provider), seen) is None
    with pytest.raises(ServiceUnavailableException, match=r"cannot be reached.*Try again"):
        await verify(plane, provider, seen)
    provider.up = True
    clock.move(2)
    assert await verify(plane, provider, seen) == "alice"


async def test_an_outage_does_not_make_bad_tokens_good(
    plane: IdentityPlane, provider: Any, new_signing_key: Any
) -> None:
    provider.up = False
    for token in (provider.token(), provider.token(header={"alg": "none"}), provider.hmac_token(b"x")):
        with pytest.raises((ServiceUnavailableException, UnauthorizedException)):
            await verify(plane, provider, token)


async def test_a_failing_provider_is_asked_once_a_second(plane: IdentityPlane, provider: Any, clock: Any) -> None:
    provider.up = False
    for _ in range(5):
        for _ in range(4):
            with pytest.raises(ServiceUnavailableException):
                await verify(plane, provider)
        clock.move(1)
    assert provider.fetches == 5


async def test_nobody_listening(plane: IdentityPlane, provider: Any) -> None:
    await provider.stop()
    with pytest.raises(ServiceUnavailableException):
        await verify(plane, provider)
    await provider.start()


async def test_a_slow_provider_is_given_up(make_plane: Any, provider: Any) -> None:
    plane = make_plane(IdentitySettings(provider_timeout=0.1))
    provider.delay = 30
    async with asyncio.timeout(5):
        with pytest.raises(ServiceUnavailableException):
            await verify(plane, provider)
    provider.delay = 0


async def test_a_slow_provider_slows_nobody_whose_keys_are_known(
    plane: IdentityPlane, provider: Any, clock: Any
) -> None:
    await verify(plane, provider)
    provider.delay = 0.3
    clock.move(700)
    async with asyncio.timeout(0.2):
        assert await verify(plane, provider) == "alice"
    provider.delay = 0
    await asyncio.sleep(0.4)


async def test_documents_have_a_size(make_plane: Any, provider: Any) -> None:
    plane = make_plane(IdentitySettings(provider_document_limit=4096))
    provider.metadata = {"padding": "x" * 5000}
    with pytest.raises(ServiceUnavailableException):
        await verify(plane, provider)


async def test_an_endless_document_is_cut_off(plane: IdentityPlane, provider: Any) -> None:
    provider.jwks = lambda: web.Response(body=b'{"keys": [' + b" " * 10_000_000 + b"]}")
    with pytest.raises(ServiceUnavailableException):
        await verify(plane, provider)


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[]", b"{}", b'{"keys": 1}', b'{"keys": {}}', b"[" * 100_000, b"\xff\xfe",
     b'{"keys": [' + b",".join([b"{}"] * 101) + b"]}", b'{"keys": [{"x": ' + b"[" * 500 + b"]" * 500 + b"}]}"],
)  # fmt: skip
async def test_broken_key_sets(plane: IdentityPlane, provider: Any, body: bytes) -> None:
    provider.jwks = lambda: web.Response(body=body)
    with pytest.raises(ServiceUnavailableException):
        await verify(plane, provider)


@pytest.mark.parametrize(
    "entry",
    [None, 7, {}, {"kty": "RSA"}, {"kty": "RSA", "n": 7, "e": "AQAB"}, {"kty": "RSA", "n": "\u00e9", "e": "AQAB"},
     {"kty": "EC", "crv": "P-256", "x": None, "y": "AA"}, {"kty": ["RSA"]}, {"kty": "OKP", "crv": 7, "x": "AA"},
     {"key_ops": None}, {"key_ops": 7}, {"key_ops": [["verify"]]}, {"use": None}, {"use": ["sig"]}, {"kid": 7},
     {"alg": {}}],
    ids=str,
)  # fmt: skip
async def test_a_broken_key_does_not_spoil_the_others(plane: IdentityPlane, provider: Any, entry: Any) -> None:
    good = provider.keys[0].jwk
    broken = {**good, "kid": "broken", **entry} if isinstance(entry, dict) and "kty" not in entry else entry
    provider.jwks = lambda: web.json_response({"keys": [broken, good]})
    assert await verify(plane, provider) == "alice"


@pytest.mark.parametrize(
    "metadata",
    [{"issuer": None}, {"issuer": ""}, {"issuer": 7}, {"jwks_uri": None}, {"jwks_uri": "http://keys.example.com/"},
     {"jwks_uri": "file:///etc/passwd"}, {"jwks_uri": "//127.0.0.1/"}, {"jwks_uri": "http://[bad/"}],
)  # fmt: skip
async def test_broken_metadata(plane: IdentityPlane, provider: Any, metadata: dict[str, Any]) -> None:
    """Keys over plain http from elsewhere would be anyone's keys."""
    provider.metadata = metadata
    with pytest.raises(ServiceUnavailableException):
        await verify(plane, provider)


async def test_redirects_are_not_followed(plane: IdentityPlane, provider: Any) -> None:
    def redirect() -> web.StreamResponse:
        return web.Response(status=302, headers={"location": f"{provider.url}/elsewhere"})

    provider.jwks = redirect
    with pytest.raises(ServiceUnavailableException):
        await verify(plane, provider)


async def test_a_broken_document_does_not_displace_known_keys(plane: IdentityPlane, provider: Any, clock: Any) -> None:
    await verify(plane, provider)
    provider.jwks = lambda: web.Response(body=b"broken")
    clock.move(700)
    await verify(plane, provider)
    await fetches_to(provider, 2)
    assert await verify(plane, provider) == "alice"


async def test_a_provider_may_withdraw_every_key(plane: IdentityPlane, provider: Any, clock: Any) -> None:
    await verify(plane, provider)
    provider.keys, kept = [], provider.keys
    clock.move(700)
    await verify(plane, provider, provider.token(kept[0]))
    await fetches_to(provider, 2)
    with pytest.raises(UnauthorizedException, match="does not publish"):
        await verify(plane, provider, provider.token(kept[0]))


async def test_closing_ends_what_is_under_way(make_plane: Any, provider: Any) -> None:
    plane = make_plane()
    provider.delay = 30
    waiting = asyncio.create_task(verify(plane, provider))
    await asyncio.sleep(0.05)
    await plane.close()
    with pytest.raises(ServiceUnavailableException):
        await waiting
    provider.delay = 0


async def test_a_provider_may_be_reached_by_another_address(provider: Any) -> None:
    """As from inside a network, where users' address for it leads elsewhere."""
    addresses = parse_addresses(f"http://localhost:9/realm={provider.url}, https://id.example=http://127.0.0.1:9")
    fetcher = DocumentFetcher(2, 100_000, addresses)
    found = await fetcher.fetch("http://localhost:9/realm/.well-known/openid-configuration")
    assert json.loads(found)["issuer"] == provider.url
    for url in ("http://localhost:9/realmx/keys", "https://id.example/keys"):
        with pytest.raises(ProviderError):
            await fetcher.fetch(url)
    with pytest.raises(ProviderError, match="must be https"):
        await fetcher.fetch("http://provider.example/keys")
    await fetcher.close()


@pytest.mark.parametrize("text", ["x", "http://a", "http://a=b", "ftp://a=http://b", "http://a?x=http://b"])
def test_addresses_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="two URLs"):
        IdentitySettings(provider_addresses=text)


async def test_keys_on_this_machine_are_named_by_it_alone(plane: IdentityPlane, provider: Any) -> None:
    """Metadata from elsewhere sends us to nothing that only this machine can reach."""
    document = json.dumps({"issuer": "https://idp.example.com", "jwks_uri": f"{provider.url}/keys"}).encode()
    assert parse_issuer(provider.discovery_url, document)[1] == f"{provider.url}/keys"
    with pytest.raises(ProviderError, match="is on this machine"):
        parse_issuer("https://idp.example.com/.well-known/openid-configuration", document)
    for member in ({}, {"jwks_uri": 7}, {"jwks_uri": "http://10.0.0.1/keys"}, {"jwks_uri": "file:///etc/passwd"}):
        with pytest.raises(ProviderError, match="jwks_uri"):
            parse_issuer(provider.discovery_url, json.dumps({"issuer": "x", **member}).encode())
