"""The development issuer of embedded mode: an OpenID provider that believes the operator who a user is.

Its tokens are real: discovery, published keys, signatures, expiry. What is missing is a login. Instead an operator, who
could act for any user anyway, exchanges a user's name for that user's tokens by RFC 8693: the subject token is the
name, of a type of our own (`SUBJECT_TOKEN_TYPE`); what authorises the exchange is the client's authentication with an
operator key. It cannot be served anywhere but on loopback, and says in its metadata what it is.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlsplit

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from joserfc import jwt

from agentkeep.core.acting import ActingForUsers, LoggedAudit
from agentkeep.core.call import Caller, CallerKind
from agentkeep.core.clock import Clock
from agentkeep.core.errors import AccessDeniedException
from agentkeep.core.ports import Keys
from agentkeep.identity.development.signing_keys import SigningKey
from agentkeep.identity.inbound.provider_documents import is_loopback
from agentkeep.identity.master_key import MasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.interface import KeyValueStore

__all__ = ["GRANT_TYPE", "SUBJECT_TOKEN_TYPE", "DevelopmentIssuer", "discovery_url"]


GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
SUBJECT_TOKEN_TYPE = "urn:agentkeep:token-type:development-user"  # noqa: S105
_ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105
#: The client named in every token, and the audience where none is asked for.
CLIENT = "agentkeep"
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")  # what AgentCore takes as an actor id
_SCOPE = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+(?: [\x21\x23-\x5B\x5D-\x7E]+)*")
_MOST_FORM_BYTES = 16_384
_PRIVATE = {"cache-control": "no-store"}


def discovery_url(issuer: str) -> str:
    """Where an issuer's metadata is found (OpenID Connect Discovery 1.0, 4.1)."""
    return issuer.rstrip("/") + "/.well-known/openid-configuration"


class _OAuthError(Exception):
    """RFC 6749, 5.2."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = status


class DevelopmentIssuer:
    """`url` is the issuer: where `app` is reached, with a path (`http://127.0.0.1:4780/oidc`). `app` is ASGI and takes
    requests with their whole path, `/oidc/...`."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        store: KeyValueStore,
        master_key: MasterKey,
        clock: Clock,
        settings: IdentitySettings,
        acting: ActingForUsers | None = None,
    ) -> None:
        """`acting` None: who got whose token is in the log alone."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not is_loopback(parts.hostname or "") or not parts.path.strip("/"):
            raise ValueError(
                f"The development issuer is for loopback only, under a path; it cannot be served at {url!r}"
            )
        self.url = url.rstrip("/")
        self.path = urlsplit(self.url).path
        self.discovery_url = discovery_url(self.url)
        self._keys = keys
        self._acting = acting or ActingForUsers(LoggedAudit(), clock)
        self._signing_key = SigningKey(store, master_key)
        self._clock = clock
        self._life = int(settings.development_token_life)
        self.app = self._application()

    def _application(self) -> FastAPI:
        router = APIRouter(prefix=self.path)
        router.add_api_route("/.well-known/openid-configuration", self._metadata, methods=["GET"])
        router.add_api_route("/jwks.json", self._published_keys, methods=["GET"])
        router.add_api_route("/token", self._token, methods=["POST"])
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        app.include_router(router)
        app.add_exception_handler(_OAuthError, _refusal)
        return app

    async def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks.json",
            "token_endpoint": f"{self.url}/token",
            "grant_types_supported": [GRANT_TYPE],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            "response_types_supported": [],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": ["openid"],
            "claims_supported": ["iss", "sub", "aud", "client_id", "azp", "scope", "iat", "exp", "jti"],
            "development": True,
        }

    async def _published_keys(self) -> dict[str, Any]:
        key = await self._signing_key.get()
        return {"keys": [key.as_dict(private=False)]}

    async def _token(self, request: Request) -> JSONResponse:
        operator = await self._authenticate(request.headers.get("authorization", ""))
        form = await _form(request)
        if _one(form, "grant_type") != GRANT_TYPE:
            raise _OAuthError("unsupported_grant_type", f"grant_type must be {GRANT_TYPE}")
        if _one(form, "subject_token_type") != SUBJECT_TOKEN_TYPE:
            raise _OAuthError("invalid_request", f"subject_token_type must be {SUBJECT_TOKEN_TYPE}")
        user = _one(form, "subject_token")
        if not _USER.fullmatch(user):
            raise _OAuthError(
                "invalid_request",
                "subject_token must name a user with letters, digits, _ and -, as actor ids are formed; at most 128",
            )
        scope = _one(form, "scope", "openid")
        if not _SCOPE.fullmatch(scope):
            raise _OAuthError("invalid_scope", "scope must be scopes separated by single spaces")
        audience = form.get("audience", [CLIENT])
        try:
            await self._acting.admit(operator, "IssueDevelopmentToken", "the development issuer", user)
        except AccessDeniedException as refused:
            raise _OAuthError("unauthorized_client", refused.message, 403) from None
        return JSONResponse(await self._tokens(user, scope, audience), headers=_PRIVATE)

    async def _authenticate(self, authorization: str) -> Caller:
        """The operator. RFC 6749, 2.3.1: the key id and the secret are form-encoded inside Basic; clients
        that forget to are understood too."""
        scheme, _, credentials = authorization.partition(" ")
        try:
            if scheme.lower() != "basic":
                raise ValueError
            key_id, _, secret = base64.b64decode(credentials, validate=True).decode("ascii").partition(":")
        except (binascii.Error, ValueError):
            raise _OAuthError("invalid_client", "authenticate with an operator key (HTTP Basic)", 401) from None
        key = await self._keys.find(unquote_plus(key_id))
        if key is None or key.caller.kind is not CallerKind.OPERATOR or not _equal(key.secret, secret):
            raise _OAuthError("invalid_client", "this is not an operator key of this platform", 401)
        return key.caller

    async def _tokens(self, user: str, scope: str, audience: Sequence[str]) -> dict[str, Any]:
        key = await self._signing_key.get()
        now = int(self._clock.now().timestamp())
        common = {"iss": self.url, "sub": user, "azp": CLIENT, "iat": now, "exp": now + self._life}
        access = {
            **common,
            "aud": audience[0] if len(audience) == 1 else list(audience),
            "client_id": CLIENT,
            "scope": scope,
            "jti": secrets.token_hex(16),
        }
        answer: dict[str, Any] = {
            "access_token": jwt.encode({"alg": "RS256", "kid": key.kid, "typ": "at+jwt"}, access, key),
            "issued_token_type": _ACCESS_TOKEN_TYPE,
            "token_type": "Bearer",
            "expires_in": self._life,
            "scope": scope,
        }
        if "openid" in scope.split(" "):
            identity = {**common, "aud": CLIENT, "jti": secrets.token_hex(16), "preferred_username": user}
            answer["id_token"] = jwt.encode({"alg": "RS256", "kid": key.kid}, identity, key)
        return answer


async def _refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, _OAuthError)
    challenge = {"www-authenticate": 'Basic realm="agentkeep development issuer"'} if error.status == 401 else {}
    return JSONResponse(
        {"error": error.error, "error_description": error.description}, error.status, {**_PRIVATE, **challenge}
    )


async def _form(request: Request) -> Mapping[str, list[str]]:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_FORM_BYTES:
            raise _OAuthError("invalid_request", f"the form is longer than {_MOST_FORM_BYTES} bytes", 413)
    try:
        return parse_qs(body.decode("ascii"), errors="strict", max_num_fields=50)
    except ValueError:
        raise _OAuthError("invalid_request", "the body must be a form (application/x-www-form-urlencoded)") from None


def _one(form: Mapping[str, list[str]], name: str, otherwise: str = "") -> str:
    values = form.get(name, [otherwise])
    if len(values) != 1:
        raise _OAuthError("invalid_request", f"{name} must be given once")
    return values[0]


def _equal(secret: str, offered: str) -> bool:
    return any(
        hmac.compare_digest(secret.encode(), candidate.encode()) for candidate in (offered, unquote_plus(offered))
    )
