"""Sessions: one environment each, bound to a user, ended by time, crash or command, never half-owned."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    EnvironmentStartFailed,
    ResourceNotFoundException,
    RetryableConflictException,
    RuntimeClientError,
    ServiceQuotaExceededException,
    ValidationException,
)
from agentkeep.runtime.environments.exchange import request as exchange
from agentkeep.runtime.records import EndReason, SessionState
from agentkeep.runtime.replicas.table import Replicas
from agentkeep.runtime.sessions.table import SessionTable


async def _until(condition: Any, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def _id() -> str:
    return str(uuid.uuid4())


async def _say(turn: Any, text: bytes = b'"hello"') -> Any:
    """One exchange over a turn, as the pump would have it."""
    connection = await turn.connect()
    async with exchange(connection, "POST", turn.path, turn.headers, text) as answer:
        return answer.status, await answer.read(1 << 20)


def _session(platform: Any, runtime_id: str, session_id: str) -> Any:
    return platform.plane._parts.sessions.live(SessionRef(runtime_id, session_id))


async def _record(platform: Any, runtime_id: str, session_id: str) -> Any:
    return (await platform.plane._parts.table.find(SessionRef(runtime_id, session_id))).record


async def test_fifty_first_calls_make_one_environment(platform: Any) -> None:
    """EXE-1. Exactly one creator, whatever comes at once."""
    runtime_id, session_id = await platform.create(), _id()
    turns = await asyncio.gather(*(platform.begin(runtime_id, session_id) for _ in range(50)))
    assert len(platform.driver.agents) == 1
    assert {turn.environment_id for turn in turns} == {platform.driver.agents[0].id}
    assert _session(platform, runtime_id, session_id).turns == 50
    for turn in turns:
        turn.end()
        turn.end()  # twice does no harm
    assert _session(platform, runtime_id, session_id).turns == 0


async def test_fifty_sessions_at_once_have_an_environment_each(platform: Any) -> None:
    runtime_id = await platform.create()
    turns = await asyncio.gather(*(platform.begin(runtime_id, _id()) for _ in range(50)))
    assert len({turn.environment_id for turn in turns}) == 50
    assert len(platform.driver.prepared) == 1  # of the version, not of each session


async def test_the_second_turn_waits_for_nothing(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    first = await platform.begin(runtime_id, session_id)
    second = platform.plane.invocations.begin_now(platform.request(runtime_id, session_id))
    assert second is not None
    assert second.environment_id == first.environment_id
    status, body = await _say(second)
    assert status == 200
    assert session_id.encode() in body


async def test_a_session_id_is_minted_where_none_is_given(platform: Any) -> None:
    turn = await platform.begin(await platform.create())
    assert len(turn.session_id) == 36


@pytest.mark.parametrize("session_id", ["short", "x" * 257, "with space" * 5, "line\nbreak" * 5, "ü" * 40])
async def test_bad_session_ids(platform: Any, session_id: str) -> None:
    runtime_id = await platform.create()
    with pytest.raises(ValidationException, match="runtimeSessionId"):
        await platform.begin(runtime_id, session_id)
    assert platform.driver.agents == []


async def test_session_ids_are_per_runtime(platform: Any) -> None:
    one, other, session_id = await platform.create("one"), await platform.create("other"), _id()
    await platform.begin(one, session_id, user_id="alice")
    await platform.begin(other, session_id, user_id="bob")
    assert len(platform.driver.agents) == 2


async def test_runtimes_by_arn_id_account_and_qualifier(platform: Any) -> None:
    runtime_id = await platform.create()
    arn = f"arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/{runtime_id}"
    for name in (runtime_id, arn):
        (await platform.begin(name, _id())).end()
    request = platform.request(runtime_id, _id())
    (await platform.plane.invocations.begin(replace(request, account_id="123456789012"))).end()
    for wrong in (
        replace(request, account_id="999999999999"),
        replace(request, runtime=arn.replace("us-west-2", "eu-west-1")),
        replace(request, runtime=arn.replace(":runtime/", ":memory/")),
        replace(request, runtime="nothing-0000000000"),
        replace(request, qualifier="nothing"),
    ):
        with pytest.raises(ResourceNotFoundException):
            await platform.plane.invocations.begin(wrong)


async def test_running_sessions_keep_their_version(platform: Any) -> None:
    """EXE-4."""
    runtime_id, old, new = await platform.create(environmentVariables={"V": "1"}), _id(), _id()
    (await platform.begin(runtime_id, old)).end()
    await platform.call(
        "update_agent_runtime", agentRuntimeId=runtime_id, **platform.definition(environmentVariables={"V": "2"})
    )
    await platform.ready(runtime_id)
    (await platform.begin(runtime_id, old)).end()
    (await platform.begin(runtime_id, new)).end()
    assert [agent.spec.environment["V"] for agent in platform.driver.agents] == ["1", "2"]


# Users.


async def test_a_session_belongs_to_the_user_who_opened_it(platform: Any) -> None:
    """IDN-2, MEM-2. Not another user, not one who names nobody; alive or ended; warm or cold path."""
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    for other in ("bob", None):
        with pytest.raises(AccessDeniedException, match="another user"):
            await platform.plane.invocations.begin(platform.request(runtime_id, session_id, user_id=other))
        with pytest.raises(AccessDeniedException, match="another user"):
            platform.plane.invocations.begin_now(platform.request(runtime_id, session_id, user_id=other))
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    with pytest.raises(AccessDeniedException, match="another user"):
        await platform.begin(runtime_id, session_id, user_id="bob")
    (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    assert len(platform.driver.agents) == 2


async def test_two_users_race_for_one_session_id(platform: Any) -> None:
    """Whoever is first has it; all calls of the other are refused, and none sees the other's environment."""
    runtime_id, session_id = await platform.create(), _id()
    users = ["alice", "bob"] * 10
    results = await asyncio.gather(
        *(platform.begin(runtime_id, session_id, user_id=user) for user in users), return_exceptions=True
    )
    winners = {user for user, result in zip(users, results, strict=True) if not isinstance(result, Exception)}
    assert len(winners) == 1
    refused = [result for result in results if isinstance(result, Exception)]
    assert len(refused) == 10
    assert all(isinstance(error, AccessDeniedException) for error in refused)
    assert len(platform.driver.agents) == 1


async def test_an_intruder_does_not_lock_out_the_owner(platform: Any) -> None:
    """A stopped session of alice's: bob's attempt to take it fails, alice's at the same moment does not."""
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    bob, alice = await asyncio.gather(
        platform.begin(runtime_id, session_id, user_id="bob"),
        platform.begin(runtime_id, session_id, user_id="alice"),
        return_exceptions=True,
    )
    assert isinstance(bob, AccessDeniedException)
    assert not isinstance(alice, Exception)


# The end.


async def test_stop_leaves_nothing_and_the_id_may_be_used_again(platform: Any) -> None:
    """EXE-3."""
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id)).end()
    stop = {"agentRuntimeArn": runtime_id, "runtimeSessionId": session_id}
    answer = await platform.call("stop_runtime_session", token="t" * 36, **stop)
    assert answer == {"runtimeSessionId": session_id, "statusCode": 200}
    assert platform.driver.living == []
    assert _session(platform, runtime_id, session_id) is None
    assert (await _record(platform, runtime_id, session_id)).end_reason is EndReason.STOPPED
    assert (await platform.call("stop_runtime_session", token="t" * 36, **stop)) == answer
    with pytest.raises(ResourceNotFoundException):
        await platform.call("stop_runtime_session", token="u" * 36, **stop)
    with pytest.raises(ResourceNotFoundException):
        await platform.call("stop_runtime_session", **(stop | {"runtimeSessionId": _id()}))
    (await platform.begin(runtime_id, session_id)).end()
    assert (await _record(platform, runtime_id, session_id)).fence == 2


async def test_stops_at_once_all_succeed(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id)).end()
    stop = {"agentRuntimeArn": runtime_id, "runtimeSessionId": session_id}
    tokens = ["t" * 36, "u" * 36, "v" * 36]
    await asyncio.gather(*(platform.call("stop_runtime_session", token=token, **stop) for token in tokens))
    for token in tokens:
        await platform.call("stop_runtime_session", token=token, **stop)
    assert len(platform.driver.agents[0].stops) == 1


async def test_stop_ends_running_streams_at_once(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()

    async def answer(agent: Any, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await asyncio.sleep(30)
        return response

    platform.driver.behaviour.answer = answer
    turn = await platform.begin(runtime_id, session_id)
    connection = await turn.connect()
    async with exchange(connection, "POST", turn.path, turn.headers, b"{}") as response:
        pieces = aiter(response)
        assert await anext(pieces) == b"first"
        stopping = asyncio.create_task(
            platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
        )
        async with asyncio.timeout(1):
            with pytest.raises(Exception, match="cut short"):
                await anext(pieces)
        await stopping
    turn.end()


async def test_stop_during_start(platform: Any) -> None:
    """The one who waits is told; what the driver had begun is ended; the id may be used again."""
    runtime_id, session_id = await platform.create(), _id()
    started = asyncio.Event()

    async def start(spec: Any) -> None:
        started.set()
        await asyncio.sleep(0.1)

    platform.driver.behaviour.start = start
    waiting = asyncio.create_task(platform.begin(runtime_id, session_id))
    await started.wait()
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    with pytest.raises(RuntimeClientError, match="stopped while"):
        await waiting
    assert platform.driver.living == []
    platform.driver.behaviour.start = None
    (await platform.begin(runtime_id, session_id)).end()


async def test_the_first_caller_may_leave(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    gate = asyncio.Event()

    async def start(spec: Any) -> None:
        await gate.wait()

    platform.driver.behaviour.start = start
    first = asyncio.create_task(platform.begin(runtime_id, session_id))
    await _until(lambda: platform.driver.agents)
    second = asyncio.create_task(platform.begin(runtime_id, session_id))
    first.cancel()
    await asyncio.sleep(0.01)
    gate.set()
    turn = await second
    assert _session(platform, runtime_id, session_id).turns == 1
    turn.end()
    assert len(platform.driver.agents) == 1


async def test_a_crash_ends_the_session_and_the_next_call_begins_anew(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id)).end()
    await platform.driver.agents[0].crash("killed: out of memory")
    await _until(lambda: _session(platform, runtime_id, session_id) is None)
    assert (await _record(platform, runtime_id, session_id)).end_reason is EndReason.CRASHED
    (await platform.begin(runtime_id, session_id)).end()
    assert len(platform.driver.living) == 1
    log = await platform.plane._parts.logs.read(SessionRef(runtime_id, session_id))
    assert b"out of memory" in log


async def test_a_start_that_fails_is_the_agents_failure(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()

    async def start(spec: Any) -> None:
        spec.log(b"Traceback: ImportError\n")
        raise EnvironmentStartFailed("exit code 1")

    platform.driver.behaviour.start = start
    results = await asyncio.gather(*(platform.begin(runtime_id, session_id) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, RuntimeClientError) for result in results)
    assert f"agentkeep logs {session_id}" in results[0].message
    await _until(lambda: _session(platform, runtime_id, session_id) is None)
    log = await platform.plane._parts.logs.read(SessionRef(runtime_id, session_id))
    assert b"ImportError" in log
    assert b"did not start" in log
    platform.driver.behaviour.start = None
    (await platform.begin(runtime_id, session_id)).end()


async def test_an_agent_that_never_answers_fails_in_time(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    platform.settings.start_timeout = 0.2
    platform.driver.behaviour.ping_status = 503
    with pytest.raises(RuntimeClientError, match=r"did not answer within 0\.2 seconds"):
        await platform.begin(runtime_id, session_id)
    await _until(lambda: not platform.driver.living)


async def test_an_agent_that_dies_while_starting_is_noticed_at_once(platform: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    platform.driver.behaviour.listen = asyncio.Event().wait
    waiting = asyncio.create_task(platform.begin(runtime_id, session_id))
    await _until(lambda: platform.driver.agents)
    await platform.driver.agents[0].crash("exit code 70")
    async with asyncio.timeout(1):
        with pytest.raises(RuntimeClientError, match="exit code 70"):
            await waiting


async def test_mcp_agents_need_no_ping(platform: Any) -> None:
    runtime_id = await platform.create(protocolConfiguration={"serverProtocol": "MCP"})
    platform.driver.behaviour.ping_status = 404
    turn = await platform.begin(runtime_id, _id(), headers={"accept": "application/json, text/event-stream"})
    assert turn.path == "/mcp"
    assert platform.driver.agents[0].spec.version.port == 8000


async def test_the_number_of_sessions_is_limited(platform: Any) -> None:
    runtime_id = await platform.create()
    platform.settings.max_sessions = 2
    first, second = _id(), _id()
    await platform.begin(runtime_id, first)
    await platform.begin(runtime_id, second)
    with pytest.raises(ServiceQuotaExceededException):
        await platform.begin(runtime_id, _id())
    (await platform.begin(runtime_id, first)).end()
    await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=second)
    await platform.begin(runtime_id, _id())


# Time.


async def test_idle_sessions_end(platform: Any, clock: Any) -> None:
    """EXE-3, EXE-8. Counted from the end of the last turn."""
    runtime_id, session_id = await platform.create(lifecycleConfiguration={"idleRuntimeSessionTimeout": 60}), _id()
    turn = await platform.begin(runtime_id, session_id)
    await clock.move(100)
    assert _session(platform, runtime_id, session_id).state is SessionState.READY  # it has a turn
    turn.end()
    await clock.move(50)
    (await platform.begin(runtime_id, session_id)).end()
    await clock.move(50)
    assert _session(platform, runtime_id, session_id).state is SessionState.READY
    await clock.move(15)
    await _until(lambda: _session(platform, runtime_id, session_id) is None)
    assert (await _record(platform, runtime_id, session_id)).end_reason is EndReason.IDLE
    assert platform.driver.living == []


async def test_the_lifetime_is_not_reset_by_calls(platform: Any, clock: Any) -> None:
    runtime_id = await platform.create(lifecycleConfiguration={"maxLifetime": 120})
    session_id = _id()
    turn = await platform.begin(runtime_id, session_id)
    await clock.move(60)
    (await platform.begin(runtime_id, session_id)).end()
    await clock.move(65)
    await _until(lambda: _session(platform, runtime_id, session_id) is None)
    assert (await _record(platform, runtime_id, session_id)).end_reason is EndReason.LIFETIME
    turn.end()
    (await platform.begin(runtime_id, session_id)).end()
    assert len(platform.driver.agents) == 2


async def test_busy_agents_are_kept(platform: Any, clock: Any) -> None:
    """HealthyBusy keeps a session without a turn; idleness counts from when it was last busy."""
    runtime_id, session_id = await platform.create(lifecycleConfiguration={"idleRuntimeSessionTimeout": 60}), _id()
    (await platform.begin(runtime_id, session_id)).end()
    agent = platform.driver.agents[0]
    agent.behaviour.status = "HealthyBusy"
    await clock.move(300)
    assert _session(platform, runtime_id, session_id) is not None
    agent.behaviour.status = "Healthy"
    await clock.move(35)
    assert _session(platform, runtime_id, session_id) is not None
    await clock.move(65)
    await _until(lambda: _session(platform, runtime_id, session_id) is None)


async def test_work_between_two_pings_counts(platform: Any, clock: Any) -> None:
    """time_of_last_update says when the agent became healthy, though no ping saw it busy."""
    runtime_id, session_id = await platform.create(lifecycleConfiguration={"idleRuntimeSessionTimeout": 60}), _id()
    (await platform.begin(runtime_id, session_id)).end()
    became_healthy = clock.now().timestamp() + 50
    platform.driver.agents[0].behaviour.changed = lambda: min(became_healthy, clock.now().timestamp())
    await clock.move(90)
    assert _session(platform, runtime_id, session_id) is not None
    await clock.move(30)
    await _until(lambda: _session(platform, runtime_id, session_id) is None)


async def test_a_clock_that_always_advances_does_not_keep_a_session(platform: Any, clock: Any) -> None:
    """The documented trap: an agent that reports a new time_of_last_update at each ping would never be idle."""
    runtime_id, session_id = await platform.create(lifecycleConfiguration={"idleRuntimeSessionTimeout": 60}), _id()
    (await platform.begin(runtime_id, session_id)).end()
    platform.driver.agents[0].behaviour.changed = lambda: clock.now().timestamp()
    await clock.move(140)
    await _until(lambda: _session(platform, runtime_id, session_id) is None)


async def test_pings_are_rare(platform: Any, clock: Any) -> None:
    runtime_id = await platform.create()
    (await platform.begin(runtime_id, _id())).end()
    before = platform.driver.agents[0].pings
    await clock.move(240)
    assert 4 <= platform.driver.agents[0].pings - before <= 9


async def test_agents_that_stop_answering_are_ended(platform: Any, clock: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    turn = await platform.begin(runtime_id, session_id)
    platform.driver.agents[0].behaviour.ping_status = 500
    await clock.move(300)
    assert _session(platform, runtime_id, session_id) is not None  # at work: not asked
    turn.end()
    await clock.move(40)  # asked at once, and again after half a minute
    assert _session(platform, runtime_id, session_id) is not None
    await clock.move(60)
    await _until(lambda: _session(platform, runtime_id, session_id) is None)
    assert (await _record(platform, runtime_id, session_id)).end_reason is EndReason.UNHEALTHY


# The platform's own life.


async def test_after_a_crash_of_the_platform_nothing_is_half_owned(platform: Any) -> None:
    """EXE-6. Killed with sessions in every state: after the restart each is ended, its keys are dead, its id free."""
    runtime_id, ready, starting = await platform.create(), _id(), _id()
    (await platform.begin(runtime_id, ready, user_id="alice")).end()
    keys = await platform.identity.keys.issue_for_session(SessionRef(runtime_id, ready), User("alice"))
    assert await platform.identity.keys.find(keys.access_key_id) is not None
    platform.driver.behaviour.listen = asyncio.Event().wait
    waiting = asyncio.create_task(platform.begin(runtime_id, starting, user_id="alice"))
    await _until(lambda: len(platform.driver.agents) == 2)
    await platform.restart()
    with pytest.raises(RuntimeClientError):
        await waiting
    platform.driver.behaviour.listen = None
    for session_id in (ready, starting):
        record = await _record(platform, runtime_id, session_id)
        assert record.state is SessionState.STOPPED
        assert record.end_reason is EndReason.PLATFORM_RESTARTED
        with pytest.raises(AccessDeniedException):
            await platform.begin(runtime_id, session_id, user_id="bob")
        (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    assert await platform.identity.keys.find(keys.access_key_id) is None


async def test_environments_that_outlive_the_platform_are_adopted(platform: Any, clock: Any) -> None:
    runtime_id, session_id = await platform.create(lifecycleConfiguration={"maxLifetime": 100}), _id()
    (await platform.begin(runtime_id, session_id, user_id="alice")).end()
    unknown = _id()
    (await platform.begin(runtime_id, unknown)).end()
    kept, forgotten = platform.driver.agents
    platform.driver.survivors = [kept, forgotten]
    table = platform.plane._parts.table
    await table.stopped((await table.find(SessionRef(runtime_id, unknown))).record, EndReason.STOPPED)
    await clock.move(60)
    await platform.restart()
    assert forgotten.is_gone  # nobody's
    turn = await platform.begin(runtime_id, session_id, user_id="alice")
    assert turn.environment_id == kept.id
    assert len(kept.resumed) == 1  # its session endpoint was given back
    assert (await _say(turn))[0] == 200
    turn.end()
    await clock.move(50)  # its age goes on
    await _until(lambda: _session(platform, runtime_id, session_id) is None)


async def test_another_replica_neither_steals_nor_waits_for_ever(platform: Any, clock: Any, store: Any) -> None:
    """A living replica's session is its own; a dead one's may be taken, and the fence number says so."""
    runtime_id, session_id = await platform.create(), _id()
    ref = SessionRef(runtime_id, session_id)
    other = SessionTable(store, clock, Replicas(store, clock, "replica-other", lease=30), retention=3600)
    await other.replicas.register()
    theirs = await other.ready((await other.claim(ref, None, 1, "DEFAULT"))[0], "there")
    with pytest.raises(RetryableConflictException, match="please retry"):
        await platform.begin(runtime_id, session_id)
    with pytest.raises(RetryableConflictException):
        await platform.call("stop_runtime_session", agentRuntimeArn=runtime_id, runtimeSessionId=session_id)
    await other.replicas.retire()
    await asyncio.sleep(0.01)
    (await platform.begin(runtime_id, session_id)).end()
    ours = await _record(platform, runtime_id, session_id)
    assert (ours.fence, ours.owner) == (theirs.fence + 1, platform.plane._parts.table.replica)
    await other.stopped(theirs, EndReason.IDLE)  # comes back, too late
    assert (await _record(platform, runtime_id, session_id)) == ours


async def test_sessions_of_a_dead_replica_are_ended(platform: Any, clock: Any, store: Any) -> None:
    """EXE-6. By whoever notices, with their keys."""
    runtime_id, session_id = await platform.create(), _id()
    ref = SessionRef(runtime_id, session_id)
    other = SessionTable(store, clock, Replicas(store, clock, "replica-other", lease=30), retention=3600)
    await other.replicas.register()
    await other.claim(ref, None, 1, "DEFAULT")
    keys = await platform.identity.keys.issue_for_session(ref, None)
    assert (await _record(platform, runtime_id, session_id)).state is SessionState.PROVISIONING
    for _ in range(8):  # it beats no more, and for a whole lease nobody says anything
        await clock.move(1.6)
        await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        while (await _record(platform, runtime_id, session_id)).state is not SessionState.STOPPED:
            await asyncio.sleep(0.01)
    assert await platform.identity.keys.find(keys.access_key_id) is None
    assert [record async for record in platform.plane._parts.table.live()] == []


async def test_a_session_taken_by_another_replica_is_ended_here(platform: Any, clock: Any, store: Any) -> None:
    runtime_id, session_id = await platform.create(), _id()
    (await platform.begin(runtime_id, session_id)).end()
    other = Replicas(store, clock, "replica-other", lease=8)
    await other.register()
    table = SessionTable(store, clock, other, retention=3600)
    own = platform.plane._parts.replicas
    assert await other.observe() == []
    await platform.plane._parts.heartbeat.stop()  # a long silence
    await clock.move(9)
    assert await other.observe() == [own.name]
    await table.stopped(await _record(platform, runtime_id, session_id), EndReason.REPLICA_LOST)
    await other.forget(own.name)
    await table.claim(SessionRef(runtime_id, session_id), None, 1, "DEFAULT")
    await own.keep()
    await _until(lambda: _session(platform, runtime_id, session_id) is None)
    assert (await _record(platform, runtime_id, session_id)).owner == "replica-other"


async def test_closing_ends_every_session(platform: Any) -> None:
    runtime_id = await platform.create()
    ids = [_id() for _ in range(5)]
    await asyncio.gather(*(platform.begin(runtime_id, session_id) for session_id in ids))
    await platform.plane.stop()
    assert platform.driver.living == []
    for session_id in ids:
        assert (await _record(platform, runtime_id, session_id)).end_reason is EndReason.PLATFORM_STOPPED
