"""Routing on the raw path: what a prototype and the clients showed, each trap a test."""

import pytest

from agentkeep.core.errors import ValidationException
from agentkeep.wire import Router
from agentkeep.wire.model import SERVICES

ROUTER = Router()
RUNTIME = b"arn%3Aaws%3Abedrock-agentcore%3Aus-east-1%3A000000000000%3Aruntime%2Fagent-0123456789"
RUNTIME_ARN = "arn:aws:bedrock-agentcore:us-east-1:000000000000:runtime/agent-0123456789"


def found(method: str, path: bytes) -> tuple[str, dict[str, str]] | None:
    match = ROUTER.find(method, path)
    return None if match is None else (match.operation.name, match.labels)


def test_an_encoded_arn_is_one_label() -> None:
    assert found("POST", b"/runtimes/" + RUNTIME + b"/invocations") == (
        "InvokeAgentRuntime",
        {"agentRuntimeArn": RUNTIME_ARN},
    )
    assert found("GET", b"/tags/" + RUNTIME) == ("ListTagsForResource", {"resourceArn": RUNTIME_ARN})


def test_actor_ids_may_hold_encoded_slashes_and_event_ids_hashes() -> None:
    path = b"/memories/m-0123456789/actor/user%2F1%3Aa/sessions/s/events/0000001756147154000%23ffa53e54"
    assert found("GET", path) == (
        "GetEvent",
        {
            "memoryId": "m-0123456789",
            "actorId": "user/1:a",
            "sessionId": "s",
            "eventId": "0000001756147154000#ffa53e54",
        },
    )


def test_a_slash_that_is_not_encoded_is_another_path() -> None:
    assert found("POST", b"/runtimes/arn:aws:x:runtime/agent-0123456789/invocations") is None


def test_an_encoded_literal_is_no_literal() -> None:
    """Otherwise one operation would have many spellings, and a filter on paths in front of us could be passed by."""
    assert found("POST", b"/%72untimes/") is None


def test_literals_win_over_labels_and_labels_are_tried_after() -> None:
    assert found("POST", b"/memories/create") == ("CreateMemory", {})
    assert found("POST", b"/memories/m/retrieve") == ("RetrieveMemoryRecords", {"memoryId": "m"})
    assert found("POST", b"/memories/create/retrieve") == ("RetrieveMemoryRecords", {"memoryId": "create"})
    assert found("PUT", b"/gateways/g/rate-limits/batch") == ("BatchPutGatewayRateLimits", {"gatewayIdentifier": "g"})
    # The literal has no GET; the label has.
    assert found("GET", b"/gateways/g/rate-limits/batch") == (
        "GetGatewayRateLimit",
        {"gatewayIdentifier": "g", "rateLimitId": "batch"},
    )


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("PUT", b"/runtimes/", "CreateAgentRuntime"),
        ("POST", b"/runtimes/", "ListAgentRuntimes"),
        ("GET", b"/runtimes/a/", "GetAgentRuntime"),
        ("POST", b"/memories/", "ListMemories"),
        ("GET", b"/policy-engines", "ListPolicyEngines"),
        ("POST", b"/model/qwen3%3A8b/converse", "Converse"),
    ],
)
def test_slashes_at_the_end_may_be_left_out_or_added(method: str, path: bytes, name: str) -> None:
    for spelling in (path, path.rstrip(b"/"), path.rstrip(b"/") + b"/"):
        match = ROUTER.find(method, spelling)
        assert match is not None
        assert match.operation.name == name


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"//",
        b"*",
        b"/unknown",
        b"http://localhost/runtimes/a/invocations",  # absolute form
        b"/runtimes//invocations",
        b"/runtimes/./invocations",
        b"/runtimes/../invocations",
        b"/runtimes/a/invocations//",
        b"/runtimes/a/invocations/x",
        b"/" * 30_000,
        b"/a" * 15_000,
    ],
)
def test_other_paths_are_unknown(path: bytes) -> None:
    assert found("POST", path) is None
    assert not ROUTER.methods(path)


def test_a_known_path_with_another_method_is_told_apart() -> None:
    assert found("PATCH", b"/memories/create") is None
    assert ROUTER.methods(b"/memories/create") == {"POST"}


@pytest.mark.parametrize("label", [b"%ff", b"%c3%28", b"%ed%a0%80", b"\xff"])
def test_a_label_that_is_no_utf8_is_refused(label: bytes) -> None:
    with pytest.raises(ValidationException) as caught:
        ROUTER.find("POST", b"/memories/" + label + b"/events")
    assert caught.value.reason == "CannotParse"


@pytest.mark.parametrize("label", [b"%", b"%2", b"%zz", b"100%"])
def test_a_percent_that_encodes_nothing_stands_for_itself(label: bytes) -> None:
    match = ROUTER.find("POST", b"/memories/" + label + b"/events")
    assert match is not None
    assert match.labels == {"memoryId": label.decode()}


def test_all_services_share_one_port_without_collision() -> None:
    assert {operation.service for operation in ROUTER.operations} == set(SERVICES)
    assert len(ROUTER.operations) == 256
    assert len({operation.name for operation in ROUTER.operations}) == 256


def test_a_router_knows_only_the_services_it_was_given() -> None:
    router = Router(["bedrock-runtime"])
    assert len(router.operations) == 6
    assert router.find("POST", b"/memories/create") is None


def test_client_tokens_are_idempotency_members_and_session_ids_are_not() -> None:
    members = {operation.name: operation.idempotency_member for operation in ROUTER.operations}
    assert members["CreateEvent"] == "clientToken"
    assert members["DeleteMemory"] == "clientToken"  # in the query
    assert members["InvokeAgentRuntime"] is None
    assert members["GetEvent"] is None
    assert set(members.values()) == {None, "clientToken"}


def test_raw_bodies_are_known_before_they_are_read() -> None:
    assert {operation.name for operation in ROUTER.operations if operation.streaming_input} == {
        "InvokeAgentRuntime",
        "InvokeModel",
        "InvokeModelWithResponseStream",
    }
