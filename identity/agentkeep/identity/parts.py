"""The identity plane's domain objects, put together, and their end."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from agentkeep.core.acting import ActingForUsers, LoggedAudit
from agentkeep.core.alarm import Alarm
from agentkeep.core.clock import Clock
from agentkeep.core.data_keys import DataKeys
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service import KeyService
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.core.ports import Audit
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.inbound.authorizers import JwtAuthorizers
from agentkeep.identity.inbound.jwt import JwtVerifier
from agentkeep.identity.inbound.providers import OpenIdProviders
from agentkeep.identity.inbound.trusted_issuers import TrustedIssuers
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.oauth2.parts import Oauth2
from agentkeep.identity.roles.operators_app import RolesApp
from agentkeep.identity.roles.roles import Roles
from agentkeep.identity.roles.sessions import RoleSessions
from agentkeep.identity.roles.sts_app import StsApp
from agentkeep.identity.settings import IdentitySettings
from agentkeep.identity.sts.setup import described, role_exchange
from agentkeep.identity.trail import Trail
from agentkeep.identity.vault.credential_providers import CredentialProviders, ProviderKind
from agentkeep.identity.vault.outbound import OutboundApiKeys
from agentkeep.identity.vault.resource_credentials import ResourceCredentials
from agentkeep.identity.vault.token_vault import VAULT_KEYS, TokenVault
from agentkeep.identity.workloads.identities import WorkloadIdentities
from agentkeep.identity.workloads.tokens import WorkloadAccessTokens
from agentkeep.service.authentication import Authenticator
from agentkeep.storage.interface import KeyValueStore

__all__ = ["Parts"]

logger = logging.getLogger(__name__)


class Parts:
    """Everything but the operations."""

    def __init__(
        self,
        store: KeyValueStore,
        master_key: MasterKey,
        deployment: Deployment,
        clock: Clock,
        settings: IdentitySettings,
        trusted_issuers: Sequence[str],
        public_url: str,
        audit: Audit | None,
        key_service: KeyService | None,
        key_settings: KeySettings | None,
        alarm: Alarm | None,
    ) -> None:
        self.openid_providers = OpenIdProviders(clock, settings)
        self.identities = WorkloadIdentities(store, deployment, clock)
        verifier = JwtVerifier(clock, settings)
        trusted = (*settings.trusted_issuers, *trusted_issuers)
        self.issuers = TrustedIssuers(trusted, self.openid_providers, verifier, settings)
        exchange = role_exchange(settings, deployment, audit, clock)
        logger.info(described(settings, deployment))
        self.roles = Roles() if settings.roles is None else Roles.load(settings.roles, deployment)
        self.keys = AccessKeys(store, master_key, deployment, clock, settings, exchange, self.roles)
        recorded = audit or LoggedAudit()
        sessions = RoleSessions(self.roles, self.openid_providers, verifier, self.keys, recorded, clock, settings)
        signatures = Authenticator(self.keys, clock, alarm, signing_names=(b"sts",))
        self.sts_app = StsApp(sessions, signatures, deployment, clock, settings.role_exchanges)
        self.roles_app = RolesApp(self.roles, self.keys, recorded, clock)
        self.authorizers = JwtAuthorizers(self.openid_providers, verifier, clock, settings)
        self.acting = ActingForUsers(recorded, clock)
        self.trail = trail = Trail(recorded, clock)
        self.workload_tokens = WorkloadAccessTokens(
            self.identities, self.issuers, master_key, clock, settings, self.acting, trail
        )
        wrapping = key_service or LocalKeyService(master_key.derive(VAULT_KEYS))
        self.vault = TokenVault(store, master_key, DataKeys(wrapping, clock, key_settings), clock)
        self.api_keys, oauth2 = (
            CredentialProviders(kind, store, self.vault, deployment, clock, settings.credential_providers)
            for kind in (ProviderKind.API_KEY, ProviderKind.OAUTH2)
        )
        self.outbound = OutboundApiKeys(self.api_keys, trail)
        self.oauth2 = Oauth2(store, oauth2, self.identities, self.vault, master_key, clock, settings, public_url, trail)
        self.resource_credentials = ResourceCredentials(self.workload_tokens, self.api_keys, self.oauth2.tokens, trail)
        self._closing = (
            self.openid_providers,
            self.oauth2,
            self.acting,
            sessions,
            trail,
            *((exchange,) if exchange is not None else ()),
        )

    async def close(self) -> None:
        for part in self._closing:
            await part.close()
