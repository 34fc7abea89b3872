"""User tokens that come without an authorizer to name their provider: accepted from configured issuers only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentkeep.core.errors import ServiceUnavailableException, UnauthorizedException
from agentkeep.identity.inbound.jwt import JwtVerifier, VerifiedToken, unverified_issuer
from agentkeep.identity.inbound.provider_documents import ProviderKeys
from agentkeep.identity.inbound.providers import OpenIdProvider, OpenIdProviders
from agentkeep.identity.settings import IdentitySettings

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
        providers = [self._providers.get(url) for url in self._urls]
        found = await asyncio.gather(*(_keys(provider) for provider in providers))
        for provider, keys in zip(providers, found, strict=True):
            if isinstance(keys, ProviderKeys) and keys.issuer == issuer:
                return await self._verifier.verify(token, provider)
        for keys in found:
            if isinstance(keys, ServiceUnavailableException):
                raise keys
        raise UnauthorizedException(
            "The user token cannot be verified: its issuer is not one this platform trusts. An operator can add the "
            "issuer's discovery URL to AGENTKEEP_IDENTITY_TRUSTED_ISSUERS"
        )


async def _keys(provider: OpenIdProvider) -> ProviderKeys | ServiceUnavailableException:
    try:
        return await provider.keys()
    except ServiceUnavailableException as error:
        return error
