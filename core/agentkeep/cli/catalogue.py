"""`agentkeep catalogue`: who may call which tool, with which limits, audited how; for reviewers who read no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table
from rich.text import Text

from agentkeep.cli.deployment import Deployment
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, CommandError, console, printable, show

app = typer.Typer(help="Who may call which tool, with which limits, audited how.", no_args_is_help=True)

_LISTED = 1000  # gateways in one page, the model's most


@app.command("show")
def show_catalogue(
    gateway: Annotated[str | None, typer.Option("--gateway", help="Only this gateway, by its id.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Print every tool of every gateway: who may call it, how often, for how long, and what is written down."""
    deployment = Deployment(data_dir)
    ids = [gateway] if gateway is not None else _gateways(deployment)
    documents = [json.loads(deployment.request("GET", f"/catalogue/{quote(id, safe='')}")) for id in ids]
    if as_json:
        show(documents, True)
        return
    if not documents:
        console.print("There are no gateways.", style="dim")
    for document in documents:
        _print(document)


@app.command("set")
def set_entry(
    gateway: Annotated[str, typer.Argument(help="The gateway's id.")],
    tool: Annotated[str, typer.Argument(help="The tool as agents call it: TARGET___TOOL.")],
    risk: Annotated[str | None, typer.Option("--risk", help="read, write or high-impact.")] = None,
    audit: Annotated[str | None, typer.Option("--audit", help="metadata or full.")] = None,
    seconds: Annotated[float | None, typer.Option("--timeout", help="Limit for an answer, seconds.")] = None,
    per_session: Annotated[int | None, typer.Option("--per-session", help="Calls in one session.")] = None,
    per_minute: Annotated[int | None, typer.Option("--per-minute", help="Calls by one agent in a minute.")] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Forget what was set before; what is not given is a default.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Set how dangerous a tool is, how its calls are audited, and how often it may be called."""
    deployment = Deployment(data_dir)
    given: dict[str, Any] = {
        "riskClass": risk, "auditLevel": audit, "timeoutSeconds": seconds,
        "callsPerSession": per_session, "callsPerMinute": per_minute,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen and not reset:
        raise CommandError(
            "There is nothing to set.", "Give --risk, --audit, --timeout, --per-session or --per-minute."
        )
    path = f"/catalogue/{quote(gateway, safe='')}"
    before = {} if reset else _chosen(json.loads(deployment.request("GET", path)), tool)
    body = json.dumps({**before, **chosen}).encode()
    entry = json.loads(deployment.request("PUT", f"{path}/{quote(tool, safe='')}", body))
    show(entry, as_json, f"[bold]{printable(tool)}[/]: {_rules(entry)}")


def _gateways(deployment: Deployment) -> list[str]:
    ids: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = deployment.control.list_gateways(maxResults=_LISTED, **token)
        ids += [gateway["gatewayId"] for gateway in page["items"]]
        if "nextToken" not in page:
            return ids
        token = {"nextToken": page["nextToken"]}


def _chosen(document: Mapping[str, Any], tool: str) -> dict[str, Any]:
    """What an operator set for a tool before."""
    entry = next((entry for entry in document["tools"] if entry["tool"] == tool), None)
    return {} if entry is None else {name: entry[name] for name in entry["setByOperator"]}


def _print(document: Mapping[str, Any]) -> None:
    console.print(Text(f"Gateway {printable(document['name'])} ({document['gatewayId']})", style="bold"))
    _line(f"  Callers prove who they are by {_PROOFS.get(document['authorizerType'], document['authorizerType'])}.")
    if document["policyEngineId"] is None:
        _line("  No policy engine is attached: nobody may call anything.")
    elif document["policyMode"] == "LOG_ONLY":
        _line("  Policies only observe here (LOG_ONLY): what they deny is recorded, and goes on.")
    for limit in document["rateLimits"]:
        for entry in limit["entries"]:
            who = ", ".join(f"{key} {value}" for key, value in entry.get("dimensions", {}).items())
            rates = ", ".join(f"{rate['rate']:g} a {rate['period']}" for rate in entry.get("requests", ()))
            _line(f"  Rate limit {limit['rateLimitId']}: {rates} for {who}.")
    if not document["tools"]:
        _line("  It has no tools.")
    for tool in document["tools"]:
        console.print()
        _print_tool(tool, observing=document["policyMode"] == "LOG_ONLY")
    console.print()


def _print_tool(tool: Mapping[str, Any], *, observing: bool) -> None:
    console.print(Text(f"  {printable(tool['tool'])}", style="bold"))
    _line(f"    {tool['description'].strip().partition(chr(10))[0]}", style="dim")
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("    rules"), Text(_rules(tool)))
    grid.add_row(Text("    takes"), Text(printable(_parameters(tool["inputSchema"]))))
    said = [f"{printable(policy['text'])}  ({_named(policy)})" for policy in tool["policies"]]
    permitted = any(policy["effect"] == "permit" and policy["enforcement"] == "ACTIVE" for policy in tool["policies"])
    if not permitted and not observing:
        said.append("Nobody may call it: no policy permits it.")
    for number, text in enumerate(said):
        grid.add_row(Text("" if number else "    who"), Text(text))
    console.print(grid)


def _named(policy: Mapping[str, Any]) -> str:
    observed = ", observing only" if policy["enforcement"] == "LOG_ONLY" else ""
    return f"policy {printable(policy['name'])}{observed}"


def _rules(entry: Mapping[str, Any]) -> str:
    written = (
        "everything of its calls is written down"
        if entry["auditLevel"] == "full"
        else "that it is called is written down"
    )
    return (
        f"{entry['riskClass']}; {entry['callsPerSession']} calls a session, {entry['callsPerMinute']} a minute, "
        f"{entry['timeoutSeconds']:g} s each; {written}"
    )


def _parameters(schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    parts = []
    for name, one in schema.get("properties", {}).items():
        kind = one.get("type", "anything") if isinstance(one, dict) else "anything"
        kinds = " or ".join(kind) if isinstance(kind, list) else kind
        parts.append(f"{name} ({kinds}{', required' if name in required else ''})")
    return ", ".join(parts) or "nothing"


_PROOFS = {"CUSTOM_JWT": "their user's token", "AWS_IAM": "a signature with their keys"}


def _line(text: str, style: str = "") -> None:
    console.print(Text(printable(text), style=style))
