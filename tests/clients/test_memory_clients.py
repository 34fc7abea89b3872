"""Unmodified clients of memory, over HTTP: boto3, the SDK, LangGraph's savers and their conformance suite."""

import operator
import uuid
import warnings
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypedDict

import pytest
from botocore.exceptions import ClientError
from checkpoint_conformance import FORMATS, conforms
from memory_service import REGION, MemoryService

with warnings.catch_warnings():  # the clients' own use of what their libraries deprecate is not ours to mend
    warnings.simplefilter("ignore")
    from bedrock_agentcore.memory import MemoryClient
    from bedrock_agentcore.memory.constants import BlobMessage, ConversationalMessage, MessageRole
    from bedrock_agentcore.memory.controlplane import MemoryControlPlaneClient
    from bedrock_agentcore.memory.session import MemorySessionManager
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph
    from langgraph_checkpoint_aws import AgentCoreMemorySaver

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# boto3


def test_boto3_drives_every_operation(service: MemoryService, data: Any, memory: str) -> None:
    control = service.client("bedrock-agentcore-control")
    arn = control.get_memory(memoryId=memory)["memory"]["arn"]
    control.tag_resource(resourceArn=arn, tags={"team": "a"})
    assert control.list_tags_for_resource(resourceArn=arn)["tags"] == {"team": "a"}
    control.untag_resource(resourceArn=arn, tagKeys=["team"])
    assert control.list_tags_for_resource(resourceArn=arn)["tags"] == {}
    listed = [m["id"] for page in control.get_paginator("list_memories").paginate() for m in page["memories"]]
    assert memory in listed

    where = {"memoryId": arn, "actorId": "user/1:a", "sessionId": "s"}  # slashes and an ARN in the path
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(30):
        data.create_event(
            **where,
            eventTimestamp=began + timedelta(milliseconds=number),
            payload=[
                {"conversational": {"content": {"text": "grüße 😀"}, "role": "USER"}},
                {"blob": {"number": number, "none": None, "list": [1, 2.5]}},
                {"json": {"content": f"{number}"}},
            ],
            metadata={"parity": {"stringValue": f"{number % 2}"}},
        )
    pages = data.get_paginator("list_events").paginate(**where, PaginationConfig={"PageSize": 7})
    events = [event for page in pages for event in page["events"]]
    assert [event["payload"][1]["blob"]["number"] for event in events] == list(range(30))[::-1]
    assert [event["eventTimestamp"] for event in events] == [began + timedelta(milliseconds=n) for n in range(30)][::-1]
    assert events[0]["payload"][0]["conversational"]["content"]["text"] == "grüße 😀"
    assert events[0]["payload"][1]["blob"] == {"number": 29, "none": None, "list": [1, 2.5]}
    odd = {
        "left": {"metadataKey": "parity"},
        "operator": "EQUALS_TO",
        "right": {"metadataValue": {"stringValue": "1"}},
    }
    assert len(data.list_events(**where, filter={"eventMetadata": [odd]})["events"]) == 15
    assert data.get_event(**where, eventId=events[3]["eventId"])["event"] == events[3]
    data.delete_event(**where, eventId=events[3]["eventId"])
    with pytest.raises(data.exceptions.ResourceNotFoundException):
        data.get_event(**where, eventId=events[3]["eventId"])
    (session,) = data.list_sessions(memoryId=memory, actorId="user/1:a")["sessionSummaries"]
    assert (session["sessionId"], session["actorId"]) == ("s", "user/1:a")
    assert data.list_actors(memoryId=memory)["actorSummaries"] == [{"actorId": "user/1:a"}]
    assert data.list_events(memoryId=memory, actorId="nobody", sessionId="s")["events"] == []


def test_boto3_retries_store_nothing_twice(data: Any, memory: str) -> None:
    request = {
        "memoryId": memory,
        "actorId": "a",
        "sessionId": "s",
        "eventTimestamp": datetime(2026, 1, 1, tzinfo=UTC),
        "payload": [{"blob": "x"}],
        "clientToken": str(uuid.uuid4()),
    }
    assert data.create_event(**request)["event"] == data.create_event(**request)["event"]
    with pytest.raises(data.exceptions.ValidationException) as refused:
        data.create_event(**{**request, "payload": []})
    assert refused.value.response["reason"] == "IdempotentParameterMismatchException"
    assert len(data.list_events(memoryId=memory, actorId="a", sessionId="s")["events"]) == 1


def test_an_agent_cannot_name_another_user(service: MemoryService, memory: str) -> None:
    """MEM-2, MEM-5: with a session's own keys on its own listener, everything of another actor is AccessDenied."""
    with service.session("alice") as alice, service.session("mallory") as mallory, service.session(None) as nobody:
        where = {"memoryId": memory, "actorId": "alice", "sessionId": "s"}
        event = alice.create_event(**where, eventTimestamp=datetime.now(UTC), payload=[{"blob": "secret"}])["event"]
        assert alice.list_events(**where)["events"] == [event]
        for other in (mallory, nobody):
            for call, request in (
                (other.create_event, {**where, "eventTimestamp": datetime.now(UTC), "payload": []}),
                (other.list_events, where),
                (other.get_event, {**where, "eventId": event["eventId"]}),
                (other.delete_event, {**where, "eventId": event["eventId"]}),
                (other.list_sessions, {"memoryId": memory, "actorId": "alice"}),
            ):
                with pytest.raises(other.exceptions.AccessDeniedException):
                    call(**request)
        assert mallory.list_actors(memoryId=memory)["actorSummaries"] == []
        assert alice.list_actors(memoryId=memory)["actorSummaries"] == [{"actorId": "alice"}]
        assert alice.list_events(**where)["events"] == [event]


# The SDK


@pytest.mark.usefixtures("environment")
def test_memory_client(memory: str) -> None:
    client = MemoryClient(region_name=REGION)
    made = client.create_or_get_memory(name="sdk", strategies=[])
    assert client.create_or_get_memory(name="sdk", strategies=[])["id"] == made["id"]
    assert made["status"] == "ACTIVE"
    client.delete_memory_and_wait(made["id"])

    for number in range(3):
        client.create_event(memory, "a", "s", [(f"question {number}", "USER"), (f"answer {number}", "ASSISTANT")])
    base = client.save_conversation(memory, "a", "s", [("question 3", "USER"), ("answer 3", "ASSISTANT")])
    client.create_blob_event(memory, "a", "s", {"state": [1, None, "x"]})
    events = client.list_events(memory, "a", "s")
    assert len(events) == 5
    assert [event["payload"][0]["blob"] for event in events if "blob" in event["payload"][0]] == [
        {"state": [1, None, "x"]}
    ]
    turns = client.get_last_k_turns(memory, "a", "s", k=2)
    assert [turn[0]["content"]["text"] for turn in turns] == ["question 3", "question 2"]

    client.fork_conversation(
        memory, "a", "s", base["eventId"], "fork", [("or else", "USER"), ("so be it", "ASSISTANT")]
    )
    client.create_event(memory, "a", "s", [("more", "USER")], branch={"name": "fork"})
    assert {branch["name"] for branch in client.list_branches(memory, "a", "s")} == {"main", "fork"}
    assert len(client.list_branch_events(memory, "a", "s", "fork")) == 2
    assert len(client.list_branch_events(memory, "a", "s")) == 5
    assert len(client.list_branch_events(memory, "a", "s", "fork", include_parent_branches=True)) == 2 + 4
    context = client.merge_branch_context(memory, "a", "s", "fork")
    assert {message["branch"] for message in context} == {"main", "fork"}
    assert client.list_actors(memoryId=memory)["actorSummaries"] == [{"actorId": "a"}]


@pytest.mark.usefixtures("environment")
def test_memory_control_plane_client() -> None:
    client = MemoryControlPlaneClient(region_name=REGION)
    made = client.create_memory(name="control", strategies=[{"semanticMemoryStrategy": {"name": "facts"}}])
    client.add_strategy(made["id"], {"summaryMemoryStrategy": {"name": "summaries"}})
    strategies = client.get_memory(made["id"])["strategies"]
    assert [(s["name"], s["status"]) for s in strategies] == [("facts", "ACTIVE"), ("summaries", "ACTIVE")]
    client.remove_strategy(made["id"], strategies[0]["strategyId"])
    assert len(client.get_memory(made["id"])["strategies"]) == 1
    assert made["id"] in [one["id"] for one in client.list_memories()]
    client.delete_memory(made["id"])
    with pytest.raises(ClientError, match="ResourceNotFound"):
        client.get_memory(made["id"])


@pytest.mark.usefixtures("environment")
def test_memory_session_manager(memory: str) -> None:
    manager = MemorySessionManager(memory, region_name=REGION)
    session = manager.create_memory_session("user/1", "s")
    first = session.add_turns([ConversationalMessage("hello", MessageRole.USER), BlobMessage({"a": [1, None]})])
    session.add_turns([ConversationalMessage("hi", MessageRole.ASSISTANT)])
    forked = session.fork_conversation(
        messages=[ConversationalMessage("instead", MessageRole.USER)],
        root_event_id=first["eventId"],
        branch_name="fork",
    )
    assert session.get_event(forked["eventId"])["branch"]["name"] == "fork"
    assert {branch["name"] for branch in session.list_branches()} == {"main", "fork"}
    events = session.list_events()
    assert len(events) == 3
    assert first["eventId"] in {event["eventId"] for event in events}
    assert [[m["content"]["text"] for m in turn] for turn in session.get_last_k_turns(k=1)]
    assert [actor["actorId"] for actor in session.list_actors()] == ["user/1"]
    assert [one["sessionId"] for one in session.get_actor().list_sessions()] == ["s"]
    session.delete_event(forked["eventId"])
    assert len(session.list_events()) == 2


# LangGraph


class Counted(TypedDict):
    seen: Annotated[list[str], operator.add]


def conversation(saver: AgentCoreMemorySaver) -> Any:
    graph = StateGraph(Counted)
    graph.add_node("listen", lambda state: {"seen": [f"heard {state['seen'][-1]}"]})
    graph.add_node("answer", lambda state: {"seen": [f"{len(state['seen'])} so far"]})
    graph.add_edge(START, "listen")
    graph.add_edge("listen", "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=saver)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("checkpoint_format", FORMATS)
def test_a_langgraph_conversation_goes_on(memory: str, checkpoint_format: Any) -> None:
    """Turns continue a thread, users and threads are apart, and history can be gone back to."""
    graph = conversation(AgentCoreMemorySaver(memory, region_name=REGION, checkpoint_format=checkpoint_format))

    def config(actor: str, thread: str) -> RunnableConfig:
        return {"configurable": {"actor_id": actor, "thread_id": thread}}

    for turn in range(3):
        for actor in ("alice", "bob"):
            graph.invoke({"seen": [f"{actor} {turn}"]}, config(actor, "t"))
    for actor in ("alice", "bob"):
        # another process: a saver of its own
        fresh = conversation(AgentCoreMemorySaver(memory, region_name=REGION, checkpoint_format=checkpoint_format))
        seen = fresh.get_state(config(actor, "t")).values["seen"]
        assert seen[::3] == [f"{actor} {turn}" for turn in range(3)]
        assert seen[-1] == "8 so far"
        history = list(fresh.get_state_history(config(actor, "t")))
        assert [len(state.values.get("seen", [])) for state in history if not state.next] == [9, 6, 3]
    assert graph.get_state(config("alice", "other")).values == {}
    graph.checkpointer.delete_thread("t", "alice")
    assert graph.get_state(config("alice", "t")).values == {}
    assert graph.get_state(config("bob", "t")).values["seen"]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("checkpoint_format", FORMATS)
async def test_langgraph_checkpoint_conformance(memory: str, checkpoint_format: Any) -> None:
    """MEM-1."""
    await conforms(memory, checkpoint_format, region_name=REGION)
