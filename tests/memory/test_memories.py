"""Memories: what operators create, see, change and delete."""

import asyncio
from typing import Any

import pytest

from agentkeep.backend.own import SelfBackend
from agentkeep.core.errors import (
    ConflictException,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
    ValidationException,
)
from agentkeep.core.identifiers import Deployment
from agentkeep.memory.lifecycle.erasure import Erasure
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.interface import KeyValueStore
from agentkeep.storage.search_sqlite import SqliteSearchStore

from .conftest import KEY_SERVICE, OPERATOR, Client, SetClock

STREAM = {
    "resources": [
        {
            "kinesis": {
                "dataStreamArn": "arn:aws:kinesis:eu-west-1:123456789012:stream/records",
                "contentConfigurations": [{"type": "MEMORY_RECORDS", "level": "FULL_CONTENT"}],
            }
        }
    ]
}


async def test_what_is_created_is_echoed_in_full(operator: Client) -> None:
    given = {
        "name": "full",
        "description": "all of it",
        "memoryExecutionRoleArn": "arn:aws:iam::123456789012:role/r",
        "eventExpiryDuration": 30,
        "indexedKeys": [{"key": "priority", "type": "NUMBER"}],
        "namespaceKeys": [{"key": "tenant", "validation": {"allowedValues": ["a", "b"]}}],
        "streamDeliveryResources": STREAM,
    }
    created = (await operator.create_memory(**given))["memory"]
    assert {key: created[key] for key in given} == given
    assert created["status"] == "ACTIVE"
    assert created["strategies"] == []
    assert created["id"].startswith("full-")
    assert len(created["id"]) == len("full-") + 10
    assert created["arn"] == f"arn:aws:bedrock-agentcore:eu-west-1:123456789012:memory/{created['id']}"
    assert created["createdAt"] == created["updatedAt"]
    for name in (created["id"], created["arn"]):
        assert (await operator.get_memory(memoryId=name))["memory"] == created


async def test_a_name_is_taken_once(operator: Client) -> None:
    await operator.create_memory(name="one", eventExpiryDuration=7)
    with pytest.raises(ValidationException, match="already exists"):  # the words the SDK looks for
        await operator.create_memory(name="one", eventExpiryDuration=7)
    attempts = (operator.create_memory(name="two", eventExpiryDuration=7) for _ in range(10))
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(answer, dict) for answer in answers) == 1


async def test_creation_is_idempotent_by_token(operator: Client) -> None:
    first = await operator.create_memory(name="one", eventExpiryDuration=7, token="t")
    assert await operator.create_memory(name="one", eventExpiryDuration=7, token="t") == first
    with pytest.raises(ValidationException) as refused:
        await operator.create_memory(name="one", eventExpiryDuration=8, token="t")
    assert refused.value.reason == "IdempotentParameterMismatchException"


async def test_listing_has_pages(operator: Client) -> None:
    ids = {(await operator.create_memory(name=f"m{n}", eventExpiryDuration=7))["memory"]["id"] for n in range(23)}
    assert len((await operator.list_memories())["memories"]) == 10
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await operator.list_memories(maxResults=7, **token)
        assert set(page["memories"][0]) == {"arn", "id", "status", "createdAt", "updatedAt"}
        seen += [summary["id"] for summary in page["memories"]]
        if "nextToken" not in page:
            break
        token = {"nextToken": page["nextToken"]}
    assert len(seen) == 23
    assert set(seen) == ids


@pytest.mark.parametrize("token", ["nonsense!", "ü", "/w==", "A" * 5000])
async def test_a_forged_token_is_bad_input(operator: Client, token: str) -> None:
    with pytest.raises(ValidationException, match="nextToken"):
        await operator.list_memories(nextToken=token)


async def test_other_deployments_memories_are_not_found(operator: Client, memory: str) -> None:
    for name in (
        "nothing-0123456789",
        f"arn:aws:bedrock-agentcore:us-east-1:123456789012:memory/{memory}",
        f"arn:aws:bedrock-agentcore:eu-west-1:000000000000:memory/{memory}",
        f"arn:aws:bedrock-agentcore:eu-west-1:123456789012:runtime/{memory}",
    ):
        with pytest.raises(ResourceNotFoundException):
            await operator.get_memory(memoryId=name)


async def test_an_update_changes_what_it_names(operator: Client, clock: SetClock) -> None:
    memory = (
        await operator.create_memory(
            name="m", eventExpiryDuration=7, description="before", indexedKeys=[{"key": "a", "type": "STRING"}]
        )
    )["memory"]
    await clock.sleep(5)
    updated = (
        await operator.update_memory(
            memoryId=memory["id"],
            description="after",
            addIndexedKeys=[{"key": "b", "type": "NUMBER"}],
            namespaceKeys=[],
            streamDeliveryResources=STREAM,
        )
    )["memory"]
    assert updated["description"] == "after"
    assert [key["key"] for key in updated["indexedKeys"]] == ["a", "b"]
    assert updated["streamDeliveryResources"] == STREAM
    assert updated["eventExpiryDuration"] == 7
    assert updated["createdAt"] == memory["createdAt"] < updated["updatedAt"]
    assert (await operator.get_memory(memoryId=memory["id"]))["memory"] == updated
    with pytest.raises(ValidationException, match="addIndexedKeys"):
        await operator.update_memory(memoryId=memory["id"], addIndexedKeys=[{"key": "a", "type": "STRING"}])


async def test_updates_at_once_lose_nothing(operator: Client, memory: str) -> None:
    answers = await asyncio.gather(
        *(
            operator.update_memory(memoryId=memory, addIndexedKeys=[{"key": f"k{n}", "type": "STRING"}])
            for n in range(4)
        )
    )
    assert len(answers) == 4
    assert len((await operator.get_memory(memoryId=memory))["memory"]["indexedKeys"]) == 4


async def test_strategies_come_and_go(operator: Client) -> None:
    memory = (
        await operator.create_memory(
            name="m",
            eventExpiryDuration=7,
            memoryStrategies=[
                {"semanticMemoryStrategy": {"name": "facts", "description": "d", "namespaces": ["facts/{actorId}"]}},
                {"summaryMemoryStrategy": {"name": "summaries"}},
            ],
        )
    )["memory"]
    facts, summaries = memory["strategies"]
    assert facts["strategyId"].startswith("facts-")
    assert (facts["type"], facts["status"], facts["description"]) == ("SEMANTIC", "ACTIVE", "d")
    assert facts["namespaces"] == facts["namespaceTemplates"] == ["/facts/{actorId}/"]
    assert summaries["type"] == "SUMMARIZATION"
    assert summaries["namespaces"] == ["/strategies/{memoryStrategyId}/actors/{actorId}/sessions/{sessionId}/"]

    changed = (
        await operator.update_memory(
            memoryId=memory["id"],
            memoryStrategies={
                "addMemoryStrategies": [{"userPreferenceMemoryStrategy": {"name": "likes"}}],
                "modifyMemoryStrategies": [
                    {
                        "memoryStrategyId": facts["strategyId"],
                        "description": "e",
                        "recordExpirySpecification": {"recordExpiryDurationDays": 31},
                    }
                ],
                "deleteMemoryStrategies": [{"memoryStrategyId": summaries["strategyId"]}],
            },
        )
    )["memory"]["strategies"]
    assert [strategy["name"] for strategy in changed] == ["facts", "likes"]
    assert (changed[0]["description"], changed[0]["recordExpiryDurationDays"]) == ("e", 31)
    assert changed[0]["namespaces"] == ["/facts/{actorId}/"]

    removed = await operator.update_memory(
        memoryId=memory["id"],
        memoryStrategies={
            "modifyMemoryStrategies": [
                {"memoryStrategyId": facts["strategyId"], "recordExpirySpecification": {"action": "REMOVE"}}
            ]
        },
    )
    assert "recordExpiryDurationDays" not in removed["memory"]["strategies"][0]


async def test_overrides_are_answered_as_the_model_shapes_them(operator: Client) -> None:
    step = {"appendToPrompt": "look for names", "modelId": "m"}
    schema = {"metadataSchema": [{"key": "priority", "type": "NUMBER"}]}
    invocation = {"topicArn": "arn:aws:sns:eu-west-1:123456789012:t", "payloadDeliveryBucketName": "bucket"}
    memory = (
        await operator.create_memory(
            name="m",
            eventExpiryDuration=7,
            memoryStrategies=[
                {
                    "customMemoryStrategy": {
                        "name": "semantic",
                        "configuration": {"semanticOverride": {"extraction": step, "consolidation": step}},
                        "memoryRecordSchema": schema,
                    }
                },
                {
                    "customMemoryStrategy": {
                        "name": "episodic",
                        "configuration": {
                            "episodicOverride": {"extraction": step, "reflection": {**step, "namespaces": ["/r/"]}}
                        },
                    }
                },
                {
                    "customMemoryStrategy": {
                        "name": "own",
                        "configuration": {"selfManagedConfiguration": {"invocationConfiguration": invocation}},
                    }
                },
                {"episodicMemoryStrategy": {"name": "episodes", "reflectionConfiguration": {"namespaces": ["/r/"]}}},
            ],
        )
    )["memory"]
    semantic, episodic, own, episodes = memory["strategies"]
    assert semantic["type"] == "CUSTOM"
    assert semantic["memoryRecordSchema"] == schema
    assert semantic["configuration"] == {
        "type": "SEMANTIC_OVERRIDE",
        "extraction": {"customExtractionConfiguration": {"semanticExtractionOverride": step}},
        "consolidation": {"customConsolidationConfiguration": {"semanticConsolidationOverride": step}},
    }
    reflection = {**step, "namespaces": ["/r/"], "namespaceTemplates": ["/r/"]}
    assert episodic["configuration"]["reflection"] == {
        "customReflectionConfiguration": {"episodicReflectionOverride": reflection}
    }
    managed = own["configuration"]["selfManagedConfiguration"]
    assert own["configuration"]["type"] == "SELF_MANAGED"
    assert managed["invocationConfiguration"] == invocation
    assert managed["historicalContextWindowSize"] == 4
    assert len(managed["triggerConditions"]) == 3
    assert episodes["configuration"]["reflection"]["episodicReflectionConfiguration"]["namespaces"] == ["/r/"]

    async def modify(strategy: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
        answer = await operator.update_memory(
            memoryId=memory["id"],
            memoryStrategies={
                "modifyMemoryStrategies": [{"memoryStrategyId": strategy["strategyId"], "configuration": configuration}]
            },
        )
        (changed,) = [s for s in answer["memory"]["strategies"] if s["strategyId"] == strategy["strategyId"]]
        return dict(changed["configuration"])

    other = {"appendToPrompt": "look for places", "modelId": "m"}
    changed = await modify(
        semantic, {"extraction": {"customExtractionConfiguration": {"semanticExtractionOverride": other}}}
    )
    assert changed["extraction"]["customExtractionConfiguration"]["semanticExtractionOverride"] == other
    assert changed["consolidation"] == semantic["configuration"]["consolidation"]
    changed = await modify(own, {"selfManagedConfiguration": {"historicalContextWindowSize": 9}})
    assert changed["selfManagedConfiguration"] == {**managed, "historicalContextWindowSize": 9}
    for strategy, wrong in (
        (semantic, {"extraction": {"customExtractionConfiguration": {"userPreferenceExtractionOverride": other}}}),
        (semantic, {"selfManagedConfiguration": {}}),
        (semantic, {"reflection": {"episodicReflectionConfiguration": {"namespaces": ["/r/"]}}}),
    ):
        with pytest.raises(ValidationException):
            await modify(strategy, wrong)


async def test_strategies_that_cannot_be(operator: Client) -> None:
    async def create(*strategies: dict[str, Any]) -> None:
        await operator.create_memory(name="m", eventExpiryDuration=7, memoryStrategies=list(strategies))

    with pytest.raises(ValidationException, match="already exists"):
        await create({"semanticMemoryStrategy": {"name": "a"}}, {"summaryMemoryStrategy": {"name": "a"}})
    with pytest.raises(ValidationException, match=r"unknown variable \{userId\}"):
        await create({"semanticMemoryStrategy": {"name": "a", "namespaces": ["/{userId}/"]}})
    with pytest.raises(ServiceQuotaExceededException):
        await create(*({"semanticMemoryStrategy": {"name": f"a{n}"}} for n in range(7)))
    assert (await operator.list_memories())["memories"] == []


async def test_tags(operator: Client, memory: str) -> None:
    arn = (await operator.get_memory(memoryId=memory))["memory"]["arn"]
    assert await operator.list_tags_for_resource(resourceArn=arn) == {"tags": {}}
    await operator.tag_resource(resourceArn=arn, tags={"team": "a", "env": "x"})
    await operator.tag_resource(resourceArn=arn, tags={"team": "b"})
    await operator.untag_resource(resourceArn=arn, tagKeys=["env", "never there"])
    assert await operator.list_tags_for_resource(resourceArn=arn) == {"tags": {"team": "b"}}
    with pytest.raises(ServiceQuotaExceededException, match="at most 50"):
        await operator.tag_resource(resourceArn=arn, tags={f"k{n}": "" for n in range(50)})
    with pytest.raises(ResourceNotFoundException):
        await operator.list_tags_for_resource(resourceArn=arn + "x")


async def test_a_deleted_memory_is_gone_with_its_events(operator: Client, memory: str, store: KeyValueStore) -> None:
    for actor in ("a", "b/c"):
        for session in ("s1", "s2"):
            root = await operator.event(memory, actor, session)
            await operator.event(memory, actor, session, branch={"name": "fork", "rootEventId": root})
    assert await operator.delete_memory(memoryId=memory, token="t") == {"memoryId": memory, "status": "DELETING"}
    for call in (
        operator.get_memory(memoryId=memory),
        operator.event(memory, "a", "s1"),
        operator.list_events(memoryId=memory, actorId="a", sessionId="s1"),
        operator.list_sessions(memoryId=memory, actorId="a"),
        operator.list_actors(memoryId=memory),
        operator.delete_memory(memoryId=memory),
    ):
        with pytest.raises(ResourceNotFoundException):
            await call
    assert await operator.delete_memory(memoryId=memory, token="t") == {"memoryId": memory, "status": "DELETING"}
    await operator.create_memory(name="notes", eventExpiryDuration=7)
    assert await keys_left(store, memory) == []


async def test_an_interrupted_deletion_goes_on(
    operator: Client,
    memory: str,
    store: KeyValueStore,
    search: SqliteSearchStore,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EXE-6: killed at any step, a deletion takes no more events and is finished by the next start."""
    for number in range(5):
        await operator.event(memory, f"a{number}", "s")
    erase_actor = Erasure._erase_actor
    erased = 0

    async def die_midway(self: Erasure, memory_id: str, actor_id: str) -> None:
        nonlocal erased
        if erased == 2:
            raise asyncio.CancelledError
        erased += 1
        await erase_actor(self, memory_id, actor_id)

    monkeypatch.setattr(Erasure, "_erase_actor", die_midway)
    await operator.delete_memory(memoryId=memory)
    assert (await operator.get_memory(memoryId=memory))["memory"]["status"] == "DELETING"
    with pytest.raises(ResourceNotFoundException):
        await operator.event(memory, "late", "s")
    with pytest.raises(ConflictException):
        await operator.update_memory(memoryId=memory, description="x")
    monkeypatch.undo()

    successor = MemoryPlane(store, Deployment("eu-west-1", "123456789012"), clock, search, key_service=KEY_SERVICE)
    await successor.deletions.resume()
    await successor.deletions.finish()
    with pytest.raises(ResourceNotFoundException):
        await operator.get_memory(memoryId=memory)
    assert await keys_left(store, memory) == []


async def test_replicas_agree(
    operator: Client, memory: str, store: KeyValueStore, search: SqliteSearchStore, clock: SetClock
) -> None:
    """What one replica remembers of a memory is proved anew with each write, so another's change counts at once."""
    other = MemoryPlane(store, Deployment("eu-west-1", "123456789012"), clock, search, key_service=KEY_SERVICE)
    elsewhere = Client(SelfBackend(other.operations), OPERATOR)
    await elsewhere.event(memory, "a", "s", "kept 7 days")
    await operator.update_memory(memoryId=memory, eventExpiryDuration=30)
    await elsewhere.event(memory, "a", "s", "kept 30 days")
    await clock.sleep(8 * 86400)
    assert await elsewhere.texts(memory, "a", "s") == ["kept 30 days"]
    await operator.delete_memory(memoryId=memory)
    for call in (
        elsewhere.event(memory, "a", "s"),
        elsewhere.list_events(memoryId=memory, actorId="a", sessionId="s"),
        elsewhere.list_actors(memoryId=memory),
    ):
        with pytest.raises(ResourceNotFoundException):
            await call
    assert await keys_left(store, memory) == []


async def test_changes_are_idempotent_by_token(operator: Client, memory: str) -> None:
    key = {"key": "k", "type": "STRING"}
    first = await operator.update_memory(memoryId=memory, addIndexedKeys=[key], token="t")
    await operator.update_memory(memoryId=memory, description="since then")
    strategy = {"addMemoryStrategies": [{"semanticMemoryStrategy": {"name": "facts"}}]}
    added = await operator.update_memory(memoryId=memory, memoryStrategies=strategy, token="u")
    assert len(added["memory"]["strategies"]) == 1
    assert first["memory"]["indexedKeys"] == added["memory"]["indexedKeys"]
    for request, token in (({"addIndexedKeys": [key]}, "t"), ({"memoryStrategies": strategy}, "u")):
        again = await operator.update_memory(memoryId=memory, **request, token=token)
        assert again == added


async def keys_left(store: Any, memory: str) -> list[bytes]:
    """What the database holds of a memory, but for spent client tokens."""
    found = await store._client.execute(("KEYS", f"{store._prefix}*"), repeatable=True)
    return [key for key in found if memory.encode() in key and b"once:" not in key]


async def test_namespace_keys_are_checked(operator: Client) -> None:
    """MEM-1: keys are named once, patterns are regular expressions, and no template loses its variable."""
    by_team = [{"semanticMemoryStrategy": {"name": "facts", "namespaces": ["/{team}/{actorId}/"]}}]
    declared = {"name": "teams", "eventExpiryDuration": 7, "memoryStrategies": by_team}
    for wrong, match in (
        ([{"key": "team"}, {"key": "team"}], "twice"),
        ([{"key": "team", "validation": {"regexPattern": "["}}], "regular expression"),
        ([{"key": "unit"}], "team"),
    ):
        with pytest.raises(ValidationException, match=match):
            await operator.create_memory(**declared, namespaceKeys=wrong)
    memory = (await operator.create_memory(**declared, namespaceKeys=[{"key": "team"}]))["memory"]
    with pytest.raises(ValidationException, match="must have team"):
        await operator.update_memory(memoryId=memory["id"], namespaceKeys=[])
    kept = (await operator.get_memory(memoryId=memory["id"]))["memory"]
    assert kept["namespaceKeys"] == [{"key": "team"}]
    strategy = {"memoryStrategyId": memory["strategies"][0]["strategyId"]}
    changed = await operator.update_memory(
        memoryId=memory["id"], namespaceKeys=[], memoryStrategies={"deleteMemoryStrategies": [strategy]}
    )
    assert changed["memory"]["namespaceKeys"] == []
