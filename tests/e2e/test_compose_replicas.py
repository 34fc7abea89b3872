"""Several replicas of each plane in the compose deployment: a session is the same whichever replica is asked, and goes
on when the replica that has it is killed; its endpoint is its own whichever replica made it."""

from __future__ import annotations

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from compose_application import Application, until
from compose_roles import ComposeRoles
from compose_stack import PLANES, ComposeStack
from docker_engine import SDK
from platform_process import PlatformProcess
from role_keys import refused_within

from agentkeep.cli.deployment import Running, write_credentials
from agentkeep.verify.bundle import probe_files

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(1200), pytest.mark.xdist_group("docker")]

RUNTIMES = 3
SESSIONS = 10
SLACK = 10  # seconds, of a loaded machine
AGENT = b"""
import json, os, socket, uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
born = str(uuid.uuid4())

def key(_):
    with urlopen("http://169.254.170.2" + os.environ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"], timeout=30) as answer:
        return json.load(answer)["AccessKeyId"]

@app.entrypoint
def invoke(payload, context):
    found = {"born": born, "session": context.session_id, "address": socket.gethostbyname(socket.gethostname())}
    if "keys" in payload:
        with ThreadPoolExecutor(8) as pool:
            found["keys"] = sorted(set(pool.map(key, range(payload["keys"]))))
    return found

app.run()
"""


@pytest.fixture(scope="module")
def stack(compose: ComposeStack) -> ComposeStack:
    compose.replicated()
    return compose


@pytest.fixture(scope="module")
def agent(application: Application, stack: ComposeStack) -> str:
    return application.deploy(stack.engine.image("compose-replicas", {"main.py": AGENT}, packages=SDK))


class Replica:
    """One of the runtime plane's containers, asked itself and not by way of the edge."""

    def __init__(self, application: Application, container: str) -> None:
        self.container = container
        self._data = boto3.client(
            "bedrock-agentcore",
            endpoint_url=address(application.stack, container),
            region_name=application.operator["region"],
            aws_access_key_id=application.operator["accessKeyId"],
            aws_secret_access_key=application.operator["secretAccessKey"],
        )

        self.events = self._data.meta.events

    def invoke(self, arn: str, session: str, **payload: Any) -> Any:
        answer = self._data.invoke_agent_runtime(
            agentRuntimeArn=arn, runtimeSessionId=session, runtimeUserId="alice", payload=json.dumps(payload).encode()
        )
        return json.loads(answer["response"].read())


@pytest.fixture
def replicas(application: Application, stack: ComposeStack) -> list[Replica]:
    return [Replica(application, container) for container in stack.replicas("runtime")]


def address(stack: ComposeStack, container: str) -> str:
    """Of a plane's replica, itself."""
    found = json.loads(stack.engine.docker("inspect", container))[0]
    return f"http://{found['NetworkSettings']['Networks']['agentkeep_front']['IPAddress']}:8080"


def owners(stack: ComposeStack) -> dict[str, str]:
    """Of sessions' containers: address and the replica that made it."""
    names = stack.engine.docker("ps", "--quiet", "--filter", "label=agentkeep=session").split()
    found = json.loads(stack.engine.docker("inspect", *names)) if names else []
    return {
        one["NetworkSettings"]["Networks"]["agentkeep-sessions"]["IPAddress"]: one["Config"]["Labels"][
            "agentkeep.owner"
        ]
        for one in found
    }


def test_there_are_several_of_each_plane(stack: ComposeStack) -> None:
    """Up means that each is healthy."""
    assert {plane: len(stack.replicas(plane)) for plane in PLANES} == {**dict.fromkeys(PLANES, 2), "runtime": RUNTIMES}


def test_a_session_is_one_whichever_replica_is_asked(
    application: Application, agent: str, replicas: list[Replica]
) -> None:
    """EXE-1, EXE-7: no sticky routing: neither by the edge, which asks any, nor by the replicas."""
    session = str(uuid.uuid4())
    first = replicas[0].invoke(agent, session)
    assert all(replica.invoke(agent, session) == first for replica in replicas)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: application.invoke(agent, session), range(32)))
    assert answers == [first] * 32
    application.stop(agent, session)


def test_each_session_has_its_own_credentials(
    application: Application, agent: str, replicas: list[Replica], stack: ComposeStack
) -> None:
    """EXE-5, IDN-2: ten sessions of three replicas ask the one address at once, and again: no key is two sessions'."""
    sessions = [str(uuid.uuid4()) for _ in range(SESSIONS)]

    def keys(number: int) -> Any:
        return replicas[number % RUNTIMES].invoke(agent, sessions[number], keys=24)

    with ThreadPoolExecutor(SESSIONS) as pool:
        found = list(pool.map(keys, range(SESSIONS)))
        again = list(pool.map(keys, range(SESSIONS)))
    assert [one["session"] for one in found] == sessions
    assert all(len(one["keys"]) == 1 for one in found)
    assert len({one["keys"][0] for one in found}) == SESSIONS
    assert again == found
    made_by = owners(stack)
    assert len({made_by[one["address"]] for one in found}) == RUNTIMES
    for session in sessions:
        application.stop(agent, session)


def test_the_edge_passes_no_word_of_the_services_own(
    application: Application, agent: str, replicas: list[Replica]
) -> None:
    """EXE-1: who says that his request was handed on before, where only replicas may, is heard by the edge alone. A
    replica that is told so by a client itself does not hand it on."""

    def say_so(request: Any, **_: Any) -> None:
        request.headers["X-Agentkeep-Forwarded"] = "another"
        request.headers["X-Agentkeep-Session"] = "made-up"

    session = str(uuid.uuid4())
    first = replicas[0].invoke(agent, session)
    data = Application(application.stack).data
    data.meta.events.register("before-send.bedrock-agentcore.*", say_so)

    def ask(_: int) -> Any:
        return json.loads(
            data.invoke_agent_runtime(
                agentRuntimeArn=agent, runtimeSessionId=session, runtimeUserId="alice", payload=b"{}"
            )["response"].read()
        )

    assert [ask(number) for number in range(12)] == [first] * 12
    told = []
    for replica in replicas:
        replica.events.register("before-send.bedrock-agentcore.*", say_so)
        try:
            told.append(replica.invoke(agent, session) == first)
        except (BotoCoreError, ClientError):
            told.append(False)
    assert told.count(True) == 1
    application.stop(agent, session)


def test_a_roles_keys_are_one_whichever_replica_is_asked(stack: ComposeStack, roles: ComposeRoles) -> None:
    """IDN-1: given by one replica of identity, good at each replica of each plane; revoked at the other, dead at all
    within the time of their memory."""
    addresses = {plane: [address(stack, one) for one in stack.replicas(plane)] for plane in PLANES}
    keys = roles.keys("talker", "bob")
    asks = {
        f"{plane}-{number}": partial(roles.reads()[plane], keys, endpoint)
        for plane, endpoints in addresses.items()
        for number, endpoint in enumerate(endpoints)
    }
    assert len(asks) == RUNTIMES + 2 * 4
    assert {name: ask() for name, ask in asks.items()} == dict.fromkeys(asks, 200)
    operator = stack.operator()
    revoker = {"AccessKeyId": operator["accessKeyId"], "SecretAccessKey": operator["secretAccessKey"]}
    answer = roles.ask(
        {**revoker, "SessionToken": None}, "POST", "/roles/talker/revoke", endpoint=addresses["identity"][1]
    )
    assert answer.status_code == 200, answer.text
    print("revoked after", refused_within(asks, 5 + SLACK))
    again = roles.keys("talker", "bob")
    assert {roles.reads()["memory"](again, endpoint) for endpoint in addresses["memory"]} == {200}


def test_sessions_that_attack_each_other_leak_nothing(stack: ComposeStack, tmp_path: Path) -> None:
    """EXE-5: ten, on whichever replica the edge puts them, by the command that operators run, at the public port alone;
    and nothing of it is left."""
    before = set(stack.engine.docker("ps", "--all", "--quiet").split())
    operator = stack.operator()
    Running(stack.url, 0, 0.0, operator["region"], "000000000000").write(tmp_path)
    write_credentials(tmp_path, operator["accessKeyId"], operator["secretAccessKey"])
    image = stack.engine.image("isolation", probe_files())
    ran = PlatformProcess(tmp_path).run(
        "verify", "isolation", "--sessions", str(SESSIONS), "--image", image, "--json", check=False, timeout=600
    )
    report = json.loads(ran.stdout)
    assert (ran.returncode, report["result"]) == (0, "passed"), ran.stdout[-4000:] + ran.stderr[-2000:]
    assert report["left"] == [] and len(report["attacks"]) > 100
    assert owners(stack) == {}
    assert set(stack.engine.docker("ps", "--all", "--quiet").split()) <= before


def test_sessions_outlive_the_replica_that_had_them(
    application: Application, agent: str, replicas: list[Replica], stack: ComposeStack
) -> None:
    """EXE-6, EXE-7: one of three killed, and it stays dead: its session's process goes on with another replica, with
    its endpoint; new sessions begin within seconds."""
    session, other = str(uuid.uuid4()), str(uuid.uuid4())
    before = replicas[0].invoke(agent, session, keys=1)
    untouched = replicas[1].invoke(agent, other)
    stack.engine.docker("kill", replicas[0].container)
    try:
        began = time.monotonic()
        new = str(uuid.uuid4())
        until(lambda: served(application, agent, new) is not None, 30, "a new session")
        print(f"a new session after {time.monotonic() - began:.1f} s")
        until(lambda: served(application, agent, session) is not None, 60, "the dead replica's session")
        print(f"the dead replica's session after {time.monotonic() - began:.1f} s")
        after = application.invoke(agent, session, keys=8)
        assert (after["born"], after["address"]) == (before["born"], before["address"])
        assert len(after["keys"]) == 1
        assert application.invoke(agent, other)["born"] == untouched["born"]
        assert all(replica.invoke(agent, session)["born"] == before["born"] for replica in replicas[1:])
        for one in (session, other, new):
            application.stop(agent, one)
        assert owners(stack) == {}
    finally:
        stack.engine.docker("start", replicas[0].container)
    until(lambda: healthy(stack, replicas[0].container), 90, "the killed replica is back")


def served(application: Application, agent: str, session: str) -> Any:
    """None: not now."""
    try:
        return application.invoke(agent, session)
    except (BotoCoreError, ClientError):
        return None


def healthy(stack: ComposeStack, container: str) -> bool:
    return stack.engine.docker("inspect", "--format", "{{.State.Health.Status}}", container) == "healthy"
