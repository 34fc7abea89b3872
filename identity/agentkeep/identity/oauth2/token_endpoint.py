"""Token endpoints: what a client asks of one (RFC 6749, 3.2), and what is believed of its answer.

Authlib forms the request and authenticates the client. Its own HTTP client is not used: it drops repeated parameters
(RFC 8693 has several `audience` and `resource`), and reads answers of any size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote_plus

import orjson
from authlib.common.urls import add_params_to_qs
from authlib.oauth2.auth import ClientAuth

from agentkeep.core.clock import Clock
from agentkeep.core.errors import ProviderError
from agentkeep.identity.inbound.provider_documents import DocumentFetcher
from agentkeep.identity.oauth2.authorization_servers import AuthorizationServer
from agentkeep.identity.oauth2.grants import TokenSet

__all__ = ["ClientCredentials", "Parameters", "TokenEndpoint", "TokenRefused", "error_code"]

#: Names may repeat.
Parameters = Sequence[tuple[str, str]]

_METHODS: Final = {"CLIENT_SECRET_BASIC": "client_secret_basic", "CLIENT_SECRET_POST": "client_secret_post"}
_FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}
#: RFC 6749, 7.1: a token of another type than the client understands must not be used. Slack's are bearer tokens.
_BEARER: Final = frozenset({"bearer", "bot", "user"})
_ACCESS_TOKEN: Final = re.compile(r"[\x20-\x7e]{1,131072}")
_ERROR: Final = re.compile(r"[a-z_]{1,64}")
#: Errors after which to try again, whatever the status says: they are the authorization endpoint's (RFC 6749, 4.1.2.1)
#: and the device flow's, and servers use them here too.
_PASSING: Final = ("server_error", "slow_down", "temporarily_unavailable")
_LONGEST: Final = 10 * 365 * 86_400.0  # seconds


class TokenRefused(ProviderError):
    """The server answered that it will not. `error`: its code (RFC 6749, 5.2), `unknown` where that is none."""

    def __init__(self, error: str) -> None:
        super().__init__(f"refused: {error}")
        self.error = error

    @property
    def revoked(self) -> bool:
        """Whether the code, the assertion or the refresh token is what was refused. The second and third are GitHub's
        and Slack's words for it."""
        return self.error in {
            "invalid_grant", "bad_refresh_token", "invalid_refresh_token", "token_revoked", "interaction_required",
            "consent_required", "login_required",
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """`method`: the model's `clientAuthenticationMethod`; None leaves it to what the server takes."""

    id: str | None
    secret: str | None = field(repr=False)
    method: str | None = None


class TokenEndpoint:
    def __init__(self, fetcher: DocumentFetcher, clock: Clock) -> None:
        self._fetcher = fetcher
        self._clock = clock

    async def request(
        self, server: AuthorizationServer, client: ClientCredentials | None, grant_type: str, parameters: Parameters
    ) -> TokenSet:
        """`client` None: nobody authenticates. Raises TokenRefused, or ProviderError where there was no such answer."""
        url, headers = server.token_endpoint, dict(_FORM)
        body: str = add_params_to_qs("", [("grant_type", grant_type), *parameters])
        if client is not None and client.id is not None:
            _, headers, body = _authentication(client, server).prepare("POST", url, headers, body)
        asked = self._clock.now()
        status, answer = await self._fetcher.post(url, body, headers)
        document = _read(url, status, answer)
        life = _life(document.get("expires_in"))
        refresh = document.get("refresh_token")
        return TokenSet(
            _access_token(url, document),
            asked,
            None if life is None else asked + life,
            refresh if isinstance(refresh, str) and refresh else None,
        )


def _authentication(client: ClientCredentials, server: AuthorizationServer) -> ClientAuth:
    if not client.secret:
        return ClientAuth(client.id, "", "none")
    accepted = server.methods or ("client_secret_basic",)
    method = _METHODS.get(client.method or "") or next(
        (known for known in _METHODS.values() if known in accepted), "client_secret_basic"
    )
    if method == "client_secret_basic":  # RFC 6749, 2.3.1: form-encoded before they are joined
        return ClientAuth(quote_plus(client.id or ""), quote_plus(client.secret), method)
    return ClientAuth(client.id, client.secret, method)


def _read(url: str, status: int, answer: bytes) -> dict[str, Any]:
    """Nothing of the answer gets into an error but its code: servers repeat what they were sent."""
    try:
        document = orjson.loads(answer)
    except ValueError:
        document = None
    if isinstance(document, dict):
        # GitHub and Slack answer errors with status 200.
        error = document.get("error")
        if (error is not None or 400 <= status < 500) and status < 500 and status != 429 and error not in _PASSING:
            raise TokenRefused(error_code(error))
        if status == 200:
            return document
    raise ProviderError(f"{url} answered {status}" + (" without a JSON object" if status == 200 else ""))


def error_code(error: object) -> str:
    """What a server calls an error, where that is in the form of RFC 6749; anything else may be what it was sent."""
    return error if isinstance(error, str) and _ERROR.fullmatch(error) else "unknown"


def _access_token(url: str, document: dict[str, Any]) -> str:
    token, kind = document.get("access_token"), document.get("token_type", "bearer")
    if not isinstance(token, str) or not _ACCESS_TOKEN.fullmatch(token):
        raise ProviderError(f"{url} answered without an access token")
    if not isinstance(kind, str) or kind.lower() not in _BEARER:
        raise ProviderError(f"{url} answered a token that is no bearer token")
    issued = document.get("issued_token_type")  # RFC 8693, 2.2.1
    if issued is not None and issued not in (
        "urn:ietf:params:oauth:token-type:access_token",
        "urn:ietf:params:oauth:token-type:jwt",
    ):
        raise ProviderError(f"{url} answered a token that is no access token")
    return token


def _life(expires_in: Any) -> timedelta | None:
    """Seconds, which some servers write as text."""
    try:
        seconds = float(expires_in) if not isinstance(expires_in, bool) else math.nan
    except (TypeError, ValueError):
        return None
    if not math.isfinite(seconds):
        return None
    return timedelta(seconds=min(max(seconds, 0.0), _LONGEST))
