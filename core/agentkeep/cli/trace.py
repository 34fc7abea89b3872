"""`agentkeep trace` and `alerts`: what a session did, step by step, and what operators should look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.text import Text

from agentkeep.cli.deployment import Deployment
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, CommandError, console, printable, show

#: Characters of an input, output or argument shown to people; `--full` shows all that is kept.
SHORT = 300
#: Attributes that say more of a step than its name, shown beside it.
TOLD = {
    "memory.id": "memory",
    "memory.session.id": "session",
    "namespace": "namespace",
    "namespace.path": "namespace",
    "workload.name": "workload",
    "credential.provider.name": "provider",
    "agentkeep.session.end_reason": "because",
    "gen_ai.response.finish_reasons": "stopped by",
    "aws.agentcore.policy.determining_policies": "policies",
    "count": "times",
}
STYLES = {"ok": "green", "refused": "yellow", "failed": "red"}
MARKS = {"ok": "✓", "refused": "⊘", "failed": "✗"}
AGENT = "dim"

Full = Annotated[bool, typer.Option("--full", help="Show inputs and outputs as far as they are kept.")]


def trace(
    session_id: Annotated[str, typer.Argument(help="A session, living or ended.")],
    full: Full = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Tell what happened in a session: its steps in order, what they took, used and cost."""
    story = _story(Deployment(data_dir), session_id)
    if as_json:
        show(story, True)
        return
    for line in _lines(story, None if full else SHORT):
        console.print(line, highlight=False, soft_wrap=True)


def alerts(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The latest so many.")] = 50,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List the latest alerts: refused attempts that somebody should look at."""
    answer = json.loads(Deployment(data_dir).request("GET", f"/alerts?limit={limit}"))
    if as_json:
        show(answer, True)
        return
    for found in answer["alerts"]:
        times = f" {found['count']} times" if found["count"] > 1 else ""
        user = f"  user {found['user_id']}" if found["user_id"] else ""
        line = Text.assemble(f"{_clock(found['at'])}  ", (found["kind"] + times, "bold yellow"), printable(user))
        console.print(line, highlight=False, soft_wrap=True)
        console.print(Text(f"  {printable(found['summary'])}"), highlight=False, soft_wrap=True)
    if not answer["alerts"]:
        console.print("There is no alert.", style="dim")


def _story(deployment: Deployment, session_id: str) -> Any:
    session = quote(session_id, safe="")
    for page in deployment.control.get_paginator("list_agent_runtimes").paginate():
        for runtime in page["agentRuntimes"]:  # a session's id is one of its agent's
            story = json.loads(deployment.request("GET", f"/traces/{runtime['agentRuntimeId']}/{session}"))
            if story["events"]:
                return story
    raise CommandError(
        f"There is no trace of a session {session_id}.",
        "`agentkeep sessions` lists those that live. Traces are kept for AGENTKEEP_OBSERVABILITY_SPAN_DAYS.",
    )


def _lines(story: Any, most: int | None) -> Iterator[Text]:
    session = story["session"]
    yield Text.assemble(("session ", "bold"), printable(session["session_id"]))
    who = f", user {story['user']}" if story["user"] else ""
    yield Text(printable(f"agent {session['runtime_id']}{who}, begun {_date(story['begun'])}"), style="dim")
    yield Text()
    for event in story["events"]:
        if event["details"].get("memory.session.id") == session["session_id"]:
            del event["details"]["memory.session.id"]  # another session's would be worth telling
        yield from _event(event, story["begun"], most)
    yield Text()
    yield Text(_summary(story), style="bold")
    if story["cut"]:
        yield Text("There are more steps than are shown.", style="yellow")


def _event(event: Any, begun: str, most: int | None) -> Iterator[Text]:
    status, indent = event["status"], "  " * event["depth"]
    after = (datetime.fromisoformat(event["at"]) - datetime.fromisoformat(begun)).total_seconds()
    line = Text(f"{after:8.3f} s  ", style="dim")
    line.append(f"{MARKS[status]} ", STYLES[status])
    line.append(f"{indent}{event['kind']:<10} ", "cyan" if event["origin"] == "platform" else AGENT)
    line.append(printable(event["name"]), "bold" if event["origin"] == "platform" else AGENT)
    for part in _beside(event):
        line.append(f"  {printable(part)}", "dim")
    yield line
    margin = " " * 14 + indent
    if event["reason"]:
        yield Text(f"{margin}{status}: {printable(event['reason'])}", style=STYLES[status])
    for label, member in (("in ", "input"), ("out", "output")):
        value = event[member]
        if most is not None and label == "in " and _is_conversation(value) and len(value) > 1:
            # What came before was said by the steps before.
            yield Text(f"{margin}in  … {len(value) - 1} earlier", style="dim")
            value = value[-1:]
        for said in _said(value):
            text = printable(said)
            if most is not None:
                text = " ".join(text.split())
                text = text if len(text) <= most else f"{text[:most]}…"
            yield Text.assemble((f"{margin}{label} ", "dim"), text.replace("\n", f"\n{margin}    "))


def _beside(event: Any) -> Iterator[str]:
    if event["input_tokens"] is not None:
        estimated = " (estimated)" if event["details"].get("agentkeep.usage.estimated") else ""
        yield f"{event['input_tokens']:,} + {event['output_tokens']:,} tokens{estimated}"
        yield _dollars(event["cost_usd"]) if event["cost_usd"] is not None else "cost unknown"
    if event["ms"] is not None:
        yield f"{event['ms']:,.0f} ms" if event["ms"] >= 10 else f"{event['ms']:.1f} ms"
    for name, label in TOLD.items():
        value = event["details"].get(name)
        if value is not None and value != []:
            yield f"{label} {', '.join(map(str, value)) if isinstance(value, list) else value}"
    if event["origin"] == "agent":
        yield "(the agent's word)"


def _said(value: Any) -> Iterator[str]:
    """What was put in or came out, as text: messages by their parts, anything else as it is or as JSON."""
    if value is None or value == "":
        return
    if isinstance(value, str):
        yield _of_events(value)
    elif _is_conversation(value):
        for message in value:
            for part in message["parts"]:
                yield _part(message.get("role", ""), part)
    else:
        yield json.dumps(value, ensure_ascii=False)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) and "parts" in message for message in value)


def _part(role: str, part: Any) -> str:
    match part:
        case {"type": "text", "content": text}:
            return f"{role}: {text}"
        case {"type": "reasoning", "content": text}:
            return f"{role} thinks: {text}"
        case {"type": "tool_call", "name": name}:
            return f"{role} calls {name} {json.dumps(part.get('arguments'), ensure_ascii=False)}"
        case {"type": "tool_call_response"}:
            return f"tool answers {json.dumps(part.get('response'), ensure_ascii=False)}"
    return f"{role}: {json.dumps(part, ensure_ascii=False)}"


def _of_events(text: str) -> str:
    """Of server-sent events their data."""
    if not text.startswith("data:"):
        return text
    return "".join(_data(line[5:].strip()) for line in text.splitlines() if line.startswith("data:"))


def _data(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else f"{text} "


def _summary(story: Any) -> str:
    totals = story["totals"]
    parts = [f"{story['seconds']:,.1f} s", f"{totals['calls']} model call{'s' * (totals['calls'] != 1)}"]
    if totals["calls"]:
        tokens = totals["input_tokens"] + totals["cache_read_tokens"] + totals["cache_write_tokens"]
        parts.append(f"{tokens:,} + {totals['output_tokens']:,} tokens")
        parts.append(cost_text(totals))
    for status in ("refused", "failed"):
        steps = [event for event in story["events"] if event["status"] == status and event["kind"] != "alert"]
        if steps:
            parts.append(f"{len(steps)} {status}")
    return ", ".join(parts)


def cost_text(totals: Any) -> str:
    """What is known of the cost, and of how many calls it is not."""
    unknown = totals["calls_without_price"]
    if not unknown:
        return _dollars(totals["cost_usd"])
    if unknown == totals["calls"]:
        return "cost unknown (no price for the model: AGENTKEEP_OBSERVABILITY_PRICES)"
    return f"{_dollars(totals['cost_usd'])} and the unknown cost of {unknown} calls (AGENTKEEP_OBSERVABILITY_PRICES)"


def _dollars(amount: str) -> str:
    number = float(amount)
    return f"${number:.2f}" if number >= 1 or not number else f"${number:.6f}".rstrip("0")


def _date(at: str) -> str:
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def _clock(at: str) -> str:
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
