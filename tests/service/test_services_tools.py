"""Tools where every plane is a service of its own: what works in one process works in five."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import boto3
import pytest
import urllib3
from anyio.from_thread import start_blocking_portal
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from service_processes import Services, running_services
from tool_agents import READ, REFUND, make_gateway, write_agent
from tool_stack import mcp_client
from tool_stand_ins import OrdersService, openapi, orders_service

from agentkeep.embedded.valkey import EmbeddedValkey

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def orders() -> Iterator[OrdersService]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(orders_service()) as service:
        yield service


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, valkey: EmbeddedValkey) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    with running_services(folder, valkey.url, AGENTKEEP_GATEWAY_ALLOWED_TARGET_HOSTS="127.0.0.0/8") as services:
        yield services


class Operator:
    def __init__(self, services: Services) -> None:
        self.services = services
        keys = services.operator()
        self.keys = Credentials(keys["accessKeyId"], keys["secretAccessKey"])

    def client(self, service: str, plane: str) -> Any:
        return boto3.client(
            service, endpoint_url=self.services[plane].url, region_name="us-east-1",
            aws_access_key_id=self.keys.access_key, aws_secret_access_key=self.keys.secret_key,
            config=Config(retries={"total_max_attempts": 1}, read_timeout=100),
        )  # fmt: skip

    def signed(self, method: str, plane: str, path: str, body: bytes = b"") -> Any:
        url = self.services[plane].url + path
        request = AWSRequest(method, url, data=body)
        SigV4Auth(self.keys, "bedrock-agentcore", "us-east-1").add_auth(request)
        with urllib3.PoolManager(retries=False, timeout=30) as http:
            answer = http.request(method, url, body=body, headers=dict(request.headers.items()))
        assert answer.status < 300, answer.data
        return answer.json()

    def deploy(self, folder: Path) -> str:
        archive = folder.parent / "agent.zip"
        with ZipFile(archive, "w") as bundle:
            for file in folder.iterdir():
                bundle.write(file, file.name)
        self.signed("PUT", "runtime", "/artifacts/agentkeep/shop.zip", archive.read_bytes())
        code = {
            "code": {"s3": {"bucket": "agentkeep", "prefix": "shop.zip"}},
            "runtime": "PYTHON_3_11",
            "entryPoint": ["main.py"],
        }
        control = self.client("bedrock-agentcore-control", "runtime")
        made = control.create_agent_runtime(
            agentRuntimeName="shop",
            agentRuntimeArtifact={"codeConfiguration": code},
            roleArn="arn:aws:iam::000000000000:role/agentkeep",
            networkConfiguration={"networkMode": "PUBLIC"},
        )
        deadline = time.monotonic() + 120
        while (state := control.get_agent_runtime(agentRuntimeId=made["agentRuntimeId"]))["status"] == "CREATING":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert state["status"] == "READY", state
        return str(made["agentRuntimeArn"])


def test_a_sealed_agents_call_goes_through_runtime_gateway_and_identity(
    services: Services, orders: OrdersService, tmp_path: Path
) -> None:
    """GOV-1, GOV-4, GOV-7: from the session's listener, over the relay, to the gateway service; who calls is found out
    there, and the trail and the catalogue are its own."""
    folder = tmp_path / "agent"
    folder.mkdir()
    write_agent(folder)
    operator = Operator(services)
    runtime = operator.deploy(folder)
    gateway = make_gateway(operator.client("bedrock-agentcore-control", "gateway"), openapi(orders), READ, REFUND)
    session = str(uuid.uuid4())
    refund = ["Orders___request_refund", {"order_id": "A-1", "amount": 5}]
    answer = operator.client("bedrock-agentcore", "runtime").invoke_agent_runtime(
        agentRuntimeArn=runtime, runtimeSessionId=session, runtimeUserId="bob",
        payload=json.dumps({"gateway": gateway, "calls": [["Orders___get_order", {"order_id": "A-1"}], refund]}),
    )  # fmt: skip
    answered = json.loads(answer["response"].read())
    assert answered["tools"] == ["Orders___get_order"]
    assert [failed for failed, _ in answered["results"]] == [False, True]
    calls = operator.signed("GET", "gateway", f"/audit?session={session}")["calls"]
    assert [(call["user"], call["sessionId"], call["status"]) for call in calls] == [
        ("bob", session, "SUCCEEDED"),
        ("bob", session, "REFUSED"),
    ]
    shown = operator.signed("GET", "gateway", f"/catalogue/{gateway}")
    assert len(shown["tools"]) == 8

    async def outside() -> list[str]:
        async with mcp_client(f"{services['gateway'].url}/gateways/{gateway}/mcp", keys=operator.keys) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    assert asyncio.run(outside()) == ["Orders___get_order"]
