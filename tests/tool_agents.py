"""An agent that calls tools as its developer writes it, and gateways for it, made with boto3."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

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


def write_agent(folder: Path) -> None:
    """Into a folder that can be deployed."""
    (folder / "main.py").write_text(AGENT)
    (folder / "requirements.txt").write_text("bedrock-agentcore==1.25.0\nmcp==2.3.0\n")


READ = (
    'permit(principal, action == AgentCore::Action::"Orders___get_order", '
    'resource == AgentCore::Gateway::"GATEWAY_ARN");'
)
REFUND = (
    'permit(principal == AgentCore::OAuthUser::"alice", action == AgentCore::Action::"Orders___request_refund", '
    'resource == AgentCore::Gateway::"GATEWAY_ARN");'
)


def make_gateway(control: Any, configuration: dict[str, Any], *policies: str, **options: Any) -> str:
    """The id of a gateway with one target, Orders, made with an unmodified client; ready to be called."""
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
