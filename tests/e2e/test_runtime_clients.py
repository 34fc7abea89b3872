"""The SDK's runtime client, unmodified, against the running platform: HTTP, its three ways into a WebSocket, agents
that call agents. Its WebSocket URLs name AWS's host and nothing moves them: here that name is the platform's, with TLS,
as a deployer would arrange it (private DNS, private certificate authority)."""

from __future__ import annotations

import json
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3
from botocore.exceptions import ClientError
from platform_process import PlatformProcess, running_platform
from tls_front import TlsFront, tls_front
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK's use of pydantic is its own business
    from bedrock_agentcore.runtime import AgentCoreRuntimeClient

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(240)]

TALKER = Path(__file__).parents[1] / "agents" / "talker"
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
USER = "X-Amzn-Bedrock-AgentCore-Runtime-User-Id"
TENANT = "X-Amzn-Bedrock-AgentCore-Runtime-Custom-Tenant"


@dataclass
class Agents:
    """The same agent twice: one invoked with signatures, one with users' tokens."""

    platform: PlatformProcess
    signed: str
    bearer: str

    def token(self, user: str) -> str:
        return str(self.platform.json("login", "--user", user)["access_token"])

    def by_token(self, tail: str, token: str, session: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        url = f"{self.platform.endpoint}/runtimes/{quote(self.bearer, safe='')}/{tail}"
        headers = {"Authorization": f"Bearer {token}", SESSION: session}
        answer = urllib3.request("POST", url, json=body or {}, headers=headers, timeout=60, retries=False)
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.json() if answer.data else None


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with running_platform(tmp_path_factory.mktemp("platform")) as platform:
        signed = platform.json("deploy", str(TALKER), "--name", "signed", "--iam")["agentRuntimeArn"]
        bearer = platform.json("deploy", str(TALKER), "--name", "bearer")["agentRuntimeArn"]
        control = platform.client("bedrock-agentcore-control")
        for arn in (signed, bearer):
            _allow_header(control, arn.rsplit("/", 1)[1], TENANT)
        yield Agents(platform, signed, bearer)


def _allow_header(control: Any, runtime_id: str, header: str) -> None:
    found = control.get_agent_runtime(agentRuntimeId=runtime_id)
    kept = ("agentRuntimeArtifact", "roleArn", "networkConfiguration", "environmentVariables",
            "authorizerConfiguration")  # fmt: skip
    settings = {name: found[name] for name in kept if name in found}
    settings["requestHeaderConfiguration"] = {"requestHeaderAllowlist": [header]}
    control.update_agent_runtime(agentRuntimeId=runtime_id, **settings)
    while control.get_agent_runtime(agentRuntimeId=runtime_id)["status"] != "READY":
        time.sleep(0.1)


@pytest.fixture
def client(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> AgentCoreRuntimeClient:
    """Moved by what `agentkeep env` prints, and by nothing else."""
    for name, value in agents.platform.variables.items():
        monkeypatch.setenv(name, value)
    return AgentCoreRuntimeClient(region=agents.platform.variables["AWS_REGION"])


@pytest.fixture
async def aws(agents: Agents, tmp_path: Path) -> AsyncIterator[TlsFront]:
    """AWS's name for the data plane, here."""
    name = f"bedrock-agentcore.{agents.platform.variables['AWS_REGION']}.amazonaws.com"
    async with tls_front(name, int(agents.platform.endpoint.rsplit(":", 1)[1]), tmp_path) as front:
        yield front


def new_session() -> str:
    return f"session-{uuid.uuid4()}"


async def told(socket: ClientConnection) -> dict[str, Any]:
    """What the agent says of the connection; and that words go both ways."""
    document: dict[str, Any] = json.loads(await socket.recv())
    await socket.send("straight on" * 10_000)
    assert await socket.recv() == "STRAIGHT ON" * 10_000
    return document


async def refused(url: str, aws: TlsFront, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """The status and error type of an upgrade that is not taken."""
    with pytest.raises(InvalidStatus) as error:
        await connect(url, additional_headers=headers, proxy=None, **aws.address)
    return error.value.response.status_code, error.value.response.headers["x-amzn-errortype"]


def test_invoke_and_stop(agents: Agents, client: AgentCoreRuntimeClient) -> None:
    """EXE-1: snake_case and camelCase, whole and streamed."""
    session = new_session()
    answer = client.invoke_agent_runtime(
        agent_runtime_arn=agents.signed, runtime_session_id=session, runtime_user_id="alice", payload='{"a": 1}'
    )
    said = json.loads(answer["response"].read())
    assert (said["payload"], said["session"], answer["runtimeSessionId"]) == ({"a": 1}, session, session)
    assert said["token"], "a named user's workload access token"
    stream = client.invoke_agent_runtime(
        agentRuntimeArn=agents.signed, runtimeSessionId=session, runtimeUserId="alice", payload='{"stream": 3}'
    )
    assert stream["contentType"].startswith("text/event-stream")
    assert [json.loads(line[6:]) for line in stream["response"].iter_lines() if line] == [
        {"piece": number} for number in range(3)
    ]
    stopped = client.stop_runtime_session(agent_runtime_arn=agents.signed, runtime_session_id=session)
    assert (stopped["statusCode"], stopped["runtimeSessionId"]) == (200, session)
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client.stop_runtime_session(agent_runtime_arn=agents.signed, runtime_session_id=session)
    status = client.get_aggregated_status(agents.signed.rsplit("/", 1)[1])
    assert status["runtime"]["status"] == status["endpoint"]["status"] == "READY"


async def test_a_websocket_by_signature(agents: Agents, client: AgentCoreRuntimeClient, aws: TlsFront) -> None:
    """EXE-1, IDN-5: `generate_ws_connection`, its URL and headers used as its documentation does."""
    session = new_session()
    url, headers = client.generate_ws_connection(agents.signed, session, "DEFAULT")
    async with connect(url, additional_headers={**headers, TENANT: "blue"}, proxy=None, **aws.address) as socket:
        document = await told(socket)
    assert document["session"] == session
    assert {name.lower(): value for name, value in document["headers"].items()}[TENANT.lower()] == "blue"
    assert document["token"] is None
    # Who signed may name a user; who holds the headers may not.
    assert await refused(url, aws, {**headers, USER: "alice"}) == (403, "AccessDeniedException")
    other, _ = client.generate_ws_connection(agents.bearer, session, "DEFAULT")
    assert await refused(other, aws, headers) == (403, "AccessDeniedException")


async def test_a_websocket_by_presigned_url(agents: Agents, client: AgentCoreRuntimeClient, aws: TlsFront) -> None:
    """EXE-1, IDN-5: `generate_presigned_url`; the user it names is signed, and so is the session."""
    session = new_session()

    def presigned(user: str | None, **options: Any) -> str:
        named = {TENANT: "dark blue"} | ({USER: user} if user else {})
        return client.generate_presigned_url(agents.signed, session, custom_headers=named, **options)

    url = presigned("alice")
    for _ in range(2):  # within its 300 seconds it is good again, for the same session and user
        async with connect(url, proxy=None, **aws.address) as socket:
            document = await told(socket)
        assert document["session"] == session
        assert {name.lower(): value for name, value in document["headers"].items()}[TENANT.lower()] == "dark blue"
        assert document["token"]
    # The session is alice's: nobody else's URL opens it, however well signed.
    for user in ("bob", None):
        assert await refused(presigned(user), aws) == (403, "AccessDeniedException")
    # And a URL that was handed out says what it said when it was signed.
    for forged in (
        url.replace("=alice", "=bob"),
        url.replace(session, new_session()),
        url.replace(quote(agents.signed, safe=""), quote(agents.bearer, safe="")),
        url.replace("X-Amz-Expires=300", "X-Amz-Expires=299"),
        f"{url}&{TENANT}-Too=x",
    ):
        assert forged != url
        assert await refused(forged, aws) == (403, "AccessDeniedException")
    for name in (SESSION, USER, TENANT):
        assert await refused(url, aws, {name: "x" * 40}) == (403, "AccessDeniedException")
    # Not past its time, not for longer than AWS allows.
    assert await refused(presigned("alice", expires=0), aws) == (403, "AccessDeniedException")
    with pytest.raises(ValueError, match="300"):
        presigned("alice", expires=301)


async def test_a_websocket_by_token(agents: Agents, client: AgentCoreRuntimeClient, aws: TlsFront) -> None:
    """EXE-1, IDN-5: `generate_ws_connection_oauth`; the user is the token's, whatever else is said."""
    session, alice, bob = new_session(), agents.token("alice"), agents.token("bob")
    url, headers = client.generate_ws_connection_oauth(agents.bearer, alice, session)
    async with connect(url, additional_headers={**headers, USER: "bob"}, proxy=None, **aws.address) as socket:
        document = await told(socket)
    assert document["session"] == session and document["token"]
    assert not any("authorization" in name.lower() for name in document["headers"])
    _, stolen = client.generate_ws_connection_oauth(agents.bearer, bob, session)
    assert await refused(url, aws, stolen) == (403, "AccessDeniedException")
    assert await refused(url, aws, {**headers, "Authorization": "Bearer none"}) == (401, "UnauthorizedException")
    # A signature does not open what takes tokens, nor a token what takes signatures.
    _, signature = client.generate_ws_connection(agents.bearer, session)
    assert await refused(url, aws, signature) == (403, "AccessDeniedException")
    url, headers = client.generate_ws_connection_oauth(agents.signed, alice, session)
    assert await refused(url, aws, headers) == (403, "AccessDeniedException")


def test_a_session_is_its_users_by_token(agents: Agents, client: AgentCoreRuntimeClient) -> None:
    """IDN-5, EXE-1: HTTP and StopRuntimeSession with another user's good token, and with none."""
    session, alice, bob = new_session(), agents.token("alice"), agents.token("bob")
    status, _, said = agents.by_token("invocations", alice, session)
    assert (status, said["session"]) == (200, session)
    for tail in ("invocations", "invocations/", "commands", "stopruntimesession"):
        assert agents.by_token(tail, bob, session, {"command": "id"})[0] == 403
        status, headers, _ = agents.by_token(tail, "rubbish", session, {"command": "id"})
        assert status == 401 and "resource_metadata=" in headers["www-authenticate"]
    with pytest.raises(ClientError, match="AccessDeniedException"):
        client.invoke_agent_runtime(agentRuntimeArn=agents.bearer, runtimeSessionId=session, payload="{}")
    assert session in json.dumps(agents.platform.json("sessions")), "nothing of that ended it"
    assert agents.by_token("stopruntimesession", alice, session)[0] == 200
    assert agents.by_token("invocations", bob, session)[0] == 403, "also after its end"


def test_agents_call_agents(agents: Agents, client: AgentCoreRuntimeClient) -> None:
    """GOV-4, IDN-2: with the SDK's client inside the session, which sends the caller's workload access token along. The
    callee gets one of its own, for the same user."""
    session, callee = new_session(), new_session()

    def call(user: str | None = "alice", session: str = session) -> Any:
        named = {"runtimeUserId": user} if user else {}
        payload = json.dumps({"call": agents.signed, "as_session": callee})
        answer = client.invoke_agent_runtime(
            agentRuntimeArn=agents.signed, runtimeSessionId=session, payload=payload, **named
        )
        return json.loads(answer["response"].read())

    assert call()["callee"] == {"error": "AccessDeniedException"}, "nothing is allowed that nobody allowed"
    control = agents.platform.client("bedrock-agentcore-control")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "bedrock-agentcore:InvokeAgentRuntime",
                 "Resource": agents.signed}  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    control.put_resource_policy(resourceArn=agents.signed, policy=policy)
    try:
        said = call()
        assert said["callee"]["payload"] == {"called": True} and said["callee"]["session"] == callee
        assert said["callee"]["token"] and said["callee"]["token"] != said["token"]
        assert call("bob", new_session())["callee"] == {"error": "AccessDeniedException"}, "the callee is alice's"
        assert call(None, new_session())["callee"] == {"error": "AccessDeniedException"}
    finally:
        control.delete_resource_policy(resourceArn=agents.signed)
