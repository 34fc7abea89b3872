"""What is known of a user beyond one session: facts in AgentCore Memory, which a model chose to keep at its end."""

import os
from datetime import UTC, datetime
from hashlib import sha256

import boto3
from langchain_aws import ChatBedrockConverse
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from pydantic import BaseModel, Field

MEMORY_ID = os.environ.get("MEMORY_ID") or os.environ["BEDROCK_AGENTCORE_MEMORY_ID"]
NAMESPACE = "/facts/{user}/"

INSTRUCTIONS = """The conversation with a customer is over. Extract what is worth remembering of the customer beyond it:
lasting facts and preferences he stated of himself, in his own words. No guesses, nothing of a single request, and
nothing of what is known already:
{known}"""

memory = boto3.client("bedrock-agentcore")


class Facts(BaseModel):
    """What to remember of the customer."""

    facts: list[str] = Field(description="One sentence each. Empty where there is nothing.")


def recall(user: str, question: str) -> list[str]:
    """The facts that have most to do with a question."""
    found = memory.retrieve_memory_records(
        memoryId=MEMORY_ID,
        namespace=NAMESPACE.format(user=user),
        searchCriteria={"searchQuery": question[:10_000], "topK": 5},
    )
    return [record["content"]["text"] for record in found["memoryRecordSummaries"]]


def all_of(user: str) -> list[str]:
    pages = memory.get_paginator("list_memory_records").paginate(
        memoryId=MEMORY_ID, namespace=NAMESPACE.format(user=user)
    )
    return [record["content"]["text"] for page in pages for record in page["memoryRecordSummaries"]]


async def remember(model: ChatBedrockConverse, user: str, messages: list[AnyMessage]) -> list[str]:
    """Keeps the facts of a conversation that were not known before, and returns them."""
    said = [
        message
        for message in messages
        if isinstance(message, HumanMessage) or (isinstance(message, AIMessage) and not message.tool_calls)
    ]
    if not said:
        return []
    known = all_of(user)
    instructions = INSTRUCTIONS.format(known="\n".join(f"- {fact}" for fact in known) or "nothing yet")
    extractor = model.with_structured_output(Facts)
    extracted = await extractor.ainvoke(
        [("system", instructions), *said, ("user", "Which facts should be remembered of me?")]
    )
    new = [fact for fact in extracted.facts if fact not in known]
    if new:
        keep(user, new)
    return new


def keep(user: str, facts: list[str]) -> None:
    answer = memory.batch_create_memory_records(
        memoryId=MEMORY_ID,
        records=[
            {
                "requestIdentifier": sha256(fact.encode()).hexdigest()[:32],
                "namespaces": [NAMESPACE.format(user=user)],
                "content": {"text": fact},
                "timestamp": datetime.now(UTC),
            }
            for fact in facts
        ],
    )
    if failed := answer["failedRecords"]:
        raise RuntimeError(f"{len(failed)} facts were not kept: {failed[0].get('errorMessage')}")
