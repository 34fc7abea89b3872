"""The plane's OAuth2: its parts, put together."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from agentkeep.core.clock import Clock
from agentkeep.identity.inbound.provider_documents import DocumentFetcher, parse_addresses
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.oauth2.authorization_servers import AuthorizationServers
from agentkeep.identity.oauth2.callback import Oauth2Callback
from agentkeep.identity.oauth2.consents import Consents
from agentkeep.identity.oauth2.exchanges import Exchanges
from agentkeep.identity.oauth2.grants import Grants
from agentkeep.identity.oauth2.providers import Oauth2Providers
from agentkeep.identity.oauth2.renewal import RenewedGrants
from agentkeep.identity.oauth2.single_flight import LeasedFlight
from agentkeep.identity.oauth2.token_endpoint import TokenEndpoint
from agentkeep.identity.oauth2.tokens import Oauth2Tokens
from agentkeep.identity.oauth2.user_federation import UserFederation
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.trail import Trail
from agentkeep.identity.vault.credential_providers import CredentialProviders
from agentkeep.identity.vault.token_vault import TokenVault
from agentkeep.identity.workloads.identities import WorkloadIdentities
from agentkeep.storage.interface import KeyValueStore, Write

__all__ = ["Oauth2"]

#: Fetched under one lease: metadata, an actor's token, the token; and time for the store.
_MOST_FETCHES: Final = 4


class Oauth2:
    """`providers` for operators, `tokens` for agents, `federation` for those who complete consents, `callback` (ASGI)
    for browsers."""

    def __init__(
        self,
        store: KeyValueStore,
        stored: CredentialProviders,
        identities: WorkloadIdentities,
        vault: TokenVault,
        master_key: MasterKey,
        clock: Clock,
        settings: IdentitySettings,
        public_url: str,
        trail: Trail,
    ) -> None:
        self._fetcher = DocumentFetcher(
            settings.provider_timeout, settings.provider_document_limit, parse_addresses(settings.provider_addresses)
        )
        self._servers = AuthorizationServers(self._fetcher, clock, settings)
        self._flight = LeasedFlight(store, clock, _MOST_FETCHES * settings.provider_timeout)
        exchanges = Exchanges(TokenEndpoint(self._fetcher, clock), trail)
        grants = Grants(store, vault, clock, timedelta(seconds=settings.grant_life))
        renewed = RenewedGrants(grants, self._servers, exchanges, self._flight, clock, trail)
        self._consents = Consents(store, vault, clock, timedelta(seconds=settings.consent_life))
        self.providers = Oauth2Providers(stored, grants, public_url)
        self.federation = UserFederation(
            self.providers,
            self._servers,
            exchanges,
            grants,
            renewed,
            self._consents,
            identities,
            self._flight,
            master_key,
            clock,
            trail,
        )
        self.tokens = Oauth2Tokens(
            self.providers, self._servers, exchanges, grants, self.federation, self._flight, clock
        )
        self.callback = Oauth2Callback(self.federation)

    async def clear(self) -> list[Write]:
        """Writes that remove every token that was given, and every consent."""
        return [*await self.providers.clear(), self._consents.clear()]

    async def close(self) -> None:
        await self._flight.close()
        await self._servers.close()
        await self._fetcher.close()
