"""Three replicas of the runtime service, unmodified clients: any replica serves any session, each session one
environment, and what a dead replica had is served again within seconds."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from replica_stack import ReplicaStack, deploy, running_replicas
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(240)]

AGENT = Path(__file__).parents[1] / "agents" / "counter"


class Deployed:
    def __init__(self, stack: ReplicaStack, arn: str) -> None:
        self.stack = stack
        self.arn = arn
        self.clients = [stack.client(replica=number) for number in range(len(stack.replicas))]

    def ask(self, session: str, replica: int | None = None, user: str | None = None, **payload: Any) -> dict[str, Any]:
        client = self.stack.client() if replica is None else self.clients[replica]
        named = {} if user is None else {"runtimeUserId": user}
        answer = client.invoke_agent_runtime(
            agentRuntimeArn=self.arn, runtimeSessionId=session, payload=json.dumps(payload).encode(), **named
        )
        return dict(json.loads(answer["response"].read()))

    def websocket(self, session: str, replica: int, user: str) -> dict[str, Any]:
        """What websockets' `connect` is given."""
        base = self.stack.replicas[replica].url
        path = f"/runtimes/{quote(self.arn, safe='')}/ws"
        name = "X-Amzn-Bedrock-AgentCore-Runtime-"
        request = AWSRequest("GET", base + path, headers={f"{name}Session-Id": session, f"{name}User-Id": user})
        operator = self.stack.operator
        credentials = Credentials(operator["accessKeyId"], operator["secretAccessKey"])
        SigV4Auth(credentials, "bedrock-agentcore", "us-east-1").add_auth(request)
        return {
            "uri": f"ws{base.removeprefix('http')}{path}",
            "additional_headers": dict(request.headers.items()),
            "max_size": 2_000_000,
            "proxy": None,
        }

    def until_served(self, session: str, replica: int, seconds: float = 60) -> tuple[dict[str, Any], float]:
        """As a client that tries again, with the seconds it took."""
        began = time.monotonic()
        while True:
            try:
                return self.ask(session, replica), time.monotonic() - began
            except ClientError:
                assert time.monotonic() - began < seconds
                time.sleep(0.1)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("replicas")
    with running_replicas(folder, AGENTKEEP_SERVICE_STOP_TIMEOUT="5") as stack:
        yield Deployed(stack, deploy(stack, AGENT, "counter"))


def new_session() -> str:
    return str(uuid.uuid4())


def test_any_replica_serves_any_session(deployed: Deployed) -> None:
    """EXE-6."""
    session = new_session()
    answers = [deployed.ask(session, replica) for replica in (0, 1, 2, 1, 0, 2)]
    assert len({answer["environment"] for answer in answers}) == 1
    assert [answer["asked"] for answer in answers] == [1, 2, 3, 4, 5, 6]
    assert {answer["session"] for answer in answers} == {session}


def test_first_calls_at_once_make_one_environment(deployed: Deployed) -> None:
    """EXE-1, EXE-6. Thirty callers through all replicas, none of them turned away."""
    session = new_session()
    with ThreadPoolExecutor(30) as callers:
        answers = list(callers.map(lambda number: deployed.ask(session, number % 3), range(30)))
    assert len({answer["environment"] for answer in answers}) == 1
    assert sorted(answer["asked"] for answer in answers) == list(range(1, 31))


def test_an_answer_streams_through_another_replica(deployed: Deployed) -> None:
    """EXE-6. Piece by piece, as the agent gives them."""
    session = new_session()
    environment = deployed.ask(session, 0)["environment"]
    answer = deployed.clients[1].invoke_agent_runtime(
        agentRuntimeArn=deployed.arn, runtimeSessionId=session, payload=b'{"stream": 4, "gap": 0.5}'
    )
    assert answer["contentType"].startswith("text/event-stream")
    came, pieces = [], []
    for line in answer["response"].iter_lines(chunk_size=1):
        if line.startswith(b"data: "):
            came.append(time.monotonic())
            pieces.append(json.loads(line[6:]))
    assert [piece["piece"] for piece in pieces] == [0, 1, 2, 3]
    assert {piece["environment"] for piece in pieces} == {environment}
    assert came[-1] - came[0] > 1, "the pieces came together"


async def test_a_websocket_through_another_replica(deployed: Deployed) -> None:
    """EXE-6. Opened, used and closed; and an error instead of it, as the other replica says it."""
    session = new_session()
    environment = deployed.ask(session, 0, "alice")["environment"]
    for replica in (0, 1, 2):
        async with connect(**deployed.websocket(session, replica, "alice")) as socket:
            assert json.loads(await socket.recv()) == {"environment": environment, "session": session}
            large = "x" * 1_000_000
            await socket.send(large)
            assert await socket.recv() == large.upper()
        with pytest.raises(InvalidStatus) as refused:
            await connect(**deployed.websocket(session, replica, "mallory")).__aenter__()
        response = refused.value.response
        assert (response.status_code, response.headers["x-amzn-errortype"]) == (403, "AccessDeniedException")


def test_large_bodies_pass(deployed: Deployed) -> None:
    """20 MB, to a session that lives, and to one that does not."""
    data = os.urandom(10_000_000).hex()
    live = new_session()
    environment = deployed.ask(live, 2)["environment"]
    answer = deployed.ask(live, 0, data=data)
    assert answer["environment"] == environment
    assert answer["digest"] == deployed.ask(live, 2, data=data)["digest"]


def test_the_agents_errors_and_the_platforms_pass_as_they_are(deployed: Deployed) -> None:
    session = new_session()
    deployed.ask(session, 0)
    errors = []
    for replica in (0, 1):
        with pytest.raises(ClientError) as caught:
            deployed.clients[replica].invoke_agent_runtime(
                agentRuntimeArn=deployed.arn, runtimeSessionId=session, payload=b'{"sleep": "none"}'
            )
        errors.append((caught.value.response["Error"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]))
    assert errors[0] == errors[1]
    assert errors[0][1] == 424


def test_another_users_session_is_refused_everywhere(deployed: Deployed) -> None:
    """EXE-1."""
    session = new_session()

    def ask(replica: int, user: str) -> Any:
        return deployed.clients[replica].invoke_agent_runtime(
            agentRuntimeArn=deployed.arn, runtimeSessionId=session, runtimeUserId=user, payload=b"{}"
        )

    ask(0, "alice")["response"].read()
    for replica in range(3):
        with pytest.raises(ClientError) as caught:
            ask(replica, "mallory")
        assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
        ask(replica, "alice")["response"].read()


def test_a_session_is_stopped_through_any_replica(deployed: Deployed) -> None:
    session = new_session()
    first = deployed.ask(session, 0)
    stopped = deployed.clients[1].stop_runtime_session(agentRuntimeArn=deployed.arn, runtimeSessionId=session)
    assert stopped["statusCode"] == 200
    with pytest.raises(ClientError) as caught:
        deployed.clients[2].stop_runtime_session(agentRuntimeArn=deployed.arn, runtimeSessionId=session)
    assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
    again = deployed.ask(session, 2)
    assert again["environment"] != first["environment"]
    assert again["asked"] == 1
    assert deployed.ask(session, 0)["environment"] == again["environment"]


def test_a_retry_through_another_replica_joins_the_run(deployed: Deployed) -> None:
    """EXE-6. boto3 gives up waiting and sends the invocation again: wherever that arrives, the agent works once."""
    session = new_session()
    with_retries = deployed.stack.client(read_timeout=4, retries={"total_max_attempts": 4})
    answer = with_retries.invoke_agent_runtime(
        agentRuntimeArn=deployed.arn, runtimeSessionId=session, payload=b'{"sleep": 9}'
    )
    assert answer["ResponseMetadata"]["RetryAttempts"] >= 1
    assert json.loads(answer["response"].read())["asked"] == 1
    assert deployed.ask(session, 0)["asked"] == 2


def test_agents_call_agents_on_other_replicas(deployed: Deployed) -> None:
    """EXE-2. Through the session's own listener, with the session's keys, for its user."""
    caller, callee = new_session(), new_session()
    control = deployed.stack.client("bedrock-agentcore-control")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "bedrock-agentcore:InvokeAgentRuntime"}
    policy = {"Version": "2012-10-17", "Statement": [{**statement, "Resource": deployed.arn}]}
    control.put_resource_policy(resourceArn=deployed.arn, policy=json.dumps(policy))
    try:
        environment = deployed.ask(callee, 0, "alice")["environment"]
        time.sleep(5.1)  # so long another replica may go by the policies there were
        answer = deployed.ask(caller, 1, "alice", call=deployed.arn, as_session=callee)
        assert json.loads(answer["callee"])["environment"] == environment
        stranger = deployed.ask(new_session(), 1, "bob", call=deployed.arn, as_session=callee)
        assert stranger["callee"] == "AccessDeniedException", "the session is alice's"
    finally:
        control.delete_resource_policy(resourceArn=deployed.arn)


def test_what_a_killed_replica_had_is_served_again_at_once(deployed: Deployed) -> None:
    """EXE-6. Its processes end with it, and the next call through any other replica finds a new environment."""
    stack = deployed.stack
    sessions = [new_session() for _ in range(3)]
    before = [deployed.ask(session, 2) for session in sessions]
    process = stack.replicas[2].process
    assert process is not None
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    stack.kill(2)
    try:
        took = []
        for session, old in zip(sessions, before, strict=True):
            new, seconds = deployed.until_served(session, 0)
            took.append(seconds)
            assert new["environment"] != old["environment"]
            assert deployed.ask(session, 1)["environment"] == new["environment"]
        assert max(took) < 20, took
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    finally:
        stack.start(2)
    assert deployed.ask(sessions[0], 2)["environment"] != before[0]["environment"]


def test_a_replica_that_was_away_too_long_serves_no_more_what_another_took(deployed: Deployed) -> None:
    """EXE-6. Frozen beyond its lease and taken for dead, it must find out before it serves anything."""
    stack = deployed.stack
    session = new_session()
    old = deployed.ask(session, 0)
    stack.freeze(0)
    try:
        new, _ = deployed.until_served(session, 1)
    finally:
        stack.thaw(0)
    assert new["environment"] != old["environment"]
    with ThreadPoolExecutor(10) as callers:
        answers = list(callers.map(lambda _: deployed.until_served(session, 0)[0], range(10)))
    assert {answer["environment"] for answer in answers} == {new["environment"]}
    # It is a replica like the others again.
    fresh = new_session()
    assert deployed.ask(fresh, 0)["environment"] == deployed.ask(fresh, 2)["environment"]


def test_a_deleted_runtimes_sessions_end_on_every_replica(deployed: Deployed) -> None:
    stack = deployed.stack
    arn = deploy(stack, AGENT, f"short_{uuid.uuid4().hex[:8]}")
    other = Deployed(stack, arn)
    for replica in range(3):
        other.ask(new_session(), replica)
    control = stack.client("bedrock-agentcore-control")
    runtime_id = arn.rpartition("/")[2]
    control.delete_agent_runtime(agentRuntimeId=runtime_id)
    deadline = time.monotonic() + 60
    while any(found["agentRuntimeId"] == runtime_id for found in control.list_agent_runtimes()["agentRuntimes"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for replica in range(3):
        with pytest.raises(ClientError) as caught:
            other.ask(new_session(), replica)
        assert caught.value.response["Error"]["Code"] in ("ResourceNotFoundException", "RuntimeClientError")
