"""Operators' routes of the memory plane: who may ask, and what cannot be asked for."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Caller
from agentkeep.core.errors import AccessDeniedException, ResourceNotFoundException, RoleRefused, ValidationException
from agentkeep.core.grants import ACT_FOR_USER, Grant, user_arn
from agentkeep.core.identifiers import Deployment
from agentkeep.core.policies import Policy, Statement
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, OPERATOR, Client, SetClock, session_of

HERE = Deployment("eu-west-1", "123456789012")


@pytest.fixture
async def plane(store: KeyValueStore, search: SqliteSearchStore, clock: SetClock) -> AsyncIterator[MemoryPlane]:
    plane = MemoryPlane(store, HERE, clock, search, key_service=KEY_SERVICE)
    yield plane
    await plane.close()


@pytest.fixture
def backend(plane: MemoryPlane) -> SelfBackend:
    return SelfBackend(plane.operations)


async def ask(plane: MemoryPlane, caller: Caller | None, method: str, path: str, body: bytes = b"") -> Any:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "raw_path": path.encode()}
    scope |= {"query_string": query.encode(), "headers": [], "agentkeep.caller": caller}
    await plane.operators_app(scope, receive, send)
    assert sent[0]["status"] == 200
    return orjson.loads(sent[1]["body"])


async def test_what_a_record_says_is_for_keys_that_act_for_users(
    plane: MemoryPlane, operator: Client, memory: str
) -> None:
    """MEM-2: whoever may not act for users reads none of it, nor learns what there is; others are on record."""
    made = await operator.batch_create_memory_records(
        memoryId=memory,
        records=[
            {
                "requestIdentifier": "r",
                "namespaces": ["/facts/alice/"],
                "content": {"text": "a secret"},
                "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
            }
        ],
    )
    record = made["successfulRecords"][0]["memoryRecordId"]
    found = await ask(plane, OPERATOR, "GET", f"/memory/records/{memory}/{record}")
    assert (found["text"], found["actorId"], found["sources"]) == ("a secret", "alice", [])
    nobodys = replace(OPERATOR, acts_for_users=False)
    for one in (record, "mem-" + "0" * 36):
        with pytest.raises(AccessDeniedException, match="acts-for-users"):
            await ask(plane, nobodys, "GET", f"/memory/records/{memory}/{one}")
    # Who acts for others than its owner is not told whose it is, nor whether there is one.
    bob = Statement(True, (ACT_FOR_USER.lower(),), (user_arn(HERE.account, "bob"),))
    bobs = Grant(OPERATOR.principal, HERE, (Policy((bob,)),))
    role, said = replace(nobodys, grant=bobs), set()
    for one in (record, "mem-" + "0" * 36):
        with pytest.raises(RoleRefused) as refused:
            await ask(plane, role, "GET", f"/memory/records/{memory}/{one}")
        said.add(refused.value.message)
    assert len(said) == 1 and "alice" not in said.pop()
    with pytest.raises(ResourceNotFoundException):
        await ask(plane, OPERATOR, "GET", f"/memory/records/{memory}/mem-{'0' * 36}")
    for caller in (None, session_of("alice")):
        with pytest.raises(AccessDeniedException):
            await ask(plane, caller, "POST", "/memory/erasures", b'{"actorId": "alice"}')


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/memory/erasures", b"{}", "actorId"),
        ("/memory/erasures", b'{"actorId": ""}', "actorId"),
        ("/memory/erasures", b'{"actorId": "a", "memory": "m"}', "memory"),
        ("/memory/erasures", b"erase everything", "body"),
        ("/memory/compactions", b'{"memoryId": "m", "olderThanDays": "90"}', "olderThanDays"),
        ("/memory/compactions", b'{"memoryId": "m", "olderThanDays": -1}', "olderThanDays"),
        ("/memory/compactions", b'{"memoryId": "m", "namespace": "/a/*"}', "namespace"),
    ],
)
async def test_what_is_no_request(plane: MemoryPlane, path: str, body: bytes, field: str) -> None:
    with pytest.raises(ValidationException, match=field):
        await ask(plane, OPERATOR, "POST", path, body)


async def test_reports_are_listed_the_latest_first(plane: MemoryPlane, memory: str, clock: SetClock) -> None:
    body = orjson.dumps({"memoryId": memory})
    first = await ask(plane, OPERATOR, "POST", "/memory/compactions", body)
    await clock.sleep(1)
    second = await ask(plane, OPERATOR, "POST", "/memory/erasures", b'{"actorId": "alice"}')
    await clock.sleep(1)
    third = await ask(plane, OPERATOR, "POST", "/memory/compactions", body)
    listed = (await ask(plane, OPERATOR, "GET", "/memory/reports?limit=10"))["reports"]
    assert [one["id"] for one in listed] == [third["id"], second["id"], first["id"]]
    (latest,) = (await ask(plane, OPERATOR, "GET", "/memory/reports?limit=1"))["reports"]
    assert latest["id"] == third["id"]
    assert "AGENTKEEP_OBSERVABILITY_SPAN_DAYS" in repr(second["notRemoved"])
    await clock.sleep(366 * 86400)
    assert (await ask(plane, OPERATOR, "GET", "/memory/reports"))["reports"] == []
    for limit in ("0", "1001", "many"):
        with pytest.raises(ValidationException):
            await ask(plane, OPERATOR, "GET", f"/memory/reports?limit={limit}")
