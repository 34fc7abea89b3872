"""Ports in process and over HTTP: one contract each."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from port_server import PortServer, calling, serving

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, Caller, CallerKind
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.core.ports import (
    Alert,
    Alerts,
    Audit,
    AuditRecord,
    Authorizers,
    Budget,
    Keys,
    MemorySessions,
    Models,
    OutboundCredentials,
    Usage,
    UsageRecord,
    WorkloadTokens,
)
from agentkeep.gateway.models.routing import parse_rules
from agentkeep.gateway.plane import gateway_plane
from agentkeep.gateway.settings import GatewaySettings
from agentkeep.identity.development.issuer import GRANT_TYPE, SUBJECT_TOKEN_TYPE, DevelopmentIssuer
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.memory.plane import MemoryPlane
from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.usage import KeyValueUsage
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.mounts import Access, Mount
from agentkeep.service.ports.caches import CachedAuthorizers, CachedKeys
from agentkeep.service.ports.catalogue import (
    ALERTS,
    AUDIT,
    AUTHORIZERS,
    BUDGET,
    KEYS,
    MEMORY_SESSIONS,
    MODELS,
    OUTBOUND_CREDENTIALS,
    USAGE,
    WORKLOAD_TOKENS,
)
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.testing.ports import (
    NOW,
    OTHER,
    SESSION,
    AlertsContract,
    AuditContract,
    AuthorizersContract,
    BudgetContract,
    KeysContract,
    MemorySessionsContract,
    ModelsContract,
    OutboundCredentialsContract,
    UsageContract,
    WorkloadTokensContract,
)
from agentkeep.wire import Router

MASTER_KEY = FileMasterKey(secrets.token_bytes(32))


@pytest.fixture
async def identity(store: ValkeyKeyValueStore) -> AsyncIterator[IdentityPlane]:
    plane = IdentityPlane(store, MASTER_KEY, Deployment(), SystemClock(), IdentitySettings())
    yield plane
    await plane.close()


@pytest.fixture
async def identity_service(identity: IdentityPlane) -> AsyncIterator[PortServer]:
    served = {
        KEYS: identity.keys,
        AUTHORIZERS: identity.authorizers,
        WORKLOAD_TOKENS: identity.workload_tokens,
        OUTBOUND_CREDENTIALS: identity.outbound,
    }
    async with serving("identity", served) as server:
        yield server


class TestKeys(KeysContract):
    @pytest.fixture(params=["in process", "over HTTP"])
    async def keys(
        self, request: pytest.FixtureRequest, identity: IdentityPlane, identity_service: PortServer
    ) -> AsyncIterator[Keys]:
        async with calling("runtime", identity_service.url) as peers:
            over_http = CachedKeys(peers.port(KEYS), SystemClock(), 2)
            yield identity.keys if request.param == "in process" else over_http


class TestAuthorizers(AuthorizersContract):
    @pytest.fixture(params=["in process", "over HTTP"])
    async def authorizers(
        self, request: pytest.FixtureRequest, identity: IdentityPlane, identity_service: PortServer
    ) -> AsyncIterator[Authorizers]:
        async with calling("gateway", identity_service.url) as peers:
            over_http = CachedAuthorizers(peers.port(AUTHORIZERS), SystemClock(), 2)
            yield identity.authorizers if request.param == "in process" else over_http

    @pytest.fixture
    async def issuer(self, identity: IdentityPlane, store: ValkeyKeyValueStore) -> AsyncIterator[DevelopmentIssuer]:
        """Served where its tokens say."""
        authenticator = Authenticator(identity.keys)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await issuer.app(scope, receive, send)

        mounts = [Mount("/oidc", app, Access.PUBLIC)]
        server = Server(Front(Application(Router(), Switch(SelfBackend([])), authenticator, mounts)))
        await server.start()
        issuer = DevelopmentIssuer(
            f"{server.url}/oidc", identity.keys, store, MASTER_KEY, SystemClock(), IdentitySettings()
        )
        yield issuer
        await server.stop(drain=0)
        await server.front.close()

    @pytest.fixture
    def authorizer(self, issuer: DevelopmentIssuer) -> dict[str, Any]:
        return {"discoveryUrl": issuer.discovery_url, "allowedAudience": ["agentkeep"]}

    @pytest.fixture
    async def new_token(self, issuer: DevelopmentIssuer, identity: IdentityPlane) -> Callable[..., Awaitable[str]]:
        operator = await identity.keys.operator_key("operator", acts_for_users=True)

        async def new_token(user: str, audience: str = "agentkeep") -> str:
            form = {
                "grant_type": GRANT_TYPE,
                "subject_token": user,
                "subject_token_type": SUBJECT_TOKEN_TYPE,
                "audience": audience,
            }
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = await http.post(f"{issuer.url}/token", data=form, auth=(operator.id, operator.secret))
            return str(answer.raise_for_status().json()["access_token"])

        return new_token


class TestWorkloadTokens(WorkloadTokensContract):
    @pytest.fixture(params=["in process", "over HTTP"])
    async def workload_tokens(
        self, request: pytest.FixtureRequest, identity: IdentityPlane, identity_service: PortServer
    ) -> AsyncIterator[WorkloadTokens]:
        async with calling("runtime", identity_service.url) as peers:
            yield identity.workload_tokens if request.param == "in process" else peers.port(WORKLOAD_TOKENS)


class TestOutboundCredentials(OutboundCredentialsContract):
    @pytest.fixture(params=["in process", "over HTTP"])
    async def outbound_credentials(
        self, request: pytest.FixtureRequest, identity: IdentityPlane, identity_service: PortServer
    ) -> AsyncIterator[OutboundCredentials]:
        async with calling("gateway", identity_service.url) as peers:
            yield identity.outbound if request.param == "in process" else peers.port(OUTBOUND_CREDENTIALS)

    @pytest.fixture
    async def provider(self, identity: IdentityPlane) -> tuple[str, str]:
        operator = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/admin")
        call = Call("bedrock-agentcore-control", "CreateApiKeyCredentialProvider", operator, "request-1")
        made = await identity.create_api_key_credential_provider(call, {"name": "tools", "apiKey": "the key"})
        return made["credentialProviderArn"], "the key"


class TestUsage(UsageContract):
    @pytest.fixture(params=["in process", "over HTTP"])
    async def usage(self, request: pytest.FixtureRequest, store: ValkeyKeyValueStore) -> AsyncIterator[Usage]:
        kept = KeyValueUsage(store)
        async with serving("observability", {USAGE: kept}) as server, calling("gateway", server.url) as peers:
            yield kept if request.param == "in process" else peers.port(USAGE)


class TestAlerts(AlertsContract):
    @pytest.fixture
    async def stored(self, store: ValkeyKeyValueStore) -> AsyncIterator[KeyValueAlerts]:
        alerts = KeyValueAlerts(store)
        yield alerts
        await alerts.close()

    @pytest.fixture(params=["in process", "over HTTP"])
    async def alerts(self, request: pytest.FixtureRequest, stored: KeyValueAlerts) -> AsyncIterator[Alerts]:
        async with serving("observability", {ALERTS: stored}) as server, calling("memory", server.url) as peers:
            yield stored if request.param == "in process" else peers.port(ALERTS)

    @pytest.fixture
    def kept(self, stored: KeyValueAlerts) -> Callable[[], Awaitable[list[tuple[Alert, int]]]]:
        async def kept() -> list[tuple[Alert, int]]:
            return [(each.alert, each.count) for each in await stored.latest()]

        return kept


class TestAudit(AuditContract):
    @pytest.fixture
    def stored(self, store: ValkeyKeyValueStore) -> KeyValueAudit:
        return KeyValueAudit(store)

    @pytest.fixture(params=["in process", "over HTTP"])
    async def audit(self, request: pytest.FixtureRequest, stored: KeyValueAudit) -> AsyncIterator[Audit]:
        async with serving("observability", {AUDIT: stored}) as server, calling("identity", server.url) as peers:
            yield stored if request.param == "in process" else peers.port(AUDIT)

    @pytest.fixture
    def recorded(self, stored: KeyValueAudit) -> Callable[[], Awaitable[list[AuditRecord]]]:
        async def recorded() -> list[AuditRecord]:
            return (await stored.page(AuditFilter(), 100))[0]

        return recorded


class Answering:
    """A provider's server: what it answers depends on the model."""

    async def answer(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["model"] == "loose" and "response_format" in asked:
            return web.json_response({"error": {"message": "response_format is not supported"}}, status=400)
        return web.json_response(
            {
                "choices": [
                    {
                        "message": {"role": "assistant", "content": json.dumps(asked)},
                        "finish_reason": "length" if asked["model"] == "short" else "stop",
                    }
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2},
            }
        )


class TestModels(ModelsContract):
    @pytest.fixture
    def counted(self, store: ValkeyKeyValueStore) -> KeyValueUsage:
        return KeyValueUsage(store)

    @pytest.fixture
    async def answers(self, store: ValkeyKeyValueStore, counted: KeyValueUsage) -> AsyncIterator[Models]:
        provider = web.Application()
        provider.router.add_post("/v1/chat/completions", Answering().answer)
        runner = web.AppRunner(provider)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        routes = ",".join(f"{model}=openai" for model in ("echo", "loose", "short"))
        settings = GatewaySettings(routes=parse_rules(routes), openai_url=f"http://{host}:{port}/v1")
        plane = gateway_plane(settings, counted, SessionBudgets(store, SystemClock(), default=None), SystemClock())
        yield plane.answers
        await plane.close()
        await runner.cleanup()

    @pytest.fixture(params=["in process", "over HTTP"])
    async def models(self, request: pytest.FixtureRequest, answers: Models) -> AsyncIterator[Models]:
        async with serving("gateway", {MODELS: answers}) as server, calling("memory", server.url) as peers:
            yield answers if request.param == "in process" else peers.port(MODELS)

    @pytest.fixture
    def used(self, counted: KeyValueUsage) -> Callable[[], Awaitable[list[UsageRecord]]]:
        async def used() -> list[UsageRecord]:
            return await counted.of_session(SESSION)

        return used


class _TwoServices:
    """Budgets as two services use them: the runtime service opens them, the gateway service spends them."""

    def __init__(self, runtime: Budget, gateway: Budget) -> None:
        self.open = runtime.open
        self.reserve = gateway.reserve
        self.settle = gateway.settle


class TestBudget(BudgetContract):
    @pytest.fixture(params=["in process", "over HTTP"])
    async def budget(self, request: pytest.FixtureRequest, store: ValkeyKeyValueStore) -> AsyncIterator[Budget]:
        kept = SessionBudgets(store, SystemClock(), default=None)
        async with (
            serving("observability", {BUDGET: kept}) as server,
            calling("runtime", server.url) as runtime,
            calling("gateway", server.url) as gateway,
        ):
            over_http = _TwoServices(runtime.port(BUDGET), gateway.port(BUDGET))
            yield kept if request.param == "in process" else over_http


class TestMemorySessions(MemorySessionsContract):
    @pytest.fixture
    async def memory(self, store: ValkeyKeyValueStore, tmp_path: Path) -> AsyncIterator[MemoryPlane]:
        clock = SystemClock()
        search = SqliteSearchStore(tmp_path / "records.db", dimensions=None, clock=clock)
        plane = MemoryPlane(store, Deployment(), clock, search, key_service=LocalKeyService(b"k" * 32))
        await plane.start()
        yield plane
        await plane.close()
        await search.close()

    @pytest.fixture(params=["in process", "over HTTP"])
    async def memory_sessions(
        self, request: pytest.FixtureRequest, memory: MemoryPlane
    ) -> AsyncIterator[MemorySessions]:
        ends = memory.session_ends
        async with serving("memory", {MEMORY_SESSIONS: ends}) as server, calling("runtime", server.url) as peers:
            yield ends if request.param == "in process" else peers.port(MEMORY_SESSIONS)

    @pytest.fixture
    async def kept(self, memory: MemoryPlane) -> Callable[[str], Awaitable[int]]:
        operator = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/operator", acts_for_users=True)
        backend = SelfBackend(memory.operations)

        async def ask(operation: str, **request: Any) -> Any:
            return await backend.invoke(Call("bedrock-agentcore", operation, operator, "request", None), request)

        tags = {"agentkeep:events": "until-session-end"}
        made = await ask("CreateMemory", name="notes", eventExpiryDuration=7, tags=tags)
        of_alice = {"memoryId": made["memory"]["id"], "actorId": "alice"}
        for session in (SESSION, OTHER):
            where = {**of_alice, "sessionId": session.session_id}
            await ask("CreateEvent", **where, eventTimestamp=NOW, payload=[{"blob": "hello"}])

        async def kept(session_id: str) -> int:
            return len((await ask("ListEvents", **of_alice, sessionId=session_id))["events"])

        return kept
