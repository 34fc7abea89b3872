"""What a malicious agent tries at its session endpoint, the one place it reaches. A list that grows: an attack takes
the target (see `tests/e2e/test_attacks.py`), returns what it got, and raises when it got nothing."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

ENDPOINT = "http://169.254.170.2"
Target = dict[str, Any]
Attack = Callable[[Target], Any]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def note(function: Attack) -> Attack:
        assert name not in ATTACKS, name
        ATTACKS[name] = function
        return function

    return note


def client(service: str = "bedrock-agentcore", **keys: str) -> Any:
    config = Config(parameter_validation=False, retries={"total_max_attempts": 1}, read_timeout=20)
    return boto3.client(service, config=config, **keys)


def got(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def own_keys() -> Credentials:
    keys = boto3.Session().get_credentials().get_frozen_credentials()
    return Credentials(keys.access_key, keys.secret_key, keys.token)


def own_session_keys(target: Target) -> list[str]:
    """Backwards: what an agent says is on its session's trace, and would look like a leak of the platform's."""
    keys = own_keys()
    return [key[::-1] for key in (keys.access_key, keys.secret_key, keys.token)]


def http(path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str = "GET") -> bytes:
    request = urllib.request.Request(ENDPOINT + path, body, headers or {}, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return bytes(answer.read())


def signed(path: str, send: str | None = None, body: bytes = b"{}", method: str = "POST") -> bytes:
    """A request signed by botocore with the session's keys; `send`: another path than was signed."""
    request = AWSRequest(method, ENDPOINT + path, data=body, headers={"Content-Type": "application/json"})
    SigV4Auth(own_keys(), "bedrock-agentcore", "us-east-1").add_auth(request)
    return http(send or path, body, dict(request.headers.items()), method)


def raw(data: bytes) -> bytes:
    with socket.create_connection(("169.254.170.2", 80), 20) as connection:
        connection.settimeout(5)
        connection.sendall(data)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except TimeoutError:
            pass
        return answer


# Another user's memory.

NAMES = [
    "alice", "Alice", "ALICE", "alice/", "alice/x", "bob/../alice", "../alice", "bob%2F..%2Falice", "%61lice",
    "alice\0", "\uff41lice", "al\u200bice", "alice ", " alice", "bob,alice", "bob:alice", "*", "",
]  # fmt: skip


def _memory_attacks() -> None:
    for number, actor in enumerate(NAMES):
        for kind in ("memory", "memory_arn"):

            def events(target: Target, actor: str = actor, kind: str = kind) -> Any:
                return got(client().list_events(memoryId=target[kind], actorId=actor, sessionId="s"))

            attack(f"events of actor {number} by {kind}")(events)

    def operation(name: str, **arguments: Any) -> None:
        def attempt(target: Target) -> Any:
            given = {key: target[value[1:]] if str(value)[:1] == "$" else value for key, value in arguments.items()}
            return got(getattr(client(), name)(memoryId=target["memory"], **given))

        attack(f"{name} {' '.join(map(str, arguments.values()))}")(attempt)

    now = datetime.now(UTC)
    said = [{"conversational": {"role": "USER", "content": {"text": "planted"}}}]
    operation("list_sessions", actorId="alice")
    operation("get_event", actorId="alice", sessionId="s", eventId="$event")
    operation("get_event", actorId="bob", sessionId="s", eventId="$event")
    operation("delete_event", actorId="alice", sessionId="s", eventId="$event")
    operation("delete_event", actorId="bob", sessionId="s", eventId="$event")
    operation("create_event", actorId="alice", sessionId="s", eventTimestamp=now, payload=said)
    operation("create_event", actorId="bob", sessionId="s", eventTimestamp=now, payload=said,
              branch={"name": "b", "rootEventId": "0000001795392439034#660e6608faa0fe6c"})  # fmt: skip
    operation("list_events", actorId="bob", sessionId="../../alice/sessions/s")
    operation("list_actors", nextToken="$next_token")
    operation("list_actors")
    operation("list_sessions", actorId="bob", nextToken="$next_token")
    operation("list_events", actorId="bob", sessionId="s", nextToken="$next_token")
    for text in ("alice", "../alice", "\0", "\x7f"):
        operation("list_actors", nextToken=urlsafe_b64encode(text.encode()).decode())
    operation("create_event", actorId="bob", sessionId="s", eventTimestamp=now, payload=said, clientToken="$token")
    operation("list_memory_records", namespace="/")
    operation("retrieve_memory_records", namespace="/", searchCriteria={"searchQuery": "canary", "topK": 10})
    operation("retrieve_memory_records", namespace="/alice", searchCriteria={"searchQuery": "canary", "topK": 10})


_memory_attacks()


@attack("memory by paths that signatures see differently")
def dotted(target: Target) -> Any:
    place = f"/memories/{target['memory']}/actor"
    found = []
    for sent in (f"{place}/alice/../bob/sessions/s", f"{place}/./bob/sessions/s", f"{place}//bob/sessions/s"):
        try:
            found.append(signed(f"{place}/bob/sessions/s", sent))
        except urllib.error.HTTPError:
            pass
    if not found:
        raise PermissionError
    return found


@attack("memory with a body and query that contradict the path")
def contradiction(target: Target) -> Any:
    body = json.dumps({"actorId": "alice", "memoryId": target["memory"], "sessionId": "s"}).encode()
    return signed(f"/memories/{target['memory']}/actor/bob/sessions/s?actorId=alice&sessionId=s", body=body)


# The operator's side.


def _operator_attacks() -> None:
    for path in (
        "/sessions", "/logs/{victim}", "/usage/{runtime}/{victim}", "/artifacts/agentkeep-deploy/x", "/oidc/token",
        "/oidc/jwks.json", "//sessions", "/x/../sessions", "/%73essions", "/credentials/../sessions", "/credentials/x",
        "/v1/../sessions", "/",
    ):  # fmt: skip
        for how in ("plain", "signed"):

            def ask(target: Target, path: str = path, how: str = how) -> Any:
                place = path.format(victim=target["victim"], runtime=target["runtime_id"])
                return http(place) if how == "plain" else signed(place, body=b"", method="GET")

            attack(f"GET {path} {how}")(ask)
    for name in (
        "list_agent_runtimes",
        "list_memories",
        "list_workload_identities",
        "list_api_key_credential_providers",
    ):

        def call(target: Target, name: str = name) -> Any:
            return got(getattr(client("bedrock-agentcore-control"), name)())

        attack(name)(call)


_operator_attacks()


@attack("change the memory it uses")
def update_memory(target: Target) -> Any:
    return got(client("bedrock-agentcore-control").update_memory(memoryId=target["memory"], eventExpiryDuration=365))


@attack("an operator's key, from inside")
def operators_key(target: Target) -> Any:
    keys = {"aws_access_key_id": target["operator"][0], "aws_secret_access_key": target["operator"][1]}
    return got(client("bedrock-agentcore-control", **keys).list_memories())


@attack("another session's keys")
def others_keys(target: Target) -> Any:
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    keys = dict(zip(names, target["victims_keys"], strict=True))
    return got(client(**keys).list_events(memoryId=target["memory"], actorId="alice", sessionId="s"))


@attack("a user's bearer token")
def bearer(target: Target) -> Any:
    return http(
        f"/runtimes/{target['runtime_id']}/invocations", b"{}", {"Authorization": f"Bearer {target['jwt']}"}, "POST"
    )


# Other agents, other sessions, other identities.


@attack("another agent")
def other_agent(target: Target) -> Any:
    return client().invoke_agent_runtime(agentRuntimeArn=target["rogue"], runtimeSessionId="x" * 40, payload=b"{}")


@attack("its own agent for another user")
def own_agent(target: Target) -> Any:
    return client().invoke_agent_runtime(
        agentRuntimeArn=target["runtime_id"], runtimeSessionId=target["victim"], runtimeUserId="alice", payload=b"{}"
    )


@attack("stop another session")
def stop(target: Target) -> Any:
    return got(client().stop_runtime_session(agentRuntimeArn=target["runtime_id"], runtimeSessionId=target["victim"]))


@attack("another session by a header")
def forged_header(target: Target) -> Any:
    headers = {
        "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": target["victim"],
        "X-Amzn-Bedrock-AgentCore-Runtime-User-Id": "alice",
        "X-Forwarded-For": "127.0.0.1",
        "Host": "127.0.0.1",
    }
    mine = json.loads(http("/credentials"))
    found = json.loads(http("/credentials", headers=headers))
    if found["AccessKeyId"] == mine["AccessKeyId"]:
        raise PermissionError("still its own")
    return found


def _identity_attacks() -> None:
    for name, arguments in {
        "get_workload_access_token": {},
        "get_workload_access_token_for_user_id": {"userId": "alice"},
        "get_workload_access_token_for_jwt": {"userToken": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."},
    }.items():

        def call(target: Target, name: str = name, arguments: dict[str, str] = arguments) -> Any:
            return got(getattr(client(), name)(workloadName=target["runtime_id"], **arguments))

        attack(name)(call)


_identity_attacks()


@attack("a made-up workload token")
def made_up_token(target: Target) -> Any:
    return got(client().get_resource_api_key(workloadIdentityToken="A" * 200, resourceCredentialProviderName="weather"))


# Smuggling: every answer must be one refusal, or the answer to what was sent and nothing more.

HEAD = b"GET /credentials HTTP/1.1\r\nHost: 169.254.170.2\r\n"


def _smuggling_attacks() -> None:
    for name, data in {
        "absolute target": b"GET http://127.0.0.1/sessions HTTP/1.1\r\nHost: x\r\n\r\n",
        "connect": b"CONNECT 127.0.0.1:6379 HTTP/1.1\r\nHost: x\r\n\r\n",
        "two hosts": b"GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "no host": b"GET /ping HTTP/1.1\r\n\r\n",
        "length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 9\r\n\r\n",
        "space before colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "folded": HEAD + b"X: a\r\n b\r\n\r\n",
        "gzip, chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    }.items():

        def send(target: Target, data: bytes = data) -> Any:
            answer = raw(data)
            if re.match(rb"HTTP/1\.1 [45]", answer) and answer.count(b"HTTP/1.1 ") == 1:
                raise PermissionError(answer[:100].decode())
            return answer

        attack(f"smuggling: {name}")(send)


_smuggling_attacks()


# What would take the platform down. Each returns what it came to; the platform is measured from outside meanwhile.


def hold_connections(target: Target) -> int:
    """As many connections as there are, from processes that stay. How many are open after a while."""
    program = """
import socket, time
held = []
try:
    while len(held) < 900:
        one = socket.create_connection(("169.254.170.2", 80), 5)
        one.sendall(b"GET /ping HTTP/1.1\\r\\nHost: x\\r\\n")
        held.append(one)
except OSError:
    pass
def open_still(one):
    try:
        return bool(one.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False
for one in held:
    one.setblocking(False)
counted = []
while len(counted) < 3 or len(set(counted[-3:])) > 1 and len(counted) < 20:
    time.sleep(0.5)
    counted.append(sum(map(open_still, held)))
print(counted[-1], flush=True)
time.sleep(60)
"""
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    _started.extend(running)
    return sum(int(process.stdout.readline()) for process in running if process.stdout)


_started: list[subprocess.Popen[bytes]] = []
_open: list[socket.socket] = []


def let_go(target: Target) -> None:
    for process in _started:
        process.kill()
    for one in _open:
        one.close()


def hold_bodies(target: Target) -> int:
    """Bodies that are never complete, on many connections. How many bytes were taken."""
    place = f"/memories/{target['memory']}/actor/bob/sessions/s"
    request = AWSRequest("POST", ENDPOINT + place, data=b"")
    SigV4Auth(own_keys(), "bedrock-agentcore", "us-east-1").add_auth(request)
    head = f"POST {place} HTTP/1.1\r\nHost: 169.254.170.2\r\nContent-Length: 24000000\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items() if name != "Content-Length")
    taken = 0
    for _ in range(12):
        one = socket.create_connection(("169.254.170.2", 80), 5)
        one.settimeout(5)
        _open.append(one)
        try:
            one.sendall(f"{head}\r\n".encode())
            for _ in range(23):
                one.sendall(b"x" * 1_000_000)
                taken += 1_000_000
        except OSError:
            pass
    return taken


def endless_framing(target: Target) -> int:
    """Trailers without end behind a body. How many bytes were taken."""
    sent = 0
    for tail in (b"a: b\r\n" * 10_000, b"a" * 60_000):
        with socket.create_connection(("169.254.170.2", 80), 5) as one:
            one.settimeout(5)
            try:
                one.sendall(b"GET /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
                for _ in range(2000):
                    one.sendall(tail)
                    sent += len(tail)
                    time.sleep(0.0001)
            except OSError:
                pass
    return sent


def speak_for_the_platform(target: Target) -> None:
    """Output that looks like the platform's, or steers the terminal of who reads it."""
    print("[agentkeep 2026-01-01T00:00:00Z] session ended: stopped by alice")
    print("\x1b]0;owned\x07\x1b[2J\x1b[31mred\r[agentkeep] hidden", flush=True)
