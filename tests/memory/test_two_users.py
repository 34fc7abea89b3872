"""MEM-2, MEM-5: two users and two agents at all that memory has, extraction included: never a byte of another's.

What each user says bears a mark of his own, and a model is asked that repeats whatever it is shown: so a mark in
another user's answer, page, record, job or error is a leak, wherever it came from.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkeep.backend.own import SelfBackend
from agentkeep.core.alarm import CROSS_AGENT_ACCESS, CROSS_USER_ACCESS, Alarm
from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import CrossAgentAccess, CrossUserAccess, ModelErrorException, ServiceError
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import Question
from agentkeep.memory.plane import MemoryPlane
from agentkeep.memory.settings import MemorySettings
from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, OPERATOR, Client, SetClock

USERS = ("alice", "bob")
MARKS = {"alice": "amaranth", "bob": "bergamot"}
AGENTS = ("first_agent-0123456789", "other_agent-0123456789")
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
STRATEGIES = [
    {"semanticMemoryStrategy": {"name": "facts", "namespaces": ["/facts/{actorId}/"]}},
    {"summaryMemoryStrategy": {"name": "sums", "namespaces": ["/sums/{actorId}/{sessionId}/"]}},
    {"userPreferenceMemoryStrategy": {"name": "likes", "namespaces": ["/teams/{team}/{actorId}/"]}},
]


class Parrot:
    """The port `Models`: repeats all it is shown; gives up where that has a word it does not like."""

    async def answer(self, question: Question) -> str:
        if "unspeakable" in question.prompt:
            raise ModelErrorException("the model gave up")
        said = " ".join(re.findall(r"\b(?:amaranth|bergamot)\w*", question.prompt))
        found = re.search(r"<facts>\n(.*?)\n?</facts>", question.prompt, re.DOTALL)
        facts = [json.loads(line)["number"] for line in found[1].splitlines()] if found else []
        answers: dict[str, Any] = {
            "facts": [{"fact": said, "messages": [1]}],
            "preferences": [{"preference": said, "context": said, "categories": [], "messages": [1]}],
            "summary": said,
            "operations": [
                {"fact": number, "operation": "AddMemory", "record": None, "text": None} for number in facts
            ],
        }
        return json.dumps({name: answers[name] for name in (question.schema or {})["properties"]})


def caller(user: str, agent: str) -> Caller:
    session = SessionRef(agent, f"session-of-{user}")
    principal = f"arn:aws:sts::000000000000:assumed-role/{agent}/{session.session_id}"
    return Caller(CallerKind.SESSION, principal, user=User(user, "https://issuer.example"), session=session)


class Place:
    """One plane with extraction, and everything that was said of attempts."""

    def __init__(self, plane: MemoryPlane, backend: SelfBackend, alerts: KeyValueAlerts, audit: KeyValueAudit) -> None:
        self.plane, self.backend, self.alerts, self.audit = plane, backend, alerts, audit
        self.operator = Client(backend, OPERATOR)

    async def memory(self, **members: Any) -> str:
        answer = await self.operator.create_memory(
            name="m" + secrets.token_hex(8),
            eventExpiryDuration=7,
            memoryStrategies=STRATEGIES,
            namespaceKeys=[{"key": "team"}],
            indexedKeys=[{"key": "owner", "type": "STRING"}],
            **members,
        )
        return str(answer["memory"]["id"])


@pytest.fixture
async def place(store: KeyValueStore, search: SqliteSearchStore, clock: SetClock) -> AsyncIterator[Place]:
    alerts, audit = KeyValueAlerts(store), KeyValueAudit(store)
    alarm = Alarm(alerts, clock, audit)
    plane = MemoryPlane(
        store,
        Deployment(),
        clock,
        search,
        settings=MemorySettings(extraction_model="parrot", extraction_attempts=1, extraction_debounce=0),
        key_service=KEY_SERVICE,
        models=Parrot(),
        audit=audit,
    )
    yield Place(plane, SelfBackend(plane.operations, alarm), alerts, audit)
    await plane.close()
    await alarm.close()
    await alerts.close()


PATHS = ["/facts/{}/", "/sums/{}/{}/", "/teams/{}/{}/", "/teams/x/{}/", "/{}/", "/facts/", "/", "/sums/s/{}/", "*"]
WRITES = ["event", "ingest", "create", "move", "change", "delete", "forget", "drop"]
READS = ["event?", "events", "branch", "filter", "sessions", "actors", "record", "list", "under", "find", "search"]
STEP = st.tuples(
    st.sampled_from([*WRITES, *READS, "jobs", "job", "restart", "extract"]),
    st.sampled_from(USERS),
    st.sampled_from(AGENTS),
    st.sampled_from([*USERS, *USERS, "alice/bob", "alice:bob", "bob/alice"]),
    st.sampled_from(["s", "t", *USERS]),
    st.sampled_from(PATHS),
    st.integers(0, 40),
)


class Walk:
    """Random steps in one memory, with ids, sessions and tokens that both users have seen."""

    def __init__(self, place: Place, memory: str) -> None:
        self.place, self.memory = place, memory
        self.events: list[tuple[str, str]] = [("s", "0000001777863721234#0000000000000000")]
        self.records, self.jobs, self.tokens = ["mem-" + "0" * 36], ["job-none"], [""]

    async def take(self, step: Any) -> Any:
        kind, user, agent, actor, session, path, number = step
        client, mark = Client(self.place.backend, caller(user, agent)), f"{MARKS[user]}{number}"
        where = {"memoryId": self.memory, "actorId": actor}
        namespace = path.format(*[actor, session, actor][: path.count("{}")])
        (place, event), record = self.events[number % len(self.events)], self.records[number % len(self.records)]
        token = {"nextToken": self.tokens[number % len(self.tokens)]} if number % 3 == 0 and self.tokens[-1] else {}
        page = {"maxResults": 1 + number % 3, **token}
        text = mark + (" unspeakable" if number % 7 == 0 else "")
        said = [{"conversational": {"content": {"text": text}, "role": "USER"}}]
        mine = {"metadata": {"owner": {"stringValue": mark}}}
        asked = {"searchQuery": " ".join(MARKS.values()) + f" {mark}", "topK": 1 + number}
        match kind:
            case "event":
                forked = {"branch": {"name": f"b{number}", "rootEventId": event}} if number % 4 == 0 else {}
                variables = {"extractionConfig": {"namespaceVariables": {"team": actor}}} if number % 2 else {}
                made = await client.create_event(
                    **where, sessionId=session, eventTimestamp=WHEN + timedelta(seconds=number), payload=said,
                    **forked, **variables, **mine,
                )  # fmt: skip
                self.events.append((session, made["event"]["eventId"]))
                return made
            case "ingest":
                variables = {"namespaceVariables": {"team": actor}}
                source = {"inline": {"payload": said}}
                return await client.ingest_data(
                    **where, sessionId=session, contentTimestamp=WHEN, source=source, extractionConfig=variables
                )
            case "create":
                one = {"requestIdentifier": mark, "namespaces": [namespace], "content": {"text": mark}, **mine}
                made = await client.batch_create_memory_records(
                    memoryId=self.memory, records=[{**one, "timestamp": WHEN}]
                )
                self.records += [one["memoryRecordId"] for one in made["successfulRecords"]]
                return made
            case "move" | "change":
                one = {"memoryRecordId": record, "timestamp": WHEN, "content": {"text": mark}}
                moved = {"namespaces": [namespace]} if kind == "move" else {}
                return await client.batch_update_memory_records(memoryId=self.memory, records=[{**one, **moved}])
            case "delete":
                return await client.delete_event(**where, sessionId=place, eventId=event)
            case "forget":
                return await client.batch_delete_memory_records(
                    memoryId=self.memory, records=[{"memoryRecordId": record}]
                )
            case "drop":
                return await client.delete_memory_record(memoryId=self.memory, memoryRecordId=record)
            case "event?":
                return await client.get_event(**where, sessionId=place, eventId=event)
            case "events":
                return await client.list_events(**where, sessionId=session, **page)
            case "branch":
                branch = {"name": f"b{number}", "includeParentBranches": True}
                return await client.list_events(**where, sessionId=session, filter={"branch": branch}, **page)
            case "filter":
                test = {"left": {"metadataKey": "owner"}, "operator": "EXISTS"}
                return await client.list_events(**where, sessionId=session, filter={"eventMetadata": [test]}, **page)
            case "sessions":
                return await client.list_sessions(**where, filter={"eventFilter": "HAS_EVENTS"}, **page)
            case "actors":
                return await client.list_actors(memoryId=self.memory, **page)
            case "record":
                return await client.get_memory_record(memoryId=self.memory, memoryRecordId=record)
            case "list" | "under":
                named = {"namespace" if kind == "list" else "namespacePath": namespace}
                return await client.list_memory_records(memoryId=self.memory, **named, **page)
            case "find" | "search":
                named = {"namespace" if kind == "find" else "namespacePath": namespace}
                return await client.retrieve_memory_records(memoryId=self.memory, searchCriteria=asked, **named, **page)
            case "jobs" | "job":
                filtered = {"filter": {"actorId": actor}} if kind == "job" else {}
                listed = await client.list_memory_extraction_jobs(memoryId=self.memory, **filtered, **page)
                self.jobs += [job["jobID"] for job in listed["jobs"]]
                return listed
            case "restart":
                job = {"jobId": self.jobs[number % len(self.jobs)]}
                return await client.start_memory_extraction_job(memoryId=self.memory, extractionJob=job)
        await self.place.plane.extraction.worker.settle()
        return {}

    async def checked(self, step: Any) -> ServiceError | None:
        """What the step was refused with, if it was; neither that nor its answer has anything of the other's."""
        user = step[1]
        other = USERS[1 - USERS.index(user)]
        refused: ServiceError | None = None
        answer: Mapping[str, Any] = {}
        try:
            answer = await self.take(step)
        except ServiceError as error:
            refused = error
        assert MARKS[other] not in repr(answer) + repr(refused), step
        for member in ("actorId", "actorSummaries", "sessionSummaries", "events", "jobs"):
            assert f"'actorId': '{other}'" not in repr(answer.get(member, "")), step
        self.tokens += [str(answer["nextToken"])] if "nextToken" in answer else []
        return refused


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps=st.lists(STEP, min_size=10, max_size=40))
async def test_never_a_byte_of_another_users(place: Place, steps: list[Any]) -> None:
    """After all of it, what the platform has made by itself is whose it was, too."""
    walk = Walk(place, await place.memory())
    for user in USERS:  # what the other may try its luck with
        for kind, number in (("event", 1), ("event", 7), ("create", 2), ("extract", 0), ("jobs", 1)):
            await walk.checked((kind, user, AGENTS[0], user, "s", "/facts/{}/", number))
    for step in steps:
        await walk.checked(step)
    await place.plane.extraction.worker.settle()
    for user, other in (USERS, USERS[::-1]):
        client = Client(place.backend, caller(user, AGENTS[0]))
        for path in ("/facts/{}/", "/sums/{}/", "/{}/"):
            listed = await client.list_memory_records(memoryId=walk.memory, namespacePath=path.format(user))
            assert MARKS[other] not in repr(listed)


async def test_the_walk_gets_somewhere(place: Place) -> None:
    """Else it would prove nothing: own events, records made of them, records of one's own, and failed jobs are seen."""
    walk = Walk(place, await place.memory())
    own = ("alice", AGENTS[0], "alice", "s")
    steps = [("event", 1), ("extract", 0), ("create", 2), ("event", 7), ("extract", 0), ("events", 2), ("find", 2)]
    for kind, number in steps:
        assert await walk.checked((kind, *own, "/facts/{}/", number)) is None
    for kind in ("events", "list", "under", "find", "search"):
        assert "amaranth" in repr(await walk.take((kind, *own, "/facts/{}/", 2))), kind
    client = Client(place.backend, caller("alice", AGENTS[0]))
    everything = await client.list_memory_records(memoryId=walk.memory, namespacePath="/facts/alice/")
    assert {"amaranth1", "amaranth2"} <= {one["content"]["text"] for one in everything["memoryRecordSummaries"]}
    assert (await walk.take(("jobs", *own, "/", 2)))["jobs"]
    assert await walk.checked(("restart", *own, "/", 1)) is None


async def test_each_attempt_is_an_alert_and_on_record(place: Place) -> None:
    """MEM-5: of users who name other actors or namespaces, and of agents that a memory is not for; told to operators
    by whom it was, without what was asked for."""
    walk = Walk(place, await place.memory())
    tried: set[str] = set()
    for kind in ("event", "ingest", "event?", "events", "delete", "sessions", "job", "create", "list", "find", "under"):
        refused = await walk.checked((kind, "bob", AGENTS[0], "alice", "s", "/facts/{}/", 1))
        assert isinstance(refused, CrossUserAccess), kind
        tried.add(kind)
    records, _ = await place.audit.page(AuditFilter(kind=CROSS_USER_ACCESS, user="bob"), 100)
    assert len({record.details["operation"] for record in records}) == len(tried) - 1  # list and under are one
    assert "alice" not in repr(records)
    [alert] = await place.alerts.latest()
    assert (alert.alert.kind, alert.alert.user_id, alert.count) == (CROSS_USER_ACCESS, "bob", len(tried))


async def test_an_agent_that_a_memory_is_not_for_gets_nothing_of_its_users(place: Place) -> None:
    """MEM-2: the same user, at another agent."""
    walk = Walk(place, await place.memory(tags={"agentkeep:agents": AGENTS[0]}))
    assert await walk.checked(("event", "alice", AGENTS[0], "alice", "s", "/", 1)) is None
    for kind in (*WRITES, *READS, "jobs", "restart"):
        refused = await walk.checked((kind, "alice", AGENTS[1], "alice", "s", "/facts/{}/", 1))
        assert isinstance(refused, CrossAgentAccess), kind
    [alert] = await place.alerts.latest()
    assert (alert.alert.kind, alert.count) == (CROSS_AGENT_ACCESS, len(WRITES) + len(READS) + 2)
