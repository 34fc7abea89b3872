"""A customer support assistant: LangGraph on Amazon Bedrock AgentCore.

The conversation of a session is kept in AgentCore Memory, under its user: what was said in one turn is known in the
next, also where another process answers it. Tools come from an AgentCore Gateway, called as the user. When the user
leaves, what he told of himself is kept, and recalled in his next session: a node of the graph does that.

    START ─▶ recall ─▶ answer ⇄ tools            START ─▶ remember, when the user leaves
"""

import base64
import json
import os
from typing import Any

import facts
from bedrock_agentcore import BedrockAgentCoreApp, RequestContext
from botocore.exceptions import ClientError
from gateway import gateway_tools
from langchain_aws import ChatBedrockConverse
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph_checkpoint_aws import AgentCoreMemorySaver

MODEL_ID = os.environ.get("MODEL_ID", "us.anthropic.claude-sonnet-4-5-20250929-v1:0")
MEMORY_ID = os.environ.get("MEMORY_ID") or os.environ["BEDROCK_AGENTCORE_MEMORY_ID"]

INSTRUCTIONS = """You are the support assistant of an online shop. Be brief and friendly.
Use only what the customer has told you and what your tools say; say so when you do not know something.
When a tool refuses, tell the customer plainly what was refused and why, and do not try it again."""

LIMIT_REACHED = (
    "I have reached the limit of this conversation, so I must stop here. Please begin a new one: your orders and "
    "everything you have asked for are safe."
)

model = ChatBedrockConverse(model=MODEL_ID, max_tokens=512, disable_streaming=False)
checkpointer = AgentCoreMemorySaver(MEMORY_ID)
app = BedrockAgentCoreApp()


class Conversation(MessagesState):
    """`known`: facts of the user from earlier sessions, recalled in the first turn. `leaving`: the user leaves, and
    `kept` is what is remembered of him."""

    known: list[str]
    leaving: bool
    kept: list[str]


def assistant(user: str, tools: list[BaseTool]) -> CompiledStateGraph:
    talking_model = model.bind_tools(tools) if tools else model

    def recall(state: Conversation) -> dict[str, Any]:
        if "known" in state:
            return {}
        return {"known": facts.recall(user, state["messages"][-1].text)}

    def answer(state: Conversation) -> dict[str, Any]:
        known = "".join(f"\n- {fact}" for fact in state["known"])
        instructions = f"{INSTRUCTIONS}\n\nWhat the customer told you before:{known}" if known else INSTRUCTIONS
        return {"messages": [talking_model.invoke([("system", instructions), *state["messages"]])]}

    async def remember(state: Conversation) -> dict[str, Any]:
        return {"kept": await facts.remember(model, user, state["messages"])}

    builder = StateGraph(Conversation)
    builder.add_node("recall", recall)
    builder.add_node("answer", answer)
    builder.add_node("tools", ToolNode(tools))
    builder.add_node("remember", remember)
    builder.add_conditional_edges(START, lambda state: "remember" if state["leaving"] else "recall")
    builder.add_edge("recall", "answer")
    builder.add_conditional_edges("answer", tools_condition)
    builder.add_edge("tools", "answer")
    builder.add_edge("remember", END)
    return builder.compile(checkpointer=checkpointer)


@app.entrypoint
async def invoke(payload: dict[str, Any], context: RequestContext):
    """Streams the answer to `payload["prompt"]`, piece by piece. `{"end": true}`: the user leaves."""
    authorization = (context.request_headers or {}).get("Authorization", "")
    user = user_of(authorization, payload)
    graph = assistant(user, await gateway_tools(authorization))
    config = {"configurable": {"thread_id": context.session_id, "actor_id": user}}
    try:
        if payload.get("end"):
            kept = (await graph.ainvoke({"leaving": True}, config))["kept"]
            yield f"Good-bye! I will remember: {' '.join(kept)}" if kept else "Good-bye!"
            return
        question = {"messages": [("user", payload["prompt"])], "leaving": False}
        async for message, step in graph.astream(question, config, stream_mode="messages"):
            if step["langgraph_node"] == "answer" and message.text:
                yield message.text
    except ClientError as error:
        # Not an error of the conversation: its budget is spent, and asking again will not help.
        if error.response["Error"]["Code"] != "ServiceQuotaExceededException":
            raise
        yield LIMIT_REACHED


def user_of(authorization: str, payload: dict[str, Any]) -> str:
    """Who is asking. The runtime has verified the token before it passes it on, so it is only read here."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer":
        claims = token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    if actor_id := payload.get("actor_id"):
        return actor_id
    raise ValueError("no user: send a user's token, or actor_id in the payload")


if __name__ == "__main__":
    app.run()
