"""The compose deployment as its users have it: up from nothing, used from outside, attacked from inside, killed. In an
engine of the tests' own, from images made here."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from attacked_sessions import host_port, leaks  # noqa: F401 -- a fixture
from checkpoint_conformance import FORMATS, conforms
from compose_application import AGENT, Application, until
from compose_stack import PLANES, REPOSITORY, ComposeStack
from docker_engine import SDK

from agentkeep.verify.bundle import probe_files
from agentkeep.verify.host import own_addresses
from agentkeep.verify.probe.attack import masked

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(2400), pytest.mark.xdist_group("docker")]

SESSIONS = 20


@pytest.fixture(scope="module")
def stack(compose: ComposeStack) -> ComposeStack:
    compose.single()
    return compose


@pytest.fixture(scope="module")
def agent(application: Application) -> str:
    return application.deploy(application.stack.engine.image("compose", {"main.py": AGENT}, packages=SDK))


def healthy(stack: ComposeStack, *services: str) -> bool:
    return all(stack.inspect(each)["State"].get("Health", {}).get("Status") == "healthy" for each in services)


def containers_of_sessions(stack: ComposeStack) -> set[str]:
    return set(stack.engine.docker("ps", "--all", "--quiet", "--filter", "label=agentkeep=session").split())


class TestAsDeployed:
    """OPS-1: what an auditor looks at first."""

    def test_nothing_has_more_rights_than_it_needs(self, stack: ComposeStack) -> None:
        services = json.loads(stack.compose("config", "--format", "json"))["services"]
        roots, writable, capable, socket_holders, open_to_host = set(), set(), {}, set(), {}
        for service in services:
            found = stack.inspect(service) if service != "secrets" else self.ended(stack)
            host = found["HostConfig"]
            assert host["CapDrop"] == ["ALL"] and not host["Privileged"], service
            assert "no-new-privileges:true" in host["SecurityOpt"], service
            assert host["Memory"] and host["PidsLimit"], service
            assert host["PidMode"] == "" and host["IpcMode"] in ("private", "shareable"), service
            user = found["Config"]["User"] or self.image_user(stack, found["Image"])
            roots |= {service} if user.split(":")[0] in ("", "0", "root") else set()
            writable |= set() if host["ReadonlyRootfs"] else {service}
            if host["CapAdd"]:
                capable[service] = sorted(name.removeprefix("CAP_") for name in host["CapAdd"])
            for mount in found["Mounts"]:
                if "docker.sock" in mount["Source"]:
                    socket_holders.add(service)
            for ports in (found["NetworkSettings"]["Ports"] or {}).values():
                for port in ports or ():
                    open_to_host.setdefault(service, set()).add(port["HostIp"])
        assert roots == {"guard", "firewall", "secrets"}
        assert writable == {"opensearch", "keycloak"}
        assert capable == {"firewall": ["NET_ADMIN", "NET_RAW"], "secrets": ["CHOWN", "DAC_OVERRIDE", "FOWNER"]}
        assert socket_holders == {"guard"}
        assert open_to_host == {"edge": {"127.0.0.1"}, "keycloak": {"127.0.0.1"}}
        assert stack.inspect("guard")["HostConfig"]["NetworkMode"] == "none"

    @staticmethod
    def ended(stack: ComposeStack) -> Any:
        name = stack.compose("ps", "--all", "--quiet", "secrets").strip()
        return json.loads(stack.engine.docker("inspect", name))[0]

    @staticmethod
    def image_user(stack: ComposeStack, image: str) -> str:
        return str(json.loads(stack.engine.docker("image", "inspect", image))[0]["Config"]["User"])

    def test_only_those_share_a_network_who_must_talk(self, stack: ComposeStack) -> None:
        services = json.loads(stack.compose("config", "--format", "json"))["services"]
        on: dict[str, set[str]] = {}
        for name, service in services.items():
            for network in service.get("networks") or ():
                on.setdefault(network, set()).add(name)
        for members in on.values():
            members.discard("orders")  # the demonstration's, which is a tool outside
        assert on["sessions"] == {"runtime", "session-edge"}
        assert on["store"] == {"valkey", *PLANES}
        assert on["search"] == {"opensearch", "memory", "observability"}
        assert on["front"] == {"edge", *PLANES}
        assert on["planes"] == {"collector", *PLANES}
        assert on["outside"] == {"gateway", "identity"}
        assert on["login"] == {"keycloak", "identity"}
        assert on["public"] == {"edge", "keycloak"}
        networks = json.loads(stack.compose("config", "--format", "json"))["networks"]
        assert {name for name, one in networks.items() if not one.get("internal")} == {"public", "outside"}

    def test_no_secret_is_where_it_can_be_inspected(self, stack: ComposeStack) -> None:
        """Neither in the file, nor in a container's environment, nor in its command line."""
        command = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "sh", "secrets", "-c",
                   'for file; do cat "$file"; echo; done', "sh")  # fmt: skip
        paths = [f"/secrets/{path}" for path in ("valkey/password", "observability/otlp-token", "identity/service.key",
                                                 "keycloak/admin-password", "keycloak/alice-password")]  # fmt: skip
        held = [part for part in stack.compose(*command, *paths).split() if len(part) > 20]
        assert len(held) >= 4
        said = stack.compose("config") + "".join(
            json.dumps(stack.inspect(service)) for service in ("valkey", "keycloak", "collector", "guard", *PLANES)
        )
        assert [secret[:4] for secret in held if secret in said] == []

    def test_the_planes_answer_at_the_edge_and_their_inner_listeners_do_not(self, stack: ComposeStack) -> None:
        for path, status in (("/edge", 204), ("/healthz", 200), ("/readyz", 200), ("/ports/keys", 404), ("/", 404)):
            assert abs(answered(f"{stack.url}{path}") - status) <= 3, path  # 401, 403 or 404: refused
        assert answered(f"{stack.url}/edge") == 204


def answered(url: str) -> int:
    try:
        with urlopen(url, timeout=20) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


class TestAsUsed:
    def test_the_scenario_runs_as_it_does_embedded(self, stack: ComposeStack, tmp_path: Path) -> None:
        """OBS-1, GOV-1, GOV-7, OBS-3, MEM-2: `make demo-compose`, which asserts each step from outside: the trace has
        it, the audit has it, the policy refused it, the budget stopped it."""
        ran = subprocess.run(
            [sys.executable, "examples/demo_compose.py", "--no-build", "--data-dir", tmp_path],
            cwd=REPOSITORY, env=stack.environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert ran.returncode == 0, f"{ran.stdout[-6000:]}{ran.stderr[-3000:]}"
        assert "Everything was right." in ran.stdout and "WRONG" not in ran.stdout

    def test_the_edge_changes_and_holds_back_nothing(self, application: Application, agent: str) -> None:
        """EXE-2: large bodies in, streams out piece by piece, ARNs in paths as they were signed."""
        session = str(uuid.uuid4())
        assert application.invoke(agent, session, text="x" * 20_000_000)["size"] == 20_000_000
        answer = application.data.invoke_agent_runtime(
            agentRuntimeArn=agent, runtimeSessionId=session, runtimeUserId="alice", payload=b'{"pieces": 4}'
        )
        delays = []
        for line in answer["response"].iter_lines(chunk_size=1):
            if line.startswith(b"data: "):
                delays.append(time.time() - json.loads(line[6:])["at"])
        assert len(delays) == 4 and max(delays) < 0.4, delays
        assert application.control.list_tags_for_resource(resourceArn=agent)["tags"] == {}
        application.control.tag_resource(resourceArn=agent, tags={"a b/c:@": "d+e=f"})
        assert application.control.list_tags_for_resource(resourceArn=agent)["tags"]["a b/c:@"] == "d+e=f"
        application.stop(agent, session)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    async def test_checkpoints_conform(self, application: Application) -> None:
        """MEM-1. LangGraph's suite, in both of the saver's formats, through the edge and on this Valkey."""
        operator = application.operator
        created = application.control.create_memory(name=f"m{uuid.uuid4().hex[:8]}", eventExpiryDuration=7)
        for checkpoint_format in FORMATS:
            await conforms(
                created["memory"]["id"],
                checkpoint_format,
                endpoint_url=application.stack.url,
                region_name=operator["region"],
                aws_access_key_id=operator["accessKeyId"],
                aws_secret_access_key=operator["secretAccessKey"],
            )
        application.control.delete_memory(memoryId=created["memory"]["id"])

    def test_users_of_the_realm_are_users_of_the_platform(self, application: Application, stack: ComposeStack) -> None:
        """IDN-5: a token fetched outside is verified inside with the realm's keys; another audience is refused."""
        image = stack.engine.image("compose", {"main.py": AGENT}, packages=SDK)

        def authorizer(audience: str) -> dict[str, Any]:
            return {"customJWTAuthorizer": {"discoveryUrl": stack.discovery_url, "allowedAudience": [audience]}}

        ours = application.deploy(image, authorizerConfiguration=authorizer("agentkeep"))
        others = application.deploy(image, authorizerConfiguration=authorizer("another"))
        session = str(uuid.uuid4())
        assert bearer(stack, ours, stack.token("alice"), session)[0] == 200
        assert bearer(stack, ours, stack.token("bob"), session)[0] == 403  # it is Alice's
        assert bearer(stack, ours, stack.token("alice") + "x", session)[0] in (401, 403)
        assert bearer(stack, others, stack.token("alice"), str(uuid.uuid4()))[0] in (401, 403)
        application.stop(ours, session)

    def test_an_image_that_cannot_be_had_is_told_in_words(self, application: Application) -> None:
        """By the engine, through the proxy, to who deploys it."""
        with pytest.raises(AssertionError, match=r"no-such:1 is not on this machine"):
            application.deploy("127.0.0.1:9/no-such:1")


def bearer(stack: ComposeStack, arn: str, token: str, session: str) -> tuple[int, bytes]:
    from urllib.parse import quote
    from urllib.request import Request

    request = Request(
        f"{stack.url}/runtimes/{quote(arn, safe='')}/invocations",
        data=b"{}",
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": session,
        },
    )
    try:
        with urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


class TestAsAttacked:
    def test_twenty_sessions_leak_nothing(
        self,
        application: Application,
        stack: ComposeStack,
        host_port: int,  # noqa: F811
    ) -> None:
        """EXE-1, EXE-5: neither another session's, the planes', the stores', the host's nor the engine's anything."""
        arn = application.deploy(
            stack.engine.image("isolation", probe_files()),
            environmentVariables={"RES_OPTIONS": "timeout:1 attempts:1"},  # names fail either way; sooner so
        )
        services = [
            f"{network['IPAddress']}:{port}"
            for service, port in (("valkey", 6379), ("opensearch", 9200), ("identity", 8081), ("keycloak", 8080))
            for network in stack.inspect(service)["NetworkSettings"]["Networks"].values()
        ]
        beginning = f"secret-{secrets.token_hex(8)}-"
        names = [f"session-{number:02}-{secrets.token_hex(16)}" for number in range(SESSIONS)]
        tokens = [beginning + secrets.token_hex(16) for _ in names]
        neighbours = [f"neighbour-{number}-{secrets.token_hex(16)}" for number in range(2)]

        def plant(number: int) -> Any:
            own = {"name": names[number], "port": 22000 + number, "key": 0x5D000000 + number}
            return application.invoke(arn, names[number], do="plant", secret=masked(tokens[number]), **own)

        def attack(number: int) -> Any:
            others = [other for other in range(SESSIONS) if other != number]
            target = {
                "names": [names[other] for other in others],
                "pids": [os.getpid(), stack.engine.daemon.pid, stack.inspect("runtime")["State"]["Pid"]],
                "ports": [22000 + other for other in others],
                "keys": [0x5D000000 + other for other in others],
                "secrets": [masked(tokens[other]) for other in others],
                "own": planted[number]["own"],
                **around,
            }
            return application.invoke(arn, names[number], do="attack", where=["container"], target=target)

        before = containers_of_sessions(stack)
        with ThreadPoolExecutor(SESSIONS) as pool:
            for neighbour in neighbours:
                application.invoke(arn, neighbour, do="plant", name=neighbour, port=22900, key=1, secret=masked("x"))
            addresses = [self.address(stack, one) for one in containers_of_sessions(stack) - before]
            assert len(addresses) == len(neighbours)
            hosts = ["169.254.170.2", "169.254.171.254", *own_addresses()]
            around = {
                "addresses": addresses,
                "places": [*(f"{host}:{host_port}" for host in hosts), *services],
                "files": [str(stack.engine.socket)],
            }
            planted = list(pool.map(plant, range(SESSIONS)))
            results = list(pool.map(attack, range(SESSIONS)))
            for session in (*names, *neighbours):
                application.stop(arn, session)
        assert leaks(results) == {}
        assert all(len(result) >= 38 for result in results)
        assert containers_of_sessions(stack) == before

    @staticmethod
    def address(stack: ComposeStack, container: str) -> str:
        found = json.loads(stack.engine.docker("inspect", container))[0]
        return str(found["NetworkSettings"]["Networks"]["agentkeep-sessions"]["IPAddress"])

    def test_the_runtime_plane_does_not_own_the_machine(self, stack: ComposeStack) -> None:
        """Whoever takes it over finds the proxy, which refuses. (All refusals: tests/runtime/docker_guard.)"""
        program = (
            "import http.client, json, socket\n"
            "connection = http.client.HTTPConnection('docker')\n"
            "connection.sock = socket.socket(socket.AF_UNIX)\n"
            "connection.sock.connect('/run/agentkeep-docker/docker.sock')\n"
            "body = json.dumps({'Image': 'agentkeep:latest', 'HostConfig': {'Privileged': True, 'Binds': ['/:/h']}})\n"
            "connection.request('POST', '/v1.41/containers/create?name=agentkeep-0123456789abcdef', body)\n"
            "answer = connection.getresponse()\n"
            "print(answer.status, answer.read().decode())\n"
        )
        said = stack.compose("exec", "-T", "runtime", "python", "-c", program)
        assert said.startswith("403 ") and "proxy before the Docker socket" in said
        assert "refused" in stack.compose("logs", "guard")
        for service in ("gateway", "memory", "identity", "observability"):
            found = stack.compose("exec", "-T", service, "sh", "-c", "ls /run /var/run/docker.sock 2>&1 || true")
            assert "agentkeep-docker" not in found and "docker.sock: No such file" in found.replace("'", "")

    def test_without_the_firewall_service_no_session_starts(
        self, application: Application, agent: str, stack: ComposeStack
    ) -> None:
        """Fail closed: the rules may be there, but nobody says so."""
        stack.compose("stop", "firewall")
        try:
            until(lambda: answered(f"{stack.url}/readyz") == 503, 15, "the runtime plane tells it is not ready")
            with pytest.raises(application.data.exceptions.RuntimeClientError, match="firewall"):
                application.invoke(agent, str(uuid.uuid4()))
        finally:
            stack.compose("start", "firewall")
        until(lambda: answered(f"{stack.url}/readyz") == 200, 30, "the runtime plane is ready again")
        session = str(uuid.uuid4())
        assert application.invoke(agent, session)["session"] == session
        application.stop(agent, session)


class TestAsKilled:
    def test_killed_services_come_back_and_have_lost_nothing(
        self, application: Application, agent: str, stack: ComposeStack
    ) -> None:
        """EXE-6: the store, the runtime plane and the memory plane, by SIGKILL; the session's process goes on."""
        memory = application.control.create_memory(name=f"kept_{uuid.uuid4().hex[:8]}", eventExpiryDuration=30)
        asked = {"memoryId": memory["memory"]["id"], "actorId": "alice", "sessionId": "chat"}
        session = str(uuid.uuid4())
        before = application.invoke(agent, session, memory=asked)
        assert before["events"] == 0
        for number in range(5):
            application.data.create_event(**asked, eventTimestamp=time.time(), payload=[{"blob": {"number": number}}])
        for service in ("valkey", "runtime", "memory"):
            os.kill(stack.inspect(service)["State"]["Pid"], signal.SIGKILL)
        time.sleep(1)
        took = until(lambda: healthy(stack, "valkey", "runtime", "memory"), 120, "killed services are back")
        print(f"back after {took:.1f} s")
        after = application.invoke(agent, session, memory=asked)
        assert after == {**before, "events": 5}
        application.stop(agent, session)
