"""What agents are given to use at other services: for a workload access token, and never without a trace."""

from __future__ import annotations

import logging

from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.errors import AccessDeniedException
from agentkeep.identity.credential_providers import CredentialProviders
from agentkeep.identity.workload_tokens import WorkloadAccessTokens, WorkloadClaims

__all__ = ["ResourceCredentials"]

logger = logging.getLogger(__name__)


class ResourceCredentials:
    def __init__(self, tokens: WorkloadAccessTokens, api_keys: CredentialProviders) -> None:
        self._tokens = tokens
        self._api_keys = api_keys

    async def api_key(self, caller: Caller, token: str, provider: str) -> str:
        """Raises UnauthorizedException (the token), AccessDeniedException (not this caller's, or no user) or
        ResourceNotFoundException (the provider)."""
        claims = await self._claims(caller, token)
        key = await self._api_keys.secret(provider)
        logger.info(
            "%s got the API key of credential provider %s: workload %s, user %r",
            caller.principal, provider, claims.workload, claims.user and claims.user.id,
        )  # fmt: skip
        return key

    async def _claims(self, caller: Caller, token: str) -> WorkloadClaims:
        if caller.kind is CallerKind.SESSION and caller.user is None:
            raise AccessDeniedException(
                "Secrets are given to agents acting for a user, and "
                "this session has no user; invoke with a user JWT or runtimeUserId"
            )
        return await self._tokens.verify(token, caller)
