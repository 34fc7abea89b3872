"""Unmodified boto3 against a small server made of the wire alone: it routes, verifies the signature, parses, answers
what the test says, and serialises."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
import uvicorn
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from agentkeep.core.errors import (
    RuntimeClientError,
    ServiceError,
    ThrottlingException,
    UnsupportedOperationException,
    ValidationException,
)
from agentkeep.wire import Response, Router, error_response
from agentkeep.wire import signature as sigv4

KEY, SECRET, TOKEN = "AKIDEXAMPLE", "secret", "session-token"
ARN = "arn:aws:bedrock-agentcore:us-east-1:000000000000:runtime/agent-0123456789"
MOMENT = datetime(2025, 8, 25, 18, 39, 14, 123456, tzinfo=UTC)

Answer = Callable[[dict[str, Any]], Any]


class Server:
    """`answers`: operation to a function of the request; `requests`: what was parsed, in order."""

    def __init__(self) -> None:
        self.router = Router()
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.attempts = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.attempts += 1
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        response = self.answer(scope, body)
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        if not isinstance(response.body, bytes):
            async for piece in response.body:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": response.body if isinstance(response.body, bytes) else b""})

    def answer(self, scope: Any, body: bytes) -> Response:
        operation = None
        try:
            claim = sigv4.parse(
                scope["method"].encode(),
                scope["raw_path"],
                scope["query_string"],
                scope["headers"],
                datetime.now(UTC).timestamp(),
            )
            claim.verify(SECRET, TOKEN, hashlib.sha256(body).hexdigest())
            match = self.router.find(scope["method"], scope["raw_path"])
            assert match is not None, scope["raw_path"]
            operation = match.operation
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            request = operation.parse(match.labels, scope["query_string"], headers, body)
            self.requests.append((operation.name, request))
            return operation.serialize(self.answers[operation.name](request))
        except ServiceError as error:
            return error_response(error, None if operation is None else operation.model)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Server, str]]:
    server = Server()
    config = uvicorn.Config(server, "127.0.0.1", 0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    front = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(front.serve()), daemon=True)
    thread.start()
    while not front.started:
        thread.join(0.01)
    port = front.servers[0].sockets[0].getsockname()[1]
    yield server, f"http://127.0.0.1:{port}"
    front.should_exit = True
    thread.join(5)


@pytest.fixture
def server(running: tuple[Server, str]) -> Server:
    server, _ = running
    server.answers.clear()
    server.requests.clear()
    server.attempts = 0
    return server


@pytest.fixture(scope="module")
def client(running: tuple[Server, str]) -> Iterator[Callable[[str], Any]]:
    made: dict[str, Any] = {}

    def make(service: str) -> Any:
        if service not in made:
            made[service] = boto3.client(
                service,
                endpoint_url=running[1],
                region_name="us-east-1",
                aws_access_key_id=KEY,
                aws_secret_access_key=SECRET,
                aws_session_token=TOKEN,
                config=Config(retries={"total_max_attempts": 3, "mode": "standard"}),
            )
        return made[service]

    yield make
    for each in made.values():
        each.close()


def test_memory_events(server: Server, client: Callable[[str], Any]) -> None:
    """Slashes in the actor, a hash in the event id, documents, microseconds, a client token made by boto3."""
    memory = client("bedrock-agentcore")
    event_id = "0000001756147154123#ffa53e54"
    server.answers["CreateEvent"] = lambda request: {
        "event": {"eventId": event_id, **{k: v for k, v in request.items() if k != "clientToken"}}
    }
    payload = [{"blob": '{"a": [null]}'}, {"json": {"content": {"deep": [1, None]}}}]
    created = memory.create_event(
        memoryId="memory-0123456789", actorId="user/1:a", sessionId="s", eventTimestamp=MOMENT, payload=payload
    )["event"]
    assert created["eventTimestamp"] == MOMENT
    assert created["payload"] == payload
    assert len(server.requests[-1][1]["clientToken"]) == 36

    server.answers["DeleteEvent"] = lambda request: {"eventId": request["eventId"]}
    deleted = memory.delete_event(
        memoryId="arn:aws:bedrock-agentcore:us-east-1:000000000000:memory/memory-0123456789",
        actorId="user/1:a",
        sessionId="s",
        eventId=event_id,
    )
    assert deleted["eventId"] == event_id
    assert server.requests[-1][1]["actorId"] == "user/1:a"
    assert server.requests[-1][1]["memoryId"].endswith(":memory/memory-0123456789")


def test_paginated_lists_by_post_with_query_parameters(server: Server, client: Callable[[str], Any]) -> None:
    pages = {None: ["a", "b"], "t+/=": ["c"]}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        token = request.get("nextToken")
        runtimes = [{"agentRuntimeId": name, "lastUpdatedAt": MOMENT, "description": None} for name in pages[token]]
        return {"agentRuntimes": runtimes, "nextToken": "t+/=" if token is None else None}

    server.answers["ListAgentRuntimes"] = answer
    control = client("bedrock-agentcore-control")
    found = control.get_paginator("list_agent_runtimes").paginate(PaginationConfig={"PageSize": 2})
    runtimes = [runtime for page in found for runtime in page["agentRuntimes"]]
    assert [runtime["agentRuntimeId"] for runtime in runtimes] == ["a", "b", "c"]
    assert runtimes[0]["lastUpdatedAt"] == MOMENT
    assert [request["maxResults"] for _, request in server.requests] == [2, 2]


def test_deletes_carry_their_token_in_the_query(server: Server, client: Callable[[str], Any]) -> None:
    server.answers["DeleteMemory"] = lambda request: {"memoryId": request["memoryId"], "status": "DELETING"}
    assert client("bedrock-agentcore-control").delete_memory(memoryId="memory-0123456789")["status"] == "DELETING"
    assert set(server.requests[-1][1]) == {"memoryId", "clientToken"}


def test_tags_by_arn(server: Server, client: Callable[[str], Any]) -> None:
    control = client("bedrock-agentcore-control")
    server.answers["TagResource"] = server.answers["UntagResource"] = lambda request: None
    control.tag_resource(resourceArn=ARN, tags={"a b": "c+d"})
    assert server.requests[-1][1] == {"resourceArn": ARN, "tags": {"a b": "c+d"}}
    control.untag_resource(resourceArn=ARN, tagKeys=["a b", "c+d", "e/f"])
    assert server.requests[-1][1] == {"resourceArn": ARN, "tagKeys": ["a b", "c+d", "e/f"]}


def test_invocations_headers_and_raw_bodies(server: Server, client: Callable[[str], Any]) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"data: %d\n\n" % number

    server.answers["InvokeAgentRuntime"] = lambda request: {
        "runtimeSessionId": request["runtimeSessionId"],
        "contentType": "text/event-stream",
        "traceId": request["traceId"],
        "response": stream(),
    }
    answer = client("bedrock-agentcore").invoke_agent_runtime(
        agentRuntimeArn=ARN, qualifier="DEFAULT", payload=b"\x00\xffbinary", traceId="Root=1", runtimeUserId="alice"
    )
    assert answer["response"].read() == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert (answer["contentType"], answer["statusCode"], answer["traceId"]) == ("text/event-stream", 200, "Root=1")
    request = server.requests[-1][1]
    assert request["payload"] == b"\x00\xffbinary"
    assert request["agentRuntimeArn"] == ARN
    assert "contentType" not in request
    assert len(request["runtimeSessionId"]) == 36  # boto3 fills it in
    assert answer["runtimeSessionId"] == request["runtimeSessionId"]


def test_commands_are_event_streams(server: Server, client: Callable[[str], Any]) -> None:
    async def stream() -> AsyncIterator[dict[str, Any]]:
        yield {"chunk": {"contentStart": {}}}
        yield {"chunk": {"contentDelta": {"stdout": "hé\n"}}}
        yield {"chunk": {"contentStop": {"exitCode": 0, "status": "COMPLETED"}}}

    server.answers["InvokeAgentRuntimeCommand"] = lambda request: {
        "contentType": "application/vnd.amazon.eventstream",
        "stream": stream(),
    }
    answer = client("bedrock-agentcore").invoke_agent_runtime_command(agentRuntimeArn=ARN, body={"command": "ls"})
    assert [event["chunk"] for event in answer["stream"]] == [
        {"contentStart": {}},
        {"contentDelta": {"stdout": "hé\n"}},
        {"contentStop": {"exitCode": 0, "status": "COMPLETED"}},
    ]


def test_models_answer_whole_and_streaming(server: Server, client: Callable[[str], Any]) -> None:
    """Also that Bedrock's own signing name is accepted, and blobs inside JSON."""
    models = client("bedrock-runtime")
    message = {"role": "assistant", "content": [{"text": "hi"}]}
    server.answers["Converse"] = lambda request: {
        "output": {"message": message},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3},
        "metrics": {"latencyMs": 5},
    }
    image = {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}}
    answer = models.converse(
        modelId="arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-v1:0",
        messages=[{"role": "user", "content": [image]}],
        inferenceConfig={"temperature": 0.5},
        additionalModelRequestFields={"thinking": {"budget": 1}},
    )
    assert answer["output"]["message"] == message
    request = server.requests[-1][1]
    assert request["modelId"] == "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-v1:0"
    assert request["messages"][0]["content"] == [image]
    assert request["additionalModelRequestFields"] == {"thinking": {"budget": 1}}

    async def stream() -> AsyncIterator[dict[str, Any]]:
        yield {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "hi"}}}
        raise ThrottlingException("slow down")

    server.answers["ConverseStream"] = lambda request: {"stream": stream()}
    answered = models.converse_stream(modelId="qwen3:8b", messages=[])["stream"]
    events = iter(answered)
    assert next(events)["contentBlockDelta"]["delta"] == {"text": "hi"}
    with pytest.raises(EventStreamError) as caught:
        next(events)
    assert caught.value.response["Error"]["Code"] == "throttlingException"
    assert server.attempts == 2
    answered.close()

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        yield {"chunk": {"bytes": b'{"a": 1}'}}

    server.answers["InvokeModelWithResponseStream"] = lambda r: {"body": chunks(), "contentType": "application/json"}
    raw = models.invoke_model_with_response_stream(modelId="meta-llama/Llama-3.1", body=b'{"prompt": ""}')
    assert [event["chunk"]["bytes"] for event in raw["body"]] == [b'{"a": 1}']
    server.answers["InvokeModel"] = lambda request: {"body": request["body"], "contentType": "application/json"}
    assert models.invoke_model(modelId="m", body=b'{"prompt": ""}')["body"].read() == b'{"prompt": ""}'


def raising(error: ServiceError) -> Answer:
    def answer(request: dict[str, Any]) -> Any:
        raise error

    return answer


def test_errors_are_the_clients_own_classes(server: Server, client: Callable[[str], Any]) -> None:
    agentcore = client("bedrock-agentcore")
    server.answers["InvokeAgentRuntime"] = raising(RuntimeClientError("Received error (500) from runtime."))
    with pytest.raises(agentcore.exceptions.RuntimeClientError) as failed:
        agentcore.invoke_agent_runtime(agentRuntimeArn=ARN, payload=b"{}")
    assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert failed.value.response["Error"]["Message"] == "Received error (500) from runtime."
    assert server.attempts == 1

    server.answers["ListActors"] = raising(ThrottlingException("slow down"))
    with pytest.raises(agentcore.exceptions.ThrottledException):
        agentcore.list_actors(memoryId="memory-0123456789")

    server.answers["ListActors"] = raising(ValidationException("bad", "EventInOtherSession"))
    with pytest.raises(agentcore.exceptions.ValidationException) as refused:
        agentcore.list_actors(memoryId="memory-0123456789")
    assert refused.value.response["reason"] == "EventInOtherSession"

    server.attempts = 0
    server.answers["ListActors"] = raising(UnsupportedOperationException("not implemented"))
    with pytest.raises(ClientError) as unsupported:
        agentcore.list_actors(memoryId="memory-0123456789")
    assert unsupported.value.response["Error"]["Code"] == "UnsupportedOperationException"
    assert server.attempts == 1  # clients do not retry it


def test_what_botocore_does_not_check_the_wire_does(server: Server, client: Callable[[str], Any]) -> None:
    """Patterns, enums; and several fields at once."""
    agentcore = client("bedrock-agentcore")
    with pytest.raises(agentcore.exceptions.ValidationException) as refused:
        agentcore.create_event(
            memoryId="memory_0123456789!",
            actorId="!",
            sessionId="s",
            eventTimestamp=MOMENT,
            payload=[{"conversational": {"content": {"text": "t"}, "role": "ROBOT"}}],
        )
    assert refused.value.response["reason"] == "FieldValidationFailed"
    assert {field["name"] for field in refused.value.response["fieldList"]} == {
        "memoryId",
        "actorId",
        "payload.1.member.conversational.role",
    }
    assert not server.requests


def test_a_wrong_secret_is_refused(running: tuple[Server, str]) -> None:
    wrong = boto3.client(
        "bedrock-agentcore",
        endpoint_url=running[1],
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key="another",
        aws_session_token=TOKEN,
    )
    with pytest.raises(ClientError) as refused:
        wrong.list_actors(memoryId="memory-0123456789")
    assert "does not match the signature you provided" in refused.value.response["Error"]["Message"]
    wrong.close()
