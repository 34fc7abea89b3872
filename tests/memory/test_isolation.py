"""MEM-2, MEM-5: one user's memory cannot be read, listed or changed on behalf of another, by any operation."""

import ast
import base64
import logging
import secrets
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import agentkeep.memory
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, CallerKind, allowed_callers
from agentkeep.core.errors import AccessDeniedException, ResourceNotFoundException, ServiceError, ValidationException
from agentkeep.memory.long_term.operations import RecordOperations
from agentkeep.memory.operations import MemoryOperations
from agentkeep.memory.partition import ActorPartition, RecordScope, authorize, authorize_records
from agentkeep.memory.short_term.operations import EventOperations

from .conftest import NOBODY, OPERATOR, Client, session_of


async def attempts(as_caller: Client, memory: str, actor: str, event: str) -> list[Any]:
    """Every data operation, naming `actor`."""
    where = {"memoryId": memory, "actorId": actor, "sessionId": "s"}
    return [
        as_caller.event(memory, actor, "s"),
        as_caller.get_event(**where, eventId=event),
        as_caller.delete_event(**where, eventId=event),
        as_caller.list_events(**where),
        as_caller.list_sessions(memoryId=memory, actorId=actor),
    ]


async def test_a_session_may_name_its_own_user_only(
    backend: SelfBackend, operator: Client, memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    alice, mallory = Client(backend, session_of("alice")), Client(backend, session_of("mallory"))
    event = await alice.event(memory, "alice", "s", "the secret word")
    assert await alice.texts(memory, "alice", "s") == ["the secret word"]
    for name in ("alice", "alice/", "ALICE", "a", "mallory/alice", "mallory/../alice", "alice:s"):
        for attempt in await attempts(mallory, memory, name, event):
            caplog.clear()
            with caplog.at_level(logging.WARNING), pytest.raises(AccessDeniedException):
                await attempt
            (record,) = [r for r in caplog.records if r.name == "agentkeep.memory.partition"]
            assert "cross-user access refused" in record.getMessage()
            assert "mallory" in record.getMessage()
            assert "secret" not in record.getMessage()
    assert await alice.texts(memory, "alice", "s") == ["the secret word"]
    assert await operator.texts(memory, "alice", "s") == ["the secret word"]  # operators act as anyone


async def test_strands_legacy_actors_belong_to_nobody(backend: SelfBackend, memory: str) -> None:
    """Strands once kept state under the actors session_<id> and agent_<id>; a session's user is neither."""
    alice = Client(backend, session_of("alice"))
    for name in ("session_s", "agent_default"):
        for attempt in await attempts(alice, memory, name, "0000001777863721234#ab"):
            with pytest.raises(AccessDeniedException):
                await attempt


async def test_a_session_without_a_user_has_no_memory(backend: SelfBackend, memory: str) -> None:
    """IDN-2: no user, no data."""
    nobody = Client(backend, NOBODY)
    for attempt in [
        *await attempts(nobody, memory, "alice", "0000001777863721234#ab"),
        nobody.list_actors(memoryId=memory),
    ]:
        with pytest.raises(AccessDeniedException, match="this session has no user"):
            await attempt


async def test_a_session_sees_itself_among_actors_only(backend: SelfBackend, operator: Client, memory: str) -> None:
    alice, bob = Client(backend, session_of("alice")), Client(backend, session_of("bob"))
    await alice.event(memory, "alice", "s")
    assert await alice.list_actors(memoryId=memory) == {"actorSummaries": [{"actorId": "alice"}]}
    assert await bob.list_actors(memoryId=memory) == {"actorSummaries": []}
    assert await operator.list_actors(memoryId=memory) == {"actorSummaries": [{"actorId": "alice"}]}
    with pytest.raises(ResourceNotFoundException):
        await bob.list_actors(memoryId="none-0123456789")


async def test_a_token_leads_nowhere_else(backend: SelfBackend, memory: str) -> None:
    """A page token of another user's listing, of another of one's own, or of nobody's making is refused."""
    alice, bob = Client(backend, session_of("alice")), Client(backend, session_of("bob"))
    for number in range(5):
        await alice.event(memory, "alice", "s", f"alice {number}", number)
        await bob.event(memory, "bob", "s", f"bob {number}", number)
    page = await alice.list_events(memoryId=memory, actorId="alice", sessionId="s", maxResults=2)
    for token in (page["nextToken"], base64.urlsafe_b64encode(b"../alice/s\xc3\xa9[(").decode()):
        with pytest.raises(ValidationException, match="nextToken"):
            await bob.list_events(memoryId=memory, actorId="bob", sessionId="s", nextToken=token)
    bobs = await bob.list_events(memoryId=memory, actorId="bob", sessionId="s", maxResults=2)
    for other in ({"sessionId": "t"}, {"sessionId": "s", "filter": {"branch": {"name": "b"}}}):
        with pytest.raises(ValidationException, match="nextToken"):
            await bob.list_events(memoryId=memory, actorId="bob", **other, nextToken=bobs["nextToken"])
    with pytest.raises(ValidationException, match="nextToken"):
        await bob.list_sessions(memoryId=memory, actorId="bob", nextToken=bobs["nextToken"])
    more = await bob.list_events(memoryId=memory, actorId="bob", sessionId="s", nextToken=bobs["nextToken"])
    assert [event["payload"][0]["blob"] for event in more["events"]] == ["bob 2", "bob 1", "bob 0"]


def test_only_data_operations_are_open_to_sessions() -> None:
    methods = {
        name: method
        for one in (MemoryOperations, EventOperations, RecordOperations)
        for name, method in vars(one).items()
        if not name.startswith("_") and callable(method)
    }
    opened = {name for name, method in methods.items() if len(allowed_callers(method)) > 1}
    assert opened == {
        *("create_event", "get_event", "list_events", "delete_event", "list_sessions", "list_actors"),
        *("batch_create_memory_records", "batch_update_memory_records", "batch_delete_memory_records"),
        *("get_memory_record", "delete_memory_record", "list_memory_records", "retrieve_memory_records"),
    }
    for name in opened:
        assert allowed_callers(methods[name]) == {CallerKind.OPERATOR, CallerKind.SESSION}


#: Those that are no actor's.
PLATFORMS_PARTITIONS = {
    *("memories", "names", "live", "issuers", "erasing", "erasures", "erasure-leases"),
    *("compactions", "compaction-plans", "compaction-leases", "compacting", "compacted", "keys"),
    *("session-ends", "heeding-session-ends", "due", "held", "extraction-leases"),
}


def test_there_is_no_way_round_the_gate() -> None:
    """Actors' partitions are named in one module, and made for callers by one function."""
    for gated in (ActorPartition, RecordScope):
        with pytest.raises(TypeError):
            gated("m", "a", object())
    (folder,) = agentkeep.memory.__path__
    for file in Path(folder).rglob("*.py"):
        if file.name == "partition.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                literals = {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
                if node.func.id == "partition":
                    assert literals <= {"memory", *PLATFORMS_PARTITIONS}, file
                assert node.func.id not in ("ActorPartition", "RecordScope", "Beneath"), file
            if isinstance(node, ast.Attribute) and node.attr == "of_platform":
                assert file.parent.name in ("lifecycle", "extraction") or file.name == "actor_records.py", file
    call = Call("bedrock-agentcore", "GetEvent", OPERATOR, "r")
    assert authorize(call, "m", "a/b").events("c") != authorize(call, "m", "a").events("b/c")
    alices = authorize_records(Call("bedrock-agentcore", "GetMemoryRecord", session_of("alice"), "r"), "m")
    assert isinstance(alices.readable, str)
    for owner in ("bob", "alice/", None):
        with pytest.raises(ValueError):
            alices.home(owner)


ACTORS = ["alice", "bob", "alice/bob", "alice:bob", "a", "b"]
SESSIONS = ["s", "t", "alice", "bob"]
STEP = st.tuples(
    st.sampled_from(["create", "fork", "get", "delete", "list", "filter", "branch", "sessions", "actors", "token"]),
    st.sampled_from(["alice", "bob"]),
    st.sampled_from(ACTORS),
    st.sampled_from(SESSIONS),
    st.integers(0, 30),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEP, max_size=40))
async def test_two_users_never_see_each_other(backend: SelfBackend, operator: Client, steps: list[Any]) -> None:
    """Random operations by two users on shared session ids, with each other's event ids and tokens: whatever is
    answered to one was written by that one."""
    memory = (await operator.create_memory(name="m" + secrets.token_hex(8), eventExpiryDuration=7))["memory"]["id"]
    clients = {name: Client(backend, session_of(name)) for name in ("alice", "bob")}
    events: list[tuple[str, str, str]] = []  # of both: user, session, event id
    tokens: list[str] = []

    def check(user: str, answer: Any) -> None:
        other = "bob" if user == "alice" else "alice"
        for event in answer.get("events", [answer["event"]] if "event" in answer else []):
            assert event["actorId"] == user
            assert event["payload"][0]["blob"] == f"of {user}"
            assert event.get("metadata", {}).get("owner", {}).get("stringValue") == user
        assert f"of {other}" not in repr(answer)
        for summary in [*answer.get("sessionSummaries", []), *answer.get("actorSummaries", [])]:
            assert summary["actorId"] == user

    async def take(kind: str, user: str, actor: str, session: str, number: int) -> Any:
        """One step; its answer, where it reads."""
        client = clients[user]
        where = {"memoryId": memory, "actorId": actor, "sessionId": session}
        owner, strangers, event = events[number % len(events)] if events else ("", "s", "0000001777863721234#ab")
        owned = {"metadata": {"owner": {"stringValue": user}}}
        match kind:
            case "create":
                created = await client.event(memory, actor, session, f"of {user}", number, **owned)
                events.append((user, session, created))
            case "fork":
                fork = {"branch": {"name": "fork", "rootEventId": event}, **owned}
                await client.event(memory, actor, strangers, f"of {user}", number, **fork)
                assert owner == user  # else it forked from an event it cannot see
            case "get":
                return await client.get_event(memoryId=memory, actorId=actor, sessionId=strangers, eventId=event)
            case "delete":
                await client.delete_event(memoryId=memory, actorId=actor, sessionId=strangers, eventId=event)
                assert owner == user
            case "list":
                answer = await client.list_events(**where, maxResults=1 + number % 3)
                tokens.extend([answer["nextToken"]] if "nextToken" in answer else [])
                return answer
            case "filter":
                test = {"left": {"metadataKey": "owner"}, "operator": "EXISTS"}
                return await client.list_events(**where, filter={"eventMetadata": [test]})
            case "branch":
                fork = {"branch": {"name": "fork", "includeParentBranches": True}}
                return await client.list_events(**where, filter=fork)
            case "sessions":
                return await client.list_sessions(memoryId=memory, actorId=actor)
            case "actors":
                return await client.list_actors(memoryId=memory)
            case "token" if tokens:
                return await client.list_events(**where, nextToken=tokens[number % len(tokens)])
        return {}

    for kind, user, actor, session, number in steps:
        refused: ServiceError | None = None
        answer: dict[str, Any] = {}
        try:
            answer = await take(kind, user, actor, session, number)
        except ServiceError as error:
            refused = error
        if refused is not None:
            assert kind in ("get", "delete", "fork", "token") or actor != user
            assert "of alice" not in refused.message
            assert "of bob" not in refused.message
        else:
            assert actor == user or kind in ("actors", "token")
        check(user, answer or {})
