"""OAuth2 tokens for agents: the client's own (M2M), a user's by consent, and a user's by exchange (on behalf of)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from agentkeep.core.call import User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import AccessDeniedException, ProviderError, ServiceUnavailableException, ValidationException
from agentkeep.identity.oauth2.authorization_servers import AuthorizationServer, AuthorizationServers
from agentkeep.identity.oauth2.exchanges import Exchanges
from agentkeep.identity.oauth2.grants import GrantKey, Grants, TokenSet
from agentkeep.identity.oauth2.providers import Oauth2Client, Oauth2Providers
from agentkeep.identity.oauth2.requests import Flow, TokenAnswer, TokenRequest, refusal, unreachable
from agentkeep.identity.oauth2.single_flight import LeasedFlight
from agentkeep.identity.oauth2.token_endpoint import Parameters, TokenRefused
from agentkeep.identity.oauth2.user_federation import UserFederation
from agentkeep.identity.trail import Attempt
from agentkeep.identity.workloads.tokens import WorkloadClaims

__all__ = ["Oauth2Tokens"]

logger = logging.getLogger(__name__)

#: How long a token is handed out whose server did not say how long it lives; no user is there to ask again.
_UNSAID: Final = timedelta(minutes=5)
_OWN: Final = "client_credentials"
_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # RFC 8693
_ASSERTION: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"  # RFC 7523
_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105


class Oauth2Tokens:
    def __init__(
        self,
        providers: Oauth2Providers,
        servers: AuthorizationServers,
        exchanges: Exchanges,
        grants: Grants,
        federation: UserFederation,
        flight: LeasedFlight,
        clock: Clock,
    ) -> None:
        self._providers = providers
        self._servers = servers
        self._exchanges = exchanges
        self._grants = grants
        self._federation = federation
        self._flight = flight
        self._clock = clock

    async def token(self, by: Attempt, claims: WorkloadClaims, request: TokenRequest) -> TokenAnswer:
        """`by` goes on record with what is asked of the authorization server. Raises ResourceNotFoundException (the
        provider, the session), ValidationException, AccessDeniedException, ServiceUnavailableException (the
        authorization server; try again)."""
        client = await self._providers.client(request.provider)
        match request.flow:
            case Flow.M2M:
                return TokenAnswer(await self._own(by, claims, client, request))
            case Flow.ON_BEHALF_OF:
                return TokenAnswer(await self._exchanged(by, claims, client, request))
            case Flow.USER_FEDERATION:
                return await self._federation.token(by, claims, client, request)

    async def _own(self, by: Attempt, claims: WorkloadClaims, client: Oauth2Client, request: TokenRequest) -> str:
        """The client's own token. It is nobody's, so that all users of a workload share it."""
        parameters = [*request.scope, *request.targets, *request.custom_parameters.items()]

        async def ask(server: AuthorizationServer) -> TokenSet:
            return await self._exchanges.request(by, client.provider, server, client.credentials, _OWN, parameters)

        if client.credentials.id is None:
            raise ValidationException(f"Credential provider {client.provider} has no client id, which M2M needs")
        key = self._key(claims, client, request, None, {})
        return await self._cached(key, client, request.force, ask)

    async def _exchanged(self, by: Attempt, claims: WorkloadClaims, client: Oauth2Client, request: TokenRequest) -> str:
        """A token of the user's at another service, for the one the user was proved with."""
        if claims.user is None or claims.user_token is None:
            raise ValidationException(
                "workloadIdentityToken: ON_BEHALF_OF_TOKEN_EXCHANGE exchanges the user's own token, and this workload "
                "access token was made without one; get one with GetWorkloadAccessTokenForJWT"
            )
        user_token = claims.user_token
        grant_type, actor_scopes = _exchange_of(client)
        # Another token of the same user may be worth more or less.
        others: dict[str, object] = {"user_token": hashlib.sha256(user_token.encode()).hexdigest()}
        credentials = None if "onBehalfOfAuthenticationConfig" in (client.exchange or {}) else client.credentials

        async def ask(server: AuthorizationServer) -> TokenSet:
            parameters: list[tuple[str, str]] = [*request.scope, *request.targets, *request.custom_parameters.items()]
            if grant_type == _ASSERTION:
                parameters.append(("assertion", user_token))
                if client.vendor == "MicrosoftOauth2":
                    parameters.append(("requested_token_use", "on_behalf_of"))
            else:
                parameters += [("subject_token", user_token), ("subject_token_type", _ACCESS_TOKEN)]
            if actor_scopes is not None:
                actor = await self._exchanges.request(
                    by, client.provider, server, client.credentials, _OWN, actor_scopes
                )
                parameters += [("actor_token", actor.access_token), ("actor_token_type", _ACCESS_TOKEN)]
            try:
                return await self._exchanges.request(by, client.provider, server, credentials, grant_type, parameters)
            except TokenRefused as error:
                if not error.revoked:
                    raise
                logger.warning("credential provider %s refused a user's token: %s", client.provider, error.error)
                raise AccessDeniedException(
                    f"The authorization server of credential provider {client.provider} no longer accepts the user's "
                    f"token ({error.error}): it has expired, or is for another audience. Get another workload access "
                    "token with a new one"
                ) from None

        key = self._key(claims, client, request, claims.user, others)
        return await self._cached(key, client, request.force, ask)

    def _key(
        self,
        claims: WorkloadClaims,
        client: Oauth2Client,
        request: TokenRequest,
        user: User | None,
        others: dict[str, object],
    ) -> GrantKey:
        others |= {
            "flow": request.flow,
            "resources": request.resources,
            "audiences": request.audiences,
            "parameters": sorted(request.custom_parameters.items()),
        }
        workload = (claims.workload, claims.incarnation)
        return GrantKey.of(client.provider, client.revision, workload, user, request.scopes, others)

    async def _cached(
        self,
        key: GrantKey,
        client: Oauth2Client,
        force: bool,
        ask: Callable[[AuthorizationServer], Awaitable[TokenSet]],
    ) -> str:
        """`force`: what is kept now is not good enough; what another call fetches meanwhile is."""
        begun = self._clock.now()

        def good(tokens: TokenSet | None) -> bool:
            return tokens is not None and tokens.fresh(self._clock.now()) and not (force and tokens.issued <= begun)

        async def fetch() -> TokenSet:
            tokens = await self._grants.get(key)
            if tokens is not None and good(tokens):
                return tokens
            try:
                seal = await self._grants.sealer(key)
                asked = await self._asked(client, ask)
            except ServiceUnavailableException:
                if tokens is None or force or not tokens.good(self._clock.now()):
                    raise
                return tokens
            await self._grants.keep(key, asked, seal)
            await self._providers.granted(client)
            return asked

        tokens = await self._grants.get(key)
        if tokens is None or not good(tokens):
            tokens = await self._flight.share(key.name, fetch)
        return tokens.access_token

    async def _asked(self, client: Oauth2Client, ask: Callable[[AuthorizationServer], Awaitable[TokenSet]]) -> TokenSet:
        server = await self._servers.of(client.discovery)
        try:
            tokens = await ask(server)
        except TokenRefused as error:
            logger.warning("credential provider %s refused a token: %s", client.provider, error.error)
            raise refusal(client.provider, error) from None
        except ProviderError as error:
            logger.warning("credential provider %s cannot give a token: %s", client.provider, error)
            raise unreachable(client.provider) from error
        # Without a user there is nothing to refresh: the client asks again.
        expires = tokens.expires or tokens.issued + _UNSAID
        return TokenSet(tokens.access_token, tokens.issued, expires)


def _exchange_of(client: Oauth2Client) -> tuple[str, Parameters | None]:
    """The grant type, and the parameters for the actor's token where one is wanted. Raises ValidationException."""
    if client.exchange is None:
        if client.vendor == "MicrosoftOauth2":
            return _ASSERTION, None  # Entra ID's on-behalf-of flow
        raise ValidationException(
            f"Credential provider {client.provider} is not configured for ON_BEHALF_OF_TOKEN_EXCHANGE; an operator can "
            "give it an onBehalfOfTokenExchangeConfig"
        )
    if client.exchange["grantType"] == "JWT_AUTHORIZATION_GRANT":
        return _ASSERTION, None
    actor = client.exchange.get("tokenExchangeGrantTypeConfig") or {}
    if actor.get("actorTokenContent") != "M2M":
        return _EXCHANGE, None
    scopes = actor.get("actorTokenScopes") or ()
    return _EXCHANGE, [("scope", " ".join(scopes))] if scopes else []
