"""`agentkeep exec`: a command in a session, beside its agent."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from botocore.eventstream import EventStreamBuffer

from agentkeep.cli.deployment import Deployment
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir
from agentkeep.cli.output import AsJson, CommandError, console, printable, show
from agentkeep.cli.users import fetch_token

__all__ = ["execute"]

SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
USER_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-User-Id"


def execute(
    session_id: Annotated[str, typer.Argument(help="A session that lives.")],
    line: Annotated[list[str], typer.Argument(help="After `--`: a command and its arguments, or one line of shell.")],
    timeout: Annotated[int, typer.Option(help="Seconds after which it is ended.", min=1, max=3600)] = 300,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Run a command in a session, beside its agent, for the session's user; exits with the command's status."""
    deployment = Deployment(data_dir)
    living = json.loads(deployment.request("GET", "/sessions"))["sessions"]
    session = next((one for one in living if one["sessionId"] == session_id), None)
    if session is None:
        raise CommandError(f"No session {session_id} lives.", "`agentkeep sessions` lists those that do.")
    body = {"command": line[0] if len(line) == 1 else shlex.join(line), "timeout": timeout}
    said: dict[str, list[str]] = {"stdout": [], "stderr": []}
    stop: dict[str, Any] = {}
    for chunk in _chunks(deployment, session, body):
        stop = chunk.get("contentStop", stop)
        for name, piece in chunk.get("contentDelta", {}).items():
            if as_json:
                said[name].append(piece)
            else:
                stream = getattr(sys, name)
                stream.write(printable(piece))
                stream.flush()
    if as_json:
        show({**{name: "".join(pieces) for name, pieces in said.items()}, **stop}, True)
    elif stop.get("status") == "TIMED_OUT":
        console.print(f"[dim]It was ended after {timeout} seconds.[/]", highlight=False)
    raise typer.Exit(stop.get("exitCode", -1) & 0xFF)


def _chunks(deployment: Deployment, session: Mapping[str, Any], body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    runtime = deployment.control.get_agent_runtime(agentRuntimeId=session["agentRuntimeId"])
    arn, session_id, user = runtime["agentRuntimeArn"], session["sessionId"], session["user"]
    if runtime.get("authorizerConfiguration"):
        _, pieces = deployment.stream(
            f"/runtimes/{quote(arn, safe='')}/commands",
            json.dumps(body).encode(),
            {
                "Authorization": f"Bearer {fetch_token(deployment, user)['access_token']}",
                "Content-Type": "application/json",
                SESSION_HEADER: session_id,
            },
        )
        yield from _events(pieces)
        return
    if user is not None:  # the operation's model has no place for it
        deployment.data.meta.events.register(
            "before-sign.bedrock-agentcore.InvokeAgentRuntimeCommand",
            lambda request, **_: request.headers.add_header(USER_HEADER, user),
        )
    answer = deployment.data.invoke_agent_runtime_command(agentRuntimeArn=arn, runtimeSessionId=session_id, body=body)
    for event in answer["stream"]:
        yield event["chunk"]


def _events(pieces: Iterator[bytes]) -> Iterator[Mapping[str, Any]]:
    buffer = EventStreamBuffer()
    for piece in pieces:
        buffer.add_data(piece)
        for message in buffer:
            document = json.loads(message.payload)
            if message.headers[":message-type"] != "event":
                raise CommandError(str(document.get("message")))
            yield document
