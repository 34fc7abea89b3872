"""An AG-UI agent: the events of one run, as JSON lines of an event stream, and over its WebSocket."""

import json
from collections.abc import AsyncIterator
from typing import Any

from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


def events(run: dict[str, Any]) -> list[dict[str, Any]]:
    ids = {"threadId": run["threadId"], "runId": run["runId"]}
    text = run["messages"][-1]["content"]
    pieces = [{"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": piece} for piece in text.split()]
    started = [{"type": "RUN_STARTED", **ids}, {"type": "TEXT_MESSAGE_START", "messageId": "m", "role": "assistant"}]
    return [*started, *pieces, {"type": "TEXT_MESSAGE_END", "messageId": "m"}, {"type": "RUN_FINISHED", **ids}]


@app.entrypoint
async def invoke(run: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for event in events(run):
        yield event


@app.websocket
async def talk(websocket: Any, context: Any) -> None:
    await websocket.accept()
    for event in events(await websocket.receive_json()):
        await websocket.send_text(json.dumps(event))
    await websocket.close()


app.run()
