"""What gateways show to their targets: the secrets of credential providers, for the platform's own calls only."""

from __future__ import annotations

from agentkeep.core.errors import ResourceNotFoundException
from agentkeep.identity.credential_providers import CredentialProviders

__all__ = ["OutboundApiKeys"]


class OutboundApiKeys:
    """Implements the port `OutboundCredentials`."""

    def __init__(self, api_keys: CredentialProviders) -> None:
        self._api_keys = api_keys

    async def api_key(self, provider_arn: str) -> str:
        name = provider_arn.rsplit("/", 1)[-1]
        if provider_arn != self._api_keys.arn(name):
            raise ResourceNotFoundException(f"There is no {self._api_keys.kind.noun} with ARN {provider_arn}")
        return await self._api_keys.secret(name)
