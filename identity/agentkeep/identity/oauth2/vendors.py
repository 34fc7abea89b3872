"""Where each vendor's OAuth2 endpoints are: published by the vendor, or of the customer's own tenant there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from agentkeep.core.errors import FieldError
from agentkeep.identity.inbound.provider_documents import refuse_unsafe_url

__all__ = ["VENDORS", "Discovery", "Vendor"]

#: The model's union `Oauth2Discovery`: `discoveryUrl` or `authorizationServerMetadata`.
Discovery = dict[str, Any]

_INCLUDED: Final = "includedOauth2ProviderConfig"
_IN_THE_BODY: Final = "client_secret_post"
_TENANT_MEMBERS: Final = ("issuer", "authorizationEndpoint", "tokenEndpoint")


def _published(url: str) -> Discovery:
    return {"discoveryUrl": f"{url}/.well-known/openid-configuration"}


def _endpoints(issuer: str, authorization: str, token: str, *methods: str) -> Discovery:
    """`methods`: how clients authenticate there, where it is not by HTTP Basic."""
    metadata: dict[str, Any] = {
        "issuer": issuer,
        "authorizationEndpoint": authorization,
        "tokenEndpoint": token,
        "responseTypes": ["code"],
    }
    if methods:
        metadata["tokenEndpointAuthMethods"] = list(methods)
    return {"authorizationServerMetadata": metadata}


@dataclass(frozen=True, slots=True)
class Vendor:
    """`member`: of the input's and the output's unions. `default`: its endpoints; None where tenants have their own."""

    member: str
    default: Discovery | None = None

    def discovery(self, config: Mapping[str, Any], path: str, faults: list[FieldError]) -> Discovery:
        """Where the endpoints are. URLs that are missing or unsafe to send a secret to go to `faults`, under `path`."""
        if self.member == "customOauth2ProviderConfig":
            return _custom(config["oauthDiscovery"], f"{path}oauthDiscovery.", faults)
        if self.member == "microsoftOauth2ProviderConfig":
            tenant = quote(config.get("tenantId") or "common", safe="")
            return _published(f"https://login.microsoftonline.com/{tenant}/v2.0")
        given = {name: config[name] for name in _TENANT_MEMBERS if config.get(name)}
        if not given and self.default is not None:
            return self.default
        for name, url in given.items():
            _check(url, path + name, faults)
        if given.keys() == {"issuer"}:
            return _published(given["issuer"].rstrip("/"))
        missing = [name for name in _TENANT_MEMBERS if name not in given]
        faults += [
            FieldError(
                path + name, "is needed: give issuer, authorizationEndpoint and tokenEndpoint of your tenant, or issuer"
                " alone where it publishes OpenID metadata"
            )
            for name in missing
        ]  # fmt: skip
        return {} if missing else _endpoints(*(given[name] for name in _TENANT_MEMBERS))


def _custom(discovery: Mapping[str, Any], path: str, faults: list[FieldError]) -> Discovery:
    if "discoveryUrl" in discovery:
        _check(discovery["discoveryUrl"], f"{path}discoveryUrl", faults)
    else:
        for name in _TENANT_MEMBERS:
            metadata = "authorizationServerMetadata"
            _check(discovery[metadata][name], f"{path}{metadata}.{name}", faults)
    return dict(discovery)


def _check(url: str, path: str, faults: list[FieldError]) -> None:
    try:
        refuse_unsafe_url(url)
    except ValueError:
        # The URL itself is not shown: it may have a password in it.
        faults.append(
            FieldError(path, "must be an https URL (http for this machine only) without user name and password")
        )


#: By the model's names. Sources: each vendor's developer documentation.
VENDORS: Final[Mapping[str, Vendor]] = {
    "CustomOauth2": Vendor("customOauth2ProviderConfig"),
    "MicrosoftOauth2": Vendor("microsoftOauth2ProviderConfig"),
    "GoogleOauth2": Vendor("googleOauth2ProviderConfig", _published("https://accounts.google.com")),
    "SalesforceOauth2": Vendor("salesforceOauth2ProviderConfig", _published("https://login.salesforce.com")),
    "GithubOauth2": Vendor(
        "githubOauth2ProviderConfig",
        _endpoints(
            "https://github.com",
            "https://github.com/login/oauth/authorize",
            "https://github.com/login/oauth/access_token",
            _IN_THE_BODY,
        ),
    ),
    "SlackOauth2": Vendor(
        "slackOauth2ProviderConfig",
        _endpoints(
            "https://slack.com", "https://slack.com/oauth/v2/authorize", "https://slack.com/api/oauth.v2.access"
        ),
    ),
    "AtlassianOauth2": Vendor(
        "atlassianOauth2ProviderConfig",
        _endpoints(
            "https://auth.atlassian.com",
            "https://auth.atlassian.com/authorize",
            "https://auth.atlassian.com/oauth/token",
            _IN_THE_BODY,
        ),
    ),
    "LinkedinOauth2": Vendor(
        "linkedinOauth2ProviderConfig",
        _endpoints(
            "https://www.linkedin.com/oauth",
            "https://www.linkedin.com/oauth/v2/authorization",
            "https://www.linkedin.com/oauth/v2/accessToken",
            _IN_THE_BODY,
        ),
    ),
    "XOauth2": Vendor(
        _INCLUDED,
        _endpoints("https://x.com", "https://x.com/i/oauth2/authorize", "https://api.x.com/2/oauth2/token"),
    ),
    "FacebookOauth2": Vendor(
        _INCLUDED,
        _endpoints(
            "https://www.facebook.com",
            "https://www.facebook.com/dialog/oauth",
            "https://graph.facebook.com/oauth/access_token",
            _IN_THE_BODY,
        ),
    ),
    "YandexOauth2": Vendor(
        _INCLUDED,
        _endpoints("https://oauth.yandex.com", "https://oauth.yandex.com/authorize", "https://oauth.yandex.com/token"),
    ),
    "RedditOauth2": Vendor(
        _INCLUDED,
        _endpoints(
            "https://www.reddit.com",
            "https://www.reddit.com/api/v1/authorize",
            "https://www.reddit.com/api/v1/access_token",
        ),
    ),
    "ZoomOauth2": Vendor(
        _INCLUDED, _endpoints("https://zoom.us", "https://zoom.us/oauth/authorize", "https://zoom.us/oauth/token")
    ),
    "TwitchOauth2": Vendor(_INCLUDED, _published("https://id.twitch.tv/oauth2")),
    "SpotifyOauth2": Vendor(
        _INCLUDED,
        _endpoints(
            "https://accounts.spotify.com",
            "https://accounts.spotify.com/authorize",
            "https://accounts.spotify.com/api/token",
        ),
    ),
    "DropboxOauth2": Vendor(
        _INCLUDED,
        _endpoints(
            "https://www.dropbox.com",
            "https://www.dropbox.com/oauth2/authorize",
            "https://api.dropboxapi.com/oauth2/token",
        ),
    ),
    "NotionOauth2": Vendor(
        _INCLUDED,
        _endpoints(
            "https://api.notion.com",
            "https://api.notion.com/v1/oauth/authorize",
            "https://api.notion.com/v1/oauth/token",
        ),
    ),
    "HubspotOauth2": Vendor(
        _INCLUDED,
        _endpoints(
            "https://app.hubspot.com",
            "https://app.hubspot.com/oauth/authorize",
            "https://api.hubapi.com/oauth/v1/token",
            _IN_THE_BODY,
        ),
    ),
    **dict.fromkeys(
        (
            "OktaOauth2",
            "OneLoginOauth2",
            "PingOneOauth2",
            "CyberArkOauth2",
            "FusionAuthOauth2",
            "Auth0Oauth2",
            "CognitoOauth2",
        ),
        Vendor(_INCLUDED),
    ),
}
