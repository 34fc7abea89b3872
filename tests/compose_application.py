"""A client of the compose deployment with the operator's key, and the agent it deploys."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from compose_stack import ComposeStack

__all__ = ["AGENT", "Application", "until"]

AGENT = b"""
import os, time, uuid
import boto3
from botocore.exceptions import ClientError
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
born = str(uuid.uuid4())

@app.entrypoint
def invoke(payload, context):
    if "pieces" in payload:
        return pieces(payload["pieces"])
    found = {"born": born, "session": context.session_id, "size": len(payload.get("text", ""))}
    if "memory" in payload:
        memory = boto3.client("bedrock-agentcore")
        found["events"] = len(memory.list_events(**payload["memory"])["events"])
    if "assume" in payload:
        sts = boto3.client("sts", endpoint_url="http://169.254.170.2/sts")
        found["arn"] = sts.get_caller_identity()["Arn"]
        try:
            sts.assume_role_with_web_identity(**payload["assume"])
        except ClientError as refused:
            found["refused"] = refused.response["Error"]["Code"]
    return found

@app.websocket
async def talk(websocket, context):
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message.upper())

def pieces(number):
    for each in range(number):
        yield {"at": time.time(), "piece": each}
        time.sleep(0.5)

app.run()
"""


class Application:
    """A client of the platform with the operator's key, and one deployed agent."""

    def __init__(self, stack: ComposeStack) -> None:
        self.stack = stack
        self.operator = stack.operator()
        self.control = self.client("bedrock-agentcore-control")
        self.data = self.client("bedrock-agentcore")

    def client(self, service: str, **settings: Any) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.stack.url,
            region_name=self.operator["region"],
            aws_access_key_id=self.operator["accessKeyId"],
            aws_secret_access_key=self.operator["secretAccessKey"],
            config=Config(retries={"max_attempts": 1}, read_timeout=180, max_pool_connections=50, **settings),
        )

    def deploy(self, image: str, beginning: str = "agent", **settings: Any) -> str:
        """Its ARN. `beginning`: of its name."""
        made = self.control.create_agent_runtime(
            agentRuntimeName=f"{beginning}_{uuid.uuid4().hex[:8]}",
            agentRuntimeArtifact={"containerConfiguration": {"containerUri": image}},
            roleArn="arn:aws:iam::123456789012:role/agent",
            networkConfiguration={"networkMode": "PUBLIC"},
            **settings,
        )
        deadline = time.monotonic() + 90
        while True:
            found = self.control.get_agent_runtime(agentRuntimeId=made["agentRuntimeId"])
            if found["status"] != "CREATING":
                assert found["status"] == "READY", found.get("failureReason")
                return str(made["agentRuntimeArn"])
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def invoke(self, arn: str, session: str, **payload: Any) -> Any:
        answer = self.data.invoke_agent_runtime(
            agentRuntimeArn=arn, runtimeSessionId=session, runtimeUserId="alice", payload=json.dumps(payload).encode()
        )
        return json.loads(answer["response"].read())

    def stop(self, arn: str, session: str) -> None:
        self.data.stop_runtime_session(agentRuntimeArn=arn, runtimeSessionId=session)


def until(holds: Callable[[], bool], seconds: float, what: str) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)
    return time.monotonic() - began
