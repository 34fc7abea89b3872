"""What agents ask of GetResourceOauth2Token, and what they are answered, between the operation and the flows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from agentkeep.core.errors import FieldError, ServiceError, ServiceUnavailableException, ValidationException
from agentkeep.identity.oauth2.token_endpoint import Parameters, TokenRefused

__all__ = ["Flow", "TokenAnswer", "TokenRequest", "refusal", "unreachable"]

#: What the flows themselves say to the server. Custom parameters are in addition, they do not override (the model); a
#: request object (RFC 9101) would.
_OURS: Final = frozenset(
    [
        "response_type",
        "response_mode",
        "client_id",
        "client_secret",
        "client_assertion",
        "client_assertion_type",
        "redirect_uri",
        "scope",
        "state",
        "code",
        "code_verifier",
        "code_challenge",
        "code_challenge_method",
        "grant_type",
        "request",
        "request_uri",
        "refresh_token",
        "assertion",
        "requested_token_use",
        "subject_token",
        "subject_token_type",
        "actor_token",
        "actor_token_type",
        "requested_token_type",
    ]
)
#: Custom parameters that say how the user is asked, not what for; others may tell one grant from another (`audience`,
#: `authorization_details`, `login_hint` where a user has two accounts).
_MANNERS: Final = frozenset(["access_type", "claims_locales", "display", "id_token_hint", "prompt", "ui_locales"])


class Flow(StrEnum):
    M2M = "M2M"
    USER_FEDERATION = "USER_FEDERATION"
    ON_BEHALF_OF = "ON_BEHALF_OF_TOKEN_EXCHANGE"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    provider: str
    flow: Flow
    scopes: tuple[str, ...]
    resources: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    force: bool = False
    session_uri: str | None = None
    return_url: str | None = None
    custom_state: str | None = field(default=None, repr=False)
    custom_parameters: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> TokenRequest:
        """Raises ValidationException."""
        custom = request.get("customParameters") or {}
        faults = [
            FieldError(f"customParameters.{name}", "is set by the flow itself; leave it out")
            for name in custom
            if name.lower().replace(".", "_") in _OURS  # PHP reads `redirect.uri` as `redirect_uri`
        ]
        faults += [
            FieldError(f"scopes.{number}.member", "must be one scope, without blanks")
            for number, scope in enumerate(request["scopes"], 1)
            if scope.split() != [scope]
        ]
        if faults:
            raise ValidationException("; ".join(f"{name} {message}" for name, message in faults), fields=faults)
        return cls(
            request["resourceCredentialProviderName"],
            Flow(request["oauth2Flow"]),
            tuple(request["scopes"]),
            tuple(request.get("resources") or ()),
            tuple(request.get("audiences") or ()),
            bool(request.get("forceAuthentication")),
            request.get("sessionUri"),
            request.get("resourceOauth2ReturnUrl"),
            request.get("customState"),
            custom,
        )

    @property
    def targets(self) -> Parameters:
        """For which services the token shall be (RFC 8707, RFC 8693; `audience` is Auth0's too)."""
        return [*(("resource", one) for one in self.resources), *(("audience", one) for one in self.audiences)]

    @property
    def granting(self) -> tuple[tuple[str, str], ...]:
        """The custom parameters that may change what a user grants."""
        return tuple(sorted(one for one in self.custom_parameters.items() if one[0].lower() not in _MANNERS))

    @property
    def scope(self) -> Parameters:
        return [("scope", " ".join(self.scopes))] if self.scopes else []


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """An access token, or where a user's consent stands."""

    access_token: str | None = field(default=None, repr=False)
    session_uri: str | None = field(default=None, repr=False)
    authorization_url: str | None = field(default=None, repr=False)
    failed: bool = False


def refusal(provider: str, error: TokenRefused) -> ServiceError:
    """What the agent is told when an authorization server says no, for good."""
    hint = {
        "invalid_client": "its client id, secret or authentication method is wrong; an operator must update it",
        "unauthorized_client": "its client may not use this flow; an operator must allow it at the server",
        "unsupported_grant_type": "the server does not know this flow",
        "invalid_scope": "it does not give these scopes",
        "invalid_target": "it does not give tokens for these resources or audiences",
    }.get(error.error, "its documentation says what this means")
    return ValidationException(
        f"The authorization server of credential provider {provider} refused ({error.error}): {hint}"
    )


def unreachable(provider: str) -> ServiceError:
    """What happened is in the log; it may well be a secret of the server's."""
    return ServiceUnavailableException(
        f"The authorization server of credential provider {provider} did not answer as it should. Try again"
    )
