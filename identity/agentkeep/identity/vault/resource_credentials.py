"""What agents are given to use at other services: for a workload access token, and never without a record."""

from __future__ import annotations

from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.errors import AccessDeniedException
from agentkeep.identity.oauth2.requests import TokenAnswer, TokenRequest
from agentkeep.identity.oauth2.tokens import Oauth2Tokens
from agentkeep.identity.trail import Attempt, Trail
from agentkeep.identity.vault.credential_providers import CredentialProviders
from agentkeep.identity.workloads.tokens import WorkloadAccessTokens, WorkloadClaims

__all__ = ["ResourceCredentials"]


class ResourceCredentials:
    def __init__(
        self, tokens: WorkloadAccessTokens, api_keys: CredentialProviders, oauth2_tokens: Oauth2Tokens, trail: Trail
    ) -> None:
        self._trail = trail
        self._tokens = tokens
        self._api_keys = api_keys
        self._oauth2_tokens = oauth2_tokens

    async def api_key(self, caller: Caller, token: str, provider: str) -> str:
        """Raises UnauthorizedException (the token), AccessDeniedException (not this caller's, or no user) or
        ResourceNotFoundException (the provider)."""
        by = Attempt.of(caller)
        async with self._trail.refusals("api-key-refused", "an API key", by):
            await self._claims(by, caller, token, provider)
            key = await self._api_keys.secret(provider)
        await self._trail.repeats("api-key-used", f"got the API key of credential provider {provider}", by)
        return key

    async def oauth2_token(self, caller: Caller, token: str, request: TokenRequest) -> TokenAnswer:
        """Raises as `api_key` and `Oauth2Tokens.token` do."""
        by = Attempt.of(caller, flow=request.flow)
        async with self._trail.refusals("oauth2-token-refused", f"an OAuth2 token by {request.flow}", by):
            claims = await self._claims(by, caller, token, request.provider)
            answer = await self._oauth2_tokens.token(by, claims, request)
        if answer.access_token is not None:
            await self._trail.repeats(
                "oauth2-token-used", f"got an OAuth2 token of credential provider {request.provider}", by
            )
        return answer

    async def _claims(self, by: Attempt, caller: Caller, token: str, provider: str) -> WorkloadClaims:
        if caller.kind is CallerKind.SESSION and caller.user is None:
            raise AccessDeniedException(
                "Secrets are given to agents acting for a user, and "
                "this session has no user; invoke with a user JWT or runtimeUserId"
            )
        claims = await self._tokens.verify(token, caller)
        by.workload, by.user, by.provider = claims.workload, claims.user, provider
        return claims
