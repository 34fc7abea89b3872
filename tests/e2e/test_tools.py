"""Tools end to end: made with boto3, called by agents inside sealed sessions, reviewed and audited from the command
line; and what is left of a call in whose middle the platform is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from botocore.exceptions import BotoCoreError, ClientError
from platform_process import PlatformProcess, running_platform
from tool_stand_ins import OrdersService, openapi, orders_service

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(400)]

AGENT = """
import os

import boto3
import httpx2
from bedrock_agentcore import BedrockAgentCoreApp
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from mcp import MCPError
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

app = BedrockAgentCoreApp()

class SigV4(httpx2.Auth):
    requires_request_body = True

    def auth_flow(self, request):
        signed = AWSRequest(request.method, str(request.url), data=request.content)
        keys = boto3.Session().get_credentials().get_frozen_credentials()
        SigV4Auth(keys, "bedrock-agentcore", os.environ["AWS_REGION"]).add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        yield request

@app.entrypoint
async def invoke(payload, context):
    url = f"{os.environ['AWS_ENDPOINT_URL_BEDROCK_AGENTCORE']}/gateways/{payload['gateway']}/mcp"
    headers = payload.get("headers", {})
    results = []
    async with (
        httpx2.AsyncClient(auth=None if headers else SigV4(), headers=headers, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        tools = [tool.name for tool in (await client.list_tools()).tools]
        for name, arguments in payload["calls"]:
            try:
                result = await client.call_tool(name, arguments)
                results.append([result.is_error, result.content[0].text])
            except MCPError as error:
                results.append(["error", str(error)])
    return {"tools": tools, "results": results}

app.run()
"""


class Service:
    """The orders service, in a thread of its own."""

    def __init__(self, service: OrdersService) -> None:
        self.service = service

    @property
    def asked(self) -> list[Any]:
        return self.service.asked


@pytest.fixture(scope="module")
def orders() -> Iterator[Service]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(orders_service()) as service:
        yield Service(service)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    (folder / "main.py").write_text(AGENT)
    (folder / "requirements.txt").write_text("bedrock-agentcore==1.25.0\nmcp==2.3.0\n")
    return folder


def make_gateway(platform: PlatformProcess, configuration: dict[str, Any], *policies: str, **options: Any) -> str:
    control = platform.client("bedrock-agentcore-control")
    engine = control.create_policy_engine(name="engine_" + uuid.uuid4().hex[:8])
    control.get_waiter("policy_engine_active").wait(policyEngineId=engine["policyEngineId"])
    gateway = control.create_gateway(
        name="shop-" + uuid.uuid4().hex[:6],
        roleArn="arn:aws:iam::000000000000:role/gateway",
        protocolType="MCP",
        policyEngineConfiguration={"arn": engine["policyEngineArn"], "mode": "ENFORCE"},
        **({"authorizerType": "AWS_IAM"} | options),
    )
    made = control.create_gateway_target(
        gatewayIdentifier=gateway["gatewayId"], name="Orders", targetConfiguration=configuration
    )
    deadline = time.monotonic() + 20
    while (state := control.get_gateway_target(gatewayIdentifier=gateway["gatewayId"], targetId=made["targetId"]))[
        "status"
    ] != "READY":
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    for number, statement in enumerate(policies):
        policy = control.create_policy(
            policyEngineId=engine["policyEngineId"],
            name=f"policy_{number}",
            definition={"cedar": {"statement": statement.replace("GATEWAY_ARN", gateway["gatewayArn"])}},
            validationMode="IGNORE_ALL_FINDINGS",
        )
        control.get_waiter("policy_active").wait(policyEngineId=engine["policyEngineId"], policyId=policy["policyId"])
    return str(gateway["gatewayId"])


def invoke(platform: PlatformProcess, runtime: str, user: str, payload: Any, session: str) -> Any:
    answer = platform.client("bedrock-agentcore", retries={"total_max_attempts": 1}).invoke_agent_runtime(
        agentRuntimeArn=runtime, runtimeSessionId=session, payload=json.dumps(payload).encode(), runtimeUserId=user
    )
    return json.loads(answer["response"].read())


def audit(platform: PlatformProcess, query: str) -> list[dict[str, Any]]:
    from agentkeep.cli.deployment import Deployment

    found: list[dict[str, Any]] = json.loads(Deployment(platform.data_dir).request("GET", f"/audit?{query}"))["calls"]
    return found


READ = (
    'permit(principal, action == AgentCore::Action::"Orders___get_order", '
    'resource == AgentCore::Gateway::"GATEWAY_ARN");'
)
REFUND = (
    'permit(principal == AgentCore::OAuthUser::"alice", action == AgentCore::Action::"Orders___request_refund", '
    'resource == AgentCore::Gateway::"GATEWAY_ARN");'
)


def test_sealed_agents_call_tools_as_their_users(tmp_path: Path, agent: Path, orders: Service) -> None:
    """GOV-1, GOV-2, GOV-4, GOV-6, GOV-7: two users' sessions of one agent; what each may do, and what is kept of it."""
    with running_platform(tmp_path / "data") as platform:
        runtime = platform.json("deploy", str(agent), "--name", "shop", "--iam")["agentRuntimeArn"]
        gateway = make_gateway(platform, openapi(orders.service), READ, REFUND)
        set_ = ["catalogue", "set", gateway, "Orders___request_refund", "--risk", "high-impact", "--per-session", "1"]
        assert platform.json(*set_)["auditLevel"] == "full"

        refund = ["Orders___request_refund", {"order_id": "A-1", "amount": 5}]
        payload = {"gateway": gateway, "calls": [["Orders___get_order", {"order_id": "A-1"}], refund, refund]}
        sessions = {user: str(uuid.uuid4()) for user in ("alice", "bob")}
        answers = {user: invoke(platform, runtime, user, payload, session) for user, session in sessions.items()}
        assert set(answers["alice"]["tools"]) == {"Orders___get_order", "Orders___request_refund"}
        assert answers["bob"]["tools"] == ["Orders___get_order"]
        assert [failed for failed, _ in answers["alice"]["results"]] == [False, False, True]
        assert "its limit of 1 calls per session is reached" in answers["alice"]["results"][2][1]
        assert [failed for failed, _ in answers["bob"]["results"]] == [False, True, True]
        assert "Tool Execution Denied" in answers["bob"]["results"][1][1]
        assert [path for _, path, _, _ in orders.asked].count("/refunds") == 1

        for user, session in sessions.items():
            calls = audit(platform, f"session={session}")
            assert {(call["user"], call["sessionId"], call["principal"].split("/")[-1]) for call in calls} == {
                (user, session, session)
            }
            assert [call["status"] for call in calls] == (
                ["SUCCEEDED", "SUCCEEDED", "REFUSED"] if user == "alice" else ["SUCCEEDED", "REFUSED", "REFUSED"]
            )

        shown = platform.run("catalogue", "show", "--gateway", gateway).stdout
        words = " ".join(shown.split())
        assert (
            "high-impact; 1 calls a session, 30 a minute, 60 s each; everything of its calls is written down" in words
        )
        assert "Allows user alice to call Orders___request_refund. (policy policy_1)" in words
        assert "Orders___hangs" in shown and "Nobody may call it: no policy permits it." in words
        (document,) = platform.json("catalogue", "show")
        assert document["gatewayId"] == gateway


def test_an_agent_hands_on_its_users_token(tmp_path: Path, agent: Path, orders: Service) -> None:
    """GOV-4: a gateway that wants the user's token takes that of the session's user, and no other's."""
    with running_platform(tmp_path / "data") as platform:
        runtime = platform.json("deploy", str(agent), "--name", "shop", "--iam")["agentRuntimeArn"]
        authorizer = {
            "discoveryUrl": f"{platform.endpoint}/oidc/.well-known/openid-configuration",
            "allowedClients": ["agentkeep"],
        }
        gateway = make_gateway(
            platform, openapi(orders.service), READ, authorizerType="CUSTOM_JWT",
            authorizerConfiguration={"customJWTAuthorizer": authorizer},
        )  # fmt: skip
        before = len(orders.asked)
        for token_of in ("alice", "bob"):
            token = platform.json("login", "--user", token_of)["access_token"]
            headers = {"authorization": f"Bearer {token}"}
            payload = {"gateway": gateway, "calls": [["Orders___get_order", {"order_id": "A-1"}]], "headers": headers}
            session = str(uuid.uuid4())
            if token_of == "alice":
                assert invoke(platform, runtime, "alice", payload, session)["results"][0][0] is False
                (call,) = audit(platform, f"session={session}")
                assert call["user"] == "alice" and call["agentRuntimeId"].startswith("shop-")
            else:
                with pytest.raises(ClientError, match="RuntimeClientError"):
                    invoke(platform, runtime, "alice", payload, session)
                assert audit(platform, f"session={session}") == []
        assert len(orders.asked) == before + 1


def test_a_call_cut_off_by_a_crash_is_known_to_be_unknown(tmp_path: Path, agent: Path, orders: Service) -> None:
    """GOV-7: the platform is killed while a tool runs; that it may have run is in the trail."""
    data = tmp_path / "data"
    with running_platform(data) as platform:
        runtime = platform.json("deploy", str(agent), "--name", "shop", "--iam")["agentRuntimeArn"]
        gateway = make_gateway(
            platform, openapi(orders.service),
            'permit(principal, action, resource == AgentCore::Gateway::"GATEWAY_ARN");',
        )  # fmt: skip
        payload = {"gateway": gateway, "calls": [["Orders___hangs", {}]]}
        session = str(uuid.uuid4())
        orders.service.hanging.clear()

        def call() -> None:
            with pytest.raises((BotoCoreError, ClientError)):
                invoke(platform, runtime, "alice", payload, session)

        calling = threading.Thread(target=call)
        calling.start()
        deadline = time.monotonic() + 60
        while not orders.service.hanging.is_set():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(platform.pid, signal.SIGKILL)
        calling.join(60)
    with running_platform(data) as platform:
        (found,) = audit(platform, f"session={session}")
        assert (found["tool"], found["status"], found["decision"]) == ("Orders___hangs", "UNKNOWN", "ALLOW")
