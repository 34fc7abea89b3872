"""Authorization servers: where their endpoints are, as configured or as they publish (RFC 8414, OpenID Discovery)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from agentkeep.core.clock import Clock
from agentkeep.core.errors import ProviderError, ServiceUnavailableException
from agentkeep.identity.inbound.provider_documents import DocumentFetcher, endpoint_of
from agentkeep.identity.oauth2.single_flight import SingleFlight
from agentkeep.identity.settings import IdentitySettings

__all__ = ["AuthorizationServer", "AuthorizationServers"]

logger = logging.getLogger(__name__)

_MOST_SERVERS: Final = 1000


@dataclass(frozen=True, slots=True)
class AuthorizationServer:
    """`methods`: how clients may authenticate; None where it does not say. `names_itself`: its answers to browsers have
    the parameter `iss` (RFC 9207)."""

    issuer: str
    authorization_endpoint: str | None
    token_endpoint: str
    methods: tuple[str, ...] | None = None
    names_itself: bool = False


class AuthorizationServers:
    """Published metadata is fresh for `provider_refresh` seconds, then fetched again, and used through an outage until
    `provider_outage` seconds old."""

    def __init__(self, fetcher: DocumentFetcher, clock: Clock, settings: IdentitySettings) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._settings = settings
        self._known: dict[str, tuple[AuthorizationServer, float]] = {}
        self._fetching = SingleFlight()

    async def of(self, discovery: Mapping[str, Any]) -> AuthorizationServer:
        """`discovery`: the model's union `Oauth2Discovery`. Raises ServiceUnavailableException."""
        configured = discovery.get("authorizationServerMetadata")
        if configured is not None:
            methods = configured.get("tokenEndpointAuthMethods")
            return AuthorizationServer(
                configured["issuer"],
                configured["authorizationEndpoint"],
                configured["tokenEndpoint"],
                tuple(methods) if methods else None,
            )
        url: str = discovery["discoveryUrl"]
        known = self._known.get(url)
        age = float("inf") if known is None else self._clock.monotonic() - known[1]
        if known is not None and age < self._settings.provider_refresh:
            return known[0]
        try:
            return await self._fetching.share(url, lambda: self._fetch(url))
        except ProviderError as error:
            logger.warning("metadata of %s cannot be fetched: %s", url, error)
            if known is not None and age < self._settings.provider_outage:
                return known[0]
            raise ServiceUnavailableException(
                "The authorization server of this credential provider cannot be reached, or publishes no metadata that "
                "can be used. Try again; an operator finds the reason in the platform's log"
            ) from error

    async def close(self) -> None:
        await self._fetching.close()

    async def _fetch(self, url: str) -> AuthorizationServer:
        server = _read(url, await self._fetcher.fetch(url))
        self._known.pop(url, None)
        self._known[url] = (server, self._clock.monotonic())
        if len(self._known) > _MOST_SERVERS:
            del self._known[next(iter(self._known))]
        return server


def _read(url: str, document: bytes) -> AuthorizationServer:
    try:
        metadata = orjson.loads(document)
    except ValueError as error:
        raise ProviderError("the metadata is not JSON") from error
    if not isinstance(metadata, dict):
        raise ProviderError("the metadata is not a JSON object")
    issuer, methods = metadata.get("issuer"), metadata.get("token_endpoint_auth_methods_supported")
    if not isinstance(issuer, str) or not issuer:
        raise ProviderError("the metadata lacks issuer")
    authorization = metadata.get("authorization_endpoint")
    return AuthorizationServer(
        issuer,
        None if authorization is None else endpoint_of(url, authorization, "authorization_endpoint"),
        endpoint_of(url, metadata.get("token_endpoint"), "token_endpoint"),
        tuple(name for name in methods if isinstance(name, str)) if isinstance(methods, list) else None,
        metadata.get("authorization_response_iss_parameter_supported") is True,
    )
