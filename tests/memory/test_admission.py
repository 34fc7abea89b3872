"""Who may use a memory at all: agents it is for, users it knows apart, operators on record (MEM-2, MEM-5, IDN-2)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.alarm import CROSS_AGENT_ACCESS, Alarm
from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    CrossAgentAccess,
    ResourceNotFoundException,
    StoreUnavailable,
    ValidationException,
)
from agentkeep.core.grants import ACT_FOR_USER, Grant, user_arn
from agentkeep.core.identifiers import Deployment
from agentkeep.core.ports import AuditRecord
from agentkeep.identity.roles.policies import parse_permissions
from agentkeep.memory.admission import Admitted
from agentkeep.memory.plane import MemoryPlane
from agentkeep.memory.settings import MemorySettings
from agentkeep.observability.alerts import KeyValueAlerts
from agentkeep.observability.audit import AuditFilter, KeyValueAudit
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, NOBODY, OPERATOR, Client, SetClock, session_of

PLAIN = replace(OPERATOR, principal="arn:aws:iam::000000000000:user/plain", acts_for_users=False)
NOTES, OTHER = "notes_agent-0123456789", "other_agent-0123456789"
FACTS = "/facts/alice/"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
#: For which other replicas may go by a memory's earlier tags.
SECOND = timedelta(seconds=1)

MakeBackend = Callable[..., SelfBackend]


@pytest.fixture
def audit(store: KeyValueStore) -> KeyValueAudit:
    return KeyValueAudit(store)


@pytest.fixture
async def make_backend(store: KeyValueStore, search: SqliteSearchStore, clock: SetClock, audit: KeyValueAudit) -> Any:
    """Planes on one store: replicas of each other."""
    planes: list[MemoryPlane] = []
    alerts = KeyValueAlerts(store)
    alarm = Alarm(alerts, clock, audit)

    def make(audit: Any = audit, settings: MemorySettings | None = None, **options: Any) -> SelfBackend:
        plane = MemoryPlane(
            store, Deployment(), clock, search, settings=settings, key_service=KEY_SERVICE, audit=audit, **options
        )
        planes.append(plane)
        return SelfBackend(plane.operations, alarm)

    yield make
    for plane in planes:
        await plane.close()
    await alarm.close()
    await alerts.close()


def agent(runtime: str, user: str = "alice", issuer: str | None = "https://issuer.example") -> Caller:
    session = SessionRef(runtime, f"session-of-{user}")
    principal = f"arn:aws:sts::000000000000:assumed-role/{runtime}/{session.session_id}"
    return Caller(CallerKind.SESSION, principal, user=User(user, issuer), session=session)


async def new_memory(operator: Client, name: str = "notes", **members: Any) -> str:
    return str((await operator.create_memory(name=name, eventExpiryDuration=7, **members))["memory"]["id"])


def data_operations(as_caller: Client, memory: str) -> dict[str, Any]:
    """Every operation on what actors have, by name; none of them awaited."""
    where = {"memoryId": memory, "actorId": "alice", "sessionId": "s"}
    event, record = "0000001777863721234#0000000000000000", "mem-" + "0" * 36
    asked = {"searchQuery": "tea", "topK": 1}
    return {
        "CreateEvent": as_caller.event(memory, "alice", "s", "x"),
        "GetEvent": as_caller.get_event(**where, eventId=event),
        "ListEvents": as_caller.list_events(**where),
        "DeleteEvent": as_caller.delete_event(**where, eventId=event),
        "ListSessions": as_caller.list_sessions(memoryId=memory, actorId="alice"),
        "ListActors": as_caller.list_actors(memoryId=memory),
        "BatchCreateMemoryRecords": as_caller.batch_create_memory_records(
            memoryId=memory,
            records=[
                {"requestIdentifier": "1", "namespaces": [FACTS], "content": {"text": "tea"}, "timestamp": NOON},
            ],
        ),
        "BatchUpdateMemoryRecords": as_caller.batch_update_memory_records(
            memoryId=memory, records=[{"memoryRecordId": record, "timestamp": NOON}]
        ),
        "BatchDeleteMemoryRecords": as_caller.batch_delete_memory_records(
            memoryId=memory, records=[{"memoryRecordId": record}]
        ),
        "GetMemoryRecord": as_caller.get_memory_record(memoryId=memory, memoryRecordId=record),
        "DeleteMemoryRecord": as_caller.delete_memory_record(memoryId=memory, memoryRecordId=record),
        "ListMemoryRecords": as_caller.list_memory_records(memoryId=memory, namespace=FACTS),
        "RetrieveMemoryRecords": as_caller.retrieve_memory_records(
            memoryId=memory, namespace=FACTS, searchCriteria=asked
        ),
        "IngestData": as_caller.ingest_data(
            **where, contentTimestamp=NOON, source={"inline": {"payload": [{"blob": "x"}]}}
        ),
        "ListMemoryExtractionJobs": as_caller.list_memory_extraction_jobs(memoryId=memory, filter={"actorId": "alice"}),
        "StartMemoryExtractionJob": as_caller.start_memory_extraction_job(
            memoryId=memory, extractionJob={"jobId": "job-1"}
        ),
    }


async def test_an_operator_needs_a_key_that_acts_for_users(make_backend: MakeBackend, audit: KeyValueAudit) -> None:
    """Memories are any operator's; what users have in them is not."""
    backend = make_backend()
    plain = Client(backend, PLAIN)
    memory = await new_memory(plain)
    await plain.get_memory(memoryId=memory)
    for operation in data_operations(plain, memory).values():
        with pytest.raises(AccessDeniedException, match="agentkeep keys create NAME --acts-for-users"):
            await operation
    assert await audit.page(AuditFilter(), 100) == ([], None)


#: What names no actor, nor a namespace by which one is known.
UNNAMED = (
    *("ListActors", "GetMemoryRecord", "DeleteMemoryRecord"),
    *("BatchUpdateMemoryRecords", "BatchDeleteMemoryRecords", "StartMemoryExtractionJob"),
)


async def test_every_operation_of_an_operator_is_on_record(make_backend: MakeBackend, audit: KeyValueAudit) -> None:
    """By whom it was, what, on which memory, and whose data it named."""
    backend = make_backend()
    operator = Client(backend, OPERATOR)
    memory = await new_memory(operator)
    operations = data_operations(operator, memory)
    for operation in operations.values():
        with suppress(ResourceNotFoundException, ValidationException):  # of what is not there, or not to be done
            await operation
    records, _ = await audit.page(AuditFilter(principal=OPERATOR.principal), 100)
    assert {record.details["operation"]: record.user_id for record in records} == {
        name: None if name in UNNAMED else "alice" for name in operations
    }
    assert {(record.kind, record.details["resource"]) for record in records} == {("acted-for-user", f"memory {memory}")}


async def test_what_cannot_be_put_on_record_does_not_happen(make_backend: MakeBackend) -> None:
    class Away:
        async def record(self, record: AuditRecord) -> None:
            raise StoreUnavailable("away")

    operator = Client(make_backend(audit=Away()), OPERATOR)
    memory = await new_memory(operator)
    for operation in data_operations(operator, memory).values():
        with pytest.raises(StoreUnavailable):
            await operation
    seen = Client(make_backend(), OPERATOR)
    assert (await seen.list_actors(memoryId=memory))["actorSummaries"] == []


def role(*users: str, key: str = "ASIAONE") -> Caller:
    """A role that may everything, for these users."""
    here = Deployment()
    acting = [{"Effect": "Allow", "Action": ACT_FOR_USER, "Resource": user_arn(here.account, user)} for user in users]
    calling = {"Effect": "Allow", "Action": "bedrock-agentcore:*", "Resource": "*"}
    policy = parse_permissions({"Version": "2012-10-17", "Statement": [calling, *acting]}, here)
    principal = "arn:aws:sts::000000000000:assumed-role/crm/one-name"
    return Caller(CallerKind.ROLE, principal, key, grant=Grant(principal, here, (policy,)))


async def records_of(operator: Client, memory: str, *namespaces: str) -> list[str]:
    made = [
        {"requestIdentifier": str(index), "namespaces": [one], "content": {"text": f"tea {index}"}, "timestamp": NOON}
        for index, one in enumerate(namespaces)
    ]
    answer = await operator.batch_create_memory_records(memoryId=memory, records=made)
    return [one["memoryRecordId"] for one in answer["successfulRecords"]]


async def test_each_record_of_a_batch_says_whose_it_is(make_backend: MakeBackend) -> None:
    """IDN-2: that one of them is a user's whom a role acts for opens none of the others."""
    backend = make_backend()
    operator, crm = Client(backend, OPERATOR), Client(backend, role("alice"))
    memory = await new_memory(operator)
    hers, his = await records_of(operator, memory, FACTS, "/facts/bob/")
    own = {"memoryRecordId": hers, "timestamp": NOON, "namespaces": [FACTS]}
    other = {"memoryRecordId": his, "timestamp": NOON, "content": {"text": "poison"}}
    with pytest.raises(AccessDeniedException, match=f"{ACT_FOR_USER} on resource: .*which BatchUpdateMemoryRecords"):
        await crm.batch_update_memory_records(memoryId=memory, records=[own, other])
    with pytest.raises(AccessDeniedException, match="which BatchDeleteMemoryRecords needs"):
        await crm.batch_delete_memory_records(
            memoryId=memory, records=[{"memoryRecordId": hers, "namespace": FACTS}, {"memoryRecordId": his}]
        )
    assert (await crm.batch_update_memory_records(memoryId=memory, records=[own]))["successfulRecords"]
    kept = await operator.get_memory_record(memoryId=memory, memoryRecordId=his)
    assert kept["memoryRecord"]["content"] == {"text": "tea 1"}


async def test_a_role_sees_nobody_beneath_the_path_of_its_user(make_backend: MakeBackend) -> None:
    """IDN-2: ids may have slashes, and `alice/work` is another user than `alice`."""
    backend = make_backend()
    operator = Client(backend, OPERATOR)
    memory = await new_memory(operator)
    hers, _ = await records_of(operator, memory, FACTS, f"{FACTS}work/")
    asked = {"memoryId": memory, "namespacePath": FACTS}
    found = {"searchCriteria": {"searchQuery": "tea", "topK": 5}}
    for users, seen in ((("alice",), 1), (("alice*",), 1), (("*",), 2)):
        crm = Client(backend, role(*users))
        listed = (await crm.list_memory_records(**asked))["memoryRecordSummaries"]
        retrieved = (await crm.retrieve_memory_records(**asked, **found))["memoryRecordSummaries"]
        assert len(listed) == len(retrieved) == seen, users
        assert hers in {one["memoryRecordId"] for one in listed}


async def test_two_keys_of_one_name_are_each_on_record(make_backend: MakeBackend, audit: KeyValueAudit) -> None:
    """IDN-2: who assumes a role may call the session as another did: the key tells them apart."""
    backend = make_backend()
    memory = await new_memory(Client(backend, OPERATOR))
    for key in ("ASIAONE", "ASIATWO", "ASIAONE"):
        await Client(backend, role("alice", key=key)).list_sessions(memoryId=memory, actorId="alice")
    records, _ = await audit.page(AuditFilter(user="alice"), 10)
    assert sorted(record.details["access-key"] for record in records) == ["ASIAONE", "ASIATWO"]


async def test_no_operation_on_data_is_outside(make_backend: MakeBackend) -> None:
    """What is opened to agents, and all else that the data plane's model has of memory."""
    planes = make_backend()._planes
    [bare] = [plane for plane in planes if not isinstance(plane, Admitted)]
    assert not [name for name in vars(type(bare)) if "event" in name or "record" in name or "extraction" in name]
    assert all(getattr(getattr(bare, name), "__allowed_callers__", None) is None for name in vars(type(bare)))


async def test_a_memory_for_some_agents(make_backend: MakeBackend, store: KeyValueStore, audit: KeyValueAudit) -> None:
    """MEM-2: the tag says which; another agent of the same user gets nothing, and it is told to operators."""
    backend, replica = make_backend(), make_backend()
    operator = Client(backend, OPERATOR)
    memory = await new_memory(operator, tags={"agentkeep:agents": NOTES})
    own, foreign = Client(backend, agent(NOTES)), Client(replica, agent(OTHER))
    await own.event(memory, "alice", "s", "kept")
    for operation in data_operations(foreign, memory).values():
        with pytest.raises(CrossAgentAccess, match="agentkeep:agents"):
            await operation
    assert await own.texts(memory, "alice", "s") == ["kept"]
    alerts = await KeyValueAlerts(store).latest()
    assert {kept.alert.kind for kept in alerts} == {CROSS_AGENT_ACCESS}
    attempts, _ = await audit.page(AuditFilter(kind=CROSS_AGENT_ACCESS), 100)
    assert {record.details["operation"] for record in attempts} == set(data_operations_names(foreign, memory))
    assert {record.user_id for record in attempts} == {"alice"}


def data_operations_names(client: Client, memory: str) -> list[str]:
    operations = data_operations(client, memory)
    for operation in operations.values():
        operation.close()
    return list(operations)


async def test_agents_are_added_and_removed(make_backend: MakeBackend, clock: SetClock) -> None:
    backend, replica = make_backend(), make_backend()
    operator, other = Client(backend, OPERATOR), Client(replica, agent(OTHER))
    memory = await new_memory(operator)
    arn = (await operator.get_memory(memoryId=memory))["memory"]["arn"]
    await other.event(memory, "alice", "s", "before")
    await operator.tag_resource(resourceArn=arn, tags={"agentkeep:agents": NOTES})
    clock.moment += SECOND
    with pytest.raises(CrossAgentAccess):
        await other.texts(memory, "alice", "s")
    await operator.tag_resource(resourceArn=arn, tags={"agentkeep:agents": f"{NOTES} {OTHER}"})
    clock.moment += SECOND
    assert await other.texts(memory, "alice", "s") == ["before"]


ONE, TWO = "https://one.example", "https://two.example"


async def test_users_of_two_providers_with_one_subject_are_not_one_actor(make_backend: MakeBackend) -> None:
    """MEM-2: a memory is for the users of the provider that came first; the other's `alice` gets nothing, by any
    operation, on any replica; and there is a way out."""
    backend, replica = make_backend(), make_backend()
    operator = Client(backend, OPERATOR)
    memory = await new_memory(operator)
    first, second = Client(backend, agent(NOTES, issuer=ONE)), Client(replica, agent(NOTES, issuer=TWO))
    await first.event(memory, "alice", "s", "of one")
    for operation in data_operations(second, memory).values():
        with pytest.raises(AccessDeniedException, match="agentkeep:issuers"):
            await operation
    own = await new_memory(operator, "own")
    await second.event(own, "alice", "s", "of two")
    assert await second.texts(own, "alice", "s") == ["of two"]
    with pytest.raises(AccessDeniedException, match="of https://one"):
        await first.texts(own, "alice", "s")
    # Whom operators vouch for is who they say.
    vouched = Client(replica, agent(NOTES, issuer=None))
    assert await vouched.texts(memory, "alice", "s") == ["of one"]
    assert await operator.texts(own, "alice", "s") == ["of two"]


async def test_operators_say_whose_users_a_memory_is_for(make_backend: MakeBackend, clock: SetClock) -> None:
    settings = MemorySettings(issuers=(ONE,))
    backend = make_backend(settings=settings, vouching_issuers=("http://127.0.0.1:4780/oidc",))
    operator = Client(backend, OPERATOR)
    memory = await new_memory(operator)
    two = Client(backend, agent(NOTES, issuer=TWO))
    with pytest.raises(AccessDeniedException, match="AGENTKEEP_MEMORY_ISSUERS"):  # though it came first
        await two.event(memory, "alice", "s")
    await Client(backend, agent(NOTES, issuer=ONE)).event(memory, "alice", "s", "kept")
    assert await Client(backend, agent(NOTES, issuer="http://127.0.0.1:4780/oidc")).texts(memory, "alice", "s") == [
        "kept"
    ]
    both = await new_memory(operator, "both", tags={"agentkeep:issuers": f"{ONE} {TWO}"})
    for issuer in (ONE, TWO):
        await Client(backend, agent(NOTES, f"alice-{issuer[8:11]}", issuer)).event(both, f"alice-{issuer[8:11]}", "s")
    arn = (await operator.get_memory(memoryId=both))["memory"]["arn"]
    await operator.untag_resource(resourceArn=arn, tagKeys=["agentkeep:issuers"])
    clock.moment += SECOND
    with pytest.raises(AccessDeniedException):
        await two.list_actors(memoryId=both)


async def test_a_session_without_a_user_is_told_what_is_missing(make_backend: MakeBackend) -> None:
    """IDN-2: by every operation."""
    backend = make_backend()
    memory = await new_memory(Client(backend, OPERATOR))
    for operation in data_operations(Client(backend, NOBODY), memory).values():
        with pytest.raises(AccessDeniedException, match="this session has no user; invoke with a user JWT"):
            await operation


async def test_an_attempt_on_another_user_is_on_record(make_backend: MakeBackend, audit: KeyValueAudit) -> None:
    """MEM-5: an alert and a record, without what was asked for; a loop is counted."""
    backend = make_backend()
    memory = await new_memory(Client(backend, OPERATOR))
    mallory = Client(backend, session_of("mallory"))
    for _ in range(5):
        with pytest.raises(AccessDeniedException):
            await mallory.list_events(memoryId=memory, actorId="alice", sessionId="s")
    [record], _ = await audit.page(AuditFilter(user="mallory"), 10)
    assert (record.kind, record.details["resource"]) == ("cross-user-access", f"memory {memory}")
    assert "alice" not in repr(record)
