"""An authorization server that exchanges tokens (RFC 8693, RFC 7523), with a wire; npm's certified one does neither.

It verifies what it is given: the client, the subject token's signature and audience, the actor token. Its tokens say
whom they are for. Tests break its answers (`answer`), and read what it was asked (`requests`).
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ASSERTION = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Refused(Exception):
    def __init__(self, error: str, status: int = 400) -> None:
        super().__init__(error)
        self.error = error
        self.status = status


class ExchangeServer:
    """`trusted`: the public key that subject tokens are signed with (RS256), and their issuer."""

    client_id = "agent"
    client_secret = "s3cret-of-the-client"

    def __init__(self, trusted: rsa.RSAPublicKey, issuer: str) -> None:
        self._trusted = trusted
        self._issuer = issuer
        self._issued: dict[str, dict[str, Any]] = {}
        self.requests: list[list[tuple[str, str]]] = []
        self.authorization: list[str | None] = []
        self.answer: Answer | None = None
        self.expires_in: Any = 300
        self.known_as = ""  # its URL in its metadata
        self.published: dict[str, Any] = {}  # more of its metadata
        app = web.Application()
        app.router.add_post("/token", self._token)
        app.router.add_get("/{path:.*}.well-known/openid-configuration", self._metadata)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self.url = ""

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    @property
    def metadata(self) -> dict[str, Any]:
        """The model's `Oauth2Discovery`."""
        endpoints = {"authorizationEndpoint": f"{self.url}/authorize", "tokenEndpoint": f"{self.url}/token"}
        return {"authorizationServerMetadata": {"issuer": self.url, **endpoints}}

    def shown(self, token: str) -> dict[str, Any]:
        """What a token of this server's is worth at its resources."""
        return self._issued[token]

    async def _metadata(self, request: web.Request) -> web.StreamResponse:
        url = self.known_as or self.url
        endpoints = {"authorization_endpoint": f"{url}/authorize", "token_endpoint": f"{url}/token"}
        return web.json_response({"issuer": url, **endpoints, **self.published})

    async def _token(self, request: web.Request) -> web.StreamResponse:
        pairs = parse_qsl((await request.read()).decode(), keep_blank_values=True, strict_parsing=True)
        self.requests.append(pairs)
        self.authorization.append(request.headers.get("authorization"))
        if self.answer is not None:
            return await self.answer(request)
        try:
            return web.json_response(self._granted(dict(pairs), pairs, request.headers.get("authorization")))
        except _Refused as refused:
            return web.json_response({"error": refused.error, "error_description": "why"}, status=refused.status)

    def _granted(self, form: dict[str, str], pairs: list[tuple[str, str]], authorization: str | None) -> dict[str, Any]:
        grant = form["grant_type"]
        client = self._client(authorization)
        worth: dict[str, Any] = {"client": client, "scope": form.get("scope"), "grant": grant}
        worth["audience"] = [value for name, value in pairs if name == "audience"]
        worth["resource"] = [value for name, value in pairs if name == "resource"]
        if grant == "client_credentials":
            if client is None:
                raise _Refused("invalid_client", 401)
            worth["sub"] = client
        elif grant == EXCHANGE:
            if form.get("subject_token_type") != ACCESS_TOKEN:
                raise _Refused("invalid_request")
            worth["sub"] = self._subject(form.get("subject_token", ""))
            if "actor_token" in form:
                actor = self._issued.get(form["actor_token"])
                if actor is None or form.get("actor_token_type") != ACCESS_TOKEN:
                    raise _Refused("invalid_request")
                worth["act"] = actor
        elif grant == ASSERTION:
            if client is None:
                raise _Refused("invalid_client", 401)
            worth["sub"] = self._subject(form.get("assertion", ""))
            worth["use"] = form.get("requested_token_use")
        else:
            raise _Refused("unsupported_grant_type")
        token = secrets.token_urlsafe(24)
        self._issued[token] = worth
        issued = {"issued_token_type": ACCESS_TOKEN} if grant == EXCHANGE else {}
        return {"access_token": token, "token_type": "Bearer", "expires_in": self.expires_in, **issued}

    def _client(self, authorization: str | None) -> str | None:
        """RFC 6749, 2.3.1: form-decoded. None: nobody authenticated."""
        if authorization is None:
            return None
        scheme, _, credentials = authorization.partition(" ")
        id, _, secret = base64.b64decode(credentials).decode().partition(":")
        if (scheme, unquote_plus(id), unquote_plus(secret)) != ("Basic", self.client_id, self.client_secret):
            raise _Refused("invalid_client", 401)
        return self.client_id

    def _subject(self, token: str) -> str:
        """The user of a token signed by the issuer this server trusts."""
        try:
            head, body, signature = token.split(".")
            raw = base64.urlsafe_b64decode(signature + "==")
            self._trusted.verify(raw, f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
            claims = json.loads(base64.urlsafe_b64decode(body + "=="))
        except (ValueError, InvalidSignature):
            raise _Refused("invalid_grant") from None
        if claims["iss"] != self._issuer or "support" not in claims["aud"]:
            raise _Refused("invalid_grant")
        return str(claims["sub"])
