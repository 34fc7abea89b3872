"""Gateways as they are served: the whole HTTP chain on a real store, one or several replicas of it, the development
issuer for users' tokens, and listeners as sessions have them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import httpx2
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.errors import AccessDeniedException
from agentkeep.core.identifiers import LOWER_ALPHANUMERIC, Deployment, resource_id, suffix
from agentkeep.gateway.control import layout
from agentkeep.gateway.records import GatewayRecord, PolicyEngineRecord, PolicyRecord, RateLimitRecord, TargetRecord
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.gateway.tools import Callers, ToolGateway
from agentkeep.identity.development.issuer import GRANT_TYPE, SUBJECT_TOKEN_TYPE, DevelopmentIssuer, discovery_url
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.mounts import Access, Mount
from agentkeep.storage.interface import Put
from agentkeep.storage.records import encode
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

DEPLOYMENT = Deployment()
CLOCK = SystemClock()
SETTINGS = GatewaySettings(allowed_target_hosts=("127.0.0.0/8",))
#: Not used here, and slow to make for each client.
_TLS = httpx2.create_ssl_context()
PERMIT_ALL = "permit(principal, action, resource is AgentCore::Gateway);"


class SigV4(httpx2.Auth):
    """Signs requests of the official MCP client, by botocore."""

    requires_request_body = True

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def auth_flow(self, request: httpx2.Request) -> Any:
        signed = AWSRequest(
            request.method, str(request.url), data=request.content, headers={"host": request.url.netloc.decode()}
        )
        SigV4Auth(self._credentials, "bedrock-agentcore", DEPLOYMENT.region).add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        yield request


class KnownSessions:
    """The port `SessionUsers`: the runtime plane's, of sessions a test says there are."""

    def __init__(self) -> None:
        self.users: dict[SessionRef, User | None] = {}

    async def user_of(self, session: SessionRef) -> User | None:
        try:
            return self.users[session]
        except KeyError:
            raise AccessDeniedException("The session has ended") from None


@dataclass
class Replica:
    server: Server
    tools: ToolGateway
    listeners: list[asyncio.Server] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"


@dataclass
class ToolStack:
    store: ValkeyKeyValueStore
    identity: IdentityPlane
    issuer: DevelopmentIssuer
    sessions: KnownSessions
    lister: Any
    operator: Credentials
    replicas: list[Replica]
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.replicas[0].url

    def mcp_url(self, gateway: GatewayRecord, replica: int = 0) -> str:
        return f"{self.replicas[replica].url}/gateways/{gateway.id}/mcp"

    async def gateway(
        self,
        targets: Mapping[str, Mapping[str, Any]],
        policies: Sequence[str] = (PERMIT_ALL,),
        *,
        jwt: bool = True,
        secured: bool = True,
        credentials: Sequence[Mapping[str, Any]] = (),
        limits: Sequence[tuple[Sequence[str], Sequence[Mapping[str, Any]]]] = (),
        mode: str = "ENFORCE",
        document: Mapping[str, Any] | None = None,
        authorizer: Mapping[str, Any] | None = None,
    ) -> GatewayRecord:
        """A gateway with targets (name to targetConfiguration), whose tools are really listed. `authorizer`: more of
        its JWT authorizer."""
        id_, engine, now = resource_id("gw", LOWER_ALPHANUMERIC), resource_id("engine", LOWER_ALPHANUMERIC), CLOCK.now()
        issuer = {"discoveryUrl": self.issuer.discovery_url, "allowedClients": ["agentkeep"]}
        gateway = GatewayRecord(
            id_, DEPLOYMENT.arn(f"gateway/{id_}"), "gw", "READY",
            ("CUSTOM_JWT" if jwt else "AWS_IAM") if secured else "NONE",
            {**issuer, **(authorizer or {})} if jwt else None, engine, mode, now, now, document or {},
        )  # fmt: skip
        writes = [Put(layout.GATEWAYS, id_, encode(gateway)), layout.revise(layout.gateway_revision(id_))]
        for name, configuration in targets.items():
            made = TargetRecord(id_, suffix(), name, "READY", configuration, credentials, (), now, now)
            listed = replace(made, tools=tuple(await self.lister.list_tools(made)))
            writes.append(Put(layout.targets(id_), listed.id, encode(listed)))
        for number, (keys, entries) in enumerate(limits):
            limit = RateLimitRecord(id_, f"rl-{number}", keys, entries, now, now)
            writes.append(Put(layout.rate_limits(id_), limit.id, encode(limit)))
        made_engine = PolicyEngineRecord(
            engine, DEPLOYMENT.arn(f"policy-engine/{engine}"), "engine", "ACTIVE", now, now
        )
        writes += [
            Put(layout.ENGINES, engine, encode(made_engine)),
            layout.revise(layout.engine_revision(engine)),
        ]
        for number, statement in enumerate(policies):
            said = statement.replace("GATEWAY_ARN", gateway.arn)
            policy = PolicyRecord(engine, f"policy-{number}", f"p{number}", said, "ACTIVE", "ACTIVE", now, now)
            writes.append(Put(layout.policies(engine), policy.id, encode(policy)))
        await self.store.transact(writes)
        return gateway

    async def token(self, user: str) -> str:
        form = {"grant_type": GRANT_TYPE, "subject_token_type": SUBJECT_TOKEN_TYPE, "subject_token": user}
        headers = {"authorization": aiohttp.encode_basic_auth(self.operator.access_key, self.operator.secret_key)}
        async with self.http.post(f"{self.issuer.url}/token", data=form, headers=headers) as response:
            return str((await response.json())["access_token"])

    async def listen(self, session: SessionRef, user: User | None, replica: int = 0) -> str:
        """The URL of a listener of this session's."""
        self.sessions.users[session] = user
        loop = asyncio.get_running_loop()
        served = self.replicas[replica]
        listener = await loop.create_server(served.server.front.protocol(session), "127.0.0.1", 0)
        served.listeners.append(listener)
        return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def session_keys(self, session: SessionRef, user: User | None) -> Credentials:
        issued = await self.identity.keys.issue_for_session(session, user)
        return Credentials(issued.access_key_id, issued.secret_access_key, issued.session_token)

    async def operate(self, method: str, path: str, body: Any = None) -> Any:
        """An operator's signed request; its status and JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        request = AWSRequest(method, self.url + path, data=data)
        SigV4Auth(self.operator, "bedrock-agentcore", DEPLOYMENT.region).add_auth(request)
        async with self.http.request(method, request.url, data=data, headers=dict(request.headers.items())) as response:
            return response.status, await response.json()


@asynccontextmanager
async def mcp_client(
    url: str, *, token: str | None = None, keys: Credentials | None = None, mode: str = "legacy"
) -> AsyncIterator[Client]:
    """The official client, unmodified."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers, auth=SigV4(keys) if keys else None, timeout=30, verify=_TLS) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


@asynccontextmanager
async def tool_stack(
    store: ValkeyKeyValueStore, *, replicas: int = 1, settings: GatewaySettings = SETTINGS
) -> AsyncIterator[ToolStack]:
    async with AsyncExitStack() as exit:
        http = await exit.enter_async_context(aiohttp.ClientSession())
        master_key = FileMasterKey(secrets.token_bytes(32))
        listener = Server(Front(_nothing))  # finds a port that is free, for the issuer's URL
        await listener.start()
        port = listener.port
        await listener.stop(0)
        await listener.front.close()
        issuer_url = f"http://127.0.0.1:{port}/oidc"
        identity = IdentityPlane(
            store,
            master_key,
            DEPLOYMENT,
            CLOCK,
            IdentitySettings(),
            trusted_issuers=(discovery_url(issuer_url),),
            audit=KeyValueAudit(store),
        )
        exit.push_async_callback(identity.close)
        issuer = DevelopmentIssuer(issuer_url, identity.keys, store, master_key, CLOCK, IdentitySettings())
        sessions = KnownSessions()
        authenticator = Authenticator(identity.keys)
        served = []
        for number in range(replicas):
            tools = ToolGateway(store, identity.outbound, settings, DEPLOYMENT, CLOCK)
            await tools.start()
            exit.push_async_callback(tools.close)
            callers = Callers(authenticator, identity.authorizers, sessions)
            mounts = [*tools.mounts(callers, f"http://127.0.0.1:{port}"), Mount("/oidc", issuer.app, Access.PUBLIC)]
            application = Application(Router(), Switch(SelfBackend([identity])), authenticator, mounts)
            server = Server(Front(application), port=port if number == 0 else 0)
            await server.start()
            exit.push_async_callback(server.front.close)
            exit.push_async_callback(server.stop, 0)
            replica = Replica(server, tools)
            exit.callback(lambda replica=replica: [one.close() for one in replica.listeners])
            served.append(replica)
        issued = await identity.keys.issue_operator_key("operator", acts_for_users=True)
        operator = Credentials(issued.id, issued.secret)
        yield ToolStack(store, identity, issuer, sessions, served[0].tools.lister, operator, served, http)


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    return
