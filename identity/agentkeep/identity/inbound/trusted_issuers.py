"""User tokens that come without an authorizer to name their provider: accepted from configured issuers only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentkeep.core.errors import ServiceUnavailableException, UnauthorizedException
from agentkeep.identity.inbound.jwt import JwtVerifier, VerifiedToken, unverified_issuer
from agentkeep.identity.inbound.provider_documents import ProviderKeys
from agentkeep.identity.inbound.providers import OpenIdProvider, OpenIdProviders
from agentkeep.identity.settings import IdentitySettings
from agentkeep.service.protected_resources import issuer_url

__all__ = ["TrustedIssuers"]


class TrustedIssuers:
    """The providers named by discovery URL in `AGENTKEEP_IDENTITY_TRUSTED_ISSUERS`, and the development issuer where
    there is one. With none, no user token is accepted."""

    def __init__(
        self,
        urls: Sequence[str],
        providers: OpenIdProviders,
        verifier: JwtVerifier,
        settings: IdentitySettings,
    ) -> None:
        self._urls = tuple(dict.fromkeys(urls))
        self._providers = providers
        self._verifier = verifier
        self._token_limit = settings.token_limit

    async def verify(self, token: str) -> VerifiedToken:
        """Raises UnauthorizedException, or ServiceUnavailableException where a provider that may be the token's cannot
        be reached."""
        issuer = unverified_issuer(token, self._token_limit)
        if issuer is not None:
            providers = [self._providers.get(url) for url in self._urls]
            # Where a discovery URL is the issuer's own, no other provider can say that the issuer's tokens are its.
            own = next((one for one in providers if issuer_url(one.url) == issuer.rstrip("/")), None)
            provider = own or _known(providers, issuer) or await self._found(providers, issuer)
            if provider is not None:
                return await self._verifier.verify(token, provider)
        raise UnauthorizedException(
            "The user token cannot be verified: its issuer is not one this platform trusts. An operator can add the "
            "issuer's discovery URL to AGENTKEEP_IDENTITY_TRUSTED_ISSUERS"
        )

    async def _found(self, providers: Sequence[OpenIdProvider], issuer: str) -> OpenIdProvider | None:
        found = await asyncio.gather(*(_keys(provider) for provider in providers))
        if (provider := _known(providers, issuer)) is not None:
            return provider
        for keys in found:
            if isinstance(keys, ServiceUnavailableException):
                raise keys
        return None


def _known(providers: Sequence[OpenIdProvider], issuer: str) -> OpenIdProvider | None:
    """The one that is known to publish this issuer's metadata."""
    for provider in providers:
        keys = provider.current()
        if keys is not None and keys.issuer == issuer:
            return provider
    return None


async def _keys(provider: OpenIdProvider) -> ProviderKeys | ServiceUnavailableException:
    try:
        return await provider.keys()
    except ServiceUnavailableException as error:
        return error
