"""The chain: who may call what from where, what operations are given, how their answers and errors look."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from service_stack import DEPLOYMENT, RUNTIME, Stack, invocation_path, status

from agentkeep.core.call import Caller, CallerKind, SessionRef, User
from agentkeep.service.idempotency import idempotency
from agentkeep.wire import Router

SESSION = SessionRef("demo-0123456789", "session-" + "0" * 32)
OTHER = SessionRef("demo-0123456789", "other-" + "0" * 32)
EVENT = {
    "memoryId": "memory-0123456789",
    "actorId": "alice/with/slashes",
    "sessionId": "s" * 33,
    "payload": [{"conversational": {"role": "USER", "content": {"text": "hi"}}}],
    "eventTimestamp": 1_700_000_000,
}


async def run(function: Any, **arguments: Any) -> Any:
    return await asyncio.to_thread(lambda: function(**arguments))


async def refusal(function: Any, **arguments: Any) -> ClientError:
    with pytest.raises(ClientError) as error:
        await run(function, **arguments)
    return error.value


async def test_an_operation_by_boto3(stack: Stack) -> None:
    answer = await run(stack.client().create_event, **EVENT)
    assert answer["event"]["actorId"] == EVENT["actorId"]
    ((call, request),) = stack.plane.calls
    assert (call.service, call.operation) == ("bedrock-agentcore", "CreateEvent")
    assert call.caller.kind is CallerKind.OPERATOR
    assert call.request_id == answer["ResponseMetadata"]["RequestId"]
    assert "Boto3" in call.headers["user-agent"]
    assert request["actorId"] == EVENT["actorId"]


async def test_client_tokens(stack: Stack) -> None:
    """One key per caller, operation and token; the same fingerprint for the same request, whatever the token, and
    whatever time the SDK's memory store gives an event that it sends again."""
    client = stack.client()
    other = await stack.keys.issue_operator_key("other")
    await run(client.create_event, **EVENT, clientToken="a" * 36)
    await run(client.create_event, **{**EVENT, "eventTimestamp": 1_700_000_001}, clientToken="a" * 36)
    await run(client.create_event, **EVENT, clientToken="b" * 36)
    await run(client.create_event, **{**EVENT, "actorId": "bob"}, clientToken="a" * 36)
    others = stack.client(credentials=Credentials(other.id, other.secret))
    await run(others.create_event, **EVENT, clientToken="a" * 36)
    await run(client.create_event, **EVENT)
    tokens = [call.idempotency for call, _ in stack.plane.calls]
    assert all(tokens), "boto3 fills one in where the caller gave none"
    a, again, b, bob, foreign, filled = tokens
    assert a == again
    assert a.key != b.key
    assert a.fingerprint == b.fingerprint == foreign.fingerprint == filled.fingerprint
    assert a.key == bob.key
    assert a.fingerprint != bob.fingerprint
    assert a.key != foreign.key


def test_a_fingerprint_confirms_no_guess(router: Router) -> None:
    """IDN-3: it is kept for a day, and the request may hold a password that is easy to guess. With the same key it is
    the same after a restart."""
    match = router.find("PUT", b"/runtimes/")
    assert match is not None and match.operation.name == "CreateAgentRuntime"
    caller = Caller(CallerKind.OPERATOR, "admin")
    request = {"agentRuntimeName": "a", "environmentVariables": {"PASSWORD": "1234"}, "clientToken": "t" * 36}
    ours, again, theirs = (idempotency(match.operation, request, caller, key) for key in (b"k" * 32, b"k" * 32, b""))
    assert ours is not None and theirs is not None
    assert ours == again
    assert ours.key == theirs.key
    assert ours.fingerprint != theirs.fingerprint


async def test_event_streams(stack: Stack) -> None:
    def call() -> list[str]:
        messages = [{"role": "user", "content": [{"text": "3"}]}]
        stream = stack.client("bedrock-runtime").converse_stream(modelId="local", messages=messages)["stream"]
        return [next(iter(event)) for event in stream]

    names = await asyncio.to_thread(call)
    assert names == ["messageStart"] + ["contentBlockDelta"] * 3 + ["messageStop"]
    assert stack.plane.closed == 1


async def test_a_client_that_leaves_ends_the_stream(stack: Stack) -> None:
    body = b'{"messages":[{"role":"user","content":[{"text":"100000"}]}]}'
    path = "/model/local/converse-stream"
    _, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.write(stack.signed(body, path=path, session_id=None))
    await asyncio.sleep(0.2)
    assert not stack.plane.closed
    writer.transport.abort()
    for _ in range(100):
        await asyncio.sleep(0.02)
        if stack.plane.closed:
            break
    assert stack.plane.closed == 1


async def test_errors(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    """Modelled ones as the model numbers them; of others the caller learns where to look, the log learns all."""
    client = stack.client("bedrock-agentcore-control")
    error = await refusal(client.create_memory, name="conflict", eventExpiryDuration=7)
    assert error.response["Error"] == {"Code": "ConflictException", "Message": "There is a memory of this name"}
    for name, code in (("store", 503), ("dependency", 500), ("defect", 500)):
        caplog.clear()
        error = await refusal(client.create_memory, name=name, eventExpiryDuration=7)
        request_id = error.response["ResponseMetadata"]["RequestId"]
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == code
        assert "hunter2" not in str(error)
        assert request_id in str(error)
        assert request_id in caplog.text
        assert "hunter2" in caplog.text
    answer = await stack.raw(stack.signed(b"{", path="/memories/create", session_id=None))
    assert status(answer) == 400
    assert b"CannotParse" in answer or b"not valid JSON" in answer
    answer = await stack.raw(stack.signed(b"{}", path="/memories/create", session_id=None))
    assert status(answer) == 400
    for member in (b"name", b"eventExpiryDuration"):
        assert member in answer


async def test_what_is_not_there(stack: Stack) -> None:
    """Unknown paths and operations are told to callers who proved themselves; others learn nothing."""
    error = await refusal(stack.client().list_actors, memoryId="memory-0123456789")
    assert error.response["Error"]["Code"] == "UnsupportedOperationException"
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 501
    assert "docs/compatibility.md" in str(error)
    answer = await stack.raw(stack.signed(b"", path="/nothing/here", method="GET", session_id=None))
    assert status(answer) == 404
    assert b"UnknownOperationException" in answer
    answer = await stack.raw(b"GET /nothing/here HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status(answer) == 403
    assert b"MissingAuthenticationTokenException" in answer


async def test_only_health_answers_without_authentication(stack: Stack, router: Any) -> None:
    """Every operation there is, and a few paths there are not, on loopback too."""
    for path in ("/healthz", "/readyz", "/ping"):
        assert status(await stack.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())) == 200
        assert status(await stack.raw(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())) == 403
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    for operation in router.operations:
        method, template = operation.model.method, operation.model.path
        path = template.replace("{", "").replace("}", "")
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert status(head) in (401, 403), f"{operation.name}: {head!r}"
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        if b"connection: close" in head:
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.close()


# Which keys are good where.


async def test_session_keys_on_their_own_listener(stack: Stack) -> None:
    port = await stack.session_listener(SESSION)
    credentials = await stack.session_credentials(SESSION, User("alice"))
    await run(stack.client(port=port, credentials=credentials).create_event, **EVENT)
    ((call, _),) = stack.plane.calls
    assert call.caller.kind is CallerKind.SESSION
    assert call.caller.session == SESSION
    assert call.caller.user == User("alice")
    error = await refusal(
        stack.client("bedrock-agentcore-control", port=port, credentials=credentials).create_memory,
        name="mine",
        eventExpiryDuration=7,
    )
    assert error.response["Error"]["Code"] == "AccessDeniedException"


async def test_keys_elsewhere_are_worth_nothing(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    """Stolen from a session they do not work outside of it, and an operator's do not work inside one."""
    caplog.set_level(logging.WARNING, "agentkeep.service.authentication")
    port = await stack.session_listener(SESSION)
    own = await stack.session_credentials(SESSION)
    foreign = await stack.session_credentials(OTHER)
    places = [(stack.port, own), (port, foreign), (port, stack.credentials)]
    for where, credentials in places:
        caplog.clear()
        client = stack.client(port=where, credentials=credentials)
        error = await refusal(client.create_event, **EVENT)
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert "security token included in the request is invalid" in str(error)
        error = await refusal(client.invoke_agent_runtime, agentRuntimeArn=RUNTIME, payload=b"hi")
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert "was presented at" in caplog.text, "and it is noticed"
    assert not stack.plane.calls
    assert not stack.sessions.requests


async def test_session_tokens_must_come_along(stack: Stack) -> None:
    port = await stack.session_listener(SESSION)
    own = await stack.session_credentials(SESSION)
    for token in (None, "something"):
        client = stack.client(port=port, credentials=Credentials(own.access_key, own.secret_key, token))
        error = await refusal(client.create_event, **EVENT)
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403


async def test_bearer_tokens_are_refused_where_nobody_takes_them(stack: Stack) -> None:
    port = await stack.session_listener(SESSION)
    head = b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\nContent-Length: 0\r\n\r\n"
    for where in (stack.port, port):
        assert status(await stack.raw(b"POST /memories/create" + head, port=where)) == 403
    assert status(await stack.raw(f"POST {invocation_path()}".encode() + head, port=port)) == 403
    assert not stack.sessions.requests


async def test_session_keys_end_with_their_session(stack: Stack) -> None:
    port = await stack.session_listener(SESSION)
    own = await stack.session_credentials(SESSION)
    client = stack.client(port=port, credentials=own)
    await run(client.create_event, **EVENT)
    await stack.keys.end_session(SESSION)
    error = await refusal(client.create_event, **EVENT)
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403


# Mounts.


async def test_mounts_are_on_their_listener_only(stack: Stack) -> None:
    inside = await stack.session_listener(SESSION)
    expected = {
        ("/open/x", stack.port): 200,
        ("/open/x", inside): 403,
        ("/openx", stack.port): 403,
        ("/v2/credentials/x", stack.port): 403,
        ("/v2/credentials/x", inside): 200,
        ("/artifacts/x", stack.port): 403,
        ("/artifacts/x", inside): 403,
    }
    for (path, port), code in expected.items():
        answer = await stack.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), port=port)
        assert status(answer) == code, (path, port)
        assert b"x-amzn-requestid: " in answer
    assert SESSION.session_id.encode() in await stack.raw(
        b"GET /v2/credentials HTTP/1.1\r\nHost: x\r\n\r\n", port=inside
    )


async def test_operators_mounts(stack: Stack) -> None:
    """The body is proved before the application begins; large ones wait on disk and do not stay there."""
    for size in (0, 10, 3_000_000):
        request = stack.signed(b"x" * size, path="/artifacts/a.zip", method="PUT", session_id=None)
        answer = await stack.raw(request)
        assert status(answer) == 200
        assert b"%d arn:aws:iam::000000000000:user/admin" % size in answer
        if size:
            assert status(await stack.raw(request[:-1] + b"y")) == 403
    assert stack.server.front.config.loaded_app._spools.used == 0
    request = stack.signed(b"x" * 6_000_000, path="/artifacts/a.zip", method="PUT", session_id=None)
    assert status(await stack.raw(request)) == 400
    inside = await stack.session_listener(SESSION)
    own = await stack.session_credentials(SESSION)
    for port, code in ((stack.port, 403), (inside, 404)):
        request = stack.signed(b"", path="/artifacts", method="GET", session_id=None, credentials=own, port=port)
        assert status(await stack.raw(request, port=port)) == code


async def test_presigned_requests(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.port}/artifacts/a.zip?x=1"
    request = AWSRequest("GET", url)
    SigV4QueryAuth(stack.credentials, "bedrock-agentcore", DEPLOYMENT.region, expires=60).add_auth(request)
    path = request.url.partition(str(stack.port))[2]
    assert status(await stack.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{stack.port}\r\n\r\n".encode())) == 200
    path = path.replace("x=1", "x=2")
    assert status(await stack.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{stack.port}\r\n\r\n".encode())) == 403


async def test_the_signature_covers_the_host(stack: Stack) -> None:
    request = AWSRequest("GET", f"http://127.0.0.1:{stack.port}/artifacts/a")
    SigV4Auth(stack.credentials, "bedrock-agentcore", DEPLOYMENT.region).add_auth(request)
    fields = "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
    for host, code in ((f"127.0.0.1:{stack.port}", 200), (f"localhost:{stack.port}", 403)):
        answer = await stack.raw(f"GET /artifacts/a HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode())
        assert status(answer) == code


async def test_bodies_are_limited(stack: Stack) -> None:
    request = stack.signed(b"x" * 25_000_001, path="/memories/create", session_id=None)
    assert status(await stack.raw(request)) == 400
    chunked = (
        b"POST /open HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"64\r\n" + b"x" * 100 + b"\r\n") * 20
    )
    assert status(await stack.raw(chunked + b"0\r\n\r\n")) == 400
