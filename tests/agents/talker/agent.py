"""An agent that tells what reached it, over HTTP and its WebSocket, and invokes another agent with the SDK's client."""

import hashlib
import json
import os
from typing import Any

from bedrock_agentcore import BedrockAgentCoreApp, BedrockAgentCoreContext
from bedrock_agentcore.runtime import AgentCoreRuntimeClient
from botocore.exceptions import ClientError

app = BedrockAgentCoreApp()


def told(context: Any) -> dict[str, Any]:
    """The workload access token by its digest only."""
    token = BedrockAgentCoreContext.get_workload_access_token()
    return {
        "session": context.session_id,
        "headers": dict(context.request_headers or {}),
        "token": hashlib.sha256(token.encode()).hexdigest() if token else None,
    }


def call(runtime: str, session: str) -> Any:
    """The SDK adds this agent's workload access token to the request."""
    client = AgentCoreRuntimeClient(region=os.environ["AWS_REGION"])
    try:
        answer = client.invoke_agent_runtime(
            agent_runtime_arn=runtime, runtime_session_id=session, payload=json.dumps({"called": True})
        )
        return json.loads(answer["response"].read())
    except ClientError as error:
        return {"error": error.response["Error"]["Code"]}


@app.entrypoint
def invoke(payload: dict[str, Any], context: Any) -> Any:
    if "stream" in payload:
        return ({"piece": number} for number in range(payload["stream"]))
    if "call" in payload:
        return {**told(context), "callee": call(payload["call"], payload["as_session"])}
    return {"payload": payload, **told(context)}


@app.websocket
async def converse(websocket: Any, context: Any) -> None:
    await websocket.accept()
    await websocket.send_json(told(context))
    async for message in websocket.iter_text():
        await websocket.send_text(message.upper())


app.run()
