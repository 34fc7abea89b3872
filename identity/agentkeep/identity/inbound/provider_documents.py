"""What an OpenID provider publishes: its metadata (OpenID Connect Discovery 1.0, RFC 8414) and its keys (RFC 7517).

These documents decide who is who, and come from outside: fetched over https only (http to loopback), without following
redirects, within a time and a size.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from joserfc import jwk
from joserfc.errors import JoseError

from agentkeep.core.errors import ProviderError

__all__ = [
    "ALGORITHMS",
    "DocumentFetcher",
    "ProviderKeys",
    "VerificationKey",
    "endpoint_of",
    "is_loopback",
    "parse_addresses",
    "parse_issuer",
    "parse_keys",
    "refuse_unsafe_url",
]

#: The key type each allowed algorithm needs. What is not here is refused: `none`, and every HS*, which would turn a
#: provider's public key into a shared secret.
ALGORITHMS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519", "Ed448"), "OKP"),
}
_CURVES = {
    "ES256": ("P-256",),
    "ES384": ("P-384",),
    "ES512": ("P-521",),
    "EdDSA": ("Ed25519", "Ed448"),
    "Ed25519": ("Ed25519",),
    "Ed448": ("Ed448",),
}
_RSA_BITS = range(2048, 8193)  # below is breakable, above is a way to keep a verifier busy
_MOST_EXPONENT_BITS = 32
_MOST_KEYS = 100


def refuse_unsafe_url(
    url: str,
    of: str = "an OpenID provider",
    reason: str = "who reads or changes what a provider publishes can become any user",
) -> None:
    """Raises ValueError for anything but https, or http to this machine."""
    parts = urlsplit(url)
    if not parts.hostname or parts.username is not None or parts.password is not None:
        raise ValueError(f"{url!r} is not the URL of {of}")
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname)):
        return
    raise ValueError(f"{url!r} must be https: {reason}")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_addresses(text: str) -> dict[str, str]:
    """The setting `provider_addresses`. Raises ValueError."""
    found = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        known, equals, reached = (part.strip().rstrip("/") for part in pair.partition("="))
        for url in (known, reached):
            parts = urlsplit(url)
            if not equals or parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
                raise ValueError(f"{pair!r} must be two URLs, such as http://localhost:8180=http://keycloak:8080")
        found[known] = reached
    return found


class DocumentFetcher:
    """Exchanges small documents with providers. `timeout` in seconds, `limit` in bytes."""

    def __init__(self, timeout: float, limit: int, addresses: Mapping[str, str] | None = None) -> None:
        """`addresses`: other beginnings of URLs, by those at which their users know providers."""
        self._addresses = addresses or {}
        self._timeout = timeout
        self._limit = limit
        self._client: aiohttp.ClientSession | None = None

    async def fetch(self, url: str) -> bytes:
        """Raises ProviderError with a reason fit for a log."""
        status, document = await self._exchange("GET", url)
        if status != 200:
            raise ProviderError(f"{url} answered {status}")
        return document

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """The answer's status, whatever it is, and its body. Raises ProviderError with a reason fit for a log."""
        return await self._exchange("POST", url, body.encode(), headers)

    async def _exchange(
        self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        try:
            refuse_unsafe_url(url)
        except ValueError as error:
            raise ProviderError(str(error)) from error
        if self._client is None:
            self._client = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            )
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.request(
                    method, self._reached(url), data=body, headers=headers, allow_redirects=False
                ) as response,
            ):
                document = bytearray()
                async for piece in response.content.iter_any():
                    document += piece
                    if len(document) > self._limit:
                        raise ProviderError(f"{url} answered more than {self._limit} bytes")
                return response.status, bytes(document)
        except TimeoutError as error:
            raise ProviderError(f"{url} did not answer within {self._timeout:g} seconds") from error
        except (aiohttp.ClientResponseError, aiohttp.ClientPayloadError) as error:
            # Their texts quote the answer, in which a server may repeat the secret it was sent.
            raise ProviderError(f"{url} did not answer in HTTP: {type(error).__name__}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderError(f"{url} cannot be read: {type(error).__name__}: {error}") from error

    def _reached(self, url: str) -> str:
        for known, reached in self._addresses.items():
            if url.startswith(f"{known}/"):
                return reached + url.removeprefix(known)
        return url

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


def parse_issuer(url: str, document: bytes) -> tuple[str, str]:
    """The issuer and the URL of the keys in the metadata found at `url`. Raises ProviderError."""
    metadata = _object(document, "metadata")
    issuer = metadata.get("issuer")
    if not isinstance(issuer, str) or not issuer:
        raise ProviderError("the metadata lacks issuer")
    return issuer, endpoint_of(url, metadata.get("jwks_uri"), "jwks_uri")


def endpoint_of(url: str, endpoint: Any, member: str) -> str:
    """A member of the metadata found at `url`: a document from elsewhere must not send us, or a browser, to what only
    this machine can reach. Raises ProviderError."""
    if not isinstance(endpoint, str):
        raise ProviderError(f"the metadata lacks {member}")
    try:
        refuse_unsafe_url(endpoint)
    except ValueError as error:
        raise ProviderError(f"{member}: {error}") from error
    if is_loopback(urlsplit(endpoint).hostname or "") and not is_loopback(urlsplit(url).hostname or ""):
        raise ProviderError(f"{member} is on this machine, the metadata is not")
    return endpoint


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, and the algorithms it may be used with."""

    id: str | None
    algorithms: frozenset[str]
    key: jwk.RSAKey | jwk.ECKey | jwk.OKPKey


@dataclass(frozen=True, slots=True)
class ProviderKeys:
    """An issuer and the keys it signs with, as published at one time. `fingerprint` differs when anything does."""

    issuer: str
    keys: tuple[VerificationKey, ...]
    fingerprint: bytes

    def candidates(self, key_id: str | None, algorithm: str) -> list[VerificationKey]:
        """The keys a signature may be tried with: those with the id, or, if the token names none, all that fit."""
        return [
            key for key in self.keys if algorithm in key.algorithms and (key_id is None or key.id in (None, key_id))
        ]


def parse_keys(issuer: str, document: bytes) -> ProviderKeys:
    """A JWK set's keys for verifying signatures; others in it are left out. Raises ProviderError."""
    entries = _object(document, "key set").get("keys")
    if not isinstance(entries, list) or len(entries) > _MOST_KEYS:
        raise ProviderError(f"the key set has no list of at most {_MOST_KEYS} keys")
    keys = [key for entry in entries if (key := _verification_key(entry)) is not None]
    try:
        fingerprint = hashlib.sha256(orjson.dumps([issuer, entries], option=orjson.OPT_SORT_KEYS)).digest()
    except orjson.JSONEncodeError as error:
        raise ProviderError("the key set is nested too deeply") from error
    return ProviderKeys(issuer, tuple(keys), fingerprint)


def _verification_key(entry: Any) -> VerificationKey | None:
    if not isinstance(entry, dict) or entry.get("use") not in (None, "sig"):
        return None
    key_id, only, operations = entry.get("kid"), entry.get("alg"), entry.get("key_ops")
    if not (key_id is None or isinstance(key_id, str)):
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    # Only the public members: a provider that publishes more is not made our keeper of its private key.
    public = {name: entry[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in entry}
    key: jwk.RSAKey | jwk.ECKey | jwk.OKPKey
    try:
        match public.get("kty"):
            case "RSA":
                # joserfc warns of short keys; here they are refused, before it can.
                if _bits(public["n"]) not in _RSA_BITS or _bits(public["e"]) > _MOST_EXPONENT_BITS:
                    return None
                key = jwk.RSAKey.import_key(public)
            case "EC":
                key = jwk.ECKey.import_key(public)
            case "OKP":
                key = jwk.OKPKey.import_key(public)
            case _:
                return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    fitting = {
        name
        for name, kind in ALGORITHMS.items()
        if kind == key.key_type and (name not in _CURVES or public.get("crv") in _CURVES[name])
    }
    if only is not None:
        fitting &= {only} if isinstance(only, str) else set()
    return VerificationKey(key_id, frozenset(fitting), key) if fitting else None


def _bits(number: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(number + "=" * (-len(number) % 4))).bit_length()


def _object(document: bytes, what: str) -> dict[str, Any]:
    try:
        parsed = orjson.loads(document)
    except ValueError as error:
        raise ProviderError(f"the {what} is not JSON") from error
    if not isinstance(parsed, dict):
        raise ProviderError(f"the {what} is not a JSON object")
    return parsed
