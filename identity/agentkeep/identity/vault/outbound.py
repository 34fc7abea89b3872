"""What gateways show to their targets: the secrets of credential providers, for the platform's own calls only."""

from __future__ import annotations

from agentkeep.core.call import User
from agentkeep.core.errors import ResourceNotFoundException
from agentkeep.core.ports import OutboundUse
from agentkeep.identity.trail import Attempt, Trail
from agentkeep.identity.vault.credential_providers import CredentialProviders

__all__ = ["OutboundApiKeys"]


class OutboundApiKeys:
    """Implements the port `OutboundCredentials`."""

    def __init__(self, api_keys: CredentialProviders, trail: Trail) -> None:
        self._api_keys = api_keys
        self._trail = trail

    async def api_key(self, provider_arn: str, use: OutboundUse) -> str:
        name = provider_arn.rsplit("/", 1)[-1]
        user = User(use.user_id, use.issuer) if use.user_id is not None else None
        by = Attempt(use.principal, use.session, user, resource=use.resource)
        async with self._trail.refusals("api-key-refused", f"an API key for {use.resource}", by):
            if provider_arn != self._api_keys.arn(name):
                raise ResourceNotFoundException(f"There is no {self._api_keys.kind.noun} with ARN {provider_arn}")
            by.provider = name
            key = await self._api_keys.secret(name)
        did = f"called {use.resource}, which is shown the API key of credential provider {name}"
        await self._trail.repeats("api-key-used", did, by)
        return key
