"""Parsing and validation: types, limits, and what a caller is told."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from agentkeep.core.errors import ValidationException
from agentkeep.wire import Operation, Router
from agentkeep.wire.request import MAX_DEPTH

OPERATIONS = {operation.name: operation for operation in Router().operations}
EVENT: dict[str, Any] = {"actorId": "alice", "sessionId": "s", "eventTimestamp": 1, "payload": []}
TOKEN = "8a7a2f5e-5a3b-4e0e-9b0a-6d1f6a3b2c1d"


def create_event(**more: Any) -> dict[str, Any]:
    return parse("CreateEvent", {**EVENT, **more}, {"memoryId": "memory-0123456789"})


def parse(
    name: str,
    body: Any = b"",
    labels: dict[str, str] | None = None,
    query: bytes = b"",
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return OPERATIONS[name].parse(labels or {}, query, headers or {}, data)


def refused(name: str, *args: Any, **kwargs: Any) -> ValidationException:
    with pytest.raises(ValidationException) as caught:
        parse(name, *args, **kwargs)
    return caught.value


def test_all_failing_fields_are_reported_at_once_in_aws_words() -> None:
    error = refused(
        "CreateEvent",
        {
            "actorId": "!",
            "payload": [
                {"conversational": {"content": {"text": ""}, "role": "ROBOT"}},
                {},
            ],
            "metadata": {"k": {"stringValue": "v" * 257}},
            "branch": {"name": 5},
        },
        {"memoryId": "short"},
    )
    assert error.reason == "FieldValidationFailed"
    assert {field.name: field.message for field in error.fields} == {
        "actorId": "Member must satisfy regular expression pattern: "
        "[a-zA-Z0-9][a-zA-Z0-9-_/]*(?::[a-zA-Z0-9-_/]+)*[a-zA-Z0-9-_/]*",
        "payload.1.member.conversational.content.text": "Member must have length greater than or equal to 1",
        "payload.1.member.conversational.role": "Member must satisfy enum value set: [ASSISTANT, USER, TOOL, OTHER]",
        "payload.2.member": "Member must have exactly one of these set: [conversational, blob, json]",
        "metadata.k.member.stringValue": "Member must have length less than or equal to 256",
        "branch.name": "Member must be a string",
        "eventTimestamp": "Member must not be null",
        "memoryId": "Member must have length greater than or equal to 12",
    }
    assert error.message.startswith(
        "8 validation errors detected: Value '!' at 'actorId' failed to satisfy constraint: Member must satisfy"
    )
    assert "Value null at 'eventTimestamp' failed to satisfy constraint: Member must not be null" in error.message


def test_one_fault_is_singular() -> None:
    error = refused("CreateEvent", EVENT | {"actorId": ""}, {"memoryId": "memory-0123456789"})
    assert error.message == (
        "1 validation error detected: Value '' at 'actorId' failed to satisfy constraint: "
        "Member must have length greater than or equal to 1"
    )


def test_sensitive_values_are_never_echoed() -> None:
    secret = "hunter2" * 10
    error = refused("GetWorkloadAccessTokenForJWT", {"workloadName": "w" * 300, "userToken": secret + "!?!?!" + secret})
    assert {field.name for field in error.fields} == {"workloadName", "userToken"}
    assert "hunter2" not in error.message
    error = refused("CreateEvent", EVENT | {"payload": [{"conversational": secret}]}, {"memoryId": "memory-0123456789"})
    assert "hunter2" not in error.message
    error = refused("CreateApiKeyCredentialProvider", {"name": "n", "apiKey": [secret]})
    assert "hunter2" not in error.message


def test_long_values_and_many_faults_do_not_make_long_answers() -> None:
    error = refused("CreateEvent", EVENT | {"sessionId": "!" * 1_000_000}, {"memoryId": "memory-0123456789"})
    assert len(error.message) < 1000
    payload = [{"blob": {}, "conversational": {"role": "USER", "content": {"text": "t"}}}] * 100
    error = refused("CreateEvent", EVENT | {"payload": payload}, {"memoryId": "memory-0123456789"})
    assert error.message.startswith("100 validation errors detected")
    assert len(error.fields) == 50
    error = refused("CreateEvent", EVENT | {"payload": [{}] * 1_000_000}, {"memoryId": "memory-0123456789"})
    assert [field.name for field in error.fields] == ["payload"]
    error = refused(
        "CreateEvent", EVENT | {"metadata": {"k" * 1_000_000: {"stringValue": "v"}}}, {"memoryId": "memory-0123456789"}
    )
    assert len(error.message) < 2000


@pytest.mark.parametrize(
    "body", [b"{", b"nonsense", b"[]", b'"text"', b"null", b"\xff\xfe", b'{"a": NaN}', b'{"a":"\\ud800"}', b"{}{}"]
)
def test_what_is_no_json_object_cannot_be_parsed(body: bytes) -> None:
    assert refused("CreateEvent", body, {"memoryId": "memory-0123456789"}).reason == "CannotParse"


@pytest.mark.parametrize("wrap", [lambda d: {"blob": d}, lambda d: {"json": {"content": d}}], ids=["blob", "json"])
def test_documents_are_any_json_and_come_back_as_they_were(wrap: Callable[[Any], Any]) -> None:
    """langgraph sends a JSON string, the SDK objects: both must survive unchanged."""
    for document in ("text", 1, 1.5, True, [1, {"a": None}], {"a": {"b": [None]}}, "", [], {}):
        assert create_event(payload=[wrap(document)])["payload"] == [wrap(document)]


def test_nesting_has_a_limit() -> None:
    deep: Any = {}
    for _ in range(MAX_DEPTH - 5):
        deep = {"a": deep}
    assert create_event(payload=[{"blob": deep}])["payload"][0]["blob"] == deep
    for opener, closer in ((b'{"a":', b"}"), (b"[", b"]")):
        for depth in (MAX_DEPTH + 1, 1000, 100_000):
            body = orjson.dumps(EVENT)[:-3] + b'[{"blob":' + opener * depth + b"1" + closer * depth + b"}]}"
            assert refused("CreateEvent", body, {"memoryId": "memory-0123456789"}).reason == "CannotParse"
    # Brackets in text are no nesting.
    assert create_event(payload=[{"blob": "[" * 10_000}])
    # Recursive shapes: no stack is exhausted.
    schema = b'{"items":' * 900 + b"{}" + b"}" * 900
    body = b'{"name":"t","targetConfiguration":{"mcp":{"lambda":{"toolSchema":{"inlinePayload":[%b]}}}}}' % schema
    assert refused("CreateGatewayTarget", body, {"gatewayIdentifier": "g-0123456789"}).reason == "CannotParse"


MOMENT = datetime(2025, 8, 25, 18, 39, 14, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        (1756147154.123456, MOMENT),  # boto3 1.44
        (1756147154, MOMENT.replace(microsecond=0)),  # older ones
        ("2025-08-25T18:39:14.123456Z", MOMENT),
        ("2025-08-25T20:39:14.123456+02:00", MOMENT),
        ("2025-08-25T18:39:14.123456", MOMENT),
        ("20250825T183914Z", MOMENT.replace(microsecond=0)),
        ("1756147154.123456", MOMENT),
        ("Mon, 25 Aug 2025 18:39:14 GMT", MOMENT.replace(microsecond=0)),
        (-1.5, datetime(1969, 12, 31, 23, 59, 58, 500000, tzinfo=UTC)),
    ],
)
def test_timestamps_in_every_form(given: Any, moment: datetime) -> None:
    parsed = create_event(eventTimestamp=given)["eventTimestamp"]
    assert parsed == moment
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    "given",
    [
        True,
        [],
        {},
        "",
        "yesterday",
        "2025-13-01",
        1e300,
        -1e300,
        2**63,
        "9" * 5000,
        "Mon, 99 Aug 2025",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_bad_timestamps_are_faults(given: Any) -> None:
    error = refused("CreateEvent", EVENT | {"eventTimestamp": given}, {"memoryId": "memory-0123456789"})
    assert [field.name for field in error.fields] == ["eventTimestamp"]


def test_blobs_are_base64_and_their_length_is_that_of_the_bytes() -> None:
    def converse(data: Any) -> dict[str, Any]:
        content = [{"image": {"format": "png", "source": {"bytes": data}}}]
        return {"messages": [{"role": "user", "content": content}]}

    parsed = parse("Converse", converse("AP8="), {"modelId": "m"})
    assert parsed["messages"][0]["content"][0]["image"]["source"]["bytes"] == b"\x00\xff"
    for bad in ("", "A", "A===", "AP8=\n", "ÄÄÄÄ", 5, ["AP8="]):
        error = refused("Converse", converse(bad), {"modelId": "m"})
        assert [field.name for field in error.fields] == ["messages.1.member.content.1.member.image.source.bytes"]


def test_unknown_members_and_nulls_are_ignored() -> None:
    parsed = create_event(branch=None, futureMember={"x": 1}, memoryId="another-0123456789")
    assert set(parsed) == {"actorId", "sessionId", "eventTimestamp", "payload", "memoryId"}
    assert parsed["memoryId"] == "memory-0123456789"  # the path's, not the body's


def test_numbers_are_numbers_in_range() -> None:
    def memory(days: Any) -> dict[str, Any]:
        return {"name": "m", "eventExpiryDuration": days}

    assert parse("CreateMemory", memory(30))["eventExpiryDuration"] == 30
    for bad in (True, "30", 30.0, 0, 4000, 2**40, 1e30, [30]):
        assert [f.name for f in refused("CreateMemory", memory(bad)).fields] == ["eventExpiryDuration"]

    def converse(temperature: Any) -> dict[str, Any]:
        return {"messages": [], "inferenceConfig": {"temperature": temperature}}

    parsed = parse("Converse", converse(1), {"modelId": "m"})
    assert parsed["inferenceConfig"]["temperature"] == 1.0
    for bad in ("1", True, -0.1, 1.1, "NaN"):
        assert len(refused("Converse", converse(bad), {"modelId": "m"}).fields) == 1


def test_query_parameters() -> None:
    listed = parse("ListAgentRuntimes", query=b"maxResults=7&nextToken=a%2Bb%2Fc%3D%3D&unknown=1&&=")
    assert listed == {"maxResults": 7, "nextToken": "a+b/c=="}
    assert parse("ListAgentRuntimes", query=b"nextToken=a+b")["nextToken"] == "a+b"
    for bad in (b"", b"x", b"1.0", b"1_0", b"%D9%A1", b"0", b"101", b"9" * 5000, b"1&maxResults=2", b"%ff"):
        error = refused("ListAgentRuntimes", query=b"maxResults=" + bad)
        assert [field.name for field in error.fields] == ["maxResults"]
    arn = {"resourceArn": "arn:aws:bedrock-agentcore:us-east-1:000000000000:runtime/a-0123456789"}
    assert parse("UntagResource", labels=arn, query=b"tagKeys=a&tagKeys=b%20c")["tagKeys"] == ["a", "b c"]
    assert [f.name for f in refused("UntagResource", labels=arn).fields] == ["tagKeys"]
    assert parse("DeleteHarness", labels={"harnessId": "h-0123456789"}, query=b"deleteManagedMemory=true") == {
        "harnessId": "h-0123456789",
        "deleteManagedMemory": True,
    }


def test_the_client_token_of_a_delete_is_in_the_query_and_optional() -> None:
    labels = {"memoryId": "memory-0123456789"}
    assert parse("DeleteMemory", labels=labels, query=f"clientToken={TOKEN}".encode())["clientToken"] == TOKEN
    assert "clientToken" not in parse("DeleteMemory", labels=labels)


def test_headers_and_a_raw_body() -> None:
    labels = {"agentRuntimeArn": "agent-0123456789"}
    body = b"\x00 not json"
    headers = {"x-amzn-bedrock-agentcore-runtime-session-id": "s" * 33, "content-type": "text/plain", "host": "h"}
    assert parse("InvokeAgentRuntime", body, labels, b"qualifier=DEFAULT", headers) == {
        "agentRuntimeArn": "agent-0123456789",
        "qualifier": "DEFAULT",
        "runtimeSessionId": "s" * 33,
        "contentType": "text/plain",
        "payload": body,
    }
    # boto3 fills the session id in; others may leave it out. No Content-Type either.
    assert parse("InvokeAgentRuntime", b"", labels) == {"agentRuntimeArn": "agent-0123456789", "payload": b""}
    short = {"x-amzn-bedrock-agentcore-runtime-session-id": "short"}
    assert [f.name for f in refused("InvokeAgentRuntime", b"", labels, headers=short).fields] == ["runtimeSessionId"]


def test_a_structure_as_the_body() -> None:
    labels = {"agentRuntimeArn": "agent-0123456789"}
    assert parse("InvokeAgentRuntimeCommand", {"command": "ls"}, labels)["body"] == {"command": "ls"}
    error = refused("InvokeAgentRuntimeCommand", {"command": "", "timeout": "1"}, labels)
    assert [field.name for field in error.fields] == ["body.command", "body.timeout"]
    assert [field.name for field in refused("InvokeAgentRuntimeCommand", b"", labels).fields] == ["body"]


def test_bodies_of_operations_without_one_are_ignored() -> None:
    """boto3 sends lists of runtimes as POST with an empty body."""
    assert parse("ListAgentRuntimes", b"whatever") == {}


def test_corrections_any_image_and_any_model() -> None:
    artifact = {"containerConfiguration": {"containerUri": "localhost:5000/team/agent:latest"}}
    runtime = {
        "agentRuntimeName": "a",
        "agentRuntimeArtifact": artifact,
        "roleArn": "arn:aws:iam::000000000000:role/dummy",
        "networkConfiguration": {"networkMode": "PUBLIC"},
    }
    assert parse("CreateAgentRuntime", runtime)["agentRuntimeArtifact"] == artifact
    for model in ("meta-llama/Llama-3.1-8B-Instruct", "qwen3:8b", "anthropic.claude-sonnet-4-5-20250929-v1:0", "gpt_4"):
        assert parse("Converse", {"messages": []}, {"modelId": model})["modelId"] == model


@pytest.mark.parametrize("name", ["CreateEvent", "ListEvents", "GetEvent"])
def test_memory_is_named_by_id_or_arn(name: str) -> None:
    arn = "arn:aws:bedrock-agentcore:us-east-1:000000000000:memory/memory-0123456789"
    labels = {"memoryId": arn, "actorId": "a/b:c", "sessionId": "s", "eventId": "0000001756147154000#ffa53e54"}
    assert parse(name, EVENT if name == "CreateEvent" else b"", labels)["memoryId"] == arn


def test_operations_compile_lazily() -> None:
    """All at once would take a quarter of a second at start."""
    operation = next(iter(Router().operations))
    assert "_parser" not in vars(operation)
    assert isinstance(operation, Operation)
