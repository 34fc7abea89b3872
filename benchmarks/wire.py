"""What the wire costs: routing, parsing, serialising, signatures. CPU of one core, nothing else in the way.

Compared in the same run with what botocore, the client, spends on its half of the same request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import botocore.session
import orjson
from _history import keep
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator

MOMENT = datetime(2025, 8, 25, 18, 39, 14, 123456, tzinfo=UTC)
EVENT: dict[str, Any] = {
    "memoryId": "memory-0123456789",
    "actorId": "user/1:alice",
    "sessionId": "session-0123456789",
    "eventTimestamp": MOMENT,
    "payload": [{"conversational": {"content": {"text": "Where is my order?"}, "role": "USER"}}],
    "clientToken": "8a7a2f5e-5a3b-4e0e-9b0a-6d1f6a3b2c1d",
    "metadata": {"channel": {"stringValue": "web"}},
}
PATH = b"/memories/memory-0123456789/events"
INVOKE = "/runtimes/arn%3Aaws%3Abedrock-agentcore%3Aus-east-1%3A000000000000%3Aruntime%2Fagent-0123456789/invocations"


def micros(work: Callable[[], object], seconds: float = 0.25, rounds: int = 5) -> float:
    """Microseconds of CPU per call: the best of some rounds."""
    work()
    start = time.process_time()
    work()
    count = max(10, int(seconds / rounds / max(time.process_time() - start, 1e-6)))
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(count):
            work()
        best = min(best, (time.process_time() - start) / count)
    return round(best * 1e6, 1)


def start_up() -> dict[str, float]:
    """Milliseconds of CPU from nothing to a router of all services, and to all operations compiled."""
    start = time.process_time()
    from agentkeep.wire import Router

    imported = time.process_time()
    router = Router()
    routed = time.process_time()
    for operation in router.operations:
        operation.serialize({})
        assert operation.streaming_input in (True, False)
    compiled = time.process_time()
    return {
        "import": round((imported - start) * 1000, 1),
        "routes of 256 operations": round((routed - imported) * 1000, 1),
        "compiling all of them (done lazily)": round((compiled - routed) * 1000, 1),
    }


def operations() -> dict[str, float]:
    from agentkeep.wire import Match, Router

    router = Router()

    def found(method: str, path: bytes) -> Match:
        match = router.find(method, path)
        assert match is not None
        return match

    body = orjson.dumps({**EVENT, "memoryId": None, "eventTimestamp": MOMENT.timestamp()})
    many = orjson.dumps({**EVENT, "eventTimestamp": 1, "payload": EVENT["payload"] * 100})
    create = found("POST", PATH).operation

    def request(data: bytes) -> Any:
        match = found("POST", PATH)
        return match.operation.parse(match.labels, b"", {}, data)

    listing = found("POST", b"/memories/memory-0123456789/actor/user%2F1%3Aalice/sessions/s").operation
    event = {k: v for k, v in EVENT.items() if k != "clientToken"} | {"eventId": "0000001756147154123#ffa53e54"}
    runtime = found("GET", b"/runtimes/agent-0123456789/").operation
    answer = {"agentRuntimeId": "agent-0123456789", "createdAt": MOMENT, "lastUpdatedAt": MOMENT, "status": "READY"}
    return {
        "CreateEvent: route": micros(lambda: router.find("POST", PATH)),
        "CreateEvent: route, parse, validate": micros(lambda: request(body)),
        "CreateEvent with 100 payload items": micros(lambda: request(many)),
        "CreateEvent: serialise": micros(lambda: create.serialize({"event": event})),
        "ListEvents of 100: serialise": micros(lambda: listing.serialize({"events": [event] * 100})),
        "ListEvents of 100 with a null in one: serialise": micros(
            lambda: listing.serialize({"events": [event] * 99 + [{**event, "branch": None}]})
        ),
        "GetAgentRuntime: serialise (ISO 8601)": micros(lambda: runtime.serialize(answer)),
    }


def client() -> dict[str, float]:
    """botocore's half of CreateEvent."""
    model = botocore.session.Session().get_service_model("bedrock-agentcore").operation_model("CreateEvent")
    serializer, validator = create_serializer("rest-json"), ParamValidator()
    return {
        "botocore: validate CreateEvent (no patterns)": micros(lambda: validator.validate(EVENT, model.input_shape)),
        "botocore: serialise CreateEvent": micros(lambda: serializer.serialize_to_request(EVENT, model)),
    }


def signatures() -> dict[str, float]:
    from agentkeep.wire.signature import parse

    body = b'{"prompt": "Where is my order?"}' * 10
    headers = {
        "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": "s" * 36,
        "amz-sdk-invocation-id": "8a7a2f5e-5a3b-4e0e-9b0a-6d1f6a3b2c1d",
        "amz-sdk-request": "attempt=1",
    }
    credentials = Credentials("AKIDEXAMPLE", "secret", "session-token")

    def sign() -> AWSRequest:
        request = AWSRequest("POST", f"http://127.0.0.1:4780{INVOKE}?qualifier=DEFAULT", headers, body)
        SigV4Auth(credentials, "bedrock-agentcore", "us-east-1").add_auth(request)
        return request

    sent = {name.lower().encode(): value.encode() for name, value in sign().headers.items()}
    sent |= {b"host": b"127.0.0.1:4780", b"content-length": b"320", b"user-agent": b"Boto3/1.44.5", b"accept": b"*/*"}
    path, now = INVOKE.encode(), time.time()
    body_hash = sha256(body).hexdigest()
    claim = parse(b"POST", path, b"qualifier=DEFAULT", sent, now)
    return {
        "SigV4: parse the claim": micros(lambda: parse(b"POST", path, b"qualifier=DEFAULT", sent, now)),
        "SigV4: verify": micros(lambda: claim.verify("secret", "session-token", body_hash)),
        "botocore: sign": micros(sign),
    }


def main() -> None:
    start = start_up()
    figures = {**operations(), **client(), **signatures()}
    for name, value in start.items():
        print(f"{name:50} {value:9.1f} ms")
    for name, value in figures.items():
        print(f"{name:50} {value:9.1f} us")
    ratio = figures["CreateEvent: route, parse, validate"] / (
        figures["botocore: validate CreateEvent (no patterns)"] + figures["botocore: serialise CreateEvent"]
    )
    print(f"{'CreateEvent: server / client':50} {ratio:9.2f}")
    keep("wire", {**{f"{name}, ms": value for name, value in start.items()}, **figures})


if __name__ == "__main__":
    main()
