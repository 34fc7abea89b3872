"""`agentkeep deploy`, `invoke`, `sessions`, `usage`, `stop`, `logs`: agents and their sessions."""

from __future__ import annotations

import json
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape

from agentkeep.cli import bundle
from agentkeep.cli.deployment import Deployment
from agentkeep.cli.options import DEFAULT_DATA_DIR, DataDir, SessionId
from agentkeep.cli.output import AsJson, CommandError, console, printable, progress, show, table
from agentkeep.cli.trace import cost_text
from agentkeep.cli.users import ISSUER_PATH, fetch_token, last_user

BUCKET = "agentkeep-deploy"
READY_SECONDS = 600
BUDGET_TAG = "agentkeep:session-token-budget"
SESSION_HEADER = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
AgentName = Annotated[str, typer.Argument(help="The agent's name, id or ARN.")]


def deploy(
    path: Annotated[Path, typer.Argument(help="The agent's folder.", exists=True, file_okay=False)],
    name: Annotated[str | None, typer.Option(help="Letters, digits, underscores; default: the folder's name.")] = None,
    entry_point: Annotated[str | None, typer.Option(help="The agent's main file; default: main.py, agent.py.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for the agent; may be repeated.")] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            help="The same from a file, one a line: so they are in no list of processes, nor a history.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory for the agent, made if missing; its id becomes BEDROCK_AGENTCORE_MEMORY_ID."),
    ] = None,
    iam: Annotated[
        bool, typer.Option("--iam", help="Callers sign with keys (SigV4) instead of sending a user's token (JWT).")
    ] = False,
    token_budget: Annotated[
        str | None, typer.Option(help="Tokens each session may use, or none; default: the deployment's.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="What the agent's server speaks: HTTP, MCP, A2A or AGUI.")] = "HTTP",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Deploy an agent's folder: a new agent runtime, or a new version of the one with this name."""
    deployment = Deployment(data_dir)
    name = name or re.sub(r"[^a-zA-Z0-9_]", "_", path.resolve().name)
    main = bundle.entry_point(path, entry_point)
    archive = bundle.pack(path)
    key = f"{name}/{sha256(archive).hexdigest()[:16]}.zip"
    variables = _variables(env_file) | dict(_pair(text) for text in env or ())
    with progress(f"uploading {len(archive) / 1024:.0f} KB", as_json):
        deployment.request("PUT", f"/artifacts/{BUCKET}/{key}", archive)
    if memory:
        variables["BEDROCK_AGENTCORE_MEMORY_ID"] = _memory(deployment, memory)
    request: dict[str, Any] = {
        "agentRuntimeArtifact": {
            "codeConfiguration": {
                "code": {"s3": {"bucket": BUCKET, "prefix": key}},
                "runtime": "PYTHON_3_11",
                "entryPoint": [main],
            }
        },
        "roleArn": f"arn:aws:iam::{deployment.running.account}:role/agentkeep",
        "networkConfiguration": {"networkMode": "PUBLIC"},
        "environmentVariables": variables,
        "protocolConfiguration": {"serverProtocol": protocol.upper()},
    }
    if not iam:
        discovery = f"{deployment.running.endpoint}{ISSUER_PATH}/.well-known/openid-configuration"
        request["authorizerConfiguration"] = {
            "customJWTAuthorizer": {"discoveryUrl": discovery, "allowedAudience": ["agentkeep"]}
        }
        request["requestHeaderConfiguration"] = {"requestHeaderAllowlist": ["Authorization"]}
    tags = {BUDGET_TAG: token_budget} if token_budget is not None else {}
    known = _find(deployment, name)
    with progress("installing the agent's packages (once per set of requirements)", as_json):
        if known:
            if tags:
                deployment.control.tag_resource(resourceArn=known["agentRuntimeArn"], tags=tags)
            answer = deployment.control.update_agent_runtime(agentRuntimeId=known["agentRuntimeId"], **request)
        else:
            answer = deployment.control.create_agent_runtime(agentRuntimeName=name, tags=tags, **request)
        runtime = _until_ready(deployment, answer["agentRuntimeId"])
    show(
        {key: runtime[key] for key in ("agentRuntimeArn", "agentRuntimeId", "agentRuntimeVersion", "status")}
        | ({"memoryId": variables["BEDROCK_AGENTCORE_MEMORY_ID"]} if memory else {}),
        as_json,
        f"[bold]{name}[/] version {runtime['agentRuntimeVersion']} is {runtime['status']}",
        f"[dim]{runtime['agentRuntimeArn']}[/]",
        f'Talk to it:  agentkeep invoke {name} "Hello" {"" if iam else "--user alice"}',
    )


def invoke(
    name: AgentName,
    text: Annotated[str, typer.Argument(help='The prompt, sent as {"prompt": TEXT}; or a JSON object, sent as it is.')],
    session_id: SessionId = None,
    user: Annotated[str | None, typer.Option("--user", help="Speak as this user; default: who logged in last.")] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="AGENTKEEP_BEARER_TOKEN", help="A user's token from your own identity provider."),
    ] = None,
    qualifier: Annotated[str, typer.Option(help="The endpoint.")] = "DEFAULT",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Invoke an agent and print its answer as it comes."""
    deployment = Deployment(data_dir)
    runtime = deployment.control.get_agent_runtime(agentRuntimeId=_id(deployment, name))
    session_id = session_id or str(uuid.uuid4())
    payload = (text if text.lstrip().startswith("{") else json.dumps({"prompt": text})).encode()
    if runtime.get("authorizerConfiguration"):
        bearer = token or fetch_token(deployment, _user(deployment, user))["access_token"]
        headers, pieces = deployment.stream(
            f"/runtimes/{quote(runtime['agentRuntimeArn'], safe='')}/invocations?qualifier={quote(qualifier)}",
            payload,
            {
                "Authorization": f"Bearer {bearer}",
                "Content-Type": "application/json",
                "Accept": "text/event-stream, application/json",
                SESSION_HEADER: session_id,
            },
        )
        kind = headers.get("content-type", "")
        session_id = headers.get(SESSION_HEADER) or session_id
    else:
        answer = deployment.data.invoke_agent_runtime(
            agentRuntimeArn=runtime["agentRuntimeArn"],
            runtimeSessionId=session_id,
            qualifier=qualifier,
            payload=payload,
            contentType="application/json",
            accept="text/event-stream, application/json",
            **({"runtimeUserId": user} if user else {}),
        )
        kind, pieces = answer["contentType"], answer["response"].iter_chunks(1024)
    words = _words(kind, pieces)
    if as_json:
        show({"session_id": session_id, "answer": "".join(words)}, True)
        return
    for word in words:
        sys.stdout.write(printable(word))
        sys.stdout.flush()
    sys.stdout.write("\n")
    console.print(f"[dim]session {escape(session_id)}[/]", highlight=False, soft_wrap=True)


def sessions(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """List the sessions that live now."""
    deployment = Deployment(data_dir)
    answer = json.loads(deployment.request("GET", "/sessions"))
    found = answer["sessions"]
    columns = {
        "sessionId": "SESSION",
        "agentRuntimeId": "AGENT",
        "agentRuntimeVersion": "VERSION",
        "user": "USER",
        "status": "STATE",
        "createdAt": "SINCE",
    }
    table(found, as_json, columns, found, "No session lives.")
    for pool in () if as_json else answer["warmPools"]:
        line = f"{pool['ready']} of {pool['wanted']} wait for {pool['agentRuntimeId']}, version "
        line += f"{pool['agentRuntimeVersion']} ({pool['endpoint']})"
        if pool["problem"]:
            line += f"; the last start ahead failed: {printable(pool['problem'])}"
        console.print(f"[dim]{escape(line)}[/]", highlight=False, soft_wrap=True)


def usage(
    session_id: Annotated[str, typer.Argument(help="A session, living or ended.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show the model calls of a session, their tokens and cost, and what is left of its budget."""
    deployment = Deployment(data_dir)
    session = quote(session_id, safe="")
    for runtime in _runtimes(deployment):  # a session's id is one of its agent's
        used = json.loads(deployment.request("GET", f"/usage/{runtime['agentRuntimeId']}/{session}"))
        if used["calls"]:
            break
    else:
        living = json.loads(deployment.request("GET", "/sessions"))["sessions"]
        agents = [found["agentRuntimeId"] for found in living if found["sessionId"] == session_id]
        if not agents:
            raise CommandError(
                f"No model call of a session {session_id} is recorded.", "`agentkeep sessions` lists those that live."
            )
        used = json.loads(deployment.request("GET", f"/usage/{agents[0]}/{session}"))
    columns = {
        "at": "AT",
        "model_id": "MODEL",
        "provider": "PROVIDER",
        "input_tokens": "TOKENS IN",
        "output_tokens": "TOKENS OUT",
        "cost_usd": "USD",
        "latency_ms": "MS",
    }
    rows = [call | {"cost_usd": "unknown" if call["cost_usd"] is None else call["cost_usd"]} for call in used["calls"]]
    table(used, as_json, columns, rows, "No model was called.")
    if not as_json:
        if used["calls"]:
            console.print(f"Cost: {cost_text(used['totals'])}", style="dim", highlight=False)
        console.print(_budget(used["budget"]), style="dim", highlight=False)


def stop(
    session_id: Annotated[str, typer.Argument(help="The session to end.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """End a session: its environment is destroyed, its credentials are dead."""
    deployment = Deployment(data_dir)
    found = [s for s in json.loads(deployment.request("GET", "/sessions"))["sessions"] if s["sessionId"] == session_id]
    if not found:
        raise CommandError(f"No session {session_id} lives.", "`agentkeep sessions` lists those that do.")
    for session in found:
        arn = deployment.control.get_agent_runtime(agentRuntimeId=session["agentRuntimeId"])["agentRuntimeArn"]
        deployment.data.stop_runtime_session(agentRuntimeArn=arn, runtimeSessionId=session_id)
    show({"stopped": session_id}, as_json, f"Session {escape(session_id)} is stopped.")


def logs(
    session_id: Annotated[str, typer.Argument(help="A session, living or ended.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Print what the agent wrote to standard output and error in a session, also after its end."""
    text = Deployment(data_dir).request("GET", f"/logs/{quote(session_id, safe='')}").decode(errors="replace")
    if as_json:
        show({"session_id": session_id, "lines": text.splitlines()}, True)
    else:
        sys.stdout.write(printable(text))


def _budget(budget: Mapping[str, int | None]) -> str:
    if budget["tokens"] is None:
        return "This session has no token budget."
    return f"{budget['left']:,} of {budget['tokens']:,} tokens are left of this session's budget."


def _variables(file: Path | None) -> dict[str, str]:
    """What is said of a line that is wrong does not repeat it."""
    found = {}
    for number, line in enumerate(file.read_text().splitlines() if file is not None else (), 1):
        name, equals, value = line.strip().partition("=")
        if not equals or not name:
            if line.strip() and not line.lstrip().startswith("#"):
                raise CommandError(f"{file}, line {number}, is not NAME=VALUE.")
        elif not name.startswith("#"):
            found[name] = value
    return found


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError("What follows an --env is not NAME=VALUE.")  # and may be a secret
    return name, value


def _runtimes(deployment: Deployment) -> Iterator[dict[str, Any]]:
    for page in deployment.control.get_paginator("list_agent_runtimes").paginate():
        yield from page["agentRuntimes"]


def _find(deployment: Deployment, name: str) -> dict[str, Any] | None:
    wanted = (name, name.rsplit("/", 1)[-1])
    return next(
        (r for r in _runtimes(deployment) if r["agentRuntimeName"] == name or r["agentRuntimeId"] in wanted), None
    )


def _id(deployment: Deployment, name: str) -> str:
    found = _find(deployment, name)
    if found is None:
        names = ", ".join(sorted(r["agentRuntimeName"] for r in _runtimes(deployment))) or "none yet"
        raise CommandError(f"There is no agent {name!r}. Deployed: {names}.", "`agentkeep deploy PATH` deploys one.")
    return str(found["agentRuntimeId"])


def _user(deployment: Deployment, named: str | None) -> str:
    user = named or last_user(deployment)
    if user is None:
        raise CommandError(
            "This agent takes users' tokens only, and nobody is logged in.",
            "Say who you are: `agentkeep login --user alice`, or `--user alice` on this command.",
        )
    return user


def _memory(deployment: Deployment, name: str) -> str:
    for page in deployment.control.get_paginator("list_memories").paginate():
        for memory in page["memories"]:
            if memory["id"].rpartition("-")[0] == name:
                return str(memory["id"])
    return str(deployment.control.create_memory(name=name, eventExpiryDuration=90)["memory"]["id"])


def _until_ready(deployment: Deployment, runtime_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        runtime: dict[str, Any] = deployment.control.get_agent_runtime(agentRuntimeId=runtime_id)
        if runtime["status"] == "READY":
            return runtime
        if runtime["status"].endswith("_FAILED"):
            raise CommandError(f"The deployment failed: {runtime.get('failureReason') or runtime['status']}")
        time.sleep(0.1)
    raise CommandError(f"The agent was not ready within {READY_SECONDS} seconds; it goes on being made ready.")


def _words(kind: str, pieces: Iterable[bytes]) -> Iterator[str]:
    """The answer's text: of server-sent events their data, else the body; JSON strings unquoted."""
    if "text/event-stream" not in kind:
        yield _text(b"".join(pieces).decode(errors="replace"))
        return
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield _text(line[5:].strip().decode(errors="replace"))
    if rest.startswith(b"data:"):
        yield _text(rest[5:].strip().decode(errors="replace"))


def _text(document: str) -> str:
    try:
        value = json.loads(document)
    except ValueError:
        return document
    if isinstance(value, dict) and "error" in value:
        raise CommandError(f"The agent failed: {value['error']}", "`agentkeep logs SESSION` shows what it wrote.")
    return value if isinstance(value, str) else json.dumps(value)
