"""MEM-2, MEM-5: one user's long-term records cannot be read, found, listed, counted or changed on behalf of another, by
any operation, whatever namespaces, record ids and page tokens are named."""

import logging
import secrets
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkeep.backend.own import SelfBackend
from agentkeep.core.errors import AccessDeniedException, ResourceNotFoundException, ServiceError, ValidationException

from .conftest import NOBODY, Client, session_of
from .test_records import UNKNOWN, WHEN, found, put, record, texts


def naming(client: Client, memory: str, namespace: str, record_id: str = UNKNOWN) -> list[Any]:
    """Every operation that can name a namespace, naming this one."""
    change = {"memoryRecordId": record_id, "timestamp": WHEN}
    return [
        client.batch_create_memory_records(memoryId=memory, records=[record("planted", namespace)]),
        client.batch_update_memory_records(memoryId=memory, records=[{**change, "namespaces": [namespace]}]),
        client.batch_update_memory_records(memoryId=memory, records=[{**change, "sourceNamespaces": [namespace]}]),
        client.batch_delete_memory_records(
            memoryId=memory, records=[{"memoryRecordId": record_id, "namespace": namespace}]
        ),
        client.get_memory_record(memoryId=memory, memoryRecordId=record_id, namespace=namespace),
        client.delete_memory_record(memoryId=memory, memoryRecordId=record_id, namespace=namespace),
        client.list_memory_records(memoryId=memory, namespace=namespace),
        client.list_memory_records(memoryId=memory, namespacePath=namespace),
        *(
            client.retrieve_memory_records(
                memoryId=memory, searchCriteria={"searchQuery": "secret"}, **{kind: namespace}
            )
            for kind in ("namespace", "namespacePath")
        ),
    ]


async def test_a_session_may_name_its_own_users_namespaces_only(
    backend: SelfBackend, operator: Client, memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The attempt is refused, says what would be allowed, and is in the log; no word of any record is."""
    alice, mallory = Client(backend, session_of("alice")), Client(backend, session_of("mallory"))
    [secret] = await put(alice, memory, record("the secret word", "/facts/alice/"))
    for namespace in (
        "/facts/alice/",
        "facts/alice",
        "/",
        "/facts/",
        "/summaries/alice/mallory/",
        "/alice/",
        "/x/mallory",
    ):
        for attempt in naming(mallory, memory, namespace, secret):
            caplog.clear()
            with (
                caplog.at_level(logging.WARNING),
                pytest.raises(AccessDeniedException, match="/facts/mallory/") as denied,
            ):
                await attempt
            assert "alice" not in denied.value.message
            (line,) = [one.getMessage() for one in caplog.records if one.name == "agentkeep.memory.partition"]
            assert "cross-user access refused" in line
            assert "mallory" in line
            assert "secret" not in line
    assert await texts(operator, memory, namespacePath="/") == ["the secret word"]


async def test_ids_lead_nowhere_else(backend: SelfBackend, operator: Client, memory: str) -> None:
    alice, mallory = Client(backend, session_of("alice")), Client(backend, session_of("mallory"))
    [secret] = await put(alice, memory, record("the secret word", "/facts/alice/"))
    for operation in (mallory.get_memory_record, mallory.delete_memory_record):
        for named in ({}, {"namespace": "/facts/mallory/"}):
            with pytest.raises(ResourceNotFoundException):
                await operation(memoryId=memory, memoryRecordId=secret, **named)
    change = {"memoryRecordId": secret, "timestamp": WHEN, "content": {"text": "planted"}}
    for answer in (
        await mallory.batch_update_memory_records(memoryId=memory, records=[change]),
        await mallory.batch_delete_memory_records(memoryId=memory, records=[{"memoryRecordId": secret}]),
    ):
        assert [one["errorCode"] for one in answer["failedRecords"]] == [404]
    assert await texts(operator, memory, namespacePath="/") == ["the secret word"]


async def test_a_user_called_like_a_part_of_a_namespace(backend: SelfBackend, operator: Client, memory: str) -> None:
    """Nobody becomes the owner of others' records by his name."""
    await put(
        operator,
        memory,
        record("secret", "/facts/alice/"),
        record("secret", "/strategies/x/actors/alice/sessions/s/"),
        record("secret", "/company/handbook/"),
        record("secret"),
    )
    for name in ("facts", "strategies", "x", "actors", "sessions", "s", "company", "handbook", "nobodys", "of", ""):
        client = Client(backend, session_of(name))
        for path in (f"/facts/{name}/", f"/{name}/", f"/{name}/alice/", "/facts/alice/", "/company/", "/"):
            for read in (
                texts(client, memory, namespacePath=path),
                found(client, memory, "secret", namespacePath=path),
            ):
                try:
                    assert await read == []
                except AccessDeniedException:
                    pass


async def test_what_operators_write_is_its_actors(backend: SelfBackend, operator: Client, memory: str) -> None:
    """By the namespace, where that is certain; else operators alone have it."""
    await put(
        operator,
        memory,
        record("fact", "/facts/alice/"),
        record("summary", "/summaries/alice/s/"),
        record("default", "/strategies/x/actors/alice/"),
        record("undeclared", "/alice/s/"),
    )
    alice = Client(backend, session_of("alice"))
    assert await texts(alice, memory, namespace="/facts/alice/") == ["fact"]
    assert await found(alice, memory, "summary", namespacePath="/summaries/alice/") == ["summary"]
    assert await texts(alice, memory, namespacePath="/strategies/x/actors/alice") == ["default"]
    assert await texts(alice, memory, namespacePath="/alice/") == []
    assert len(await texts(operator, memory, namespacePath="/")) == 4


async def test_a_session_without_a_user_has_no_records(backend: SelfBackend, memory: str) -> None:
    """IDN-2: no user, no data."""
    for attempt in naming(Client(backend, NOBODY), memory, "/facts/alice/"):
        with pytest.raises(AccessDeniedException, match="this session has no user"):
            await attempt


async def test_scores_and_pages_tell_nothing_of_others(backend: SelfBackend, memory: str) -> None:
    """What another user has stored changes neither the scores nor the pages of one's own."""
    alice, bob = Client(backend, session_of("alice")), Client(backend, session_of("bob"))
    await put(alice, memory, *(record(f"tea {number}", "/facts/alice/") for number in range(3)))
    where = {"memoryId": memory, "namespace": "/facts/alice/", "maxResults": 2}
    query = {"searchCriteria": {"searchQuery": "tea 1", "topK": 3}}
    before = await alice.list_memory_records(**where), await alice.retrieve_memory_records(**where, **query)
    await put(bob, memory, *(record(f"tea {number}", "/facts/bob/") for number in range(30)))
    assert (await alice.list_memory_records(**where), await alice.retrieve_memory_records(**where, **query)) == before
    own = {"memoryId": memory, "namespace": "/facts/bob/"}
    for page in (
        bob.list_memory_records(**own, nextToken=before[0]["nextToken"]),
        bob.retrieve_memory_records(**own, **query, nextToken=before[1]["nextToken"]),
    ):
        with pytest.raises(ValidationException, match="nextToken"):
            await page


NAMESPACES = [
    *("/facts/{}/", "/facts/{}/deep/", "/{}/s/", "/summaries/{}/alice/", "/summaries/{}/bob/", "/summaries/{}/"),
    *(
        "/strategies/alice/actors/{}/",
        "/strategies/bob/actors/{}/sessions/alice/",
        "/{}/",
        "/notes/{}/",
        "/facts/",
        "/",
    ),
]
STEP = st.tuples(
    st.sampled_from(
        ["create", "update", "move", "delete", "remove", "get", "list", "under", "find", "search", "token"]
    ),
    st.sampled_from(["alice", "bob"]),
    st.sampled_from(["alice", "bob", "alice/bob", "bob/alice", "facts"]),
    st.sampled_from(NAMESPACES),
    st.integers(0, 30),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEP, max_size=40))
async def test_two_users_never_see_each_others_records(
    backend: SelfBackend, operator: Client, steps: list[Any]
) -> None:
    """Random operations by two users, and an operator who writes for both, naming each other's namespaces, records and
    tokens: whatever is answered to one is that one's, and nothing of the other's changes."""
    memory = (await operator.create_memory(name="m" + secrets.token_hex(8), eventExpiryDuration=7))["memory"]["id"]
    clients = {name: Client(backend, session_of(name)) for name in ("alice", "bob")}
    ids: list[tuple[str, str]] = []  # of both: user, record id
    tokens: list[str] = []
    for user in clients:
        written = await put(operator, memory, record(f"secret of {user}", f"/facts/{user}/"))
        ids.extend((user, one) for one in written)

    async def take(kind: str, user: str, namespace: str, number: int) -> Any:
        client = clients[user]
        owner, record_id = ids[number % len(ids)]
        change = {"memoryRecordId": record_id, "timestamp": WHEN, "content": {"text": f"secret of {user}"}}
        query = {"searchCriteria": {"searchQuery": f"secret of alice bob {number}"}, "maxResults": 1 + number % 3}
        match kind:
            case "create":
                written = await put(client, memory, record(f"secret of {user}", namespace))
                ids.extend((user, one) for one in written)
            case "update" | "move" | "delete":
                if kind == "delete":
                    one = {"memoryRecordId": record_id}
                    answer = await client.batch_delete_memory_records(memoryId=memory, records=[one])
                else:
                    moved = {"namespaces": [namespace]} if kind == "move" else {}
                    answer = await client.batch_update_memory_records(memoryId=memory, records=[{**change, **moved}])
                assert not answer["successfulRecords"] or owner == user
            case "remove":
                await client.delete_memory_record(memoryId=memory, memoryRecordId=record_id)
                assert owner == user
            case "get":
                return await client.get_memory_record(memoryId=memory, memoryRecordId=record_id)
            case "list":
                return await client.list_memory_records(memoryId=memory, namespace=namespace, maxResults=1 + number % 3)
            case "under":
                return await client.list_memory_records(memoryId=memory, namespacePath=namespace, maxResults=1)
            case "find":
                return await client.retrieve_memory_records(memoryId=memory, namespace=namespace, **query)
            case "search":
                return await client.retrieve_memory_records(memoryId=memory, namespacePath=namespace, **query)
            case "token" if tokens:
                token = tokens[number % len(tokens)]
                return await client.list_memory_records(memoryId=memory, namespacePath=namespace, nextToken=token)
        return {}

    for kind, user, actor, template, number in steps:
        other = "bob" if user == "alice" else "alice"
        error: ServiceError | None = None
        answer: dict[str, Any] = {}
        try:
            answer = await take(kind, user, template.format(actor), number)
        except ServiceError as refused:
            error = refused
        if error is not None:
            assert "secret" not in error.message
            assert kind not in ("get", "remove") or isinstance(error, ResourceNotFoundException)
        assert f"secret of {other}" not in repr(answer)
        tokens.extend([answer["nextToken"]] if "nextToken" in answer else [])
    for user, record_id in ids[:2]:  # what the operator wrote is there, unless its owner deleted or changed it
        mine = await clients[user].list_memory_records(memoryId=memory, namespacePath=f"/facts/{user}/")
        assert all(one["content"]["text"] == f"secret of {user}" for one in mine["memoryRecordSummaries"])
        other = "bob" if user == "alice" else "alice"
        with pytest.raises(ResourceNotFoundException):
            await clients[other].get_memory_record(memoryId=memory, memoryRecordId=record_id)
