"""The command, as people and scripts use it."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import uuid
from pathlib import Path

import pytest
from platform_process import COMMAND, REPOSITORY, PlatformProcess, clean_environment

pytestmark = [pytest.mark.sandbox]

LOGGING_AGENT = """
import sys
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()

@app.entrypoint
def invoke(payload, context):
    print("to standard output:", payload.get("prompt"))
    print("to standard error", file=sys.stderr)
    if payload.get("prompt") == "fail":
        raise RuntimeError("the agent's own defect")
    return "echo " + payload["prompt"]

app.run()
"""


@pytest.fixture(scope="module")
def agent(platform: PlatformProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("talker")
    (folder / "main.py").write_text(LOGGING_AGENT)
    (folder / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    deployed = platform.json("deploy", str(folder), "--name", "talker")
    assert deployed["status"] == "READY"
    return "talker"


def test_deploy_invoke_logs_stop(platform: PlatformProcess, agent: str) -> None:
    session = str(uuid.uuid4())
    assert platform.json("invoke", agent, "hello", "--user", "alice", "--session-id", session) == {
        "session_id": session,
        "answer": "echo hello",
    }
    assert session in [found["sessionId"] for found in platform.json("sessions")]
    platform.run("stop", session)
    assert session not in [found["sessionId"] for found in platform.json("sessions")]
    log = platform.run("logs", session).stdout
    assert "to standard output: hello" in log
    assert "to standard error" in log


def test_commands_in_a_session(platform: PlatformProcess, agent: str, tmp_path: Path) -> None:
    """Of an agent that takes users' tokens, and of one that takes signatures; for the session's own user."""
    (tmp_path / "main.py").write_text(LOGGING_AGENT)
    (tmp_path / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    platform.json("deploy", str(tmp_path), "--name", "signed", "--iam")
    for name, user in ((agent, "alice"), ("signed", "bob"), ("signed", None)):
        session = str(uuid.uuid4())
        platform.json("invoke", name, "hello", "--session-id", session, *(("--user", user) if user else ()))
        ran = platform.run("exec", session, "echo it; echo bad >&2; exit 3", check=False)
        assert (ran.returncode, ran.stdout, ran.stderr) == (3, "it\n", "bad\n")
        told = platform.json("exec", session, "echo $((6 * 7))")
        assert told == {"stdout": "42\n", "stderr": "", "exitCode": 0, "status": "COMPLETED"}
    told = json.loads(platform.run("exec", session, "--timeout", "1", "sleep 60", "--json", check=False).stdout)
    assert told["status"] == "TIMED_OUT"
    assert "No session" in platform.run("exec", "nothing", "true", check=False).stderr


def test_the_budget_of_a_runtimes_sessions(platform: PlatformProcess, tmp_path: Path) -> None:
    """OBS-3: said at deployment, first or later; shown with what is left."""
    (tmp_path / "main.py").write_text(LOGGING_AGENT)
    (tmp_path / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    for budget in ("12345", "none"):
        platform.json("deploy", str(tmp_path), "--name", "thrifty", "--token-budget", budget)
        session = platform.json("invoke", "thrifty", "Hello", "--user", "alice")["session_id"]
        said = platform.run("usage", session).stdout
        assert ("12,345 of 12,345 tokens are left" if budget != "none" else "no token budget") in said


def test_deploying_again_makes_a_version(platform: PlatformProcess, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(LOGGING_AGENT)
    (tmp_path / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    versions = [platform.json("deploy", str(tmp_path), "--name", "again")["agentRuntimeVersion"] for _ in range(2)]
    assert versions == ["1", "2"]


def test_an_agent_that_fails_says_so(platform: PlatformProcess, agent: str) -> None:
    done = platform.run("invoke", agent, "fail", "--user", "alice", check=False)
    assert done.returncode == 1
    assert "Received error (500) from runtime" in done.stderr
    assert "Traceback" not in done.stderr


def test_login_is_remembered(platform: PlatformProcess, agent: str) -> None:
    assert platform.json("login", "--user", "carol")["user"] == "carol"
    session = platform.json("invoke", agent, "hi")["session_id"]
    assert {s["sessionId"]: s["user"] for s in platform.json("sessions")}[session] == "carol"
    assert stat.S_IMODE((platform.data_dir / "logins.json").stat().st_mode) == 0o600


def test_secrets_are_the_owners_alone(platform: PlatformProcess) -> None:
    for name in ("credentials", "platform.json", "master.key"):
        assert stat.S_IMODE((platform.data_dir / name).stat().st_mode) == 0o600, name
    secret = platform.variables["AWS_SECRET_ACCESS_KEY"]
    assert secret not in (platform.data_dir / "platform.log").read_text()


def test_env_works_in_a_shell(platform: PlatformProcess) -> None:
    script = f'eval "$({" ".join(COMMAND)} env --data-dir {platform.data_dir})" && echo $AWS_ACCESS_KEY_ID'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=clean_environment())
    assert done.stdout.strip() == platform.variables["AWS_ACCESS_KEY_ID"]


MODEL_AGENT = """
import boto3
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
models = boto3.client("bedrock-runtime")

@app.entrypoint
def invoke(payload):
    message = {"role": "user", "content": [{"text": payload["prompt"]}]}
    return models.converse(modelId="any", messages=[message])["output"]["message"]["content"][0]["text"]

app.run()
"""


def test_usage_of_a_session_also_after_its_end(platform: PlatformProcess, agent: str, tmp_path: Path) -> None:
    """OBS-2: tokens of a session, counted where the model is called, not where the agent says."""
    (tmp_path / "main.py").write_text(MODEL_AGENT)
    (tmp_path / "requirements.txt").write_text("bedrock-agentcore==1.25.0\n")
    platform.run("deploy", str(tmp_path), "--name", "caller")
    session = platform.json("invoke", "caller", "My name is Dora.", "--user", "dora")["session_id"]
    for _ in range(2):
        used = platform.json("usage", session)
        assert used["totals"]["calls"] == 1
        assert used["totals"]["input_tokens"] > 0
        assert used["calls"][0]["user_id"] == "dora"
        platform.run("stop", session, check=False)
    silent = platform.json("invoke", agent, "hi", "--user", "alice")["session_id"]
    assert platform.json("usage", silent)["totals"]["calls"] == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("invoke", "nobody", "hi"), "There is no agent 'nobody'"),
        (("stop", "no-such-session"), "No session no-such-session lives"),
        (("logs", "no-such-session"), "No output of such a session is kept"),
        (("usage", "no-such-session"), "No model call of a session no-such-session is recorded"),
        (("up",), "already runs"),
        (("deploy", str(REPOSITORY / "docs")), "holds none of main.py"),
        (("deploy", str(REPOSITORY / "tests" / "agents" / "echo"), "--env", "novalue"), "is not NAME=VALUE"),
        (("deploy", str(REPOSITORY / "tests" / "agents" / "echo"), "--token-budget", "lots"), "a number of tokens"),
    ],
)
def test_errors_say_what_and_what_to_do(platform: PlatformProcess, arguments: tuple[str, ...], what: str) -> None:
    done = platform.run(*arguments, check=False)
    assert done.returncode == 1
    assert what in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    as_json = platform.run(*arguments, "--json", check=False)
    assert what in json.loads(as_json.stderr)["error"]


def test_without_a_platform(tmp_path: Path) -> None:
    done = PlatformProcess(tmp_path).run("sessions", check=False)
    assert done.returncode == 1
    assert "agentkeep up" in done.stderr
    assert PlatformProcess(tmp_path).json("down") == {"stopped": False}


def test_a_bundle_that_cannot_be_installed_fails_with_the_reason(platform: PlatformProcess, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(LOGGING_AGENT)
    (tmp_path / "requirements.txt").write_text("agentkeep-no-such-package==1\n")
    done = platform.run("deploy", str(tmp_path), "--name", "broken", check=False)
    assert done.returncode == 1
    assert "agentkeep-no-such-package" in done.stderr


@pytest.mark.slow
def test_doctor(platform: PlatformProcess) -> None:
    findings = platform.json("doctor")
    assert {finding["severity"] for finding in findings} <= {"ok", "warning"}
    assert {"Python", "Valkey", "bubblewrap"} <= {finding["check"] for finding in findings}


def test_every_command_explains_itself() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, env=clean_environment())
    for command in ("up", "down", "env", "deploy", "invoke", "sessions", "stop", "logs", "login", "doctor", "usage"):
        assert f" {command} " in done.stdout


@pytest.mark.slow  # each imports all planes; what it says of a wrong setting is quick enough
def test_up_says_why_it_cannot_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for detach in (("--detach",), ()):
            done = PlatformProcess(tmp_path).run("up", "--port", port, *detach, check=False)
            assert done.returncode == 1
            said = " ".join(done.stderr.split())
            assert f"Port {port} of this machine's loopback is taken" in said
            assert "--port" in said
            assert "Traceback" not in said


def test_up_names_a_wrong_setting(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "up", "--detach", "--port", "0", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        env=clean_environment() | {"AGENTKEEP_RUNTIME_LEASE": "-1"},
    )
    assert done.returncode == 1
    assert "A setting is wrong: lease" in " ".join(done.stderr.split())
