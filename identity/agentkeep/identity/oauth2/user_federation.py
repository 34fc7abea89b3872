"""USER_FEDERATION: a user's own token, by authorization code with PKCE (RFC 6749 4.1, RFC 7636, RFC 9700).

What binds the browser that consented to the user it is for is the application at the return URL: it knows who its own
visitor is, and says so (`complete`). So a code is kept until then, and dropped when somebody else confirms: who follows
a link of another's making consents for nobody.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from authlib.common.urls import add_params_to_qs, add_params_to_uri
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from agentkeep.core.call import User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import (
    AccessDeniedException,
    ProviderError,
    ResourceNotFoundException,
    ValidationException,
)
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.oauth2.authorization_servers import AuthorizationServers
from agentkeep.identity.oauth2.consents import Consent, Consents, ConsentState, Kept
from agentkeep.identity.oauth2.exchanges import Exchanges
from agentkeep.identity.oauth2.grants import GrantKey, Grants
from agentkeep.identity.oauth2.providers import Oauth2Client, Oauth2Providers
from agentkeep.identity.oauth2.renewal import RenewedGrants
from agentkeep.identity.oauth2.requests import Flow, TokenAnswer, TokenRequest, refusal, unreachable
from agentkeep.identity.oauth2.single_flight import LeasedFlight
from agentkeep.identity.oauth2.token_endpoint import TokenRefused, error_code
from agentkeep.identity.sealing import Seal
from agentkeep.identity.trail import BROWSER, Attempt, Trail
from agentkeep.identity.workloads.identities import WorkloadIdentities
from agentkeep.identity.workloads.tokens import WorkloadClaims

__all__ = ["CallbackRefused", "UserFederation"]

logger = logging.getLogger(__name__)

_VERIFIER_BYTES: Final = 48  # 64 characters; RFC 7636 wants 43 to 128
_NOWHERE: Final = frozenset({"javascript", "data", "vbscript", "file", "blob", "about"})
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_LONGEST_CODE: Final = 4096


class CallbackRefused(Exception):
    """A browser came back in a way that is not believed. The reason is for the log."""


class UserFederation:
    def __init__(
        self,
        providers: Oauth2Providers,
        servers: AuthorizationServers,
        exchanges: Exchanges,
        grants: Grants,
        renewed: RenewedGrants,
        consents: Consents,
        identities: WorkloadIdentities,
        flight: LeasedFlight,
        master_key: MasterKey,
        clock: Clock,
        trail: Trail,
    ) -> None:
        self._trail = trail
        self._providers = providers
        self._servers = servers
        self._exchanges = exchanges
        self._grants = grants
        self._renewed = renewed
        self._consents = consents
        self._identities = identities
        self._flight = flight
        self._states = Seal(master_key, "oauth2-states")
        self._clock = clock

    # The agent.

    async def token(
        self, by: Attempt, claims: WorkloadClaims, client: Oauth2Client, request: TokenRequest
    ) -> TokenAnswer:
        """The user's token, or where to ask the user for it."""
        if claims.user is None:
            raise AccessDeniedException(
                "USER_FEDERATION is for a user, and the workload access token names none; get one with "
                "GetWorkloadAccessTokenForJWT"
            )
        if request.session_uri is not None:
            return await self._poll(by, claims, claims.user, client, request, request.session_uri)
        key = _key(claims, client, request, request.granting)
        if not request.force and (tokens := await self._renewed.get(by, key, client, request.resources)) is not None:
            return TokenAnswer(tokens.access_token)
        return await self._ask(by, claims, claims.user, client, request, key)

    async def _poll(
        self, by: Attempt, claims: WorkloadClaims, user: User, client: Oauth2Client, request: TokenRequest, uri: str
    ) -> TokenAnswer:
        kept = await self._consents.get(uri)
        if kept is None or (kept.consent.workload, kept.consent.user, kept.consent.key.provider) != (
            (claims.workload, claims.incarnation), user, client.provider,
        ):  # fmt: skip
            # In the same words whether it is another's or was never there: nobody learns by guessing.
            raise _no_session()
        consent = kept.consent
        # Custom parameters need not be repeated.
        key = _key(claims, client, request, request.granting or consent.granting)
        if consent.key != key and consent.key.revision == key.revision:
            raise ValidationException(
                "sessionUri: the session was begun with other scopes, resources, audiences or customParameters; repeat "
                "its first ones"
            )
        if consent.state is ConsentState.COMPLETED:
            tokens = await self._renewed.get(by, consent.key, client, consent.resources) if consent.key == key else None
            return TokenAnswer(tokens.access_token) if tokens is not None else _failed(kept)
        if consent.state is ConsentState.FAILED or consent.key != key or self._consents.over(consent):
            return _failed(kept)
        return TokenAnswer(session_uri=kept.uri, authorization_url=consent.authorization_url or None)

    async def _ask(
        self,
        by: Attempt,
        claims: WorkloadClaims,
        user: User,
        client: Oauth2Client,
        request: TokenRequest,
        key: GrantKey,
    ) -> TokenAnswer:
        return_url = await self._allowed(claims, request.return_url)
        server = await self._servers.of(client.discovery)
        if server.authorization_endpoint is None or client.credentials.id is None:
            raise ValidationException(
                f"Credential provider {client.provider} has no authorization endpoint or no client id, which "
                "USER_FEDERATION needs"
            )
        id, verifier = self._consents.new_id(), secrets.token_urlsafe(_VERIFIER_BYTES)
        url: str = prepare_grant_uri(
            server.authorization_endpoint,
            client.credentials.id,
            "code",
            client.callback_url,
            " ".join(request.scopes),
            self._states.seal({"id": id, "callback": client.callback_id}),
            code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
        )
        url = add_params_to_uri(url, [*request.targets, *request.custom_parameters.items()])
        consent = Consent(
            ConsentState.PENDING,
            (claims.workload, claims.incarnation),
            user,
            key,
            client.callback_id,
            client.callback_url,
            server.issuer,
            server.names_itself,
            verifier,
            return_url,
            request.custom_state,
            request.resources,
            self._consents.end(),
            url,
            session=by.session,
            granting=request.granting,
        )
        uri = await self._consents.begin(id, consent)
        # Before the link is given: without it nobody can consent.
        await self._trail.happens("consent-begun", f"began a consent at credential provider {client.provider}", by)
        logger.info(
            "user %r of workload %s is asked for consent at credential provider %s",
            user.id, claims.workload, client.provider,
        )  # fmt: skip
        return TokenAnswer(session_uri=uri, authorization_url=url)

    async def _allowed(self, claims: WorkloadClaims, return_url: str | None) -> str:
        """Raises ValidationException for anything that is not, character by character, on the identity's list."""
        if return_url is None:
            raise ValidationException(
                "resourceOauth2ReturnUrl is needed: the user's browser is sent there, to be confirmed as the user's by "
                "CompleteResourceTokenAuth"
            )
        identity = await self._identities.get(claims.workload)
        if return_url not in identity.return_urls or identity.incarnation != claims.incarnation:
            raise ValidationException(
                "resourceOauth2ReturnUrl is not among the allowed return URLs of workload identity "
                f"{claims.workload}. An operator can add it: UpdateWorkloadIdentity with name={claims.workload} and "
                "allowedResourceOauth2ReturnUrls, the whole list"
            )
        if not _is_place(return_url):
            raise ValidationException(
                "resourceOauth2ReturnUrl must be a URL that a browser can be sent to, in visible ASCII characters"
            )
        return return_url

    # The user's browser.

    async def returned(self, callback_id: str, answer: Mapping[str, str]) -> str:
        """Where the browser goes next, after it came back to the callback URL `callback_id` with `answer`, the query.

        Raises CallbackRefused: then nothing has happened.
        """
        state = self._states.open(answer.get("state", ""))
        if state is None or state["callback"] != callback_id:
            raise CallbackRefused("the state is not one of this callback URL's")
        kept = await self._consents.get(state["id"])
        if kept is None or kept.consent.state is not ConsentState.PENDING or self._consents.over(kept.consent):
            raise CallbackRefused("its session is over, or came back before")
        consent = kept.consent
        by = _of(consent, BROWSER)
        try:
            changed = await self._answered(consent, answer)
            if changed.state is ConsentState.CONSENTED:
                await self._trail.happens("consent-given", f"came from {by.provider} with a code", by)
            else:
                said = error_code(answer.get("error"))
                await self._trail.happens("consent-denied", f"came from {by.provider} with an error", by, server=said)
            if not await self._consents.change(kept, changed):
                raise CallbackRefused("it came back twice at once")
        except CallbackRefused as refused:
            await self._trail.refused("consent-refused", f"at the callback URL, since {refused}", by, "CallbackRefused")
            raise
        logger.info(
            "the browser of a user of workload %s came back from credential provider %s: %s",
            consent.workload[0], consent.key.provider, changed.state,
        )  # fmt: skip
        return _destination(consent.return_url, kept.uri, consent.custom_state)

    async def _answered(self, consent: Consent, answer: Mapping[str, str]) -> Consent:
        """What becomes of a consent by the server's answer. Raises CallbackRefused where it is not believed."""
        named = answer.get("iss")
        if (named is None and consent.issuer_named) or (named is not None and named != consent.issuer):
            raise CallbackRefused("the answer names another issuer than was asked (iss)")
        await self._check_still_allowed(consent)
        code = answer.get("code", "")
        if "error" in answer:
            answered = f"the authorization server answered {error_code(answer['error'])}"
            return consent.to(ConsentState.FAILED, reason=answered)
        if 0 < len(code) <= _LONGEST_CODE:
            return consent.to(ConsentState.CONSENTED, code=code)
        raise CallbackRefused("the answer has neither code nor error")

    async def _check_still_allowed(self, consent: Consent) -> None:
        """Provider and workload identity are those of the beginning, and the list still has the return URL."""
        try:
            provider = await self._providers.stored.get(consent.key.provider)
            identity = await self._identities.get(consent.workload[0])
        except ResourceNotFoundException:
            raise CallbackRefused("its credential provider or workload identity has been deleted") from None
        if (self._providers.revision(provider), provider.details["callback"]) != (
            consent.key.revision,
            consent.callback_id,
        ):
            raise CallbackRefused("its credential provider has been changed")
        if identity.incarnation != consent.workload[1] or consent.return_url not in identity.return_urls:
            raise CallbackRefused("its return URL is no longer allowed")

    # The application at the return URL.

    async def complete(self, by: Attempt, user: User, uri: str) -> None:
        """The application says that `user` is who came back. Done again by the same user, it does nothing. `by` goes on
        record, with workload and provider.

        Raises ResourceNotFoundException, AccessDeniedException where the session is another user's,
        ValidationException where the session is not one that can be completed.
        """
        kept = await self._consents.get(uri)
        if kept is None:
            raise _no_session()
        by.workload, by.provider = kept.consent.workload[0], kept.consent.key.provider
        if kept.consent.user != user:
            await self._refuse_stranger(kept)
        # Shared, so that a code is sent once, and goes on where the caller leaves in the middle.
        await self._flight.share(kept.name, lambda: self._exchange(by, uri))
        # Also where it was completed before: whoever could not be told so for want of a record asks again.
        await self._trail.repeats("consent-completed", f"completed a consent at credential provider {by.provider}", by)

    async def _refuse_stranger(self, kept: Kept) -> None:
        """Another's browser consented, so the code is another's: nobody shall have it."""
        consent = kept.consent
        found: Kept | None = kept
        while found is not None and found.consent.state in (ConsentState.PENDING, ConsentState.CONSENTED):
            failed = found.consent.to(ConsentState.FAILED, reason="another user tried to complete it")
            if await self._consents.change(found, failed):
                break
            found = await self._consents.get(found.id)
        logger.warning(
            "another user than it was begun for tried to complete a consent of workload %s at credential provider %s",
            consent.workload[0], consent.key.provider,
        )  # fmt: skip
        raise AccessDeniedException(
            "The session belongs to another user, and has been ended. A user whose token the workload access token was "
            "made from is named by userToken, one whose id it was made from by userId"
        )

    async def _exchange(self, by: Attempt, uri: str) -> None:
        kept = await self._consents.get(uri)
        if kept is None:
            raise _no_session()
        consent = kept.consent
        if consent.state is ConsentState.COMPLETED:
            return
        if consent.state is ConsentState.FAILED:
            raise ValidationException(f"The session has failed: {consent.reason}. Ask for the token again")
        if self._consents.over(consent):
            raise ValidationException("The session has expired. Ask for the token again")
        if consent.state is ConsentState.PENDING or consent.code is None:
            raise ValidationException("The user has not consented yet: the browser has not come back from the server")
        client = await self._providers.client(consent.key.provider)
        if client.revision != consent.key.revision:
            await self._consents.change(kept, consent.to(ConsentState.FAILED, reason="the provider was changed"))
            raise ValidationException("The session has failed: the provider was changed. Ask for the token again")
        server = await self._servers.of(client.discovery)
        # A code is good once: all that it needs to be kept, but the store, is there before it is shown.
        done = await self._consents.becoming(kept, consent.to(ConsentState.COMPLETED))
        seal = await self._grants.sealer(consent.key)
        parameters = [
            ("code", consent.code),
            ("redirect_uri", consent.callback_url),
            ("code_verifier", consent.verifier),
            *(("resource", one) for one in consent.resources),
        ]
        try:
            tokens = await self._exchanges.request(
                by, client.provider, server, client.credentials, "authorization_code", parameters
            )
        except TokenRefused as error:
            logger.warning("credential provider %s refused an authorization code: %s", client.provider, error.error)
            reason = f"the authorization server refused the code ({error.error})"
            await self._consents.change(kept, consent.to(ConsentState.FAILED, reason=reason))
            raise refusal(client.provider, error) from None
        except ProviderError as error:
            logger.warning("credential provider %s cannot take an authorization code: %s", client.provider, error)
            raise unreachable(client.provider) from error
        if not await self._consents.write(done, await self._grants.put(consent.key, tokens, seal=seal)):
            raise _no_session()  # another user tried to complete it meanwhile
        await self._providers.granted(client)
        logger.info(
            "user %r of workload %s consented at credential provider %s",
            consent.user.id, consent.workload[0], client.provider,
        )  # fmt: skip


def _is_place(url: str) -> bool:
    """Whether a browser can be sent there without harm."""
    try:
        scheme = urlsplit(url).scheme.lower()
    except ValueError:
        return False
    return scheme not in _NOWHERE and _VISIBLE.fullmatch(url) is not None


def _key(
    claims: WorkloadClaims, client: Oauth2Client, request: TokenRequest, granting: Sequence[tuple[str, str]]
) -> GrantKey:
    others: dict[str, object] = {"flow": request.flow, "resources": request.resources, "audiences": request.audiences}
    if granting:
        others["parameters"] = granting
    workload = (claims.workload, claims.incarnation)
    return GrantKey.of(client.provider, client.revision, workload, claims.user, request.scopes, others)


def _of(consent: Consent, principal: str) -> Attempt:
    workload, provider = consent.workload[0], consent.key.provider
    return Attempt(principal, consent.session, consent.user, workload, provider, Flow.USER_FEDERATION)


def _no_session() -> ResourceNotFoundException:
    return ResourceNotFoundException("There is no such session, or it is over. Ask for the token again")


def _failed(kept: Kept) -> TokenAnswer:
    return TokenAnswer(session_uri=kept.uri, failed=True)


def _destination(return_url: str, session_uri: str, custom_state: str | None) -> str:
    """Its own query stays, and nothing of the authorization server's answer is added."""
    parameters = [("session_id", session_uri)]
    if custom_state is not None:
        parameters.append(("state", custom_state))
    parts = urlsplit(return_url)
    added: str = add_params_to_qs("", parameters)
    return urlunsplit(parts._replace(query=f"{parts.query}&{added}" if parts.query else added))
