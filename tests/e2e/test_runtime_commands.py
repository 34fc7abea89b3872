"""InvokeAgentRuntimeCommand as its clients use it: unmodified boto3 and plain HTTPS with a token, against the running
platform, in the agent's own sandbox. And session storage, which dies with the session."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError, EventStreamError
from platform_process import PlatformProcess, running_platform

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(240)]

SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
USER = "X-Amzn-Bedrock-AgentCore-Runtime-User-Id"
AGENT = """
import os
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()

@app.entrypoint
def invoke(payload, context):
    if "write" in payload:
        with open(payload["write"], "w") as file:
            file.write(payload["text"])
    return {"pid": os.getpid(), "uid": os.getuid(), "folder": os.getcwd(), "network": os.readlink("/proc/self/ns/net")}

app.run()
"""


@dataclass
class Ran:
    """`events`: the names of the chunks in their order, without repetitions."""

    output: str
    error: str
    stop: dict[str, Any]
    events: list[str]


@dataclass
class Agents:
    platform: PlatformProcess
    signed: str
    bearer: str

    def data(self, user: str | None = None, **config: Any) -> Any:
        client = self.platform.client("bedrock-agentcore", **config)
        if user is not None:  # the operation does not model it
            client.meta.events.register(
                "before-sign.bedrock-agentcore", lambda request, **_: request.headers.add_header(USER, user)
            )
        return client

    def command(self, line: str, session: str, user: str | None = None, **body: Any) -> Ran:
        answer = self.data(user).invoke_agent_runtime_command(
            agentRuntimeArn=self.signed, runtimeSessionId=session, body={"command": line, **body}
        )
        assert answer["contentType"] == "application/vnd.amazon.eventstream"
        assert answer["runtimeSessionId"] == session
        return whole(event["chunk"] for event in answer["stream"])

    def invoke(self, session: str, user: str | None = None, **payload: Any) -> dict[str, Any]:
        answer = self.data(user).invoke_agent_runtime(
            agentRuntimeArn=self.signed, runtimeSessionId=session, payload=json.dumps(payload).encode()
        )
        document: dict[str, Any] = json.loads(answer["response"].read())
        return document

    def stop(self, session: str) -> None:
        self.data().stop_runtime_session(agentRuntimeArn=self.signed, runtimeSessionId=session)

    def token(self, user: str) -> str:
        return str(self.platform.json("login", "--user", user)["access_token"])

    def by_token(self, line: str, session: str, token: str) -> tuple[int, Any]:
        url = f"{self.platform.endpoint}/runtimes/{quote(self.bearer, safe='')}/commands?qualifier=DEFAULT"
        headers = {"Authorization": f"Bearer {token}", SESSION: session}
        answer = urllib3.request("POST", url, json={"command": line}, headers=headers, timeout=60, retries=False)
        if answer.status != 200:
            return answer.status, answer.headers["x-amzn-errortype"]
        buffer = EventStreamBuffer()
        buffer.add_data(answer.data)
        return 200, whole(json.loads(message.payload) for message in buffer)


def whole(chunks: Any) -> Ran:
    said = {"stdout": "", "stderr": ""}
    events: list[str] = []
    stop: dict[str, Any] = {}
    for chunk in chunks:
        ((name, value),) = chunk.items()
        events += [name] if events[-1:] != [name] else []
        if name == "contentDelta":
            ((stream, text),) = value.items()
            said[stream] += text
        elif name == "contentStop":
            stop = value
    return Ran(said["stdout"], said["stderr"], stop, events)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    folder = tmp_path_factory.mktemp("agent")
    (folder / "main.py").write_text(AGENT)
    (folder / "requirements.txt").write_text("bedrock-agentcore\n")
    with running_platform(
        tmp_path_factory.mktemp("platform"), AGENTKEEP_RUNTIME_SESSION_COMMANDS="3", AGENTKEEP_RUNTIME_STOP_GRACE="1"
    ) as platform:
        signed = platform.json("deploy", str(folder), "--name", "signed", "--iam")["agentRuntimeArn"]
        bearer = platform.json("deploy", str(folder), "--name", "bearer")["agentRuntimeArn"]
        _give_storage(platform.client("bedrock-agentcore-control"), signed.rsplit("/", 1)[1])
        yield Agents(platform, signed, bearer)


def _give_storage(control: Any, runtime_id: str) -> None:
    found = control.get_agent_runtime(agentRuntimeId=runtime_id)
    settings = {name: found[name] for name in ("agentRuntimeArtifact", "roleArn", "networkConfiguration")}
    settings["environmentVariables"] = {**found.get("environmentVariables", {}), "COLOUR": "deep blue"}
    settings["filesystemConfigurations"] = [{"sessionStorage": {"mountPath": "/mnt/notes"}}]
    control.update_agent_runtime(agentRuntimeId=runtime_id, **settings)
    while (found := control.get_agent_runtime(agentRuntimeId=runtime_id))["status"] != "READY":
        time.sleep(0.1)
    assert found["filesystemConfigurations"] == settings["filesystemConfigurations"]


def new_session() -> str:
    return f"session-{uuid.uuid4()}"


def test_a_command_and_its_events(agents: Agents) -> None:
    """EXE-1: in the session's own environment, made for it where there is none."""
    session = new_session()
    ran = agents.command("echo out; echo err >&2; exit 7", session)
    assert ran == Ran(
        "out\n", "err\n", {"exitCode": 7, "status": "COMPLETED"}, ["contentStart", "contentDelta", "contentStop"]
    )
    place = agents.invoke(session)
    line = f'id -u; pwd; printf "%s\\n" "$COLOUR"; readlink /proc/self/ns/net /proc/{place["pid"]}/ns/net'
    assert agents.command(line, session).output.splitlines() == [
        str(place["uid"]), place["folder"], "deep blue", place["network"], place["network"],
    ]  # fmt: skip
    assert agents.command("true", new_session()).events == ["contentStart", "contentStop"]


def test_output_comes_as_it_is_written(agents: Agents) -> None:
    session = new_session()
    agents.command("true", session)
    answer = agents.data().invoke_agent_runtime_command(
        agentRuntimeArn=agents.signed,
        runtimeSessionId=session,
        body={"command": "echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo second"},
    )
    chunks = (event["chunk"] for event in answer["stream"])
    assert next(chunks) == {"contentStart": {}}
    assert next(chunks) == {"contentDelta": {"stdout": "first\n"}}
    agents.command("touch /tmp/go", session)
    assert next(chunks) == {"contentDelta": {"stdout": "second\n"}}
    assert next(chunks) == {"contentStop": {"exitCode": 0, "status": "COMPLETED"}}
    assert next(chunks, None) is None


def test_any_bytes_are_text(agents: Agents) -> None:
    session = new_session()
    assert agents.command("printf 'a\\303'; sleep 0.3; printf '\\274b\\377c\\303'", session).output == "aüb�c�"
    control = agents.command("head -c 200000 /dev/zero", session)
    assert control.output == "\0" * 200_000


def test_much_output_waits_for_a_slow_reader(agents: Agents) -> None:
    """The platform does not grow by what nobody has read."""
    session = new_session()
    answer = agents.data().invoke_agent_runtime_command(
        agentRuntimeArn=agents.signed,
        runtimeSessionId=session,
        body={"command": "yes | head -c 300000000; touch /tmp/done"},
    )
    stream = iter(answer["stream"])
    assert next(stream)["chunk"] == {"contentStart": {}}
    before = _resident(agents.platform.pid)
    time.sleep(2)
    assert agents.command("ls /tmp/done", session).stop["exitCode"] != 0
    assert _resident(agents.platform.pid) - before < 32 << 20
    read = sum(
        len(event["chunk"].get("contentDelta", {}).get("stdout", "")) for event in (next(stream) for _ in range(2000))
    )
    assert read > 1 << 20
    answer["stream"].close()
    _gone(agents, session, "yes")


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


def _gone(agents: Agents, session: str, program: str) -> None:
    """No process of the session runs it any more."""
    deadline = time.monotonic() + 30
    line = f"grep -lx {program} /proc/[0-9]*/comm"
    while agents.command(line, session).output:
        assert time.monotonic() < deadline, f"{program} still runs"
        time.sleep(0.1)


def test_a_command_ends_at_its_timeout(agents: Agents) -> None:
    session = new_session()
    line = "trap '' TERM INT; echo begun; (setsid sleep 5001 &); while :; do sleep 5002; done"
    ran = agents.command(line, session, timeout=1)
    assert ran.output == "begun\n"
    assert ran.stop == {"exitCode": 137, "status": "TIMED_OUT"}
    _gone(agents, session, "sleep")
    assert agents.invoke(session)["uid"] == 1000


def test_a_command_ends_when_its_client_leaves(agents: Agents) -> None:
    session = new_session()
    answer = agents.data().invoke_agent_runtime_command(
        agentRuntimeArn=agents.signed, runtimeSessionId=session, body={"command": "sleep 5003"}
    )
    assert "chunk" in next(iter(answer["stream"]))
    answer["stream"].close()
    _gone(agents, session, "sleep")


def test_a_command_ends_with_its_session(agents: Agents) -> None:
    session = new_session()
    answer = agents.data().invoke_agent_runtime_command(
        agentRuntimeArn=agents.signed, runtimeSessionId=session, body={"command": "echo begun; sleep 5004"}
    )
    stream = iter(answer["stream"])
    assert next(stream)["chunk"] == {"contentStart": {}}
    assert next(stream)["chunk"] == {"contentDelta": {"stdout": "begun\n"}}
    stopping = threading.Thread(target=agents.stop, args=(session,))
    stopping.start()
    with pytest.raises(EventStreamError, match=r"runtimeClientError.*session ended"):
        next(stream)
    stopping.join()


def test_what_a_command_leaves_behind_holds_nothing_open(agents: Agents) -> None:
    session = new_session()
    ran = agents.command("(setsid sleep 5005 &); sleep 5005 & echo bye", session)
    assert (ran.output, ran.stop["exitCode"]) == ("bye\n", 0)
    assert agents.command("grep -lx sleep /proc/[0-9]*/comm | wc -l", session).output.strip() == "2"


def test_a_session_runs_so_many_commands_at_once(agents: Agents) -> None:
    """Beside its invocations; the next is throttled, and boto3 tries again by itself."""
    session = new_session()
    agents.command("true", session)
    line = "while [ ! -e /tmp/go ]; do sleep 0.05; done; echo done"
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(agents.command, line, session) for _ in range(3)]
        deadline = time.monotonic() + 30
        while (told := _refusal(agents, session)) is None:
            assert time.monotonic() < deadline
        assert told["Code"] == "ThrottlingException"
        assert "3 commands run in this session" in told["Message"]
        agents.invoke(session, write="/tmp/go", text="")
        assert [one.result().output for one in running] == ["done\n"] * 3


def _refusal(agents: Agents, session: str) -> Any:
    """What another command is told that is asked for once; None if it runs."""
    try:
        agents.data(retries={"max_attempts": 0}).invoke_agent_runtime_command(
            agentRuntimeArn=agents.signed, runtimeSessionId=session, body={"command": "true"}
        )["stream"].close()
    except ClientError as error:
        return error.response["Error"]
    return None


def test_commands_in_anothers_session_are_refused(agents: Agents) -> None:
    """EXE-6, IDN-5: by signature for a user, and by token."""
    session = new_session()
    assert agents.command("echo hers > /tmp/note", session, user="alice").stop["exitCode"] == 0
    for other in ("bob", None):
        with pytest.raises(ClientError) as refused:
            agents.command("cat /tmp/note", session, user=other)
        assert refused.value.response["Error"]["Code"] == "AccessDeniedException"
    assert agents.command("cat /tmp/note", session, user="alice").output == "hers\n"

    session, alice, bob = new_session(), agents.token("alice"), agents.token("bob")
    status, ran = agents.by_token("echo hers > /tmp/note; cat /tmp/note", session, alice)
    assert (status, ran.output) == (200, "hers\n")
    assert agents.by_token("cat /tmp/note", session, bob) == (403, "AccessDeniedException")
    status, code = agents.by_token("cat /tmp/note", session, "no-token")
    assert (status, code) == (401, "UnauthorizedException")


def test_a_resource_policy_decides_on_commands_apart_from_invocations(agents: Agents) -> None:
    control = agents.platform.client("bedrock-agentcore-control")
    session = new_session()
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "bedrock-agentcore:InvokeAgentRuntimeCommand",
                "Resource": agents.signed,
            }
        ],
    }
    control.put_resource_policy(resourceArn=agents.signed, policy=json.dumps(policy))
    try:
        agents.invoke(session)
        with pytest.raises(ClientError, match=r"InvokeAgentRuntimeCommand.*denied by its resource policy"):
            agents.command("true", session)
    finally:
        control.delete_resource_policy(resourceArn=agents.signed)
    assert agents.command("true", session).stop["exitCode"] == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"command": "echo \0"}, "holds no NUL"),
        ({"command": "ü" * 65_536}, "at most 131071 bytes"),
        ({"command": "x" * 65_537}, "length less than or equal to 65536"),
        ({"command": "true", "timeout": 0}, "between 1 and 3600"),
        ({"command": "true", "timeout": 3601}, "between 1 and 3600"),
    ],
)
def test_what_cannot_be_run_is_refused(agents: Agents, body: dict[str, Any], said: str) -> None:
    client = agents.data(parameter_validation=False)
    with pytest.raises(ClientError) as refused:
        client.invoke_agent_runtime_command(agentRuntimeArn=agents.signed, runtimeSessionId=new_session(), body=body)
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert said in refused.value.response["Error"]["Message"]


def test_the_longest_line_arrives_whole(agents: Agents) -> None:
    line = "true '" + "x" * 65_000 + "'; echo end"
    assert agents.command(line, new_session()).output == "end\n"


def test_a_command_is_a_step_of_the_sessions_trace(agents: Agents) -> None:
    session = new_session()
    agents.command("echo seen; exit 4", session)
    deadline = time.monotonic() + 30
    while not (steps := _steps(agents, session)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (steps[0]["input"], steps[0]["output"]) == ("echo seen; exit 4", "seen\n")
    assert steps[0]["details"]["agentkeep.command.exit_code"] == 4


def _steps(agents: Agents, session: str) -> list[dict[str, Any]]:
    events = agents.platform.json("trace", session)["events"]
    return [event for event in events if event["name"] == "InvokeAgentRuntimeCommand"]


def test_session_storage_lives_and_dies_with_its_session(agents: Agents) -> None:
    """EXE-2, EXE-4: kept from turn to turn, nobody else's, gone when the session has ended."""
    session, other = new_session(), new_session()
    agents.invoke(session, write="/mnt/notes/note", text="kept")
    assert agents.command("cat /mnt/notes/note; stat -f -c %T /mnt/notes", session).output == "kepttmpfs\n"
    assert agents.command("ls -A /mnt/notes", other).output == ""
    agents.stop(session)
    assert agents.command("ls -A /mnt/notes", session).output == ""
