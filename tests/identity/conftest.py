"""An OpenID provider outside the platform, and the identity plane with a clock that tests move."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from aiohttp import web
from consent_stand import ConsentStand
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from exchange_server import ExchangeServer
from openid_provider import OpenIdServer, running_provider

from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User
from agentkeep.core.identifiers import Deployment
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.valkey import ValkeyKeyValueStore

DEPLOYMENT = Deployment("us-west-2", "123456789012")


class MovedClock:
    """Real time at first; then only as tests move it."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.02))  # or another's lease would end before the other could be done
        self.move(seconds)

    def move(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


def b64(value: bytes | dict[str, Any]) -> str:
    data = json.dumps(value).encode() if isinstance(value, dict) else value
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8))


class SigningKey:
    """A key of the provider, used without any JOSE library: what verifies its tokens is not what made them."""

    def __init__(self, algorithm: str, key_id: str | None = None, bits: int = 2048) -> None:
        self.algorithm = algorithm
        self.id = key_id
        digest = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}.get(algorithm[-3:], hashes.SHA256)
        self.hash = digest()
        self.key: Any
        match algorithm[:2]:
            case "RS" | "PS":
                self.key = rsa.generate_private_key(65537, bits)
            case "ES":
                curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
                self.key = ec.generate_private_key(curves[algorithm]())
            case _:
                self.key = ed25519.Ed25519PrivateKey.generate()

    @property
    def jwk(self) -> dict[str, Any]:
        public = self.key.public_key()
        common: dict[str, Any] = {"use": "sig", "alg": self.algorithm}
        if self.id is not None:
            common["kid"] = self.id
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            return {**common, "kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        if isinstance(public, ec.EllipticCurvePublicKey):
            point = public.public_numbers()
            size = (public.key_size + 7) // 8
            curve = {256: "P-256", 384: "P-384", 521: "P-521"}[public.key_size]
            return {
                **common,
                "kty": "EC",
                "crv": curve,
                "x": b64(point.x.to_bytes(size)),
                "y": b64(point.y.to_bytes(size)),
            }
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {**common, "kty": "OKP", "crv": "Ed25519", "x": b64(raw)}

    @property
    def pem(self) -> bytes:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        pem: bytes = self.key.public_key().public_bytes(serialization.Encoding.PEM, form)
        return pem

    def sign(self, message: bytes) -> bytes:
        signature: bytes
        match self.algorithm[:2]:
            case "RS":
                signature = self.key.sign(message, padding.PKCS1v15(), self.hash)
            case "PS":
                signature = self.key.sign(
                    message, padding.PSS(padding.MGF1(self.hash), self.hash.digest_size), self.hash
                )
            case "ES":
                size = (self.key.key_size + 7) // 8
                r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(self.hash)))
                signature = r.to_bytes(size) + s.to_bytes(size)
            case _:
                signature = self.key.sign(message)
        return signature


@cache
def _first_key() -> SigningKey:
    return SigningKey("RS256", "first")  # making one takes a while


class Provider:
    """A provider with a wire: metadata and keys over HTTP. Tests break it in every way they need."""

    def __init__(self, clock: MovedClock) -> None:
        self.clock = clock
        self.keys = [_first_key()]
        self.fetches = 0
        self.fetched_elsewhere = 0
        self.metadata: dict[str, Any] = {}
        self.jwks: Callable[[], web.StreamResponse] | None = None
        self.delay = 0.0
        self.up = True
        app = web.Application()
        app.router.add_get("/realm/.well-known/openid-configuration", self._metadata)
        app.router.add_get("/realm/keys", self._keys)
        app.router.add_get("/realm/elsewhere", self._elsewhere)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self.url = ""

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/realm"

    async def stop(self) -> None:
        await self._runner.cleanup()

    @property
    def discovery_url(self) -> str:
        return f"{self.url}/.well-known/openid-configuration"

    async def _metadata(self, request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        await asyncio.sleep(self.delay)
        if not self.up:
            return web.Response(status=503)
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.metadata})

    async def _keys(self, request: web.Request) -> web.StreamResponse:
        return self.jwks() if self.jwks is not None else await self._published(request)

    async def _elsewhere(self, request: web.Request) -> web.StreamResponse:
        self.fetched_elsewhere += 1
        return await self._published(request)

    async def _published(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"keys": [key.jwk for key in self.keys]})

    def claims(self, **claims: Any) -> dict[str, Any]:
        """A Keycloak-like access token's claims for alice; None removes one."""
        now = int(self.clock.now().timestamp())
        all_claims = {
            "iss": self.url,
            "sub": "alice",
            "aud": ["support", "account"],
            "azp": "web",
            "scope": "openid profile",
            "iat": now,
            "exp": now + 300,
            "jti": secrets.token_hex(8),
            **claims,
        }
        return {name: value for name, value in all_claims.items() if value is not None}

    def token(self, key: SigningKey | None = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
        key = key or self.keys[0]
        head = {"alg": key.algorithm, "typ": "JWT", **({"kid": key.id} if key.id else {}), **(header or {})}
        signed = f"{b64(head)}.{b64(self.claims(**claims))}"
        return f"{signed}.{b64(key.sign(signed.encode()))}"

    def hmac_token(self, secret: bytes, **claims: Any) -> str:
        """HS256 with some public bytes for a secret: key confusion."""
        signed = f"{b64({'alg': 'HS256', 'typ': 'JWT', 'kid': self.keys[0].id})}.{b64(self.claims(**claims))}"
        mac = hmac.HMAC(secret, hashes.SHA256())
        mac.update(signed.encode())
        return f"{signed}.{b64(mac.finalize())}"


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def provider(clock: MovedClock) -> AsyncIterator[Provider]:
    provider = Provider(clock)
    await provider.start()
    yield provider
    await provider.stop()


@pytest.fixture(scope="session")
def master_key() -> FileMasterKey:
    return FileMasterKey(secrets.token_bytes(32))


@pytest.fixture
def settings() -> IdentitySettings:
    return IdentitySettings()


MakePlane = Callable[..., IdentityPlane]


@pytest.fixture
async def make_plane(
    store: ValkeyKeyValueStore, clock: MovedClock, master_key: FileMasterKey, settings: IdentitySettings
) -> AsyncIterator[MakePlane]:
    """Planes on one store: replicas of each other."""
    made: list[IdentityPlane] = []

    def make(settings: IdentitySettings = settings, **options: Any) -> IdentityPlane:
        plane = IdentityPlane(store, options.pop("master_key", master_key), DEPLOYMENT, clock, settings, **options)
        made.append(plane)
        return plane

    yield make
    for plane in made:
        await plane.close()


@pytest.fixture
def plane(make_plane: MakePlane, provider: Provider) -> IdentityPlane:
    return make_plane(trusted_issuers=[provider.discovery_url])


@pytest.fixture
def new_signing_key() -> type[SigningKey]:
    return SigningKey


@pytest.fixture
def operator() -> Call:
    caller = Caller(
        CallerKind.OPERATOR, "arn:aws:iam::123456789012:user/admin", "AKIAAAAAAAAAAAAAAAAA", acts_for_users=True
    )
    return Call("bedrock-agentcore", "Test", caller, "request-1")


@pytest.fixture
def session_of() -> Callable[..., Call]:
    """A session's call."""
    alice = User("alice")

    def call(runtime: str = "helper-1234567890", user: User | None = alice) -> Call:
        session = SessionRef(runtime, "s" * 33)
        principal = f"arn:aws:sts::123456789012:assumed-role/{runtime}/{session.session_id}"
        return Call(
            "bedrock-agentcore", "Test", Caller(CallerKind.SESSION, principal, "ASIA", user, session), "request-1"
        )

    return call


@pytest.fixture(scope="session")
def openid() -> Iterator[OpenIdServer]:
    """A certified OpenID provider; tests register clients of their own."""
    with running_provider() as server:
        yield server


@pytest.fixture
async def stand(make_plane: MakePlane, provider: Provider, free_tcp_port: int) -> AsyncIterator[ConsentStand]:
    """The plane behind its front, where browsers and boto3 reach it."""
    url = f"http://127.0.0.1:{free_tcp_port}"
    stand = ConsentStand(url, make_plane(trusted_issuers=[provider.discovery_url], public_url=url))
    await stand.start()
    yield stand
    await stand.stop()


@pytest.fixture
async def exchange(provider: Provider) -> AsyncIterator[ExchangeServer]:
    """An authorization server that exchanges the tokens of `provider`'s users."""
    server = ExchangeServer(provider.keys[0].key.public_key(), provider.url)
    await server.start()
    yield server
    await server.stop()
