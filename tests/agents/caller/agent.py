"""An ordinary agent, made with the public SDK and boto3, that asks the planes what its caller wants asked.

`{"steps": [["converse", "hello"], ...]}`: each step is a function below, with its arguments; answered are their
results, or the error's code, message and status.
"""

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

import boto3
from bedrock_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

app = BedrockAgentCoreApp()
ENDPOINT = "http://169.254.170.2"


def client(service: str) -> Any:
    return boto3.client(service, config=Config(retries={"total_max_attempts": 1}, read_timeout=60))


def converse(text: str) -> Any:
    answer = client("bedrock-runtime").converse(modelId="any", messages=[said(text)])
    return answer["output"]["message"]["content"][0]["text"]


def converse_stream(text: str) -> Any:
    """The pieces, each with when it came."""
    began = time.monotonic()
    events = client("bedrock-runtime").converse_stream(modelId="any", messages=[said(text)])["stream"]
    return [
        [event["contentBlockDelta"]["delta"]["text"], round(time.monotonic() - began, 3)]
        for event in events
        if "contentBlockDelta" in event
    ]


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"text": text}]}


def create_event(memory: str, actor: str, text: str) -> Any:
    event = client("bedrock-agentcore").create_event(
        memoryId=memory,
        actorId=actor,
        sessionId=os.environ.get("SESSION", "s"),
        eventTimestamp=int(time.time()),
        payload=[{"conversational": {"role": "USER", "content": {"text": text}}}],
    )
    return event["event"]["eventId"]


def list_events(memory: str, actor: str) -> Any:
    answer = client("bedrock-agentcore").list_events(
        memoryId=memory, actorId=actor, sessionId=os.environ.get("SESSION", "s")
    )
    return [event["payload"][0]["conversational"]["content"]["text"] for event in answer["events"]]


def api_key(provider: str) -> Any:
    answer = client("bedrock-agentcore").get_resource_api_key(
        workloadIdentityToken=BedrockAgentCoreContext.get_workload_access_token(),
        resourceCredentialProviderName=provider,
    )
    return len(answer["apiKey"])


def list_runtimes() -> Any:
    return client("bedrock-agentcore-control").list_agent_runtimes()


def raw(method: str, path: str, headers: dict[str, str], body: str = "") -> Any:
    """An unsigned request to the session endpoint: status, and the beginning of the answer."""
    request = urllib.request.Request(ENDPOINT + path, body.encode() or None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [answer.status, answer.read(2000).decode(errors="replace")]
    except urllib.error.HTTPError as error:
        return [error.code, error.read(2000).decode(errors="replace")]


def attempt(step: list[Any]) -> Any:
    name, *arguments = step
    try:
        return {"result": globals()[name](*arguments)}
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return {"error": error.response["Error"]["Code"], "message": str(error), "status": status}
    except (BotoCoreError, OSError) as error:
        return {"error": type(error).__name__, "message": str(error), "status": 0}


@app.entrypoint
def invoke(payload: dict[str, Any]) -> Any:
    return json.loads(json.dumps([attempt(step) for step in payload["steps"]]))


app.run()
