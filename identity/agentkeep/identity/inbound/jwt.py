"""Verification of JSON Web Tokens (RFC 7519) with a provider's published keys, by the rules of RFC 8725."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jws import CompactSignature, JWSRegistry

from agentkeep.core.clock import Clock
from agentkeep.core.errors import UnauthorizedException
from agentkeep.identity.inbound.provider_documents import ALGORITHMS, ProviderKeys, VerificationKey
from agentkeep.identity.inbound.providers import OpenIdProvider
from agentkeep.identity.settings import IdentitySettings

__all__ = ["JwtVerifier", "VerifiedToken", "unverified_issuer"]

#: Header `typ`: tokens made for another purpose (logout, security events, proof of possession) prove no user here.
_TYPES = (None, "jwt", "at+jwt")
_MOST_CANDIDATES = 5


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """Claims whose signature, issuer and times were checked. `expires`: epoch seconds, tolerance included. `keys` are
    those it was verified with: when the provider publishes others, it has to be verified again."""

    subject: str
    issuer: str
    claims: dict[str, Any]
    expires: float
    keys: ProviderKeys


class _Registry(JWSRegistry):
    """joserfc's algorithms cut down to ours; its own look-up warns on EdDSA, which providers still write."""

    max_header_length = 8192
    max_payload_length = 131_072
    max_signature_length = 2048

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


_REGISTRY = _Registry(algorithms=list(ALGORITHMS), strict_check_header=False)
_MALFORMED = (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


class JwtVerifier:
    def __init__(self, clock: Clock, settings: IdentitySettings) -> None:
        self._clock = clock
        self._settings = settings

    async def verify(self, token: str, provider: OpenIdProvider) -> VerifiedToken:
        """Raises UnauthorizedException, or ServiceUnavailableException where the provider's keys cannot be had."""
        signature, claims = _parse(token, self._settings.token_limit)
        header = signature.headers()
        algorithm, key_id = header["alg"], header.get("kid")
        if algorithm not in ALGORITHMS:
            raise UnauthorizedException("The token is signed with an algorithm that is not accepted")
        # The issuer first: another provider's tokens must not make us ask this one for their keys.
        keys = _of_issuer(await provider.keys(), claims)
        candidates = keys.candidates(key_id, algorithm)
        signed = _signed_with(signature, candidates)
        if not signed and not any(key_id is not None and key.id == key_id for key in candidates):
            # Perhaps by a key that was published since: no id says that it is one of these.
            keys = _of_issuer(await provider.newer(keys), claims)
            candidates = keys.candidates(key_id, algorithm)
            signed = _signed_with(signature, candidates)
        if not candidates:
            raise UnauthorizedException("The token is signed with a key that its issuer does not publish")
        if not signed:
            raise UnauthorizedException("The token's signature is wrong")
        expires = self._check_times(claims)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise UnauthorizedException("The token names no user: it has no sub claim")
        return VerifiedToken(subject, keys.issuer, claims, expires, keys)

    def _check_times(self, claims: dict[str, Any]) -> float:
        now, skew = self._clock.now().timestamp(), self._settings.clock_skew
        expires = _time(claims, "exp")
        if expires is None:
            raise UnauthorizedException("The token has no exp claim; only tokens that expire are accepted")
        if now >= expires + skew:
            raise UnauthorizedException("The token has expired")
        for name in ("nbf", "iat"):
            moment = _time(claims, name)
            if moment is not None and moment > now + skew:
                raise UnauthorizedException(f"The token is not valid yet ({name} lies in the future)")
        return expires + skew


def unverified_issuer(token: str, limit: int) -> str | None:
    """The issuer a token claims to be from: good for choosing where to verify it, and for nothing else.

    Raises UnauthorizedException where this is no JWT."""
    _, claims = _parse(token, limit)
    issuer = claims.get("iss")
    return issuer if isinstance(issuer, str) else None


def _parse(token: str, limit: int) -> tuple[CompactSignature, dict[str, Any]]:
    if len(token) > limit:
        raise UnauthorizedException(f"The token is longer than {limit} characters")
    try:
        signature = jws.extract_compact(token.encode("ascii"), registry=_REGISTRY)
        header = signature.headers()
        # orjson, unlike the standard library, refuses NaN and Infinity, which compare as no time should.
        claims = orjson.loads(signature.payload)
        kind = header.get("typ")
        named = kind.lower().removeprefix("application/") if kind is not None else None
        well_formed = (
            isinstance(header["alg"], str) and isinstance(header.get("kid", ""), str) and isinstance(claims, dict)
        )
    except _MALFORMED:
        raise UnauthorizedException("The token is not a signed JSON Web Token") from None
    if not well_formed:
        raise UnauthorizedException("The token is not a signed JSON Web Token")
    if "crit" in header or "b64" in header:
        raise UnauthorizedException("The token demands extensions (crit) that are not supported")
    if named not in _TYPES:
        raise UnauthorizedException("The token is of a type made for another purpose (typ)")
    if _of_events(claims.get("events")):
        raise UnauthorizedException("The token is made for another purpose: it tells of events")
    return signature, claims


def _of_events(value: Any) -> bool:
    """A security event token (RFC 8417), by the claim that makes it one: providers send logout tokens to every client
    of a user's, and some do not say in the header that they are those. Events have URIs for names."""
    return isinstance(value, dict) and any(":" in name for name in value)


def _of_issuer(keys: ProviderKeys, claims: dict[str, Any]) -> ProviderKeys:
    if claims.get("iss") != keys.issuer:
        raise UnauthorizedException("The token comes from another issuer")
    return keys


def _signed_with(signature: CompactSignature, candidates: Sequence[VerificationKey]) -> bool:
    return any(_fits(signature, candidate.key) for candidate in candidates[:_MOST_CANDIDATES])


def _fits(signature: CompactSignature, key: Any) -> bool:
    try:
        return jws.validate_compact(signature, key, registry=_REGISTRY)
    except _MALFORMED:
        return False


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UnauthorizedException(f"The token's {name} claim is not a time")
    return float(value)
