"""What clients of something with a JWT authorizer are told of getting a token: the document of a protected resource
(RFC 9728), and the challenge in an answer that refuses them (`WWW-Authenticate`; RFC 6750, 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["advertised_scopes", "challenge", "issuer_url", "metadata"]

_WELL_KNOWN: Final = "/.well-known/"


def advertised_scopes(authorizer: Mapping[str, Any]) -> Sequence[str]:
    """What clients are to ask the provider for (`advertisedScopeMapping`): the tokens' scopes may bear other names."""
    mapping = authorizer.get("advertisedScopeMapping") or {}
    return [mapping.get(scope, scope) for scope in authorizer.get("allowedScopes") or ()]


def metadata(resource: str, authorizer: Mapping[str, Any]) -> dict[str, Any]:
    """`resource`: the URL that clients call."""
    document: dict[str, Any] = {
        "resource": resource,
        "authorization_servers": [issuer_url(authorizer["discoveryUrl"])],
        "bearer_methods_supported": ["header"],
    }
    if scopes := advertised_scopes(authorizer):
        document["scopes_supported"] = list(scopes)
    return document


def challenge(place: str, scopes: Sequence[str] = (), error: str | None = None) -> str:
    """`place`: the URL of the document. `error`: what is wrong with the token that came, one of RFC 6750's words."""
    document, needed = f'resource_metadata="{place}"', f'scope="{" ".join(scopes)}"'
    if error is not None:
        return f'Bearer error="{error}", ' + ", ".join([needed, document] if scopes else [document])
    return "Bearer " + ", ".join([document, needed] if scopes else [document])


def issuer_url(discovery_url: str) -> str:
    """The provider behind its discovery document: the well-known part comes last (OpenID Connect Discovery 4), or
    before the issuer's path (RFC 8414, 3.1)."""
    before, _, after = discovery_url.partition(_WELL_KNOWN)
    path = after.partition("/")[2]
    return f"{before}/{path}" if path else before
