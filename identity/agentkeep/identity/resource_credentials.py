"""What agents are given to use at other services: for a workload access token, and never without a trace."""

from __future__ import annotations

import logging

from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.errors import AccessDeniedException
from agentkeep.identity.credential_providers import CredentialProviders
from agentkeep.identity.oauth2_requests import TokenAnswer, TokenRequest
from agentkeep.identity.oauth2_tokens import Oauth2Tokens
from agentkeep.identity.workload_tokens import WorkloadAccessTokens, WorkloadClaims

__all__ = ["ResourceCredentials"]

logger = logging.getLogger(__name__)


class ResourceCredentials:
    def __init__(
        self, tokens: WorkloadAccessTokens, api_keys: CredentialProviders, oauth2_tokens: Oauth2Tokens
    ) -> None:
        self._tokens = tokens
        self._api_keys = api_keys
        self._oauth2_tokens = oauth2_tokens

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

    async def oauth2_token(self, caller: Caller, token: str, request: TokenRequest) -> TokenAnswer:
        """Raises as `api_key` and `Oauth2Tokens.token` do."""
        claims = await self._claims(caller, token)
        answer = await self._oauth2_tokens.token(claims, request)
        if answer.access_token is not None:
            logger.info(
                "%s got an OAuth2 token of credential provider %s by %s: workload %s, user %r",
                caller.principal, request.provider, request.flow, claims.workload, claims.user and claims.user.id,
            )  # fmt: skip
        return answer

    async def _claims(self, caller: Caller, token: str) -> WorkloadClaims:
        if caller.kind is CallerKind.SESSION and caller.user is None:
            raise AccessDeniedException(
                "Secrets are given to agents acting for a user, and "
                "this session has no user; invoke with a user JWT or runtimeUserId"
            )
        return await self._tokens.verify(token, caller)
