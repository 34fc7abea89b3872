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
from tool_agents import READ, REFUND, make_gateway, write_agent
from tool_stand_ins import OrdersService, openapi, orders_service

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(400)]


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
    write_agent(folder)
    return folder


def invoke(platform: PlatformProcess, runtime: str, user: str, payload: Any, session: str) -> Any:
    answer = platform.client("bedrock-agentcore", retries={"total_max_attempts": 1}).invoke_agent_runtime(
        agentRuntimeArn=runtime, runtimeSessionId=session, payload=json.dumps(payload).encode(), runtimeUserId=user
    )
    return json.loads(answer["response"].read())


def audit(platform: PlatformProcess, query: str) -> list[dict[str, Any]]:
    from agentkeep.cli.deployment import Deployment

    found: list[dict[str, Any]] = json.loads(Deployment(platform.data_dir).request("GET", f"/audit?{query}"))["calls"]
    return found


def test_sealed_agents_call_tools_as_their_users(tmp_path: Path, agent: Path, orders: Service) -> None:
    """GOV-1, GOV-2, GOV-4, GOV-6, GOV-7: two users' sessions of one agent; what each may do, and what is kept of it."""
    with running_platform(tmp_path / "data") as platform:
        runtime = platform.json("deploy", str(agent), "--name", "shop", "--iam")["agentRuntimeArn"]
        gateway = make_gateway(platform.client("bedrock-agentcore-control"), openapi(orders.service), READ, REFUND)
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
            platform.client("bedrock-agentcore-control"), openapi(orders.service), READ, authorizerType="CUSTOM_JWT",
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
            platform.client("bedrock-agentcore-control"), openapi(orders.service),
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
