"""The running platform under attack, by malicious agents in real sessions and by clients at its port.

What holds is kept here as a list that grows. The attacks from inside are `tests/agents/intruder/intrusions.py`; what a
sandbox keeps apart (files, processes, networks) is attacked in `tests/isolation`.
"""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest
import urllib3
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError
from canaries import canary, leaking_files, leaks
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(240)]

AGENTS = Path(__file__).parents[1] / "agents"
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
USER = "X-Amzn-Bedrock-AgentCore-Runtime-User-Id"
#: Attacks that are answered, with nothing but what is the attacker's own.
OWN = {"list_actors", "list_actors $next_token", "list_sessions bob $next_token", "list_events bob s $next_token",
       "create_event bob s", "memory with a body and query that contradict the path"}  # fmt: skip


@dataclass
class Place:
    """A platform with two malicious agents, and alice, who has something to lose."""

    platform: PlatformProcess
    arns: dict[str, str]
    secret: str
    memory: dict[str, Any]
    event: str
    client_token: str

    @cached_property
    def data(self) -> Any:
        return self.platform.client("bedrock-agentcore", retries={"total_max_attempts": 1}, read_timeout=60)

    @property
    def port(self) -> int:
        return int(self.platform.endpoint.rsplit(":", 1)[1])

    @property
    def operator(self) -> Credentials:
        variables = self.platform.variables
        return Credentials(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])

    def invoke(self, agent: str, payload: dict[str, Any], session: str, user: str | None = "bob") -> Any:
        named = {"runtimeUserId": user} if user else {}
        answer = self.data.invoke_agent_runtime(
            agentRuntimeArn=self.arns[agent], runtimeSessionId=session, payload=json.dumps(payload).encode(), **named
        )
        return answer, answer["response"].read()

    def intruder(self, do: str, session: str, user: str | None = "bob", **more: Any) -> Any:
        """A `target` is told backwards: what users say is on the session's trace, and would look like the platform's
        own leak."""
        if "target" in more:
            more["target"] = json.dumps(more["target"])[::-1]
        return json.loads(self.invoke("intruder", {"do": do, **more}, session, user)[1])

    def session_keys(self, session: str, user: str | None = "bob") -> list[str]:
        return [key[::-1] for key in self.intruder("own_session_keys", session, user)]

    def post(
        self, agent: str, headers: dict[str, str], payload: dict[str, Any], *, sign: bool = True
    ) -> tuple[int, bytes]:
        """On a connection of its own; `sign`: with the operator's key, over these headers."""
        url = f"{self.platform.endpoint}/runtimes/{quote(self.arns[agent], safe='')}/invocations"
        body = json.dumps(payload).encode()
        request = AWSRequest("POST", url, data=body, headers={"Content-Type": "application/json", **headers})
        if sign:
            SigV4Auth(self.operator, "bedrock-agentcore", "us-east-1").add_auth(request)
        with urllib3.PoolManager(retries=False, timeout=60) as http:
            answer = http.request("POST", url, body=body, headers=dict(request.headers.items()))
        return answer.status, answer.data

    def memory_in_use(self) -> int:
        return int(psutil.Process(self.platform.pid).memory_info().rss)

    def token(self, user: str) -> str:
        return str(self.platform.json("login", "--user", user)["access_token"])


def new_session() -> str:
    return str(uuid.uuid4())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running_platform(tmp_path_factory.mktemp("attacked") / "data") as platform:
        arns = {
            agent: platform.json("deploy", str(AGENTS / agent), "--name", agent, "--iam")["agentRuntimeArn"]
            for agent in ("intruder", "rogue")
        }
        secret, token = canary(), uuid.uuid4().hex * 2
        arns["tokens"] = platform.json("deploy", str(AGENTS / "intruder"), "--name", "tokens")["agentRuntimeArn"]
        control = platform.client("bedrock-agentcore-control")
        memory = control.create_memory(name="attacked", eventExpiryDuration=30)["memory"]
        data, events = platform.client("bedrock-agentcore"), {}
        for actor in ("alice", "Alice", "alice/x"):
            more = {"clientToken": token} if actor == "alice" else {}
            said = [{"conversational": {"role": "USER", "content": {"text": secret}}}]
            events[actor] = data.create_event(
                memoryId=memory["id"],
                actorId=actor,
                sessionId="s",
                eventTimestamp=datetime.now(UTC),
                payload=said,
                **more,
            )["event"]["eventId"]
        yield Place(platform, arns, secret, memory, events["alice"], token)


@pytest.fixture(scope="module")
def victim(place: Place) -> str:
    """Alice's session, in which the agent keeps what she told it."""
    session = new_session()
    assert place.intruder("keep", session, "alice", what={"said": place.secret}) == ["said"]
    return session


def target(place: Place, victim: str) -> dict[str, Any]:
    tokens = place.data.list_events(memoryId=place.memory["id"], actorId="alice", sessionId="s", maxResults=1)
    page = tokens.get("nextToken") or place.data.list_actors(memoryId=place.memory["id"], maxResults=1)["nextToken"]
    keys = place.session_keys(victim, "alice")
    return {
        "memory": place.memory["id"], "memory_arn": place.memory["arn"], "event": place.event, "next_token": page,
        "token": place.client_token, "victim": victim, "runtime_id": place.arns["intruder"].rsplit("/", 1)[1],
        "rogue": place.arns["rogue"], "operator": [place.operator.access_key, place.operator.secret_key],
        "victims_keys": keys, "jwt": place.token("alice"),
    }  # fmt: skip


# From inside.


def test_an_agent_gets_nothing_that_is_not_its_users(place: Place, victim: str) -> None:
    """MEM-2, MEM-5, IDN-2, IDN-4, IDN-5, GOV-4: the whole list, by an agent acting for bob."""
    found = place.intruder("intrude", new_session(), target=target(place, victim))
    assert len(found) > 100
    answered = {name for name, (state, _) in found.items() if state == "answered"}
    own = {name for name in answered if name in OWN or name.startswith(("list_actors ", "create_event bob s 20"))}
    assert answered == own, {name: found[name] for name in answered - own}
    for name, (_, what) in found.items():
        assert not leaks(what.encode(), [place.secret, place.operator.secret_key]), name
    for name in own:
        assert "alice" not in found[name][1], name
    # All as it was.
    events = place.data.list_events(memoryId=place.memory["id"], actorId="alice", sessionId="s")["events"]
    assert [event["eventId"] for event in events] == [place.event]
    assert place.intruder("show", victim, "alice") == {"said": place.secret}
    log = (place.platform.data_dir / "platform.log").read_text()
    assert "cross-user access refused" in log
    assert "was presented at the listener of session" in log


def test_keys_of_a_session_are_worth_nothing_outside(place: Place, victim: str) -> None:
    """IDN-4"""
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    keys = dict(zip(names, place.session_keys(victim, "alice"), strict=True))
    import boto3

    stolen = boto3.client("bedrock-agentcore", endpoint_url=place.platform.endpoint, region_name="us-east-1", **keys)
    with pytest.raises(ClientError, match="security token included in the request is invalid"):
        stolen.list_events(memoryId=place.memory["id"], actorId="alice", sessionId="s")


def test_a_session_without_a_user_reaches_no_data(place: Place) -> None:
    """IDN-2"""
    session = new_session()
    keys = place.session_keys(session, None)
    assert len(keys) == 3
    found = place.intruder("intrude", session, None, target=target(place, new_session()) | {"victims_keys": keys})
    refused = [found[name] for name in found if name.startswith("events of actor 0")]
    assert all(state == "refused" and "no user" in why for state, why in refused)


# From outside.


def test_users_do_not_enter_each_others_sessions(place: Place) -> None:
    """IDN-5, EXE-1: guessed, fixed, repeated and differently spelt session ids; headers that claim a user."""
    tokens = {user: place.token(user) for user in ("alice", "bob", "Alice")}
    session = new_session()

    def ask(user: str, payload: dict[str, Any], **headers: str) -> tuple[int, bytes]:
        named = {SESSION: session, "Authorization": f"Bearer {tokens[user]}"} | headers
        return place.post("tokens", named, payload, sign=False)

    assert ask("alice", {"do": "keep", "what": {"said": place.secret}})[0] == 200
    invocation = {"amz-sdk-invocation-id": str(uuid.uuid4()), "amz-sdk-request": "attempt=1; max=3"}
    assert place.secret.encode() in ask("alice", {"do": "show"}, **invocation)[1]
    for user in ("bob", "Alice"):
        for headers in ({}, {USER: "alice"}, invocation | {"amz-sdk-request": "attempt=2; max=3"}):
            status, body = ask(user, {"do": "show"}, **headers)
            assert (status, place.secret.encode() in body) == (403, False), (user, headers)
    assert ask("bob", {"do": "show"}, **{SESSION: session.upper()}) == (200, b"{}")
    # The same id at another runtime, by the operator for her, for another user, for nobody: never hers.
    assert place.intruder("show", session) == {}
    assert place.post("tokens", {SESSION: session, USER: "alice"}, {"do": "show"})[0] == 403
    two = {"Authorization": f"Bearer {tokens['bob']}, Bearer {tokens['alice']}"}
    assert place.post("tokens", {SESSION: session} | two, {"do": "show"}, sign=False)[0] == 401
    assert place.post("tokens", {SESSION: session}, {"do": "show"}, sign=False)[0] in (401, 403)


def test_a_kept_answer_is_for_whoever_asked(place: Place) -> None:
    session = new_session()
    retried = {"amz-sdk-invocation-id": str(uuid.uuid4()), "amz-sdk-request": "attempt=2; max=3", SESSION: session}
    first = retried | {"amz-sdk-request": "attempt=1; max=3"}
    payload = {"do": "keep", "what": {place.secret: 1}}
    assert place.post("intruder", first | {USER: "alice"}, payload)[0] == 200
    assert place.secret.encode() in place.post("intruder", retried | {USER: "alice"}, payload)[1]
    for headers in (retried | {USER: "bob"}, retried):
        status, body = place.post("intruder", headers, payload)
        assert (status, place.secret.encode() in body) == (403, False)
    assert place.post("intruder", retried | {USER: "alice"}, {"do": "show"})[0] == 400


def test_whoever_is_given_a_presigned_url_cannot_become_another(place: Place, victim: str) -> None:
    """IDN-5: an application presigns a WebSocket for bob's browser; bob adds headers."""
    path = f"/runtimes/{quote(place.arns['intruder'], safe='')}/ws"
    request = AWSRequest("GET", f"{place.platform.endpoint}{path}?{SESSION}={new_session()}&{USER}=bob")
    request.headers["host"] = f"127.0.0.1:{place.port}"
    SigV4QueryAuth(place.operator, "bedrock-agentcore", "us-east-1", expires=60).add_auth(request)
    url = urlsplit(str(request.url))

    def upgrade(*headers: str) -> bytes:
        lines = [f"GET {url.path}?{url.query} HTTP/1.1", f"Host: 127.0.0.1:{place.port}", "Connection: Upgrade"]
        lines += ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        with socket.create_connection(("127.0.0.1", place.port), 60) as connection:
            connection.sendall("\r\n".join([*lines, *headers, "", ""]).encode())
            return connection.recv(4096)

    assert upgrade().startswith(b"HTTP/1.1 424 "), "his own session, whose agent has no WebSocket"
    for headers in ([f"{SESSION}: {victim}", f"{USER}: alice"], [f"{USER}: alice"], [f"{SESSION}: {victim}"]):
        answer = upgrade(*headers)
        assert answer.startswith(b"HTTP/1.1 403 "), answer
        assert b"must be a 'SignedHeader'" in answer


def test_a_user_is_named_under_the_signature(place: Place) -> None:
    """IDN-5: a captured request cannot be sent again for somebody."""
    url = f"{place.platform.endpoint}/runtimes/{quote(place.arns['intruder'], safe='')}/invocations"
    request = AWSRequest("POST", url, data=b'{"do":"show"}', headers={SESSION: new_session()})
    SigV4Auth(place.operator, "bedrock-agentcore", "us-east-1").add_auth(request)
    headers = dict(request.headers.items()) | {USER: "alice"}
    with urllib3.PoolManager(retries=False) as http:
        answer = http.request("POST", url, body=b'{"do":"show"}', headers=headers)
    assert answer.status == 403
    assert USER.lower() in answer.json()["message"]


def test_strangers_are_told_nothing(place: Place, victim: str) -> None:
    """IDN-5"""
    with urllib3.PoolManager(retries=False) as http:
        for path in ("/sessions", f"/logs/{victim}", "/usage/a/b", "/artifacts/a/b", "/credentials", "/v1/traces", "/"):
            for method in ("GET", "PUT", "POST", "DELETE"):
                answer = http.request(method, place.platform.endpoint + path, headers={"X-HTTP-Method-Override": "GET"})
                assert answer.status in (401, 403), (method, path)
                assert not leaks(answer.data, [place.secret, victim])


# Hostile answers.

ANSWER = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def rogue(place: Place) -> str:
    session = new_session()
    place.invoke("rogue", {}, session)
    return session


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER + b"baggage: a\rX-Evil: 1\r\nContent-Length: 2\r\n\r\nhi",
        ANSWER + b"baggage: a\nX-Evil: 1\r\nContent-Length: 2\r\n\r\nhi",
        ANSWER + b"baggage: a\r\n X-Evil: 1\r\nContent-Length: 2\r\n\r\nhi",
        ANSWER + b"Content-Type: a\r\r\nX-Evil: 1\r\nContent-Length: 2\r\n\r\nhi",
        ANSWER + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        ANSWER + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhi",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"\x16\x03\x01 this is not HTTP",
    ],
)
def test_answers_that_are_not_http_are_the_agents_failure(place: Place, rogue: str, answer: bytes) -> None:
    with pytest.raises(ClientError) as error:
        place.invoke("rogue", {"once": answer.hex()}, rogue)
    assert error.value.response["Error"]["Code"] == "RuntimeClientError"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 424


def test_an_agent_sets_no_header_of_the_platforms(place: Place, rogue: str) -> None:
    """EXE-1: cookies, redirections, ids and error types are the platform's to send."""
    fields = (b"Set-Cookie: a=b\r\nX-Amzn-ErrorType: X\r\nX-Amzn-RequestId: forged\r\nLocation: http://evil/\r\n"
              b"X-Amzn-Bedrock-AgentCore-Runtime-Session-Id: forged\r\nWWW-Authenticate: Basic\r\n")  # fmt: skip
    two = b"hi" + ANSWER + b"Content-Length: 6\r\n\r\nsecond"
    answer, body = place.invoke("rogue", {"once": (ANSWER + fields + b"Content-Length: 2\r\n\r\n" + two).hex()}, rogue)
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert body == b"hi"
    assert not headers.keys() & {"set-cookie", "x-amzn-errortype", "location", "www-authenticate"}
    assert "forged" not in headers.values()


@pytest.mark.parametrize(
    ("once", "again"),
    [
        (ANSWER + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
        (ANSWER + b"Transfer-Encoding: chunked\r\n\r\n0\r\na: ", b"a" * 64),
        (ANSWER + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a" * 64),
        (b"HTTP/1.1 103 Early Hints\r\n", b"a: b\r\n"),
        (ANSWER, b"a: b\r\n"),
    ],
    ids=["trailers", "a-trailer", "chunk-extension", "interim-head", "head"],
)
def test_framing_without_end_takes_no_memory(place: Place, rogue: str, once: bytes, again: bytes) -> None:
    """EXE-6: 20 MB of it became half a gigabyte before there was a limit."""
    before = place.memory_in_use()
    with pytest.raises((ClientError, BotoCoreError)):
        place.invoke("rogue", {"once": once.hex(), "again": again.hex(), "count": 20_000_000 // len(again)}, rogue)
    assert place.memory_in_use() - before < 50 << 20


# Exhaustion: one session does what it can; another user's session goes on, and the platform does not grow.


def still_served(place: Place, session: str) -> float:
    """Seconds for the slowest of ten calls in another user's session."""
    slowest = 0.0
    for _ in range(10):
        began = time.monotonic()
        place.intruder("show", session, "carol")
        slowest = max(slowest, time.monotonic() - began)
    return slowest


@pytest.mark.parametrize(
    ("attack", "most"), [("hold_connections", 256), ("hold_bodies", 10**9), ("endless_framing", 10**9)]
)
def test_one_session_does_not_exhaust_the_platform(place: Place, attack: str, most: int) -> None:
    """EXE-6: what a session may hold of the platform has a limit."""
    bystander, session = new_session(), new_session()
    still_served(place, bystander)
    before = place.memory_in_use()
    try:
        assert place.intruder(attack, session, target={"memory": place.memory["id"]}) <= most
        assert still_served(place, bystander) < 2
        assert place.memory_in_use() - before < 150 << 20
    finally:
        place.intruder("let_go", session)


def test_strangers_do_not_exhaust_the_platform(place: Place) -> None:
    """EXE-6: a body's framing without end, from nobody."""
    before = place.memory_in_use()
    for path in ("/healthz", "/oidc/jwks.json", "/oidc/token", "/sessions"):
        with socket.create_connection(("127.0.0.1", place.port), 5) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
            try:
                connection.sendall(head.encode())
                for _ in range(500):
                    connection.sendall(b"a: b\r\n" * 10_000)
            except OSError:
                pass
            assert place.memory_in_use() - before < 50 << 20


def test_many_first_calls_at_once_make_one_session(place: Place) -> None:
    """EXE-1"""
    session = new_session()
    with ThreadPoolExecutor(16) as threads:
        shown = list(threads.map(lambda _: place.session_keys(session), range(16)))
    assert len({tuple(keys) for keys in shown}) == 1


# What is left behind.


def test_output_cannot_pass_for_the_platforms_nor_steer_a_terminal(place: Place) -> None:
    """OBS-5: an action that nobody can explain begins with a log that lies."""
    session = new_session()
    place.intruder("speak_for_the_platform", session)
    time.sleep(0.3)
    shown = place.platform.run("logs", session).stdout
    assert " [agentkeep 2026-01-01" in shown
    assert "\n[agentkeep 2026-01-01" not in shown
    assert "\x1b" not in shown
    assert "\\x1b]0;owned\\x07" in shown
    assert "\r" not in shown


def test_secrets_are_where_they_belong(place: Place, victim: str) -> None:
    """IDN-3, IDN-4: no secret in a command line, an environment, a log or a file that is not made for it."""
    keys = place.session_keys(victim, "alice")
    jwt = place.token("alice")
    process = psutil.Process(place.platform.pid)
    for each in [process, *process.children(recursive=True)]:
        if each.status() == psutil.STATUS_ZOMBIE:
            continue
        seen = "\0".join([*each.cmdline(), *(f"{name}={value}" for name, value in each.environ().items())])
        assert not leaks(seen.encode(), [place.operator.secret_key, *keys[1:], jwt, place.secret]), each
    folder = place.platform.data_dir
    assert leaking_files(folder, keys[1:]) == []
    assert set(leaking_files(folder, [place.operator.secret_key])) == {"credentials"}
    assert set(leaking_files(folder, [jwt])) <= {"logins.json"}
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
