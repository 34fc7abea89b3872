"""Inbound JWT authorizers: which users' tokens a runtime or gateway accepts (`customJWTAuthorizer`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from agentkeep.core.call import User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AccessDeniedException,
    FieldError,
    InsufficientScope,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.identity.inbound.claims import as_text
from agentkeep.identity.inbound.jwt import JwtVerifier, VerifiedToken
from agentkeep.identity.inbound.provider_documents import refuse_unsafe_url
from agentkeep.identity.inbound.providers import OpenIdProvider, OpenIdProviders
from agentkeep.identity.settings import IdentitySettings

__all__ = ["JwtAuthorizers"]

_RULES = ("allowedAudience", "allowedClients", "allowedScopes", "customClaims")
_HONOURED = {"discoveryUrl", "advertisedScopeMapping", *_RULES}
_LATTICE = (
    "names VPC Lattice, which is AWS infrastructure; leave it out: the platform connects from where it runs, and "
    "AGENTKEEP_IDENTITY_PROVIDER_ADDRESSES names other addresses"
)
#: What narrows who may call, or says how to reach the provider, and why it is refused: to leave it out ourselves would
#: widen it.
_REFUSED = {
    "allowedWorkloadConfiguration": "names gateways, which call no runtimes here; leave it out, and let rules for "
    "claims or a resource policy say who may call",
    "privateEndpoint": _LATTICE,
    "privateEndpointOverrides": _LATTICE,
    "certificateConfigurations": "names certificates in Amazon S3 or Secrets Manager; leave it out, and have the "
    "identity service's operator trust the authority (SSL_CERT_FILE)",
}
#: Operators by claim type, and the members of `claimMatchValue` each compares with: of CONTAINS the guide shows one,
#: the service model's text the other.
_OPERATORS = {
    ("STRING", "EQUALS"): ("matchValueString",),
    ("STRING_ARRAY", "CONTAINS"): ("matchValueString", "matchValueStringList"),
    ("STRING_ARRAY", "CONTAINS_ANY"): ("matchValueStringList",),
}


@dataclass(frozen=True, slots=True)
class _Claim:
    """A custom claim: a string equal to the one allowed, or an array that has any of them."""

    name: str
    array: bool
    allowed: frozenset[str]

    def accepts(self, value: Any) -> bool:
        if self.array:
            return isinstance(value, list) and any(isinstance(entry, str) and entry in self.allowed for entry in value)
        return isinstance(value, str) and value in self.allowed


@dataclass(frozen=True, slots=True)
class _Rules:
    """An authorizer, read. Empty sets are rules that are not configured."""

    discovery_url: str
    audiences: frozenset[str]
    clients: frozenset[str]
    scopes: frozenset[str]
    claims: tuple[_Claim, ...]

    def enforce(self, claims: Mapping[str, Any]) -> None:
        """Raises AccessDeniedException naming the rule, not what it allows."""
        if self.audiences and self.audiences.isdisjoint(_strings(claims.get("aud"))):
            raise AccessDeniedException("The token was not made for this resource: its aud is not in allowedAudience")
        if self.clients:
            # azp says the same in providers that have no client_id, Keycloak for one.
            client = claims.get("client_id") or claims.get("azp")
            if not isinstance(client, str) or client not in self.clients:
                raise AccessDeniedException("The token's client (client_id, azp) is not in allowedClients")
        if self.scopes and self.scopes.isdisjoint(_scopes(claims)):
            raise InsufficientScope("The token has none of the scopes in allowedScopes")
        for claim in self.claims:
            if not claim.accepts(claims.get(claim.name)):
                raise AccessDeniedException(f"The token's claim {claim.name} does not satisfy customClaims")


@dataclass(frozen=True, slots=True)
class _Accepted:
    user: User
    token: VerifiedToken
    provider: OpenIdProvider


class JwtAuthorizers:
    """Implements the port `Authorizers`.

    A token that passed is remembered, with the authorizer it passed, until it expires or its provider publishes other
    keys; so a warm call costs two digests rather than a signature.
    """

    def __init__(
        self, providers: OpenIdProviders, verifier: JwtVerifier, clock: Clock, settings: IdentitySettings
    ) -> None:
        self._providers = providers
        self._verifier = verifier
        self._clock = clock
        self._most = settings.verified_tokens
        self._accepted: dict[bytes, _Accepted] = {}  # oldest first

    async def check(self, authorizer: Mapping[str, Any]) -> None:
        _read(authorizer)

    def cached(self, authorizer: Mapping[str, Any], token: str) -> User | None:
        digest = _digest(authorizer, token)
        accepted = self._accepted.get(digest)
        if accepted is None:
            return None
        if (
            self._clock.now().timestamp() >= accepted.token.expires
            or accepted.provider.current() is not accepted.token.keys
        ):
            del self._accepted[digest]
            return None
        return accepted.user

    async def verify(self, authorizer: Mapping[str, Any], token: str) -> User:
        if (user := self.cached(authorizer, token)) is not None:
            return user
        if not token:
            raise UnauthorizedException("The request has no bearer token")
        try:
            rules = _read(authorizer)
        except ValidationException as error:
            raise AccessDeniedException(f"No token can be accepted here: {error.message}") from error
        provider = self._providers.get(rules.discovery_url)
        verified = await self._verifier.verify(token, provider)
        rules.enforce(verified.claims)
        user = User(verified.subject, verified.issuer, as_text(verified.claims))
        self._accepted[_digest(authorizer, token)] = _Accepted(user, verified, provider)
        if len(self._accepted) > self._most:
            del self._accepted[next(iter(self._accepted))]
        return user


def _digest(authorizer: Mapping[str, Any], token: str) -> bytes:
    configured = hashlib.sha256(orjson.dumps(authorizer, option=orjson.OPT_SORT_KEYS)).digest()
    return hashlib.sha256(configured + token.encode("utf-8", "surrogatepass")).digest()


def _read(authorizer: Mapping[str, Any]) -> _Rules:
    """Raises ValidationException naming each member that cannot be honoured."""
    faults: list[FieldError] = []
    url = str(authorizer.get("discoveryUrl", ""))
    try:
        refuse_unsafe_url(url)
    except ValueError as error:
        faults.append(FieldError("customJWTAuthorizer.discoveryUrl", str(error)))
    faults += [
        FieldError(f"customJWTAuthorizer.{name}", f"is not supported: {_REFUSED.get(name, 'it is not known here')}")
        for name, value in authorizer.items()
        if name not in _HONOURED and value is not None
    ]
    if not any(authorizer.get(rule) for rule in _RULES):
        faults.append(
            FieldError(
                "customJWTAuthorizer", "must configure at least one of " + ", ".join(_RULES) + " besides the URL"
            )
        )
    claims = []
    for index, entry in enumerate(authorizer.get("customClaims") or ()):
        match = entry["authorizingClaimMatchValue"]
        value_type, operator, value = (
            entry["inboundTokenClaimValueType"],
            match["claimMatchOperator"],
            match["claimMatchValue"],
        )
        members = _OPERATORS.get((value_type, operator))
        path = f"customJWTAuthorizer.customClaims.{index + 1}.member.authorizingClaimMatchValue"
        if members is None:
            fits = ", ".join(name for kind, name in _OPERATORS if kind == value_type)
            faults.append(FieldError(f"{path}.claimMatchOperator", f"{operator} does not fit {value_type}; use {fits}"))
        elif (given := next((value[member] for member in members if value.get(member)), None)) is None:
            faults.append(FieldError(f"{path}.claimMatchValue", f"{operator} compares with {' or '.join(members)}"))
        else:
            allowed = [given] if isinstance(given, str) else given
            claims.append(_Claim(entry["inboundTokenClaimName"], value_type == "STRING_ARRAY", frozenset(allowed)))
    if faults:
        raise ValidationException("; ".join(f"{name}: {message}" for name, message in faults), fields=faults)
    return _Rules(
        url,
        frozenset(authorizer.get("allowedAudience") or ()),
        frozenset(authorizer.get("allowedClients") or ()),
        frozenset(authorizer.get("allowedScopes") or ()),
        tuple(claims),
    )


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    """`scope` (RFC 8693, 9068), or `scp` as Entra ID and Okta write it; one string, or an array of them."""
    granted = claims["scope"] if "scope" in claims else claims.get("scp")
    return granted.split(" ") if isinstance(granted, str) else _strings(granted)
