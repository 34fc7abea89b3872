"""One session of a user's with all that it may reach: memory, a tool, a model, secrets of the token vault, another
service in the user's name, AWS. The planes are real and behind one front; what is outside are stand-ins with a wire."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import boto3
import pytest
from aiohttp import web
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from exchange_server import ExchangeServer
from kms_stand_in import KmsStandIn, key_arn
from model_stand_ins import StandIn
from sts_stand_in import StsStandIn
from tool_stack import SETTINGS, KnownSessions, Replica, ToolStack
from tool_stand_ins import OrdersService, openapi, orders_service

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import KeyServiceUnavailable
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.core.key_settings import KeySettings
from agentkeep.gateway.plane import gateway_plane
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.gateway.tools import Callers, ToolGateway
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.memory.plane import MemoryPlane
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

__all__ = ["STEPS", "Carried", "WholeSession", "whole_session"]

DEPLOYMENT = Deployment("us-west-2", "123456789012")
HELPER = "helper-1234567890"
QUIET = "quiet-1234567890"
STEPS = ("memory", "tool", "model", "api key", "oauth token", "aws")
OPERATOR = Call(
    "bedrock-agentcore",
    "Test",
    Caller(CallerKind.OPERATOR, "arn:aws:iam::123456789012:user/admin", "AKIAAAAAAAAAAAAAAAAA", acts_for_users=True),
    "request-1",
)
_ROUTER = Router()


@dataclass
class Carried:
    """What a session goes by. None: it was stripped of it."""

    session: SessionRef
    user: User | None
    user_token: str | None
    keys: Credentials | None = None
    workload_token: str | None = None
    port: int = 0


@dataclass
class WholeSession:
    """`carried`: alice's session. `step` does one thing in it."""

    provider: Any
    identity: IdentityPlane
    server: Server
    store: ValkeyKeyValueStore
    sts: StsStandIn
    kms: KmsStandIn
    exchange: ExchangeServer
    orders: OrdersService
    models: StandIn
    usage: KeyValueUsage
    sessions: KnownSessions
    http: aiohttp.ClientSession
    gateway_id: str = ""
    memory_id: str = ""
    listeners: list[asyncio.Server] = field(default_factory=list)

    def token(self, user: str, **claims: Any) -> str:
        return str(self.provider.token(sub=user, client_id="agentkeep", **claims))

    async def begin(self, carried: Carried) -> Carried:
        """As the runtime does: the session's listener, its keys, its workload token. Raises what refuses it."""
        ref, user = carried.session, carried.user
        self.sessions.users[ref] = user
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.server.front.protocol(ref), "127.0.0.1", 0)
        self.listeners.append(listener)
        carried.port = int(listener.sockets[0].getsockname()[1])
        tokens = self.identity.workload_tokens
        carried.workload_token = await tokens.issue(ref.runtime_id, user, carried.user_token)
        issued = await self.identity.keys.issue_for_session(ref, user, carried.user_token)
        carried.keys = Credentials(issued.access_key_id, issued.secret_access_key, issued.session_token)
        return carried

    def alices(self, **changes: Any) -> Carried:
        """As the runtime has it when it begins."""
        whole: dict[str, Any] = {
            "session": SessionRef(HELPER, secrets.token_hex(20)),
            "user": User("alice", self.provider.url),
            "user_token": self.token("alice"),
        }
        return Carried(**{**whole, **changes})

    def client(self, service: str, carried: Carried, url: str | None = None) -> Any:
        keys = carried.keys
        signing: dict[str, Any] = {} if keys is not None else {"signature_version": UNSIGNED}
        return boto3.client(
            service,
            endpoint_url=url or f"http://127.0.0.1:{carried.port}",
            region_name=DEPLOYMENT.region,
            aws_access_key_id=keys and keys.access_key,
            aws_secret_access_key=keys and keys.secret_key,
            aws_session_token=keys and keys.token,
            config=Config(retries={"total_max_attempts": 1}, parameter_validation=False, **signing),
        )

    async def step(self, name: str, carried: Carried) -> Any:
        """Raises PermissionError with the status and what was said, where it is refused."""
        try:
            return await getattr(self, "_" + name.replace(" ", "_"))(carried)
        except ClientError as error:
            said = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Message"]
            raise PermissionError(*said) from error

    async def _memory(self, carried: Carried) -> Any:
        data = self.client("bedrock-agentcore", carried)
        whose = {"memoryId": self.memory_id, "actorId": "alice", "sessionId": "s"}
        said = [{"conversational": {"role": "USER", "content": {"text": "hello"}}}]
        await asyncio.to_thread(data.create_event, **whose, eventTimestamp=datetime.now(UTC), payload=said)
        return len((await asyncio.to_thread(data.list_events, **whose))["events"])

    async def _tool(self, carried: Carried) -> Any:
        call = {"name": "Orders___get_order", "arguments": {"order_id": "A-1"}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        headers = {"accept": "application/json, text/event-stream"}
        if carried.user_token is not None:
            headers["authorization"] = f"Bearer {carried.user_token}"
        url = f"http://127.0.0.1:{carried.port}/gateways/{self.gateway_id}/mcp"
        async with self.http.post(url, json=message, headers=headers) as response:
            answer = await response.json()
        if response.status != 200 or answer["result"].get("isError"):
            raise PermissionError(response.status, answer.get("error", {}).get("message") or str(answer["result"]))
        return answer["result"]["structuredContent"]["order"]

    async def _model(self, carried: Carried) -> Any:
        asked = [{"role": "user", "content": [{"text": "hello"}]}]
        models = self.client("bedrock-runtime", carried)
        answer = await asyncio.to_thread(models.converse, modelId="some-model", messages=asked)
        return answer["output"]["message"]["content"][0]["text"]

    async def _api_key(self, carried: Carried) -> Any:
        return await self._resource(carried, "get_resource_api_key", "weather", {}, "apiKey")

    async def _oauth_token(self, carried: Carried) -> Any:
        flow = {"scopes": ["files"], "oauth2Flow": "ON_BEHALF_OF_TOKEN_EXCHANGE"}
        token = await self._resource(carried, "get_resource_oauth2_token", "files", flow, "accessToken")
        return self.exchange.shown(token)["sub"]

    async def _resource(
        self, carried: Carried, operation: str, provider: str, more: Mapping[str, Any], what: str
    ) -> Any:
        named: dict[str, Any] = {"resourceCredentialProviderName": provider, **more}
        if carried.workload_token is not None:
            named["workloadIdentityToken"] = carried.workload_token
        call: Callable[..., Any] = getattr(self.client("bedrock-agentcore", carried), operation)
        return (await asyncio.to_thread(call, **named))[what]

    async def _aws(self, carried: Carried) -> Any:
        sts = self.client("sts", carried, self.sts.url)
        arn = (await asyncio.to_thread(sts.get_caller_identity))["Arn"]
        return str(arn).rpartition("/")[2].partition("+")[0]


async def _completion(request: web.Request) -> web.StreamResponse:
    said = {"message": {"role": "assistant", "content": "hello alice"}, "finish_reason": "stop"}
    return web.json_response({"choices": [said], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@asynccontextmanager
async def whole_session(
    store: ValkeyKeyValueStore, provider: Any, clock: Any, exchange: ExchangeServer, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[WholeSession]:  # fmt: skip
    """`provider`, `clock`, `exchange`: the fixtures of tests/identity. The platform's own role in AWS, with which its
    key service asks KMS, lies where any code would find it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLATFORMSROLE000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-platforms-own")
    async with AsyncExitStack() as exit:
        later = exit.push_async_callback
        sts, kms, models = StsStandIn(now=clock.now), KmsStandIn(), StandIn()
        for stand_in in (sts, kms):
            await stand_in.start()
            later(stand_in.stop)
        models.answer = _completion
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", models.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        later(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        models.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        orders = await exit.enter_async_context(orders_service())

        sts.trust(provider.url, "web")
        role = sts.role("helper", provider.url, {"StringEquals": {"{idp}:sub": ["alice", "bob"]}})
        rules = [
            {"name": "helpers", "agents": ["helper"], "issuer": provider.url, "role": role},
            {"name": "no AWS", "agents": ["quiet"], "keys": "platform"},
        ]
        (folder / "rules.json").write_text(json.dumps({"rules": rules, "default": "refuse"}))
        settings = IdentitySettings(
            sts_rules=folder / "rules.json", sts_endpoint=sts.url, sts_timeout=2, provider_timeout=2
        )
        master_key, audit = FileMasterKey(secrets.token_bytes(32)), KeyValueAudit(store)
        keys = KeySettings(kms_endpoint_url=kms.url, kms_timeout=2, cache=60, outage=600)
        vault_keys = keys.services(master_key.derive("vault"))
        later(vault_keys.close)
        identity = IdentityPlane(
            store, master_key, DEPLOYMENT, clock, settings, trusted_issuers=[provider.discovery_url], audit=audit,
            key_service=vault_keys, key_settings=keys,
        )  # fmt: skip
        later(identity.close)
        usage = KeyValueUsage(store)
        routed = GatewaySettings(routes="*=openai:stand-in", openai_url=models.url)  # type: ignore[arg-type]
        gateway = gateway_plane(routed, usage, SessionBudgets(store, clock, default=None), clock)
        later(gateway.close)
        search = SqliteSearchStore(folder / "records.db", dimensions=None, clock=clock)
        later(search.close)
        memory = MemoryPlane(
            store, DEPLOYMENT, clock, search, key_service=LocalKeyService(secrets.token_bytes(32)), audit=audit
        )
        later(memory.close)
        tools = ToolGateway(store, identity.outbound, SETTINGS, DEPLOYMENT, clock)
        await tools.start()
        later(tools.close)
        sessions, authenticator = KnownSessions(), Authenticator(identity.keys)
        mounts = tools.mounts(Callers(authenticator, identity.authorizers, sessions), "http://platform.example")
        planes = Switch(SelfBackend([identity, gateway, *memory.operations]))
        server = Server(Front(Application(_ROUTER, planes, authenticator, mounts)))
        await server.start()
        later(server.front.close)
        later(server.stop, 0)
        http = await exit.enter_async_context(aiohttp.ClientSession())
        whole = WholeSession(
            provider, identity, server, store, sts, kms, exchange, orders, models, usage, sessions, http
        )
        exit.callback(lambda: [one.close() for one in whole.listeners])
        await _configure(whole, tools, memory)
        yield whole


async def _configure(whole: WholeSession, tools: ToolGateway, memory: MemoryPlane) -> None:
    """What operators do."""
    identity: Any = whole.identity
    for runtime_id in (HELPER, QUIET):
        await identity.workload_tokens.create_for_service(runtime_id)
    vault = {"keyType": "CustomerManagedKey", "kmsKeyArn": key_arn()}
    for tries_left in (2, 1, 0):
        try:
            await identity.set_token_vault_cmk(OPERATOR, {"kmsConfiguration": vault})
            break
        except KeyServiceUnavailable:  # boto3 reads KMS's model first: on a loaded machine longer than the limit
            if not tries_left:
                raise
    await identity.create_api_key_credential_provider(OPERATOR, {"name": "weather", "apiKey": "s3cret"})
    await identity.create_oauth2_credential_provider(
        OPERATOR,
        {
            "name": "files",
            "credentialProviderVendor": "CustomOauth2",
            "oauth2ProviderConfigInput": {
                "customOauth2ProviderConfig": {
                    "oauthDiscovery": whole.exchange.metadata,
                    "clientId": whole.exchange.client_id,
                    "clientSecret": whole.exchange.client_secret,
                    "onBehalfOfTokenExchangeConfig": {"grantType": "TOKEN_EXCHANGE"},
                }
            },
        },
    )
    operations: Any = memory.operations[0]
    made = await operations.create_memory(OPERATOR, {"name": "notes", "eventExpiryDuration": 7})
    whole.memory_id = made["memory"]["id"]
    issuer: Any = SimpleNamespace(discovery_url=whole.provider.discovery_url, url=whole.provider.url)
    stack = ToolStack(
        whole.store, identity, issuer, whole.sessions, tools.lister, Credentials("", ""),
        [Replica(whole.server, tools)], whole.http,
    )  # fmt: skip
    passed_on = [{"credentialProviderType": "JWT_PASSTHROUGH"}]
    whole.gateway_id = (await stack.gateway({"Orders": openapi(whole.orders)}, credentials=passed_on)).id
