"""`agentkeep audit`: what is on record: who acted for whom, which secrets were used, what was refused."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

import typer
from rich.text import Text

from agentkeep.cli.deployment import Deployment
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, console, printable, show

_MOST = 1000


def audit(
    kind: Annotated[str | None, typer.Option(help="Records of this kind, e.g. acted-for-user.")] = None,
    user: Annotated[str | None, typer.Option(help="About this user.")] = None,
    principal: Annotated[str | None, typer.Option(help="Of what this principal (an ARN) did.")] = None,
    session: Annotated[str | None, typer.Option(help="Of this session.")] = None,
    since: Annotated[str | None, typer.Option(help="From this moment on, e.g. 2026-11-23T12:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this moment.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 50,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List audit records, the latest first: who acted for whom, what was refused."""
    deployment = Deployment(data_dir)
    asked = {
        "kind": kind, "user": user, "principal": principal, "session": session, "since": since, "until": until
    }  # fmt: skip
    filters = {name: value for name, value in asked.items() if value is not None}
    records: list[dict[str, object]] = []
    token: str | None = None
    while len(records) < limit:
        query = filters | {"maxResults": str(min(limit - len(records), _MOST))}
        if token is not None:
            query["nextToken"] = token
        answer = json.loads(deployment.request("GET", f"/audit-records?{urlencode(query)}"))
        records += answer["records"]
        token = answer.get("nextToken")
        if token is None:
            break
    if as_json:
        show({"records": records}, True)
        return
    for record in records:
        at = datetime.fromisoformat(str(record["at"])).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        times = f" {record['count']} times" if record["count"] != 1 else ""
        about = f"  user {record['user_id']}" if record["user_id"] else ""
        line = Text.assemble(f"{at}  ", (printable(f"{record['kind']}{times}"), "bold"), printable(about))
        console.print(line, highlight=False, soft_wrap=True)
        console.print(Text(f"  {printable(str(record['summary']))}"), highlight=False, soft_wrap=True)
    if not records:
        console.print("There is no such record.", style="dim")
