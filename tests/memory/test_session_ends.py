"""MEM-3, MEM-4: what is done with a session's memory when the session has ended."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import SessionRef, User
from agentkeep.core.errors import ValidationException
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import EndedSession
from agentkeep.memory.lifecycle.session_ends import SessionEnds
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import Clear, KeyValueStore, Once, Write
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.session_lives import SessionLives

from .conftest import KEY_SERVICE, Client, SetClock, session_of

UNTIL_END = {"agentkeep:events": "until-session-end", "agentkeep:issuers": "https://issuer.example"}


@pytest.fixture
async def plane(store: KeyValueStore, search: SqliteSearchStore, clock: SetClock) -> AsyncIterator[MemoryPlane]:
    plane = MemoryPlane(store, Deployment("eu-west-1", "123456789012"), clock, search, key_service=KEY_SERVICE)
    yield plane
    await plane.close()


@pytest.fixture
def backend(plane: MemoryPlane) -> SelfBackend:
    return SelfBackend(plane.operations)


class Runtime:
    """Begins and ends sessions as the runtime plane does in the session table, and tells memory."""

    def __init__(self, store: KeyValueStore, clock: SetClock, ends: SessionEnds) -> None:
        self.store = store
        self._clock = clock
        self._ends = ends
        self._fence = 0
        self.issuer: str | None = "https://issuer.example"  # of `session_of`'s users

    async def begin(self, user: str, session: str, agent: str = "agent") -> None:
        now = int(self._clock.now().timestamp() * 1000)
        await self.store.transact(SessionLives.begin(SessionRef(agent, session), user, now))

    async def end(self, user: str, session: str, agent: str = "agent") -> EndedSession:
        await self.store.transact([SessionLives.end(SessionRef(agent, session), user)])
        self._fence += 1
        ended = EndedSession(SessionRef(agent, session), User(user, self.issuer), self._fence, self._clock.now())
        await self._ends.session_ended(ended)
        return ended


@pytest.fixture
def runtime(store: KeyValueStore, clock: SetClock, plane: MemoryPlane) -> Runtime:
    return Runtime(store, clock, plane.session_ends)


async def _create(operator: Client, name: str, tags: dict[str, str] | None = None) -> str:
    answer = await operator.create_memory(name=name, eventExpiryDuration=7, tags=UNTIL_END if tags is None else tags)
    return str(answer["memory"]["id"])


async def _sessions(operator: Client, memory: str, actor: str) -> list[str]:
    answer = await operator.list_sessions(memoryId=memory, actorId=actor)
    return [one["sessionId"] for one in answer["sessionSummaries"]]


async def _settle(plane: MemoryPlane, clock: SetClock) -> None:
    """Looks at all, those too that were looked at before."""
    clock.moment = clock.moment.fromtimestamp(clock.moment.timestamp() + 61, clock.moment.tzinfo)
    await plane.session_ends.settle()


async def test_events_go_with_their_session(
    operator: Client, plane: MemoryPlane, clock: SetClock, runtime: Runtime
) -> None:
    """MEM-4. Events, branches and listing; nothing of another session, user or memory."""
    removing, keeping = await _create(operator, "removing"), await _create(operator, "keeping", {})
    await runtime.begin("alice", "s")
    for memory in (removing, keeping):
        for actor in ("alice", "bob"):
            for session in ("s", "s2"):
                root = await operator.event(memory, actor, session, "first")
                fork = {"name": "fork", "rootEventId": root}
                await operator.event(memory, actor, session, "second", at=1, branch=fork)
    await runtime.end("alice", "s")
    await _settle(plane, clock)
    assert await operator.texts(removing, "alice", "s") == []
    assert await _sessions(operator, removing, "alice") == ["s2"]
    for memory, actor, session in [
        (removing, "alice", "s2"),
        *((removing, "bob", session) for session in ("s", "s2")),
        *((keeping, actor, session) for actor in ("alice", "bob") for session in ("s", "s2")),
    ]:
        assert await operator.texts(memory, actor, session) == ["second", "first"]
    left = [item.sort for item in await runtime.store.query("memory/session-ends")]
    assert left == []
    await operator.event(removing, "alice", "s", "anew")
    branch = {"branch": {"name": "fork", "includeParentBranches": True}}
    assert await operator.texts(removing, "alice", "s", filter=branch) == []


async def test_a_session_that_lives_again_keeps_its_events(
    operator: Client, plane: MemoryPlane, clock: SetClock, runtime: Runtime
) -> None:
    """MEM-4. Until its next end; whichever agent it lives with."""
    memory = await _create(operator, "notes")
    await runtime.begin("alice", "s")
    await operator.event(memory, "alice", "s", "first")
    first_end = await runtime.end("alice", "s")
    await runtime.begin("alice", "s", agent="another")
    await _settle(plane, clock)
    await plane.session_ends.session_ended(first_end)  # told once more, late
    await _settle(plane, clock)
    await operator.event(memory, "alice", "s", "second", at=1)
    assert await operator.texts(memory, "alice", "s") == ["second", "first"]
    await runtime.end("alice", "s", agent="another")
    await _settle(plane, clock)
    assert await operator.texts(memory, "alice", "s") == []


async def test_whose_sessions_are_nothing_to_the_memory(
    backend: SelfBackend, operator: Client, plane: MemoryPlane, clock: SetClock, runtime: Runtime
) -> None:
    """MEM-2. A user of another provider who is called alike, with a session of the same id; and another agent's."""
    memory = await _create(operator, "notes", {**UNTIL_END, "agentkeep:agents": "support-0123456789"})
    unsaid = await _create(operator, "unsaid", {"agentkeep:events": "until-session-end"})
    await operator.event(memory, "alice", "s", "kept")
    await Client(backend, session_of("alice")).event(unsaid, "alice", "s", "kept")  # so it is for her provider's users
    await runtime.end("alice", "s", agent="other-0123456789")
    runtime.issuer = "https://another.example"
    await runtime.end("alice", "s", agent="support-0123456789")
    await _settle(plane, clock)
    assert await operator.texts(memory, "alice", "s") == ["kept"]
    runtime.issuer = "https://issuer.example"
    await runtime.end("alice", "s", agent="support-0123456789")
    await _settle(plane, clock)
    assert await operator.texts(memory, "alice", "s") == []
    await operator.event(unsaid, "alice", "s2", "kept")
    runtime.issuer = "https://another.example"
    await runtime.end("alice", "s2", agent="support-0123456789")
    await _settle(plane, clock)
    assert await operator.texts(unsaid, "alice", "s2") == ["kept"]
    runtime.issuer = None  # an operator vouched
    await runtime.end("alice", "s2", agent="support-0123456789")
    await _settle(plane, clock)
    assert await operator.texts(unsaid, "alice", "s2") == []


class _Slips:
    """A store in which `first` happens just before the first write that clears."""

    def __init__(self, store: KeyValueStore, first: Any) -> None:
        self._store = store
        self._first = first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def transact(self, writes: Sequence[Write], once: Once | None = None) -> Any:
        if self._first is not None and any(isinstance(write, Clear) for write in writes):
            first, self._first = self._first, None
            await first()
        return await self._store.transact(writes, once)


async def test_a_session_that_begins_at_the_last_moment(
    operator: Client, plane: MemoryPlane, clock: SetClock, runtime: Runtime, store: KeyValueStore
) -> None:
    """MEM-4. Between the last look and the removal: it finds all of its events, and keeps them."""
    memory = await _create(operator, "notes")
    await runtime.begin("alice", "s")
    for number in range(3):
        await operator.event(memory, "alice", "s", number, at=number)
    await runtime.end("alice", "s")
    ends = plane.session_ends
    ends._store = _Slips(store, lambda: runtime.begin("alice", "s"))
    await _settle(plane, clock)
    await _settle(plane, clock)
    assert await operator.texts(memory, "alice", "s") == [2, 1, 0]
    await runtime.end("alice", "s")
    await _settle(plane, clock)
    assert await operator.texts(memory, "alice", "s") == []


async def test_replicas_and_repetitions(
    operator: Client, plane: MemoryPlane, clock: SetClock, runtime: Runtime, store: KeyValueStore, search: Any
) -> None:
    """Told twice, looked at by three at once, one of which was not told: as if it were one."""
    memory = await _create(operator, "notes")
    planes = [MemoryPlane(store, Deployment(), clock, search, key_service=KEY_SERVICE) for _ in range(2)]
    for session in ("s0", "s1", "s2"):
        await runtime.begin("alice", session)
        await operator.event(memory, "alice", session)
        await plane.session_ends.session_ended(await runtime.end("alice", session))
    await asyncio.gather(*(one.session_ends.settle() for one in (plane, *planes)))
    assert await _sessions(operator, memory, "alice") == []
    assert await store.query("memory/session-ends") == []
    for one in planes:
        await one.close()


async def test_what_changed_meanwhile(
    operator: Client, plane: MemoryPlane, clock: SetClock, runtime: Runtime, store: KeyValueStore
) -> None:
    """The tag was taken off, the memory was deleted, the actor was erased: no more is done, and nothing is left."""
    untagged, deleted, erased = [await _create(operator, name) for name in ("untagged", "deleted", "erased")]
    for memory in (untagged, deleted, erased):
        await operator.event(memory, "alice", "s", "kept")
        await operator.event(memory, "alicea", "s", "kept")
    await runtime.end("alice", "s")
    await runtime.end("alicea", "s")
    arn = (await operator.get_memory(memoryId=untagged))["memory"]["arn"]
    await operator.untag_resource(resourceArn=arn, tagKeys=["agentkeep:events"])
    await operator.delete_memory(memoryId=deleted)
    assert await plane.session_ends.erase_actor(erased, "alice") == {"session ends": 1}
    assert await plane.session_ends.erase_actor(erased, "alice") == {}
    await _settle(plane, clock)
    assert await operator.texts(untagged, "alice", "s") == ["kept"]
    assert await operator.texts(erased, "alice", "s") == ["kept"]
    assert await operator.texts(erased, "alicea", "s") == []
    assert await store.query("memory/session-ends") == []
    # Nor is anything kept where there is nothing to do.
    await runtime.end("alice", "s")
    await runtime.end("alice", "never-was")
    left = [item.sort for item in await store.query("memory/session-ends")]
    assert left == [f"{erased}/alice/s", f"{untagged}/alice/s"]


async def test_events_written_beside_the_removal_are_listed(
    operator: Client, plane: MemoryPlane, clock: SetClock, runtime: Runtime
) -> None:
    """Whoever writes into a session that has ended: the event goes with the rest, or stays whole."""
    memory = await _create(operator, "notes")
    for number in range(20):
        session = f"s{number}"
        await operator.event(memory, "alice", session)
        await runtime.end("alice", session)
        late = asyncio.create_task(operator.event(memory, "alice", session, "late", at=1))
        await plane.session_ends.settle()
        await late
        found = await operator.texts(memory, "alice", session)
        listed = session in await _sessions(operator, memory, "alice")
        assert (found, listed) in (([], False), (["late"], True)), session


@pytest.mark.parametrize(
    "tags",
    [
        {"agentkeep:extraction": "sometimes"},
        {"agentkeep:events": "Kept"},
        {"agentkeep:agents": ""},
        {"agentkeep:agents": "support-0123456789,other-0123456789"},
        {"agentkeep:agents": "support"},
        {"agentkeep:extract": "at-session-end"},
    ],
    ids=str,
)
async def test_tags_that_say_nothing_are_refused(operator: Client, memory: str, tags: dict[str, str]) -> None:
    """When they are given, with what they may be; not by what does not happen later."""
    arn = (await operator.get_memory(memoryId=memory))["memory"]["arn"]
    (key,) = tags
    for attempt in (
        operator.create_memory(name=f"m{secrets.token_hex(4)}", eventExpiryDuration=7, tags=tags),
        operator.tag_resource(resourceArn=arn, tags=tags),
    ):
        with pytest.raises(ValidationException, match=key) as refused:
            await attempt
        assert [field.name for field in refused.value.fields] == [f"tags.{key}"]
    assert (await operator.list_tags_for_resource(resourceArn=arn))["tags"] == {}


async def test_tags_that_are_known(operator: Client, memory: str) -> None:
    arn = (await operator.get_memory(memoryId=memory))["memory"]["arn"]
    tags = {
        "agentkeep:extraction": "at-session-end",
        "agentkeep:events": "until-session-end",
        "agentkeep:agents": "support-0123456789 other-0123456789",
        "team": "agentkeep",
    }
    await operator.tag_resource(resourceArn=arn, tags=tags)
    assert (await operator.list_tags_for_resource(resourceArn=arn))["tags"] == tags
