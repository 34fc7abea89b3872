"""Says which environment it is and how often it was asked; slowly, piece by piece or over its WebSocket if told so."""

import hashlib
import itertools
import time
import uuid

import boto3
from bedrock_agentcore import BedrockAgentCoreApp
from botocore.exceptions import ClientError

app = BedrockAgentCoreApp()
ENVIRONMENT = uuid.uuid4().hex
asked = itertools.count(1)


def stream(pieces, gap):
    for number in range(pieces):
        yield {"piece": number, "environment": ENVIRONMENT}
        time.sleep(gap)


def call(runtime, session):
    client = boto3.client("bedrock-agentcore")
    try:
        answer = client.invoke_agent_runtime(agentRuntimeArn=runtime, runtimeSessionId=session, payload=b"{}")
    except ClientError as error:
        return error.response["Error"]["Code"]
    return answer["response"].read().decode()


@app.entrypoint
def invoke(payload, context):
    number = next(asked)
    if "stream" in payload:
        return stream(payload["stream"], payload.get("gap", 0))
    time.sleep(payload.get("sleep", 0))
    answer = {"environment": ENVIRONMENT, "asked": number, "session": context.session_id}
    if "data" in payload:
        answer["digest"] = hashlib.sha256(payload["data"].encode()).hexdigest()
    if "call" in payload:
        answer["callee"] = call(payload["call"], payload["as_session"])
    return answer


@app.websocket
async def converse(websocket, context):
    await websocket.accept()
    await websocket.send_json({"environment": ENVIRONMENT, "session": context.session_id})
    async for message in websocket.iter_text():
        await websocket.send_text(message.upper())


app.run()
