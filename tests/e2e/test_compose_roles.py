"""Roles of people and applications on the compose deployment, with its Keycloak: the sample's file dropped in, tokens
for keys at the edge, and what these keys may do in each plane."""

from __future__ import annotations

import json
import time
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from compose_application import AGENT, Application
from compose_roles import ComposeRoles, claims
from compose_stack import PLANES, ComposeStack
from docker_engine import SDK
from platform_process import PlatformProcess
from role_keys import ACCOUNT, REGION, refused_within, role_arn
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agentkeep.cli.deployment import Running, write_credentials

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(2400), pytest.mark.xdist_group("docker")]

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
SLACK = 10  # seconds, of a loaded machine


@dataclass
class Things:
    """What the roles of the tests' own may use: an agent, a memory's id, a gateway's id, a workload's name."""

    agent: str
    memory: str
    gateway: str
    workload: str


@pytest.fixture(scope="module")
def things(application: Application, roles: ComposeRoles) -> Things:
    tail = uuid.uuid4().hex[:8]
    control, image = application.control, application.stack.engine.image("compose", {"main.py": AGENT}, packages=SDK)
    gateway = control.create_gateway(
        name=f"roles-{tail}", roleArn=role_arn("x"), protocolType="MCP", authorizerType="AWS_IAM"
    )
    memory = control.create_memory(name=f"roles_{tail}", eventExpiryDuration=7)["memory"]["id"]
    control.create_workload_identity(name=f"roles-{tail}")
    return Things(application.deploy(image, "roles"), memory, gateway["gatewayId"], f"roles-{tail}")


def audit(stack: ComposeStack, folder: Path, kind: str) -> list[dict[str, Any]]:
    """By the command that operators run."""
    operator = stack.operator()
    Running(stack.url, 0, 0.0, operator["region"], ACCOUNT).write(folder)
    write_credentials(folder, operator["accessKeyId"], operator["secretAccessKey"])
    found: list[dict[str, Any]] = PlatformProcess(folder).json("audit", "--kind", kind, "--limit", "500")["records"]
    return found


def code(call: Any) -> str:
    """By which it is refused."""
    with pytest.raises(ClientError) as raised:
        call()
    return str(raised.value.response["Error"]["Code"])


def test_the_sample_gives_each_his_role_and_nobody_another(
    compose: ComposeStack, roles: ComposeRoles, tmp_path: Path
) -> None:
    """IDN-1, IDN-2: none without the file; with it by the realm's groups, in one's own name, by tokens made for that.
    Each is on record, and no token and key is in what any service says."""
    assert roles.before == "InvalidIdentityToken"  # that no role trusts the issuer is all that there is to say
    alice, bob = roles.keys("deployer", "alice"), roles.keys("auditor", "bob")
    for keys, arn in ((alice, "deployer/alice"), (bob, "auditor/bob")):
        who = roles.client("sts", keys).get_caller_identity()
        assert (who["Arn"], who["Account"]) == (f"arn:aws:sts::{ACCOUNT}:assumed-role/{arn}", ACCOUNT)
    assert code(lambda: roles.keys("auditor", "alice")) == "AccessDenied"
    assert code(lambda: roles.keys("deployer", "bob")) == "AccessDenied"
    assert code(lambda: roles.assume("deployer", roles.token("alice"), "root")) == "AccessDenied"
    # Agents and their tools see their users' tokens: those open no role.
    users = compose.token("alice")
    assert "agentkeep-roles" not in claims(users)["aud"]
    assert code(lambda: roles.assume("deployer", users, "alice")) == "InvalidIdentityToken"

    assumed = {one["details"]["accessKeyId"]: one for one in audit(compose, tmp_path, "role-assumed")}
    record = assumed[alice["AccessKeyId"]]
    assert record["principal"].endswith("assumed-role/deployer/alice")
    assert record["details"]["issuer"] == compose.issuer
    refusals = {(one["details"]["role"], one["details"]["code"]) for one in audit(compose, tmp_path, "role-refusal")}
    assert {("auditor", "AccessDenied"), ("deployer", "InvalidIdentityToken")} <= refusals
    said = compose.compose("logs", "--no-color", *PLANES, "edge")
    secret = [keys[name] for keys in (alice, bob) for name in ("SecretAccessKey", "SessionToken")]
    assert not any(one in said for one in (*secret, roles.token("alice").rpartition(".")[2], users.rpartition(".")[2]))


def test_a_role_is_assumed_by_a_get(compose: ComposeStack, roles: ComposeRoles) -> None:
    """IDN-1: everything in the query, as STS takes it; the edge passes it on and writes it nowhere."""
    asked = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": role_arn("deployer"),
        "RoleSessionName": "alice",
        "WebIdentityToken": roles.token("alice"),
        "DurationSeconds": "900",
    }
    answer = httpx.get(f"{roles.endpoint}/sts", params=asked, trust_env=False, timeout=30)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    found = {each.tag.rpartition("}")[2]: each.text for each in ET.fromstring(answer.content).iter()}
    who = roles.client("sts", found).get_caller_identity()
    assert who["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/deployer/alice"
    unknown = httpx.get(f"{roles.endpoint}/sts/", params={**asked, "WebIdentityToken": "x.y.z"}, trust_env=False)
    assert unknown.status_code == 400
    assert roles.token("alice").rpartition(".")[2] not in compose.compose("logs", "--no-color", "edge", "identity")


def test_a_deployer_makes_things_in_each_plane_and_uses_none(roles: ComposeRoles, things: Things) -> None:
    """IDN-2: what the platform's policy `deployer` says, at the edge of five services."""
    keys = roles.keys("deployer", "alice")
    control, data = roles.client("bedrock-agentcore-control", keys), roles.client("bedrock-agentcore", keys)
    runtime = things.agent.rpartition("/")[2]
    assert control.get_agent_runtime(agentRuntimeId=runtime)["agentRuntimeArn"] == things.agent
    made = control.create_memory(name=f"deployed_{uuid.uuid4().hex[:8]}", eventExpiryDuration=7)["memory"]
    assert made["status"] in ("CREATING", "ACTIVE")
    assert control.get_gateway(gatewayIdentifier=things.gateway)["gatewayId"] == things.gateway
    assert control.create_workload_identity(name=f"deployed-{uuid.uuid4().hex[:8]}")
    session = str(uuid.uuid4())
    assert roles.ask(keys, "GET", f"/usage/{runtime}/{session}").status_code == 200

    for refused in (
        lambda: data.invoke_agent_runtime(agentRuntimeArn=things.agent, runtimeSessionId=session, payload=b"{}"),
        lambda: data.list_events(memoryId=things.memory, actorId="bob", sessionId="s"),
        lambda: data.get_workload_access_token(workloadName=things.workload),
        lambda: control.delete_memory(memoryId=things.memory),
    ):
        assert code(refused) == "AccessDeniedException"
    for method, path in (
        ("POST", f"/gateways/{things.gateway}/mcp"),
        ("GET", "/audit-records"),
        ("POST", "/operator-keys"),
        ("POST", "/roles/deployer/revoke"),
    ):
        assert roles.ask(keys, method, path, PING if method == "POST" else b"").status_code == 403, path


def test_an_application_uses_what_its_policy_names(roles: ComposeRoles, things: Things) -> None:
    """IDN-1, IDN-2, MEM-1: in each plane; and in each it is refused what the policy does not name."""
    keys = roles.keys("talker", "bob")
    control, data = roles.client("bedrock-agentcore-control", keys), roles.client("bedrock-agentcore", keys)
    session = str(uuid.uuid4())
    answer = data.invoke_agent_runtime(agentRuntimeArn=things.agent, runtimeSessionId=session, payload=b"{}")
    assert json.loads(answer["response"].read())["session"] == session
    chat = {"memoryId": things.memory, "actorId": "bob", "sessionId": session}
    said = [{"conversational": {"role": "USER", "content": {"text": "hello"}}}]
    data.create_event(**chat, eventTimestamp=time.time(), payload=said)
    assert len(data.list_events(**chat)["events"]) == 1
    assert roles.ask(keys, "POST", f"/gateways/{things.gateway}/mcp", PING).status_code == 200
    assert data.get_workload_access_token(workloadName=things.workload)["workloadAccessToken"]
    assert roles.ask(keys, "GET", "/alerts").status_code == 200

    for refused in (
        lambda: data.invoke_agent_runtime(
            agentRuntimeArn=things.agent, runtimeSessionId=session, runtimeUserId="bob", payload=b"{}"
        ),
        lambda: data.list_events(**{**chat, "actorId": "alice"}),
        lambda: control.get_gateway(gatewayIdentifier=things.gateway),
        lambda: control.create_workload_identity(name="never"),
    ):
        assert code(refused) == "AccessDeniedException"
    assert roles.ask(keys, "GET", "/audit-records").status_code == 403
    data.stop_runtime_session(agentRuntimeArn=things.agent, runtimeSessionId=session)


def test_a_websocket_needs_a_permission_of_its_own(
    application: Application, roles: ComposeRoles, things: Things
) -> None:
    """IDN-2: who may invoke an agent may not for that talk to it by WebSocket."""
    session = str(uuid.uuid4())
    path = f"/runtimes/{quote(things.agent, safe='')}/ws"

    def handshake(keys: dict[str, Any]) -> Any:
        request = AWSRequest("GET", roles.endpoint + path)
        request.headers["X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"] = session
        signing = Credentials(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
        SigV4Auth(signing, "bedrock-agentcore", REGION).add_auth(request)
        url = roles.endpoint.replace("http:", "ws:") + path
        return connect(url, additional_headers=dict(request.headers.items()), open_timeout=60, proxy=None)

    with handshake(roles.keys("talker", "bob")) as socket:
        socket.send("hello")
        assert socket.recv(60) == "HELLO"
    invoker = roles.keys("invoker", "bob")
    with pytest.raises(InvalidStatus) as refused:
        handshake(invoker)
    assert refused.value.response.status_code == 403
    assert refused.value.response.headers["x-amzn-errortype"] == "AccessDeniedException"
    # What it may.
    other = str(uuid.uuid4())
    data = roles.client("bedrock-agentcore", invoker)
    answer = data.invoke_agent_runtime(agentRuntimeArn=things.agent, runtimeSessionId=other, payload=b"{}")
    assert json.loads(answer["response"].read())["session"] == other
    for each in (session, other):
        application.stop(things.agent, each)


def test_an_agent_learns_who_it_is_and_becomes_nobody_else(
    application: Application, roles: ComposeRoles, things: Things
) -> None:
    """IDN-1, IDN-4: in its container, at its session's endpoint, with a token that is good for a role outside."""
    session = str(uuid.uuid4())
    asked = {"RoleArn": role_arn("deployer"), "RoleSessionName": "alice", "WebIdentityToken": roles.token("alice")}
    found = application.invoke(things.agent, session, assume=asked)
    assert found["arn"].endswith(f"/{session}")
    assert found["refused"] == "AccessDenied"
    assert roles.keys("deployer", "alice")
    application.stop(things.agent, session)


def test_revoked_keys_are_dead_in_all_services_in_time(
    compose: ComposeStack, roles: ComposeRoles, tmp_path: Path
) -> None:
    """IDN-1: within AGENTKEEP_IDENTITY_KEY_CACHE, each service having just used the key; nobody else's are."""
    audit(compose, tmp_path, "role-revoked")  # introduces the command to the deployment
    keys, others = roles.keys("talker", "bob"), roles.keys("deployer", "alice")
    asks = {plane: partial(ask, keys, None) for plane, ask in roles.reads().items()}
    assert {plane: ask() for plane, ask in asks.items()} == dict.fromkeys(PLANES, 200)
    PlatformProcess(tmp_path).run("roles", "revoke", "talker")
    print("revoked after", refused_within(asks, 5 + SLACK))
    assert code(lambda: roles.client("sts", keys).get_caller_identity()) == "InvalidClientTokenId"
    assert roles.client("sts", others).get_caller_identity()
    assert roles.reads()["memory"](roles.keys("talker", "bob"), None) == 200
    revoked = audit(compose, tmp_path, "role-revoked")
    assert role_arn("talker") in {one["details"]["roleArn"] for one in revoked}
