"""What commands print: no key, secret or token, whether they succeed or fail, but where one was asked for."""

from __future__ import annotations

import json
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command_server
import httpx
import pytest
import typer
from canaries import canary, leaks
from platform_process import REPOSITORY, clean_environment, running_platform
from role_keys import RoleKeys

from agentkeep.cli.main import app

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

AGENT = """
import boto3
from bedrock_agentcore import BedrockAgentCoreApp
from bedrock_agentcore.runtime import BedrockAgentCoreContext

app = BedrockAgentCoreApp()

@app.entrypoint
def invoke(payload):
    data, own = boto3.client("bedrock-agentcore"), BedrockAgentCoreContext.get_workload_access_token()
    key = data.get_resource_api_key(workloadIdentityToken=own, resourceCredentialProviderName="weather")["apiKey"]
    keys = boto3.Session().get_credentials()
    try:
        data.get_resource_api_key(workloadIdentityToken=own, resourceCredentialProviderName="absent")
    except Exception as error:
        print("refused:", error)
    if payload["prompt"] == "fail":
        raise RuntimeError("the agent's own defect")
    # Backwards: what an agent answers is in its trace.
    told = [secret[::-1] for secret in (key, own, keys.secret_key, keys.token)]
    return told if payload["prompt"] == "tell" else "done"

app.run()
"""

#: Needs a deployment of its own, prints a program, or ends the platform.
ELSEWHERE = {"verify isolation", "verify probe", "up", "down"}
#: About files alone: they ask no platform.
OF_FILES = {"roles check", "roles policy", "sts revocation-policy", "sts check-rules", "egress check-rules"}


def commands(command: Any, *names: str) -> Iterator[str]:
    if not hasattr(command, "commands"):
        yield " ".join(names)
        return
    for name, below in command.commands.items():
        yield from commands(below, *names, name)


def user_token(issuer: str, operator: dict[str, str], user: str) -> str:
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:agentkeep:token-type:development-user",
        "subject_token": user,
        "audience": "people",
    }
    keys = (operator["AWS_ACCESS_KEY_ID"], operator["AWS_SECRET_ACCESS_KEY"])
    answer = httpx.post(f"{issuer}/token", data=form, auth=keys, trust_env=False)
    return str(answer.raise_for_status().json()["access_token"])


def test_commands_print_no_secret(tmp_path: Path) -> None:
    """IDN-2, IDN-3, IDN-4: each command there is, on a platform with secrets of every kind, as text and as JSON; and
    where it is refused. What `env` and `keys create` print is found in their output, and in no other."""
    secrets = {name: canary() for name in ("api key", "client secret", "variable", "bad token")}
    agent, data, roles = tmp_path / "agent", tmp_path / "data", tmp_path / "roles.json"
    agent.mkdir()
    (agent / "main.py").write_text(AGENT)
    (agent / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    issuer = f"http://127.0.0.1:{port}/oidc"
    trust = [{"issuer": issuer, "audiences": ["people"], "claims": {"sub": "auditor"}}]
    roles.write_text(json.dumps({"roles": [{"name": "auditor", "trust": trust, "policies": ["auditor"]}]}))
    said: dict[str, list[str]] = {}
    wrong: list[Any] = []

    with running_platform(data, port, AGENTKEEP_IDENTITY_ROLES=str(roles), AGENTKEEP_LOG_LEVEL="DEBUG") as platform:

        def run(command: str, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
            words = (*command.split(), *arguments)
            if command in OF_FILES:
                done = command_server.run(words, clean_environment(), 60)
            else:
                done = platform.run(*words, check=False)
            if (done.returncode != 0) != fails:
                wrong.append((words, done.returncode, done.stdout, done.stderr))
            said.setdefault(command, []).append(done.stdout + done.stderr)
            return done

        def both(command: str, *arguments: str, fails: bool = False) -> None:
            for form in ((), ("--json",)):
                run(command, *arguments, *form, fails=fails)

        # Secrets of every kind.
        control = platform.client("bedrock-agentcore-control")
        control.create_api_key_credential_provider(name="weather", apiKey=secrets["api key"])
        github = {"githubOauth2ProviderConfig": {"clientId": "agent", "clientSecret": secrets["client secret"]}}
        control.create_oauth2_credential_provider(
            name="github", credentialProviderVendor="GithubOauth2", oauth2ProviderConfigInput=github
        )
        issued = json.loads(run("keys create", "helper", "--json").stdout)
        run("keys create", "acting", "--acts-for-users")
        people = RoleKeys(platform.endpoint)
        role = people.assume("auditor", user_token(issuer, platform.variables, "auditor"), "auditor")
        assert people.ask(role, "GET", "/audit-records").status_code == 200
        secrets |= {
            "operator's": platform.variables["AWS_SECRET_ACCESS_KEY"],
            "issued": issued["secretAccessKey"],
            "role's": role["SecretAccessKey"],
            "role's token": role["SessionToken"],
            "user's token": user_token(issuer, platform.variables, "alice"),
        }

        # What people do all day.
        variable = ("--env", f"WEATHER_TOKEN={secrets['variable']}")
        both("deploy", str(agent), "--name", "signed", "--iam", *variable)
        both("deploy", str(agent), "--name", "bearer", *variable)
        both("login", "--user", "alice")
        deployed = {one["agentRuntimeName"]: one for one in control.list_agent_runtimes()["agentRuntimes"]}
        session = str(uuid.uuid4())
        told = platform.client("bedrock-agentcore").invoke_agent_runtime(
            agentRuntimeArn=deployed["signed"]["agentRuntimeArn"], runtimeSessionId=session, runtimeUserId="alice",
            payload=b'{"prompt": "tell"}',
        )["response"].read()  # fmt: skip
        key, *own = (secret[::-1] for secret in json.loads(told))
        assert key == secrets["api key"]
        secrets |= zip(("workload token", "session's secret", "session's token"), own, strict=True)
        both("invoke", "bearer", "hello", "--user", "alice")
        both("invoke", "signed", "hello", "--user", "alice", "--session-id", session)
        both("sessions")
        both("exec", session, "echo it")
        both("usage", session)
        both("logs", session)
        both("trace", session)
        run("trace", session, "--full")
        both("alerts")
        both("doctor")
        both("audit", "--limit", "1000")
        both("keys list")
        both("catalogue show")
        both("roles list")
        both("roles check", str(roles))
        run("roles policy", "auditor")
        run("sts revocation-policy", "agents")
        both("memory reports")
        memory = control.create_memory(name="notes", eventExpiryDuration=7)["memory"]["id"]
        both("memory jobs", memory)
        both("memory compact", memory, "--older-than", "30", "--dry-run")
        run("memory erase", "nobody", "--memory", memory, "--yes")

        # What goes wrong, beside secrets.
        both("invoke", "signed", "fail", "--user", "alice", "--session-id", session, fails=True)
        both("invoke", "bearer", "hello", "--token", secrets["bad token"], fails=True)
        both("invoke", "signed", "hello", "--token", secrets["user's token"], fails=True)
        both("deploy", str(REPOSITORY / "docs"), *variable, fails=True)
        both("deploy", str(agent), "--name", "no name", *variable, fails=True)
        both("deploy", str(agent), "--name", "other", "--token-budget", "lots", *variable, fails=True)
        both("exec", "no-such-session", "true", fails=True)
        both("memory report", "no-such-report", fails=True)
        both("memory record", memory, "no-such-record", fails=True)
        both("catalogue set", "no-such-gateway", "tool", "--timeout", "1", fails=True)
        both("roles revoke", "nobody", fails=True)
        for rules in ("sts check-rules", "egress check-rules"):
            both(rules, str(tmp_path / "absent.json"), fails=True)
            both(rules, str(data / "master.key"), fails=True)
        both("roles check", str(data / "master.key"), fails=True)
        both("keys revoke", "AKIANOSUCHKEY", fails=True)
        run("keys revoke", issued["accessKeyId"])
        run("roles revoke", "auditor")
        run("stop", session)
        both("stop", session, fails=True)
        run("env")
        # An operator whose key is wrong is refused, and told nothing of the right one.
        credentials = data / "credentials"
        right = credentials.read_text()
        credentials.write_text(right.replace(secrets["operator's"], secrets["operator's"][::-1]))
        secrets["wrong key"] = secrets["operator's"][::-1]
        both("sessions", fails=True)
        both("audit", fails=True)
        credentials.write_text(right)

    secrets |= {"master key": (data / "master.key").read_bytes()}
    assert wrong == []
    assert set(said) | ELSEWHERE == set(commands(typer.main.get_command(app)))
    for command, printed in said.items():
        text = "".join(printed).encode()
        found = {name for name, secret in secrets.items() if leaks(text, [secret])}
        assert found == {"env": {"operator's"}, "keys create": {"issued"}}.get(command, set()), command
