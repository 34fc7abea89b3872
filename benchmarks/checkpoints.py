"""What keeping a conversation's checkpoints costs a LangGraph agent: a turn with the 62 calls of memory it makes.

A long turn of an assistant: what is known is recalled, a model calls thirteen tools one after the other, answers, and
the turn is noted; each step is a checkpoint. AgentCoreMemorySaver as it is, in both of its formats, boto3 over HTTP,
and the whole platform as `agentkeep up` starts it. The model and the tools cost nothing here: all of the time is
LangGraph's, boto3's and the platform's; calls overlap, as LangGraph has it. `graph_ms`: the same turn kept nowhere.
Aim: less than half a second. CPU is of the process that asks and of those that serve: at a load above the number of
cores it says more than the clock.
"""

from __future__ import annotations

import operator
import os
import statistics
import tempfile
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

import boto3
import psutil
from _history import keep
from memory import running_platform

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from langchain_core.runnables import RunnableConfig
    from langgraph.graph import END, START, StateGraph
    from langgraph_checkpoint_aws import AgentCoreMemorySaver

TOOL_CALLS = 13
TURNS = 10
TEXT = "I would like to know where my order is; it was promised for last Tuesday. " * 4


class Conversation(TypedDict):
    messages: Annotated[list[str], operator.add]
    known: list[str]
    calls: int


def graph(saver: AgentCoreMemorySaver | None) -> Any:
    def answer(state: Conversation) -> dict[str, Any]:
        return {"messages": [f"answer {len(state['messages'])}"], "calls": state["calls"] + 1}

    builder = StateGraph(Conversation)
    builder.add_node("recall", lambda state: {"known": ["prefers deliveries in the evening"], "calls": 0})
    builder.add_node("answer", answer)
    builder.add_node("tools", lambda state: {"messages": [f"found: {TEXT}"]})
    builder.add_node("note", lambda state: {"messages": []})
    builder.add_edge(START, "recall")
    builder.add_edge("recall", "answer")
    builder.add_conditional_edges("answer", lambda state: "tools" if state["calls"] <= TOOL_CALLS else "note")
    builder.add_edge("tools", "answer")
    builder.add_edge("note", END)
    return builder.compile(checkpointer=saver)


def turns(assistant: Any) -> list[float]:
    """Seconds of each. A conversation has a few turns; the first of all is left out."""
    seconds: list[float] = []
    thread: RunnableConfig = {}
    for number in range(TURNS + 1):
        if number % 4 == 0:
            thread = {"configurable": {"actor_id": "alice", "thread_id": f"t{uuid.uuid4().hex}"}}
        begun = time.perf_counter()
        assistant.invoke({"messages": [f"question {number}: {TEXT}"]}, {**thread, "recursion_limit": 100})
        seconds.append(time.perf_counter() - begun)
    return sorted(seconds[1:])


def measure(memory_id: str, checkpoint_format: Any, serving: Sequence[psutil.Process]) -> dict[str, Any]:
    saver = AgentCoreMemorySaver(memory_id, checkpoint_format=checkpoint_format)
    calls: Counter[str] = Counter()
    count = partial(_count, calls)
    saver.checkpoint_event_client.client.meta.events.register("after-call.*.*", count)
    own, served = time.process_time(), _cpu(serving)
    seconds = turns(graph(saver))
    made = TURNS + 1
    return {
        "calls": {name: round(number / made, 1) for name, number in calls.items()},
        "turn_ms": round(1000 * statistics.median(seconds)),
        "fastest_turn_ms": round(1000 * seconds[0]),
        "slowest_turn_ms": round(1000 * seconds[-1]),
        "client_cpu_ms": round(1000 * (time.process_time() - own) / made),
        "platform_cpu_ms": round(1000 * (_cpu(serving) - served) / made),
    }


def _count(calls: Counter[str], model: Any, **_: Any) -> None:
    calls[model.name] += 1


def _cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_platform(Path(folder) / "data") as (variables, *serving):
        os.environ.update(variables)
        created = boto3.client("bedrock-agentcore-control").create_memory(name="checkpoints", eventExpiryDuration=7)
        memory_id = created["memory"]["id"]
        figures: dict[str, Any] = {"graph_ms": round(1000 * statistics.median(turns(graph(None))))}
        figures |= {name: measure(memory_id, name, serving) for name in ("legacy", "snapshot")}
    figures["load"] = round(os.getloadavg()[0], 1)
    for name, found in figures.items():
        print(f"{name}: {found}")
    keep("checkpoints", figures)


if __name__ == "__main__":
    main()
