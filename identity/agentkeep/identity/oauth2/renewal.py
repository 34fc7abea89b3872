"""Users' tokens in the vault, renewed with their refresh tokens (RFC 6749, 6) before they end."""

from __future__ import annotations

import logging

from agentkeep.core.clock import Clock
from agentkeep.core.errors import ProviderError, ServiceUnavailableException
from agentkeep.identity.oauth2.authorization_servers import AuthorizationServers
from agentkeep.identity.oauth2.exchanges import Exchanges
from agentkeep.identity.oauth2.grants import GrantKey, Grants, TokenSet
from agentkeep.identity.oauth2.providers import Oauth2Client
from agentkeep.identity.oauth2.requests import refusal, unreachable
from agentkeep.identity.oauth2.single_flight import LeasedFlight
from agentkeep.identity.oauth2.token_endpoint import TokenRefused
from agentkeep.identity.trail import Attempt, Trail

__all__ = ["RenewedGrants"]

logger = logging.getLogger(__name__)


class RenewedGrants:
    def __init__(
        self,
        grants: Grants,
        servers: AuthorizationServers,
        exchanges: Exchanges,
        flight: LeasedFlight,
        clock: Clock,
        trail: Trail,
    ) -> None:
        self._grants = grants
        self._servers = servers
        self._exchanges = exchanges
        self._flight = flight
        self._clock = clock
        self._trail = trail

    async def get(
        self, by: Attempt, key: GrantKey, client: Oauth2Client, resources: tuple[str, ...]
    ) -> TokenSet | None:
        """The token in the vault, renewed where it is about to end; None where the user has to be asked."""
        tokens = await self._grants.get(key)
        if tokens is None or tokens.fresh(self._clock.now()):
            return tokens
        # One at a time: a refresh token that is used twice looks stolen, and everything granted with it is revoked.
        return await self._flight.share(key.name, lambda: self._renewed(by, key, client, resources))

    async def _renewed(
        self, by: Attempt, key: GrantKey, client: Oauth2Client, resources: tuple[str, ...]
    ) -> TokenSet | None:
        found = await self._grants.read(key)
        if found is None:
            return None
        tokens, stored = found
        if tokens.fresh(self._clock.now()):
            return tokens
        if tokens.refresh_token is None:
            return tokens if tokens.good(self._clock.now()) else None
        try:
            server = await self._servers.of(client.discovery)
            seal = await self._grants.sealer(key)  # before the refresh token is shown, which may be good only once
        except ServiceUnavailableException:
            if tokens.good(self._clock.now()):
                return tokens
            raise
        parameters = [("refresh_token", tokens.refresh_token), *(("resource", one) for one in resources)]
        try:
            renewed = await self._exchanges.request(
                by, client.provider, server, client.credentials, "refresh_token", parameters
            )
        except TokenRefused as error:
            if not error.revoked:
                logger.warning("credential provider %s refused to renew a token: %s", client.provider, error.error)
                raise refusal(client.provider, error) from None
            logger.info("a grant of credential provider %s was revoked, its user is asked again", client.provider)
            did = f"was told by {client.provider} that its grant is gone"
            await self._trail.happens("consent-revoked", did, by, server=error.error)
            return None if await self._grants.change(key, stored, None) else await self._grants.get(key)
        except ProviderError as error:
            logger.warning("credential provider %s cannot renew a token: %s", client.provider, error)
            if tokens.good(self._clock.now()):
                return tokens
            raise unreachable(client.provider) from error
        if renewed.refresh_token is None:
            renewed = TokenSet(renewed.access_token, renewed.issued, renewed.expires, tokens.refresh_token)
        return renewed if await self._grants.change(key, stored, renewed, seal) else await self._grants.get(key)
