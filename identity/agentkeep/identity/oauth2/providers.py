"""OAuth2 credential providers: a client registered with an authorization server, read from the model's union.

What is stored has the shape of the model's output union, which has no place for a secret.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentkeep.core.errors import FieldError, ResourceNotFoundException, ValidationException
from agentkeep.identity.oauth2.grants import Grants
from agentkeep.identity.oauth2.token_endpoint import ClientCredentials
from agentkeep.identity.oauth2.vendors import VENDORS, Discovery
from agentkeep.identity.vault.credential_providers import CredentialProvider, CredentialProviders
from agentkeep.identity.vault.secret_sources import managed_secret, refuse
from agentkeep.storage.interface import Write

__all__ = ["CALLBACK_PATH", "Oauth2Client", "Oauth2Providers"]

#: Followed by an id of each provider's own, so that no server's answer is taken for another's.
CALLBACK_PATH = "/identities/oauth2/callback/"
_INPUT = "oauth2ProviderConfigInput"
_PAGE = 100
#: Members of the custom configuration that are kept as they are, and those that cannot be honoured yet. Leaving one of
#: these out silently would send the client's credentials another way than was asked for.
_KEPT = ("clientAuthenticationMethod", "onBehalfOfTokenExchangeConfig")
_NOT_HONOURED = ("privateKeyJwtConfig", "privateEndpoint", "privateEndpointOverrides", "certificateConfigurations")


@dataclass(frozen=True, slots=True)
class _Configuration:
    """`secret` is None where the client has none; `repr` hides it."""

    vendor: str
    output: Mapping[str, Any]
    secret: str | None

    def __repr__(self) -> str:
        return f"_Configuration({self.vendor!r})"


@dataclass(frozen=True, slots=True)
class Oauth2Client:
    """A provider as tokens are asked for. `revision` is of its configuration: what was granted, or begun, under another
    is not used. `exchange` is the model's `onBehalfOfTokenExchangeConfig`."""

    provider: str
    vendor: str
    revision: str
    callback_id: str
    callback_url: str
    discovery: Discovery
    credentials: ClientCredentials
    exchange: Mapping[str, Any] | None


class Oauth2Providers:
    """`public_url`: where browsers reach the platform."""

    def __init__(self, providers: CredentialProviders, grants: Grants, public_url: str) -> None:
        self.stored = providers
        self._grants = grants
        self._public_url = public_url.rstrip("/")

    async def create(
        self, name: str, vendor: str, given: Mapping[str, Any], tags: Mapping[str, str]
    ) -> CredentialProvider:
        """`given` is the model's `Oauth2ProviderConfigInput`. Nothing is fetched.

        Raises ValidationException, ConflictException where the name is taken, ServiceQuotaExceededException.
        """
        read = _read(vendor, given)
        details = {"vendor": vendor, "output": read.output, "callback": str(uuid.uuid4()), "revision": _revision()}
        return await self.stored.create(name, read.secret, details, tags)

    async def update(self, name: str, vendor: str, given: Mapping[str, Any]) -> CredentialProvider:
        """Replaces the configuration, secret included: whoever could move a stored secret to other endpoints could
        learn it. The callback URL stays; what was granted before does not."""
        read = _read(vendor, given)
        before: list[str] = []

        def details(kept: Mapping[str, Any]) -> Mapping[str, Any]:
            if kept["vendor"] != vendor:
                raise ValidationException(
                    f"credentialProviderVendor: {name} is of {kept['vendor']}, which cannot be changed; "
                    "delete it and create another",
                    fields=[FieldError("credentialProviderVendor", "cannot be changed")],
                )
            before.append(_revision_of(kept))
            return {**kept, "output": read.output, "revision": _revision()}

        updated = await self.stored.update(name, read.secret, details)
        await self._grants.drop_all(name, before[-1])
        return updated

    async def delete(self, name: str) -> None:
        """With everything that was granted. Raises ResourceNotFoundException."""
        provider = await self.stored.get(name)
        await self.stored.delete(name)
        await self._grants.drop_all(name, self.revision(provider))

    async def clear(self) -> list[Write]:
        """Removes all that was granted to any provider."""
        found: list[Write] = []
        token = None
        while True:
            page, token = await self.stored.list(_PAGE, token)
            found += [self._grants.clear(provider.name, self.revision(provider)) for provider in page]
            if token is None:
                return found

    async def granted(self, client: Oauth2Client) -> None:
        """Something that a server gave `client` has just been kept: not for long, where the provider was changed or
        deleted while the server was asked, and what is granted with it."""
        try:
            revision = self.revision(await self.stored.get(client.provider))
        except ResourceNotFoundException:
            revision = None
        if revision != client.revision:
            await self._grants.drop_all(client.provider, client.revision)

    async def client(self, name: str) -> Oauth2Client:
        """Raises ResourceNotFoundException, or InternalServerException where the vault cannot open the secret."""
        provider, secret = await self.stored.with_secret(name)
        ((_, config),) = provider.details["output"].items()
        credentials = ClientCredentials(config.get("clientId"), secret, config.get("clientAuthenticationMethod"))
        return Oauth2Client(
            name,
            provider.details["vendor"],
            self.revision(provider),
            provider.details["callback"],
            self.callback_url(provider),
            config["oauthDiscovery"],
            credentials,
            config.get("onBehalfOfTokenExchangeConfig"),
        )

    def revision(self, provider: CredentialProvider) -> str:
        return _revision_of(provider.details)

    def callback_url(self, provider: CredentialProvider) -> str:
        return f"{self._public_url}{CALLBACK_PATH}{provider.details['callback']}"


def _revision() -> str:
    return secrets.token_hex(8)


def _revision_of(details: Mapping[str, Any]) -> str:
    """Providers stored before there were grants have none until they are updated."""
    found: str = details.get("revision", "")
    return found


def _read(vendor: str, given: Mapping[str, Any]) -> _Configuration:
    """Raises ValidationException naming every member that is missing, does not fit or cannot be honoured."""
    member, config = next(iter(given.items()))
    known = VENDORS[vendor]
    faults: list[FieldError] = []
    if member != known.member:
        refuse([FieldError(f"{_INPUT}.{member}", f"does not fit {vendor}, which takes {known.member}")])
    path = f"{_INPUT}.{member}."
    output: dict[str, Any] = {"oauthDiscovery": known.discovery(config, path, faults)}
    if config.get("clientId"):
        output["clientId"] = config["clientId"]
    output |= {name: config[name] for name in _KEPT if config.get(name) is not None}
    faults += [
        FieldError(path + name, "is not supported by agentkeep yet; leave it out")
        for name in _NOT_HONOURED
        if config.get(name) is not None
    ]
    faults += _authentication(config, path)
    client = not _without_client(config)
    if client and not config.get("clientId"):
        faults.append(FieldError(f"{path}clientId", "is needed"))
    secret = managed_secret(config, "clientSecret", "clientSecret", path, faults, needed=client)
    refuse(faults)
    return _Configuration(vendor, {member: output}, secret)


def _authentication(config: Mapping[str, Any], path: str) -> list[FieldError]:
    """How the client proves who it is, and for whom it acts: what the platform cannot do, or cannot tell apart."""
    faults: list[FieldError] = []
    method = config.get("clientAuthenticationMethod")
    if method not in (None, "CLIENT_SECRET_BASIC", "CLIENT_SECRET_POST"):
        faults.append(
            FieldError(
                f"{path}clientAuthenticationMethod",
                f"{method} is not supported by agentkeep yet; use CLIENT_SECRET_BASIC or CLIENT_SECRET_POST",
            )
        )
    exchange = config.get("onBehalfOfTokenExchangeConfig") or {}
    actor = exchange.get("tokenExchangeGrantTypeConfig")
    at = f"{path}onBehalfOfTokenExchangeConfig.tokenExchangeGrantTypeConfig"
    if exchange.get("grantType") == "JWT_AUTHORIZATION_GRANT" and actor is not None:
        faults.append(FieldError(at, "is for the grant type TOKEN_EXCHANGE only"))
    if actor is not None and actor["actorTokenContent"] == "AWS_IAM_ID_TOKEN_JWT":
        faults.append(
            FieldError(
                f"{at}.actorTokenContent", "AWS_IAM_ID_TOKEN_JWT is not supported by agentkeep yet; use M2M or NONE"
            )
        )
    if actor is not None and actor["actorTokenContent"] != "M2M" and actor.get("actorTokenScopes"):
        faults.append(FieldError(f"{at}.actorTokenScopes", "is for the actor token M2M only"))
    return faults


def _without_client(config: Mapping[str, Any]) -> bool:
    """Only exchanges on behalf of users, for which no client authenticates, and no actor token is asked for."""
    exchange = config.get("onBehalfOfTokenExchangeConfig") or {}
    actor = exchange.get("tokenExchangeGrantTypeConfig") or {}
    return "onBehalfOfAuthenticationConfig" in exchange and actor.get("actorTokenContent") != "M2M"
