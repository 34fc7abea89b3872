"""A customer support assistant: LangGraph on Amazon Bedrock AgentCore.

The conversation of a session is kept in AgentCore Memory, under its user: what was said in one turn is known in the
next, also where another process answers it.
"""

import base64
import json
import os
from typing import Any

from bedrock_agentcore import BedrockAgentCoreApp, RequestContext
from langchain_aws import ChatBedrockConverse
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph_checkpoint_aws import AgentCoreMemorySaver

MODEL_ID = os.environ.get("MODEL_ID", "us.anthropic.claude-sonnet-4-5-20250929-v1:0")
MEMORY_ID = os.environ.get("MEMORY_ID") or os.environ["BEDROCK_AGENTCORE_MEMORY_ID"]

INSTRUCTIONS = (
    "You are the support assistant of an online shop. Be brief and friendly. "
    "Use only what the customer has told you in this conversation; say so when you do not know something."
)

model = ChatBedrockConverse(model=MODEL_ID, max_tokens=512, disable_streaming=False)
app = BedrockAgentCoreApp()


def answer(state: MessagesState) -> dict[str, Any]:
    return {"messages": [model.invoke([("system", INSTRUCTIONS), *state["messages"]])]}


builder = StateGraph(MessagesState)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)
graph = builder.compile(checkpointer=AgentCoreMemorySaver(MEMORY_ID))


def user_of(payload: dict[str, Any], context: RequestContext) -> str:
    """Who is asking. The runtime has verified the token before it passes it on, so it is only read here."""
    scheme, _, token = (context.request_headers or {}).get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        claims = token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    if actor_id := payload.get("actor_id"):
        return actor_id
    raise ValueError("no user: send a user's token, or actor_id in the payload")


@app.entrypoint
async def invoke(payload: dict[str, Any], context: RequestContext):
    """Streams the answer to `payload["prompt"]`, piece by piece."""
    config = {"configurable": {"thread_id": context.session_id, "actor_id": user_of(payload, context)}}
    question = {"messages": [("user", payload["prompt"])]}
    async for message, _ in graph.astream(question, config, stream_mode="messages"):
        if message.text:
            yield message.text


if __name__ == "__main__":
    app.run()
