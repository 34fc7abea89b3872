"""A session's keys where AWS gives them: had before its agent runs, renewed while its user's token lasts."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runtime_wire import runtime_wire
from sts_stand_in import StsStandIn

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import AccessDeniedException, ServiceUnavailableException, UnauthorizedException
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.audit import KeyValueAudit
from agentkeep.runtime.egress.egress import EgressRefused
from agentkeep.runtime.environments.warm_pool_sizes import WARM_POOL_TAG
from agentkeep.runtime.sessions import keys as session_keys
from agentkeep.runtime.sessions.keys import SessionKeys, newest
from agentkeep.runtime.sessions.session import Session
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.storage.valkey import ValkeyKeyValueStore


@pytest.fixture
async def sts(clock: Any, provider: Any) -> AsyncIterator[StsStandIn]:
    sts = StsStandIn(now=clock.now)
    await sts.start()
    sts.trust(provider.url, "support")
    sts.role("helper", provider.url, {"StringLike": {"{idp}:sub": "*"}})
    yield sts
    await sts.stop()


@pytest.fixture
async def platform(
    make_platform: Any, store: ValkeyKeyValueStore, clock: Any, settings: RuntimeSettings, tmp_path: Path,
    provider: Any, sts: StsStandIn,
) -> AsyncIterator[Any]:  # fmt: skip
    """A runtime whose sessions get their users' keys from AWS, but those of the agent `quiet`."""
    rules = [
        {"name": "helpers", "agents": ["agent"], "issuer": provider.url, "role": next(iter(sts.roles))},
        {"name": "no AWS", "agents": ["quiet"], "keys": "platform"},
    ]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"rules": rules, "default": "refuse"}))
    out = {"rules": [{"name": "API", "agents": ["agent"], "hosts": ["api.example.com"]}], "default": "refuse"}
    (tmp_path / "egress.json").write_text(json.dumps(out))
    settings = settings.model_copy(update={"egress_rules": tmp_path / "egress.json"})
    given = IdentitySettings(sts_rules=file, sts_endpoint=sts.url, sts_timeout=2, provider_retry=0)
    key = FileMasterKey(b"k" * 32)
    identity = IdentityPlane(store, key, make_platform.deployment, clock, given, audit=KeyValueAudit(store))
    platform = make_platform(store, clock, tmp_path / "runtime", identity, settings)
    await platform.plane.start()
    yield platform
    await platform.plane.stop()
    await identity.close()


async def ask(platform: Any, ref: SessionRef) -> tuple[int, dict[str, Any]]:
    """What the agent's SDK gets at its credentials endpoint."""
    answer: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        answer.append(message)

    scope = {"type": "http", "method": "GET", "path": "/credentials", "agentkeep.session": ref, "headers": []}
    await platform.plane.credentials_app(scope, receive, send)
    return answer[0]["status"], json.loads(answer[1]["body"])


async def begun(platform: Any, runtime_id: str, **request: Any) -> tuple[SessionRef, Any]:
    """A session with a turn that goes on, so that it is not idle."""
    ref = SessionRef(runtime_id, str(uuid.uuid4()))
    return ref, await platform.begin(runtime_id, ref.session_id, **request)


async def test_had_once_and_before_the_agent_runs(platform: Any, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: one exchange, for however many invocations and questions; the agent's first question waits for nothing."""
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    seen: list[int] = []

    async def start(spec: Any) -> None:
        seen.append(sts.exchanges)

    platform.driver.behaviour.start = start
    token = provider.token("alice")
    ref, _ = await begun(platform, runtime_id, bearer=token)
    assert seen == [1]
    sts.fails("Throttling")
    documents = [(await ask(platform, ref))[1] for _ in range(5)]
    for bearer in (token, provider.token("alice"), token):
        await platform.begin(runtime_id, ref.session_id, bearer=bearer)
    assert sts.exchanges == 1
    assert len({document["AccessKeyId"] for document in documents}) == 1
    assert set(documents[0]) == {"AccessKeyId", "SecretAccessKey", "Token", "Expiration", "RoleArn"}
    assert documents[0]["RoleArn"] == next(iter(sts.roles))
    key = await platform.identity.keys.find(documents[0]["AccessKeyId"])
    assert key.caller.user == User("alice", provider.url) and key.caller.session == ref

    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=ref.session_id)
    assert await platform.identity.keys.find(documents[0]["AccessKeyId"]) is None, "IDN-4: dead here with the session"
    assert (await ask(platform, ref))[0] == 403


async def test_no_keys_no_session(platform: Any, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: refused with what to do, before anything is started; retryable where STS is away; never with the
    platform's own keys."""
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    signed = await platform.create("agent_signed")
    agents = len(platform.driver.living)
    sts.fails("Throttling")
    with pytest.raises(ServiceUnavailableException, match="Try again"):
        await begun(platform, runtime_id, bearer=provider.token("alice"))
    await sts.stop()
    with pytest.raises(ServiceUnavailableException, match="Try again"):
        await begun(platform, runtime_id, bearer=provider.token("alice"))
    with pytest.raises(AccessDeniedException, match="user's token"):
        await begun(platform, signed, user_id="alice")
    assert len(platform.driver.living) == agents
    await until(lambda: platform.plane._parts.sessions.count == 0)


async def test_who_is_refused_takes_nothing_from_the_warm_pool(platform: Any, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: else whoever may not could keep it empty for those who may."""
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer, tags={WARM_POOL_TAG: "1"})
    pools = platform.plane._parts.warm_pools
    await until(lambda: [pool["ready"] for pool in pools.describe(runtime_id)] == [1])
    (waiting,) = platform.driver.living
    sts.fails("AccessDenied", 403)
    for _ in range(3):
        with pytest.raises(AccessDeniedException):
            await begun(platform, runtime_id, bearer=provider.token("alice"))
    assert waiting in platform.driver.living and len(platform.driver.living) <= 2, "one may have been made in its place"
    made = {agent.id for agent in platform.driver.agents}
    sts.failure = None
    _, turn = await begun(platform, runtime_id, bearer=provider.token("alice"))
    assert turn.environment_id in made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_a_caller_sees(platform: Any, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: over the wire: 503 with its reason, 401 with the challenge for a token that AWS calls expired."""
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    async with runtime_wire(platform) as wire:
        sts.fails("IDPCommunicationError")
        away = await wire.ask(runtime_id, b"{}", bearer=provider.token("alice"))
        assert (away.status_code, away.headers["x-amzn-errortype"]) == (503, "ServiceUnavailableException")
        assert "IDPCommunicationError" in away.text
        sts.fails("ExpiredTokenException")
        expired = await wire.ask(runtime_id, b"{}", bearer=provider.token("alice"))
        assert expired.status_code == 401 and expired.headers["www-authenticate"].startswith("Bearer ")


@pytest.fixture
def held(platform: Any, provider: Any, clock: Any) -> Callable[..., Held]:
    """A session of alice's without an environment, which would be asked for its health all the time that passes."""

    def held(token: str) -> Held:
        session = Session(
            SessionRef("agent-a1b2c3d4e5", str(uuid.uuid4())), User("alice", provider.url), 1, "DEFAULT", None, 0.0
        )  # type: ignore[arg-type]
        session.user_token = token
        return Held(session, SessionKeys(platform.identity.keys, clock), clock)

    return held


@dataclass
class Held:
    session: Session
    keys: SessionKeys
    clock: Any

    async def key(self) -> str:
        return (await self.keys.of(self.session)).access_key_id

    def pass_time(self, seconds: float) -> None:
        self.clock._set(self.clock.monotonic() + seconds)


async def test_renewed_while_the_users_token_lasts(
    held: Callable[..., Held], provider: Any, sts: StsStandIn, clock: Any
) -> None:
    """IDN-1: in time, once for all who ask; then an error says what is missing, and a newer token mends it."""
    now = int(clock.now().timestamp())
    alice = held(provider.token("alice", exp=now + 1300))
    await alice.keys.begin(alice.session)
    first = await alice.key()
    assert sts.exchanges == 1
    alice.pass_time(460)
    second = set(await asyncio.gather(*(alice.key() for _ in range(10))))
    assert len(second) == 1 and first not in second
    assert sts.exchanges == 2
    alice.pass_time(460)
    third = await alice.key()
    assert third not in second and sts.exchanges == 3
    alice.pass_time(460)  # the token has expired, its last keys have not
    assert await alice.key() == third
    alice.pass_time(460)
    for _ in range(3):
        with pytest.raises(UnauthorizedException, match="new token"):
            await alice.key()
    assert sts.exchanges == 3, "what has expired is not even sent"

    alice.session.user_token = newest(alice.session.user_token, provider.token("alice"))
    assert await alice.key() != third
    assert sts.exchanges == 4


class Cut:
    def __init__(self) -> None:
        self.times = 0

    def cut(self) -> None:
        self.times += 1


async def test_no_way_out_without_keys(platform: Any, provider: Any) -> None:
    """IDN-1, IDN-2: a session whose user's token nobody has any more, as after a restart, reaches nothing outside until
    its user comes again; and what it had open ends with it. Only agents that a rule is for are told of the proxy."""
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    ref, _ = await begun(platform, runtime_id, bearer=provider.token("alice"))
    assert platform.driver.agents[-1].spec.environment["https_proxy"] == "http://169.254.170.2:80"
    egress, connection = platform.plane.egress.egress, Cut()
    await egress.admit(egress.take(ref, connection), b"api.example.com:443")

    session = platform.plane._parts.sessions.live(ref)
    session.issued_keys = session.user_token = None
    with pytest.raises(EgressRefused, match="user's token") as refused:
        await egress.admit(egress.take(ref, connection), b"api.example.com:443")
    assert refused.value.status == 403
    await platform.begin(runtime_id, ref.session_id, bearer=provider.token("alice", jti="another"))
    await egress.admit(egress.take(ref, connection), b"api.example.com:443")
    assert not connection.times
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=ref.session_id)
    assert connection.times == 1

    quiet = await platform.create("quiet", authorizerConfiguration=provider.authorizer)
    await begun(platform, quiet, bearer=provider.token("alice"))
    assert not [name for name in platform.driver.agents[-1].spec.environment if name.lower().endswith("_proxy")]


async def test_the_newest_token_is_the_one_that_lives_longest(provider: Any, clock: Any) -> None:
    now = int(clock.now().timestamp())
    long, short = provider.token("alice", exp=now + 3000), provider.token("alice", exp=now + 100)
    assert newest(long, short) == newest(short, long) == newest(None, long) == newest(long, None) == long
    assert newest(None, None) is None
    assert newest("no.token", short) == short


async def test_an_outage_takes_nothing_before_its_time(
    held: Callable[..., Held], provider: Any, sts: StsStandIn
) -> None:
    """IDN-1: sessions go on until their keys end, asking STS now and then, not at each of the agent's questions; then
    they are told to try again, and are well when STS is."""
    alice = held(provider.token("alice"))
    first = await alice.key()
    sts.fails("Throttling")
    alice.pass_time(460)
    for _ in range(20):
        assert await alice.key() == first
    assert sts.exchanges == 2
    alice.pass_time(6)
    assert await alice.key() == first and sts.exchanges == 3
    alice.pass_time(440)
    with pytest.raises(ServiceUnavailableException, match="Try again"):
        await alice.key()
    sts.failure = None
    alice.pass_time(6)
    assert await alice.key() != first


async def test_slow_sts_is_waited_for_in_the_background(
    held: Callable[..., Held], provider: Any, sts: StsStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IDN-1: SDKs give the endpoint two seconds; keys that are good are handed out within them."""
    monkeypatch.setattr(session_keys, "PATIENCE", 0.05)
    alice = held(provider.token("alice"))
    first = await alice.key()
    sts.delay = 0.4
    alice.pass_time(460)
    assert {*await asyncio.gather(*(alice.key() for _ in range(3)))} == {first}
    async with asyncio.timeout(10):
        while await alice.key() == first:
            await asyncio.sleep(0.02)
    assert sts.exchanges == 2


async def test_what_an_agents_sdk_sees(platform: Any, provider: Any, sts: StsStandIn) -> None:
    """IDN-1: errors with which SDKs ask again, or say why not; and the newest token that came with an invocation."""
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    ref, _ = await begun(platform, runtime_id, bearer=provider.token("alice"))
    session = platform.plane._parts.sessions.live(ref)
    for code, status in (("Throttling", 503), ("ExpiredTokenException", 401), ("AccessDenied", 403)):
        session.issued_keys = session.keys_refused = None
        sts.fails(code)
        found, document = await ask(platform, ref)
        assert found == status and set(document) == {"code", "message"}
    sts.failure = None
    newer = provider.token("alice", exp=int(platform.clock.now().timestamp()) + 7200)
    for bearer in (newer, provider.token("alice")):
        await platform.begin(runtime_id, ref.session_id, bearer=bearer)
    assert (await ask(platform, ref))[0] == 200
    assert sts.requests[-1].form["WebIdentityToken"] == newer
    with pytest.raises(AccessDeniedException):
        await platform.begin(runtime_id, ref.session_id, bearer=provider.token("bob"))


async def test_keys_that_cross_the_sessions_end(platform: Any, provider: Any, sts: StsStandIn) -> None:
    """IDN-4: what STS is giving as the session ends is given to nobody, and opens nothing here."""
    runtime_id = await platform.create(authorizerConfiguration=provider.authorizer)
    ref, _ = await begun(platform, runtime_id, bearer=provider.token("alice"))
    sts.delay = 0.3
    platform.plane._parts.sessions.live(ref).issued_keys = None
    asking = asyncio.create_task(ask(platform, ref))
    while sts.exchanges < 2:
        await asyncio.sleep(0.01)
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=ref.session_id)
    assert (await asking)[0] == 403
    await asyncio.sleep(0.4)
    for key_id in sts.given:
        assert await platform.identity.keys.find(key_id) is None


async def test_an_agent_that_needs_no_aws(platform: Any, provider: Any, sts: StsStandIn) -> None:
    """A rule may leave an agent without AWS: it is invoked, and gets keys, as where there are no rules."""
    runtime_id = await platform.create("quiet")
    ref, _ = await begun(platform, runtime_id, user_id="alice")
    status, document = await ask(platform, ref)
    assert status == 200 and document["RoleArn"] == "arn:aws:iam::123456789012:role/agents"
    assert sts.requests == []
