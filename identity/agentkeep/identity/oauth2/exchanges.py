"""What is asked of authorization servers' token endpoints, on record before it is asked and once it is answered.

Who looks into what an agent did must be able to tell a token that was given from one that was not, also where no caller
was left to hear of it, or was content with what the vault still had. So each request has an end:

    oauth2-exchange ──▶ oauth2-exchange-ended   given      a token came
                                                refused    the server will not; `server`: its error code
                                                failed     there was no answer, or none that is believed

The first is durable before the server is asked. The second cannot stop what has happened, and a token that came is not
thrown away for want of it: where it cannot be written, the log has it, and a request without an end is one of which
nothing is known.
"""

from __future__ import annotations

from agentkeep.core.errors import ProviderError
from agentkeep.identity.oauth2.authorization_servers import AuthorizationServer
from agentkeep.identity.oauth2.grants import TokenSet
from agentkeep.identity.oauth2.token_endpoint import ClientCredentials, Parameters, TokenEndpoint, TokenRefused
from agentkeep.identity.trail import Attempt, Trail

__all__ = ["Exchanges"]


class Exchanges:
    def __init__(self, endpoint: TokenEndpoint, trail: Trail) -> None:
        self._endpoint = endpoint
        self._trail = trail

    async def request(
        self,
        by: Attempt,
        provider: str,
        server: AuthorizationServer,
        client: ClientCredentials | None,
        grant_type: str,
        parameters: Parameters,
    ) -> TokenSet:
        """`client` None: nobody authenticates. Raises TokenRefused, ProviderError where there was no such answer, and
        StoreUnavailable where it cannot be put on record: then nothing has been sent, no code or refresh token used."""
        asked = f"asked the authorization server of {provider} for a token"
        await self._trail.repeats("oauth2-exchange", asked, by, grant=grant_type)
        try:
            tokens = await self._endpoint.request(server, client, grant_type, parameters)
        except TokenRefused as error:
            await self._ended(by, f"was refused a token by {provider}", grant_type, "refused", server=error.error)
            raise
        except ProviderError:
            await self._ended(by, f"had no answer from {provider} that can be used", grant_type, "failed")
            raise
        await self._ended(by, f"was given a token by {provider}", grant_type, "given")
        return tokens

    async def _ended(self, by: Attempt, did: str, grant_type: str, outcome: str, **said: str) -> None:
        await self._trail.ended("oauth2-exchange-ended", did, by, grant=grant_type, outcome=outcome, **said)
