"""Unmodified clients of long-term memory, over HTTP: boto3, the SDK, LangGraph's store."""

import uuid
import warnings
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError
from memory_service import REGION, MemoryService

with warnings.catch_warnings():  # the clients' own use of what their libraries deprecate is not ours to mend
    warnings.simplefilter("ignore")
    from bedrock_agentcore.memory import MemoryClient
    from bedrock_agentcore.memory.session import MemorySessionManager
    from langgraph.store.base import GetOp, SearchOp
    from langgraph_checkpoint_aws import AgentCoreMemoryStore

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FACTS = {
    "/facts/alice/": ["Prefers Python for backend work.", "Lives in Vienna."],
    "/facts/alice/work/": ["Leads a team of five engineers."],
    "/facts/bob/": ["Collects old bicycles."],
    "/summaries/alice/s/": ["They spoke about consensus in distributed systems."],
}


@pytest.fixture
def records(data: Any, memory: str) -> dict[str, str]:
    """Text -> id."""
    texts = [(namespace, text) for namespace, texts in FACTS.items() for text in texts]
    answer = data.batch_create_memory_records(
        memoryId=memory,
        records=[
            {
                "requestIdentifier": f"r{number}",
                "namespaces": [namespace],
                "content": {"text": text},
                "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
            }
            for number, (namespace, text) in enumerate(texts)
        ],
    )
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert answer["failedRecords"] == []
    ids = {one["requestIdentifier"]: one["memoryRecordId"] for one in answer["successfulRecords"]}
    return {text: ids[f"r{number}"] for number, (_, text) in enumerate(texts)}


def test_boto3_drives_every_operation(service: MemoryService, data: Any, memory: str, records: dict[str, str]) -> None:
    control = service.client("bedrock-agentcore-control")
    control.update_memory(memoryId=memory, addIndexedKeys=[{"key": "weight", "type": "NUMBER"}])
    tea = records["Lives in Vienna."]
    seen = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
    metadata = {"weight": {"numberValue": 2.0}, "seen": {"dateTimeValue": seen}}
    updated = data.batch_update_memory_records(
        memoryId=memory,
        records=[
            {"memoryRecordId": tea, "timestamp": seen, "content": {"text": "Lives in Graz."}, "metadata": metadata},
            {"memoryRecordId": "mem-" + "0" * 36, "timestamp": seen},
        ],
        recordExpirySpecification={"recordExpiryDurationDays": 31},
    )
    assert [one["status"] for one in (*updated["successfulRecords"], *updated["failedRecords"])] == [
        *("SUCCEEDED", "FAILED")
    ]
    got = data.get_memory_record(memoryId=memory, memoryRecordId=tea, namespace="/facts/alice/")["memoryRecord"]
    assert (got["content"]["text"], got["metadata"], got["timestamp"]) == ("Lives in Graz.", metadata, seen)
    assert (got["expiresAt"] - got["createdAt"]).days >= 31

    pages = data.get_paginator("list_memory_records").paginate(
        memoryId=memory, namespacePath="/facts/", PaginationConfig={"PageSize": 2}
    )
    assert len([one for page in pages for one in page["memoryRecordSummaries"]]) == 4
    heavy = {
        "left": {"metadataKey": "weight"},
        "operator": "GREATER_THAN",
        "right": {"metadataValue": {"numberValue": 1}},
    }
    pages = data.get_paginator("retrieve_memory_records").paginate(
        memoryId=memory,
        namespacePath="/facts/",
        searchCriteria={"searchQuery": "home", "topK": 5, "metadataFilters": [heavy]},
    )
    assert [one["memoryRecordId"] for page in pages for one in page["memoryRecordSummaries"]] == [tea]

    assert data.delete_memory_record(memoryId=memory, memoryRecordId=tea)["memoryRecordId"] == tea
    with pytest.raises(data.exceptions.ResourceNotFoundException):
        data.get_memory_record(memoryId=memory, memoryRecordId=tea)
    rest = [{"memoryRecordId": one} for one in records.values()]
    deleted = data.batch_delete_memory_records(memoryId=memory, records=rest)
    assert (len(deleted["successfulRecords"]), len(deleted["failedRecords"])) == (len(rest) - 1, 1)
    with pytest.raises(ClientError, match="exactly one of namespace"):
        data.list_memory_records(memoryId=memory)
    with pytest.raises(ClientError, match="wildcards"):
        data.list_memory_records(memoryId=memory, namespace="/facts/*/")


def test_an_agent_keeps_and_finds_what_is_its_users(service: MemoryService, memory: str, records: Any) -> None:
    """MEM-2, over the wire with the session's own keys."""
    with service.session("alice") as alice, service.session("bob") as bob:
        made = alice.batch_create_memory_records(
            memoryId=memory,
            records=[
                {
                    "requestIdentifier": "r",
                    "namespaces": ["/preferences/alice/"],
                    "content": {"text": "Wants short answers."},
                    "timestamp": datetime.now(UTC),
                }
            ],
        )
        [own] = made["successfulRecords"]
        asked = {"memoryId": memory, "searchCriteria": {"searchQuery": "How should replies be?"}}
        found = alice.retrieve_memory_records(**asked, namespacePath="/preferences/alice")["memoryRecordSummaries"]
        assert [one["memoryRecordId"] for one in found] == [own["memoryRecordId"]]
        facts = alice.list_memory_records(memoryId=memory, namespacePath="/facts/alice/")["memoryRecordSummaries"]
        assert len(facts) == 2  # an operator wrote them for her; beneath, for whom is not certain (decision 0009)
        with pytest.raises(bob.exceptions.AccessDeniedException, match="/facts/bob/"):
            bob.retrieve_memory_records(**asked, namespacePath="/preferences/alice/")
        with pytest.raises(bob.exceptions.ResourceNotFoundException):
            bob.get_memory_record(memoryId=memory, memoryRecordId=own["memoryRecordId"])


@pytest.mark.usefixtures("environment", "records")
def test_memory_client(memory: str) -> None:
    client = MemoryClient(region_name=REGION)
    found = client.retrieve_memories(memory, namespace="/facts/alice/", query="programming language", top_k=2)
    assert found[0]["content"]["text"] == "Prefers Python for backend work."
    assert {one["namespaces"][0] for one in found} == {"/facts/alice/"}
    assert len(client.retrieve_memories(memory, namespace_path="/facts/", query="what is known", top_k=10)) == 4
    assert client.retrieve_memories(memory, namespace="*", query="anything") == []
    listed = client.list_memory_records(memoryId=memory, namespace="/facts/alice/")
    assert len(listed["memoryRecordSummaries"]) == 2


@pytest.mark.usefixtures("environment")
def test_memory_session_manager(memory: str, records: dict[str, str]) -> None:
    manager = MemorySessionManager(memory, region_name=REGION)
    session = manager.create_memory_session("alice", "s")
    found = session.search_long_term_memories("distributed systems", namespace_path="/summaries/alice/", top_k=3)
    assert [one["content"]["text"] for one in found] == FACTS["/summaries/alice/s/"]
    assert len(session.list_long_term_memory_records(namespace="/facts/alice/")) == 2
    assert len(session.list_long_term_memory_records(namespace_path="/facts/alice/")) == 3
    one = session.get_memory_record(records["Lives in Vienna."])
    assert one["content"]["text"] == "Lives in Vienna."
    session.delete_memory_record(records["Lives in Vienna."])
    outcome = manager.delete_all_long_term_memories_in_namespace("/facts/alice/")
    assert len(outcome["successfulRecords"]) == 1
    assert len(session.list_long_term_memory_records(namespace_path="/facts/")) == 2


@pytest.mark.usefixtures("environment")
async def test_langgraph_store(memory: str, records: dict[str, str]) -> None:
    store = AgentCoreMemoryStore(memory_id=memory, region_name=REGION)
    found = store.search(("facts", "alice"), query="Who does she manage?", limit=3)
    assert found[0].value["content"] == "Leads a team of five engineers."
    assert found[0].key == records["Leads a team of five engineers."]
    scores = [one.score for one in found]
    assert None not in scores
    assert scores == sorted(scores, reverse=True)
    exact = AgentCoreMemoryStore(memory_id=memory, region_name=REGION, hierarchical_search=False)
    assert {one.value["content"] for one in exact.search(("facts", "alice"), query="she")} == set(
        FACTS["/facts/alice/"]
    )
    item = store.get(("facts", "alice"), found[0].key)
    assert item is not None
    assert item.value["content"] == "Leads a team of five engineers."
    missing = f"mem-{uuid.uuid4()}"
    assert await store.aget(("facts", "alice"), missing) is None
    results = await store.abatch([SearchOp(("facts", "bob"), query="hobby", limit=1), GetOp(("facts",), missing)])
    assert [one.value["content"] for one in results[0]] == FACTS["/facts/bob/"]
    assert results[1] is None
