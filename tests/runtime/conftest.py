"""The runtime plane with the real identity plane and store; agents that are real HTTP servers on loopback, unsealed, so
that what is tested here is fast (the process driver has tests of its own, and test_end_to_end.py); a clock that tests
move; an OpenID provider outside the platform."""

from __future__ import annotations

import asyncio
import heapq
import io
import itertools
import json
import socket
import uuid
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

from agentkeep.core.call import Call, Caller, CallerKind, Idempotency, SessionRef, User
from agentkeep.core.clock import Clock
from agentkeep.core.errors import CommandNotStarted, EnvironmentStartFailed, ServiceError
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service import KeyService
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.budget import SessionBudgets
from agentkeep.runtime.agents.artifacts import FolderArtifactStore
from agentkeep.runtime.drivers.driver import EnvironmentSpec, Execution, Exit, Finding, VersionSpec
from agentkeep.runtime.invocations.headers import SESSION_HEADER
from agentkeep.runtime.operations import RuntimePlane
from agentkeep.runtime.sessions.turn import InvocationRequest
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.storage.valkey import ValkeyKeyValueStore

DEPLOYMENT = Deployment("us-west-2", "123456789012")
OPERATOR = Caller(CallerKind.OPERATOR, "arn:aws:iam::123456789012:user/olivia", "AKIAOPERATOR", acts_for_users=True)
ROLE = "arn:aws:iam::123456789012:role/agents"


class ManualClock:
    """Stands still until a test moves it; then whoever sleeps long enough wakes."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._monotonic = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), future))
        await future

    async def move(self, seconds: float) -> None:
        """In steps, so that loops that sleep again are woken again."""
        end = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            self._set(at)
            if not future.done():
                future.set_result(None)
                await settle()
        self._set(end)
        await settle()

    def jump(self, seconds: float) -> None:
        """The wall clock is set: forward or back, and no time has passed."""
        self._now += timedelta(seconds=seconds)

    def _set(self, at: float) -> None:
        if at > self._monotonic:
            self._now += timedelta(seconds=at - self._monotonic)
            self._monotonic = at


async def settle(rounds: int = 20) -> None:
    """Lets what can run now run, pings over loopback included."""
    for _ in range(rounds):
        await asyncio.sleep(0)
    await asyncio.sleep(0.005)


async def until(condition: Callable[[], Any], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


Answer = tuple[int, Mapping[str, str], bytes]


@dataclass
class Behaviour:
    """What the agents of a driver do. `start`: runs before an environment is there; `listen`: before it listens."""

    start: Callable[[EnvironmentSpec], Awaitable[None]] | None = None
    listen: Callable[[], Awaitable[None]] | None = None
    status: str = "Healthy"
    changed: Callable[[], float] | None = None
    ping_status: int = 200
    answer: Callable[[LoopbackAgent, web.Request], Awaitable[web.StreamResponse]] | None = None
    execute: Callable[[str], Awaitable[Execution]] | None = None


class LoopbackAgent:
    """An environment: a real HTTP server in this process, with no sandbox at all."""

    def __init__(self, spec: EnvironmentSpec, behaviour: Behaviour) -> None:
        self.id = f"loopback-{uuid.uuid4().hex[:8]}"
        self.spec = spec
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.pings = 0
        self.stops: list[float] = []
        self.resumed: list[Any] = []
        self._gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def listen(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/ping", self._ping)
        app.router.add_route("*", "/{path:.*}", self._invoke)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings += 1
        document: dict[str, Any] = {"status": self.behaviour.status}
        if self.behaviour.changed is not None:
            document["time_of_last_update"] = self.behaviour.changed()
        return web.json_response(document, status=self.behaviour.ping_status)

    async def _invoke(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append({"path": request.path, "headers": dict(request.headers), "body": body})
        if self.behaviour.answer is not None:
            return await self.behaviour.answer(self, request)
        return web.json_response({"session": request.headers.get(SESSION_HEADER), "echo": body.decode()})

    async def connect(self, timeout: float, port: int | None = None) -> LoopbackConnection:
        if self._gone.done():
            raise EnvironmentStartFailed("it is gone")
        async with asyncio.timeout(timeout):
            while not self._port:
                await asyncio.sleep(0.002)
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        except BaseException:
            sock.close()
            raise
        return LoopbackConnection(sock)

    async def execute(self, line: str) -> Execution:
        if self.behaviour.execute is None:
            raise CommandNotStarted("there is no shell here")
        return await self.behaviour.execute(line)

    async def resume(self, endpoint: Callable[[], asyncio.Protocol], log: Callable[[bytes], None]) -> None:
        self.resumed.append(endpoint)
        log(b"still here\n")

    async def crash(self, reason: str = "killed by signal 9") -> None:
        if not self._gone.done():
            self._gone.set_result(Exit(-9, reason))
        await self._close()

    async def stop(self, grace: float) -> Exit:
        self.stops.append(grace)
        if not self._gone.done():
            self._gone.set_result(Exit(0, "stopped"))
        await self._close()
        return self._gone.result()

    async def _close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._gone)

    @property
    def is_gone(self) -> bool:
        return self._gone.done()


@dataclass
class LoopbackConnection:
    socket: socket.socket
    released: int = 0

    def release(self) -> None:
        self.released += 1


class LoopbackDriver:
    """Environments that are servers on loopback. Counts what it is asked."""

    name = "loopback"

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.agents: list[LoopbackAgent] = []
        self.prepared: list[VersionSpec] = []
        self.retired: list[tuple[str, str]] = []
        self.prepare_error: Exception | None = None
        self.survivors: list[LoopbackAgent] = []
        self.adoptable: dict[str, list[LoopbackAgent]] = {}  # by the dead replica's name

    async def probe(self) -> Sequence[Finding]:
        return ()

    async def prepare(self, version: VersionSpec) -> None:
        self.prepared.append(version)
        if self.prepare_error is not None:
            raise self.prepare_error

    async def start(self, spec: EnvironmentSpec) -> LoopbackAgent:
        behaviour = replace(self.behaviour)
        agent = LoopbackAgent(spec, behaviour)
        self.agents.append(agent)
        if behaviour.start is not None:
            await behaviour.start(spec)
        if behaviour.listen is None:
            await agent.listen()
        else:
            asyncio.create_task(self._listen_later(agent, behaviour.listen))  # noqa: RUF006
        return agent

    @staticmethod
    async def _listen_later(agent: LoopbackAgent, wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        if not agent.is_gone:
            await agent.listen()

    async def take_over(self, replica: str) -> Sequence[LoopbackAgent]:
        return self.adoptable.pop(replica, [])

    async def adopt(self) -> Sequence[LoopbackAgent]:
        return self.survivors

    async def retire(self, runtime_id: str, version: str) -> None:
        self.retired.append((runtime_id, version))

    async def close(self) -> None:
        for agent in self.agents:
            await agent.stop(0)

    @property
    def living(self) -> list[LoopbackAgent]:
        return [agent for agent in self.agents if not agent.is_gone]


class Provider:
    """An OpenID provider with a wire."""

    key = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"})

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/realm/.well-known/openid-configuration", self._metadata)
        app.router.add_get("/realm/keys", self._keys)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/realm"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _metadata(self, request: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    async def _keys(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": [self.key.as_dict(private=False)]})

    @property
    def authorizer(self) -> dict[str, Any]:
        return {
            "customJWTAuthorizer": {
                "discoveryUrl": f"{self.url}/.well-known/openid-configuration",
                "allowedAudience": ["support"],
            }
        }

    def token(self, user: str, **claims: Any) -> str:
        now = int(self._clock.now().timestamp())
        all_claims = {"iss": self.url, "sub": user, "aud": "support", "iat": now, "exp": now + 3600, **claims}
        return jwt.encode({"alg": "RS256", "kid": "k1"}, all_claims, self.key)


def bundle(files: Mapping[str, str | bytes] | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in (files or {"main.py": "print('hello')\n"}).items():
            archive.writestr(name, text)
    return file.getvalue()


@dataclass
class Platform:
    """A runtime plane and what it stands on. `restart` as after a kill: nothing is closed in order."""

    store: ValkeyKeyValueStore
    clock: Clock
    folder: Path
    identity: IdentityPlane
    settings: RuntimeSettings
    driver: Any = field(default_factory=LoopbackDriver)
    endpoint: Any = field(default=lambda session: asyncio.Protocol)
    place: Any = None
    memory: Any = None
    key_service: KeyService = field(default_factory=lambda: LocalKeyService(b"a secret that only tests have..."))
    key_settings: Any = None
    rewrite_store: Any = None
    budgets: SessionBudgets = field(init=False)
    plane: RuntimePlane = field(init=False)
    deployment: ClassVar[Deployment] = DEPLOYMENT

    @staticmethod
    def bundle(files: Mapping[str, str | bytes]) -> bytes:
        return bundle(files)

    def __post_init__(self) -> None:
        self.artifacts = FolderArtifactStore(self.folder / "artifacts")
        self.budgets = SessionBudgets(self.store, self.clock, default=1000)
        self.build()

    def build(self) -> None:
        self.plane = RuntimePlane(
            self.store,
            DEPLOYMENT,
            self.clock,
            self.driver,
            self.artifacts,
            self.identity.keys,
            self.identity.authorizers,
            self.identity.workload_tokens,
            self.budgets,
            self.endpoint,
            self.settings,
            self.folder / "runtime",
            place=self.place,
            memory_sessions=self.memory,
            key_service=self.key_service,
            key_settings=self.key_settings,
            rewrite_store=self.rewrite_store,
        )

    async def kill(self) -> None:
        """The process dies: its tasks stop where they are, its environments with it."""
        parts = self.plane._parts
        telling = [parts.session_ends._telling] if parts.session_ends._telling is not None else []
        mine = (parts.heartbeat._task, parts.warm_pools._task, *parts.recovery._legacies.values())
        for task in [*parts.reaper._tasks, *parts.provisioning._tasks.values(), *mine, *telling]:
            task.cancel()
        for session in parts.sessions.all_live():
            for task in (session.provisioning, session.watching, session.ending, session.checking):
                if task is not None:
                    task.cancel()
        await settle()
        self.driver.agents, died = [], self.driver.agents
        for agent in died:
            if agent not in self.driver.survivors:
                await agent.crash()

    async def restart(self) -> None:
        await self.kill()
        self.build()
        await self.plane.start()

    async def upload(self, content: bytes | None = None, key: str = "agent.zip") -> str:
        async def pieces() -> AsyncIterator[bytes]:
            yield content or bundle()

        return (await self.artifacts.put("code", key, pieces(), 1 << 30)).version_id

    async def call(
        self, operation: str, caller: Caller = OPERATOR, token: str | None = None, headers: Any = None, **request: Any
    ) -> dict[str, Any]:
        """An operation as the service calls it: the client token becomes the call's idempotency."""
        name = "".join(part.capitalize() for part in operation.split("_"))
        idempotency = None
        if token is not None:
            fingerprint = sha256(json.dumps(request, sort_keys=True, default=str).encode()).digest()
            idempotency = Idempotency(f"{caller.principal}:{name}:{token}", fingerprint)
        call = Call("bedrock-agentcore", name, caller, uuid.uuid4().hex, idempotency, headers or {})
        answer: dict[str, Any] = await getattr(self.plane, operation)(call, request)
        return answer

    def definition(self, **settings: Any) -> dict[str, Any]:
        """CreateAgentRuntime's members but the name."""
        code = {"s3": {"bucket": "code", "prefix": "agent.zip"}}
        return {
            "agentRuntimeArtifact": {
                "codeConfiguration": {"code": code, "runtime": "PYTHON_3_11", "entryPoint": ["main.py"]}
            },
            "roleArn": ROLE,
            "networkConfiguration": {"networkMode": "PUBLIC"},
            **settings,
        }

    async def create(self, name: str = "agent", **settings: Any) -> str:
        """A runtime that is READY."""
        await self.upload()
        made = await self.call("create_agent_runtime", agentRuntimeName=name, **self.definition(**settings))
        await self.ready(made["agentRuntimeId"])
        return str(made["agentRuntimeId"])

    async def ready(self, runtime_id: str, status: str = "READY") -> dict[str, Any]:
        async with asyncio.timeout(30):
            while (found := await self.call("get_agent_runtime", agentRuntimeId=runtime_id))["status"] != status:
                await asyncio.sleep(0.01)
        return found

    async def begin(self, runtime: str, session_id: str | None = None, **request: Any) -> Any:
        """A turn, as the pump begins one."""
        given = self.request(runtime, session_id, **request)
        return self.plane.invocations.begin_now(given) or await self.plane.invocations.begin(given)

    def request(
        self,
        runtime: str,
        session_id: str | None = None,
        *,
        qualifier: str = "DEFAULT",
        user_id: str | None = None,
        caller: Caller | None = OPERATOR,
        bearer: str | None = None,
        headers: Mapping[str, str] | None = None,
        operation: str = "",
    ) -> InvocationRequest:
        caller, request_id = None if bearer is not None else caller, uuid.uuid4().hex
        return InvocationRequest(
            runtime,
            qualifier,
            None,
            session_id,
            user_id,
            None,
            caller,
            bearer,
            request_id,
            headers or {},
            operation=operation,
        )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def settings() -> RuntimeSettings:
    return RuntimeSettings(
        start_timeout=2, stop_grace=0.05, connect_timeout=1, ping_timeout=0.3, default_index=None, find_links=None
    )


@pytest.fixture
def identity_settings() -> IdentitySettings:
    return IdentitySettings()


@pytest.fixture
async def platform(
    store: ValkeyKeyValueStore,
    clock: ManualClock,
    settings: RuntimeSettings,
    identity_settings: IdentitySettings,
    tmp_path: Path,
) -> AsyncIterator[Platform]:
    identity = IdentityPlane(store, FileMasterKey(b"k" * 32), DEPLOYMENT, clock, identity_settings)
    platform = Platform(store, clock, tmp_path, identity, settings)
    await platform.plane.start()
    yield platform
    await platform.plane.stop()
    await platform.driver.close()
    await identity.close()


@pytest.fixture
def make_platform() -> type[Platform]:
    return Platform


@pytest.fixture
async def provider(clock: ManualClock) -> AsyncIterator[Provider]:
    provider = Provider(clock)
    await provider.start()
    yield provider
    await provider.stop()


def new_session_id() -> str:
    return str(uuid.uuid4())


def session_caller(runtime_id: str, session_id: str, user: str | None) -> Caller:
    return Caller(
        CallerKind.SESSION,
        f"arn:aws:sts::123456789012:assumed-role/{runtime_id}/{session_id}",
        "ASIASESSION",
        None if user is None else User(user),
        SessionRef(runtime_id, session_id),
    )


__all__ = ["ServiceError"]
