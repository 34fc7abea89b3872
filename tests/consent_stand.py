"""The identity plane behind its real front, and what consents need around it: clients, browsers, providers."""

from __future__ import annotations

from typing import Any

import boto3
import httpx
from openid_provider import Browser, OpenIdServer

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import ConflictException
from agentkeep.identity.access_keys.keys import IssuedOperatorKey
from agentkeep.identity.oauth2.providers import CALLBACK_PATH
from agentkeep.identity.operations import IdentityPlane
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.mounts import Access, Mount
from agentkeep.wire import Router

REGION = "us-west-2"
#: The application that users come back to. Nothing listens there: browsers stop before it.
RETURN_URL = "http://app.example/back?tab=1"
OPERATOR = Call(
    "bedrock-agentcore",
    "Test",
    Caller(CallerKind.OPERATOR, "arn:aws:iam::123456789012:user/admin", "AKIAAAAAAAAAAAAAAAAA", acts_for_users=True),
    "request-1",
)


class ConsentStand:
    """`url` is the plane's public URL. The workload identity is `agent`, its credential provider `tickets`."""

    def __init__(self, url: str, plane: IdentityPlane) -> None:
        self.url = url
        self.plane = plane
        self.key: IssuedOperatorKey
        authenticator = Authenticator(plane.keys)
        mounts = [Mount(CALLBACK_PATH, plane.oauth2_callback, Access.PUBLIC)]
        self._front = Front(Application(Router(), Switch(SelfBackend([plane])), authenticator, mounts=mounts))
        self._server = Server(self._front, "127.0.0.1", int(url.rsplit(":", 1)[1]))
        self._browsers: list[Browser] = []

    async def start(self) -> None:
        await self._server.start()
        self.key = await self.plane.keys.issue_operator_key("admin", acts_for_users=True)

    async def stop(self) -> None:
        for browser in self._browsers:
            await browser.close()
        await self._server.stop(0)
        await self._front.close()

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.key.id,
            aws_secret_access_key=self.key.secret,
        )

    def browser(self, user: str) -> Browser:
        self._browsers.append(Browser(user))
        return self._browsers[-1]

    # What operators do.

    async def workload(self, *return_urls: str, name: str = "agent") -> None:
        await self.plane.create_workload_identity(
            OPERATOR, {"name": name, "allowedResourceOauth2ReturnUrls": list(return_urls or (RETURN_URL,))}
        )

    async def credential_provider(
        self, discovery: dict[str, Any] | str, client_id: str, secret: str | None, name: str = "tickets", **config: Any
    ) -> str:
        """Creates or updates one; its callback URL."""
        member = {
            "oauthDiscovery": {"discoveryUrl": discovery} if isinstance(discovery, str) else discovery,
            "clientId": client_id,
            **({"clientSecret": secret} if secret is not None else {}),
            **config,
        }
        request: Any = {
            "name": name,
            "credentialProviderVendor": "CustomOauth2",
            "oauth2ProviderConfigInput": {"customOauth2ProviderConfig": member},
        }
        try:
            created = await self.plane.create_oauth2_credential_provider(OPERATOR, request)
        except ConflictException:
            return (await self.plane.update_oauth2_credential_provider(OPERATOR, request))["callbackUrl"]
        return created["callbackUrl"]

    async def connect(self, openid: OpenIdServer, name: str = "tickets", **metadata: Any) -> dict[str, Any]:
        """As an operator does it: create the credential provider, register its callback URL with the OpenID provider,
        write down the client id and secret that this gave. Returns the registered client."""
        callback = await self.credential_provider(openid.discovery_url, "not-yet", "not-yet", name)
        client = openid.register(callback, **metadata)
        assert await self.credential_provider(
            openid.discovery_url, client["client_id"], client.get("client_secret", "x"), name
        ) == callback, "it is registered by now"  # fmt: skip
        return client

    # What agents do.

    async def token_of(self, user: str, workload: str = "agent") -> str:
        """A workload access token for a user named by id."""
        request: Any = {"workloadName": workload, "userId": user}
        return (await self.plane.get_workload_access_token_for_user_id(OPERATOR, request))["workloadAccessToken"]

    async def ask(
        self,
        workload_token: str,
        flow: str = "USER_FEDERATION",
        call: Call = OPERATOR,
        plane: IdentityPlane | None = None,
        **members: Any,
    ) -> Any:
        """GetResourceOauth2Token; None leaves a member out."""
        request = {
            "workloadIdentityToken": workload_token,
            "resourceCredentialProviderName": "tickets",
            "oauth2Flow": flow,
            "scopes": ["openid"],
            **({"resourceOauth2ReturnUrl": RETURN_URL} if flow == "USER_FEDERATION" else {}),
            **members,
        }
        given: Any = {name: value for name, value in request.items() if value is not None}
        return await (plane or self.plane).get_resource_oauth2_token(call, given)

    async def complete(self, user: str, session_uri: str, plane: IdentityPlane | None = None) -> None:
        request: Any = {"userIdentifier": {"userId": user}, "sessionUri": session_uri}
        assert await (plane or self.plane).complete_resource_token_auth(OPERATOR, request) == {}

    async def consent(self, user: str, **members: Any) -> str:
        """A user's whole way, to the access token."""
        token = await self.token_of(user)
        asked = await self.ask(token, **members)
        assert asked.keys() == {"authorizationUrl", "sessionUri", "sessionStatus"}
        await self.browser(user).visit(asked["authorizationUrl"])
        await self.complete(user, asked["sessionUri"])
        members.pop("forceAuthentication", None)
        return str((await self.ask(token, sessionUri=asked["sessionUri"], **members))["accessToken"])

    async def get(self, url: str) -> httpx.Response:
        """What a stranger gets."""
        async with httpx.AsyncClient() as client:
            return await client.get(url)


def session_call(user: str, workload: str = "agent") -> Call:
    """An agent's own call, in a session of the user's."""
    session = SessionRef(workload, "s" * 33)
    principal = f"arn:aws:sts::123456789012:assumed-role/{workload}/{session.session_id}"
    return Call(
        "bedrock-agentcore", "Test", Caller(CallerKind.SESSION, principal, "ASIA", User(user), session), "request-1"
    )
