"""The proxy before the Docker socket, in front of a real engine: the driver works through it, and nothing else does."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from docker_engine import DockerEngine, docker_engine  # noqa: F401 -- a fixture

from agentkeep.core.errors import EnvironmentStartFailed
from agentkeep.runtime.docker_guard.__main__ import serving
from agentkeep.runtime.docker_guard.settings import DockerGuardSettings
from agentkeep.runtime.drivers.docker.container import configuration
from agentkeep.runtime.drivers.docker.driver import DockerDriver
from agentkeep.runtime.drivers.docker.engine import Engine
from agentkeep.runtime.drivers.docker.images import image_of
from agentkeep.runtime.drivers.docker.network import ensure_network
from agentkeep.runtime.drivers.docker.settings import DockerDriverSettings
from agentkeep.runtime.drivers.driver import Driver, Severity, VersionSpec
from agentkeep.testing.driver import AGENT, LIMITS, DriverContract, make_spec

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(600), pytest.mark.xdist_group("docker")]

NAME = "agentkeep-00000000000000aa"
STRANGER = "agentkeep-00000000000000bb"  # has such a name, and not the label


class Guarded:
    """The engine, and the proxy before it."""

    def __init__(self, engine: DockerEngine, listen: Path) -> None:
        self.engine = engine
        self.listen = listen
        self.settings = DockerDriverSettings(socket=listen)

    async def ask(self, method: str, path: str, body: Any = None, **parts: Any) -> tuple[int, str]:
        """Status and message, or text."""
        connector = aiohttp.UnixConnector(path=str(self.listen))
        async with aiohttp.ClientSession(connector=connector) as session:
            data = body if body is None or isinstance(body, bytes | io.BytesIO) else json.dumps(body).encode()
            async with session.request(method, f"http://docker{path}", data=data, **parts) as response:
                text = await response.text()
        return response.status, json.loads(text).get("message", text) if text.startswith("{") else text

    async def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes, until nothing more does."""
        reader, writer = await asyncio.open_unix_connection(str(self.listen))
        writer.write(data)
        answer = b""
        try:
            while piece := await asyncio.wait_for(reader.read(65536), 10 if not answer else 0.5):
                answer += piece
        except TimeoutError:
            pass
        writer.close()
        return answer


@pytest.fixture(scope="module")
async def guarded(
    docker_engine: DockerEngine,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Guarded]:
    listen = tmp_path_factory.mktemp("guard") / "docker.sock"
    engine = Engine(docker_engine.socket)
    await ensure_network(engine)
    await engine.close()
    settings = DockerGuardSettings(
        engine=docker_engine.socket, listen=listen, images="agentkeep-test/*, 127.0.0.1:9/*:1"
    )
    async with serving(settings, DockerDriverSettings(), LIMITS):
        yield Guarded(docker_engine, listen)


@pytest.fixture(scope="module")
def version(docker_engine: DockerEngine) -> VersionSpec:  # noqa: F811
    image = docker_engine.image("contract", {AGENT.name: AGENT.read_bytes()})
    return VersionSpec("contract", "1", image=image)


@pytest.fixture(scope="module")
async def driver(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DockerDriver]:
    driver = DockerDriver(tmp_path_factory.mktemp("state"), guarded.settings)
    yield driver
    assert driver.environments == []
    await driver.close()


class TestTheDriverBehindIt(DriverContract):
    async def test_an_entry_point_that_is_missing_is_told_before(self, driver: Driver, version: VersionSpec) -> None:
        """Of an image: it is pulled through the proxy, and the registry's answer comes back."""
        missing = VersionSpec("missing", "1", image="127.0.0.1:9/no-such:1")
        with pytest.raises(EnvironmentStartFailed, match=r"127\.0\.0\.1:9/no-such:1.*cannot be pulled: .*refused"):
            await driver.prepare(missing)

    async def test_an_image_that_is_not_allowed_is_refused_with_the_setting(self, driver: Driver) -> None:
        other = VersionSpec("other", "1", image="127.0.0.1:9/no-such:2")
        with pytest.raises(EnvironmentStartFailed, match="AGENTKEEP_DOCKER_GUARD_IMAGES"):
            await driver.prepare(other)

    async def test_the_doctor_finds_all_well(self, driver: Driver) -> None:
        findings = await driver.probe()
        assert [one for one in findings if one.severity is Severity.ERROR] == []


@pytest.fixture
async def body(guarded: Guarded, version: VersionSpec) -> dict[str, Any]:
    """What the driver would send for a session."""
    engine = Engine(guarded.engine.socket)
    found = await engine.image(version.image or "")
    await engine.close()
    assert found is not None
    spec = make_spec(version, {"TOKEN": "x"})
    return configuration(spec, image_of(found), "169.254.170.77", "0123456789abcdef", DockerDriverSettings())


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the body at a path of names."""

    def change(body: dict[str, Any]) -> None:
        *way, last = path.split("/")
        for name in way:
            body = body[name]
        body[last] = value

    return change


def left_out(path: str) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        *way, last = path.split("/")
        for name in way:
            body = body[name]
        del body[last]

    return change


TMPFS = "rw,exec,nosuid,nodev,mode=1777,size="
ENDPOINT = "NetworkingConfig/EndpointsConfig"
#: Each by itself leads out of the container, or is the first step.
ESCAPES: dict[str, Callable[[dict[str, Any]], None]] = {
    "privileged": put("HostConfig/Privileged", True),
    "privileged, in the engine's other spelling": put("HostConfig/privileged", True),
    "a second HostConfig, as Go reads names": put("hostconfig", {"Privileged": True, "Binds": ["/:/host"]}),
    "a second HostConfig, with a letter that Go folds": put("Ho\u017ftConfig", {"Privileged": True}),
    "the host's files": put("HostConfig/Binds", ["/:/host"]),
    "the host's files as a mount": put("HostConfig/Mounts", [{"Type": "bind", "Source": "/", "Target": "/host"}]),
    "the Docker socket": put("HostConfig/Binds", ["/var/run/docker.sock:/var/run/docker.sock"]),
    "a volume": put("Volumes", {"/data": {}}),
    "volumes of another container": put("HostConfig/VolumesFrom", ["agentkeep-valkey-1"]),
    "a volume driver": put("HostConfig/VolumeDriver", "local"),
    "a writable root": put("HostConfig/ReadonlyRootfs", False),
    "a tmpfs that overlays more": lambda body: body["HostConfig"]["Tmpfs"].update({"/etc": "rw"}),
    "a tmpfs with devices": lambda body: body["HostConfig"]["Tmpfs"].update({"/tmp": "rw,exec,dev,suid,size=33554432"}),
    "a tmpfs beyond the limit": lambda body: body["HostConfig"]["Tmpfs"].update({"/tmp": TMPFS + "99999999999"}),
    "a capability": put("HostConfig/CapAdd", ["SYS_ADMIN"]),
    "the capabilities there are": put("HostConfig/CapDrop", []),
    "no seccomp": put("HostConfig/SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
    "new privileges": lambda body: body["HostConfig"]["SecurityOpt"].remove("no-new-privileges"),
    "no AppArmor": lambda body: body["HostConfig"]["SecurityOpt"].append("apparmor=unconfined"),
    "a device": put("HostConfig/Devices", [{"PathOnHost": "/dev/sda", "PathInContainer": "/dev/sda"}]),
    "device rules": put("HostConfig/DeviceCgroupRules", ["a *:* rwm"]),
    "a graphics card": put("HostConfig/DeviceRequests", [{"Count": -1}]),
    "the host's processes": put("HostConfig/PidMode", "host"),
    "another container's processes": put("HostConfig/PidMode", "container:agentkeep-gateway-1"),
    "the host's memory": put("HostConfig/IpcMode", "host"),
    "the host's name": put("HostConfig/UTSMode", "host"),
    "the host's users": put("HostConfig/UsernsMode", "host"),
    "the host's control groups": put("HostConfig/CgroupnsMode", "host"),
    "a control group of one's choice": put("HostConfig/CgroupParent", "/"),
    "the host's network": put("HostConfig/NetworkMode", "host"),
    "another container's network": put("HostConfig/NetworkMode", "container:agentkeep-identity-1"),
    "the default network": put("HostConfig/NetworkMode", "default"),
    "a second network": put(f"{ENDPOINT}/agentkeep_internal", {}),
    "the platform's address": put(f"{ENDPOINT}/agentkeep-sessions/IPAMConfig/IPv4Address", "169.254.170.2"),
    "a replica's address": put(f"{ENDPOINT}/agentkeep-sessions/IPAMConfig/IPv4Address", "169.254.171.241"),
    "an owner that is no name": put("Labels/agentkeep.owner", "replica-1\n169.254.170.77"),
    "an address of another network": put(f"{ENDPOINT}/agentkeep-sessions/IPAMConfig/IPv4Address", "172.17.0.2"),
    "an alias of a service": put(f"{ENDPOINT}/agentkeep-sessions/Aliases", ["valkey"]),
    "a resolver": put("HostConfig/Dns", ["8.8.8.8"]),
    "links": put("HostConfig/Links", ["agentkeep-valkey-1:valkey"]),
    "a published port": put("HostConfig/PortBindings", {"8080/tcp": [{"HostPort": "80"}]}),
    "kernel settings": put("HostConfig/Sysctls", {"net.ipv4.ip_forward": "1"}),
    "the kernel's masked files": put("HostConfig/MaskedPaths", []),
    "the kernel's read-only files": put("HostConfig/ReadonlyPaths", []),
    "another OCI runtime": put("HostConfig/Runtime", "io.containerd.runhcs.v1"),
    "a restart policy": put("HostConfig/RestartPolicy", {"Name": "always"}),
    "a log driver that connects": put("HostConfig/LogConfig", {"Type": "syslog", "Config": {"syslog-address": "udp://1.2.3.4"}}),
    "no memory limit": put("HostConfig/Memory", 0),
    "a memory limit left out": left_out("HostConfig/Memory"),
    "more memory than a session has": put("HostConfig/Memory", 1 << 40),
    "swap without limit": put("HostConfig/MemorySwap", -1),
    "no limit on processes": put("HostConfig/PidsLimit", 0),
    "no limit on processors": put("HostConfig/NanoCpus", 0),
    "limits as text": put("HostConfig/NanoCpus", "2000000000"),
    "a number that is none": put("HostConfig/NanoCpus", float("nan")),
    "being killed last": put("HostConfig/OomScoreAdj", -1000),
    "not being killed": put("HostConfig/OomKillDisable", True),
    "real time": put("HostConfig/CpuRealtimeRuntime", 950000),
    "more descriptors": put("HostConfig/Ulimits", [{"Name": "nofile", "Soft": 1 << 20, "Hard": 1 << 20}]),
    "root": put("User", "0:0"),
    "a user of the host": put("User", "1000:1000"),
    "another session's user": put("User", "1761607758:1761607758"),
    "a program of its own": put("Entrypoint", ["/bin/sh", "-c", "id"]),
    "arguments": put("Cmd", ["--debug"]),
    "a health check, which runs beside it": put("Healthcheck", {"Test": ["CMD", "id"]}),
    "an open input": put("OpenStdin", True),
    "a terminal": put("Tty", True),
    "an image by a name that may move": put("Image", "agentkeep-test/contract"),
    "no label": put("Labels", {}),
    "a label of Compose": put("Labels/com.docker.compose.project", "agentkeep"),
    "a label that is the network's": put("Labels/agentkeep", "sessions"),
    "a probe that runs something else": lambda body: body.update(Labels={"agentkeep": "probe"}, Entrypoint=["sh"]),
    "a variable twice": put("Env", ["A=1", "A=2"]),
    "a variable without a name": put("Env", ["=1"]),
    "half a character": put("Env", ["A=\ud800"]),
    "no HostConfig": left_out("HostConfig"),
    "HostConfig as a list": put("HostConfig", []),
    "nothing": lambda body: body.clear(),
}  # fmt: skip


@pytest.mark.parametrize("escape", ESCAPES)
async def test_no_container_is_made_otherwise_than_a_session(
    guarded: Guarded, body: dict[str, Any], escape: str
) -> None:
    """EXE-5: a runtime plane that is taken over does not own the machine."""
    changed = copy.deepcopy(body)
    ESCAPES[escape](changed)
    assert changed != body or "none" in escape
    status, message = await guarded.ask("POST", f"/v1.41/containers/create?name={NAME}", changed)
    assert (status, message[:32]) == (403, "refused by agentkeep's proxy bef"), message
    assert guarded.engine.docker("ps", "-aq", "--filter", "name=agentkeep-0") == ""


async def test_the_unchanged_body_passes(guarded: Guarded, body: dict[str, Any]) -> None:
    """Else being refused would prove nothing. What the engine gets is the same."""
    assert (await guarded.ask("POST", f"/v1.41/containers/create?name={NAME}", body))[0] == 201
    try:
        made = json.loads(guarded.engine.docker("inspect", NAME))[0]
        assert made["Config"]["Labels"] == body["Labels"]
        assert made["HostConfig"]["Memory"] == body["HostConfig"]["Memory"]
    finally:
        assert (await guarded.ask("DELETE", f"/v1.41/containers/{NAME}?force=true&v=true"))[0] == 204


async def test_names_given_twice_mean_what_was_checked(guarded: Guarded, body: dict[str, Any]) -> None:
    """The engine is sent what the proxy made, not what it was sent: a difference in reading JSON leads nowhere."""
    text = json.dumps(body)
    twice = '{"HostConfig": {"Privileged": true, "Binds": ["/:/host"]}, ' + text[1:]
    status, _ = await guarded.ask("POST", f"/v1.41/containers/create?name={NAME}", twice.encode())
    assert status == 201
    try:
        made = json.loads(guarded.engine.docker("inspect", NAME))[0]
        assert not made["HostConfig"]["Privileged"] and not made["HostConfig"]["Binds"]
    finally:
        await guarded.ask("DELETE", f"/v1.41/containers/{NAME}?force=true&v=true")


CALLS = [
    ("GET", "/containers/json"),
    ("GET", "/containers/json?all=true"),
    ("GET", "/containers/json?all=true&filters=%7B%7D"),
    ("GET", '/containers/json?all=true&filters={"label":["agentkeep"]}'),
    ("GET", '/containers/json?all=true&filters={"label":["agentkeep=session"]}&size=true'),
    ("POST", f"/containers/{NAME}/exec"),
    ("POST", "/exec/0123/start"),
    ("GET", f"/containers/{NAME}/archive?path=/"),
    ("PUT", f"/containers/{NAME}/archive?path=/"),
    ("HEAD", f"/containers/{NAME}/archive?path=/"),
    ("GET", f"/containers/{NAME}/export"),
    ("GET", f"/containers/{NAME}/logs?stdout=true"),
    ("GET", f"/containers/{NAME}/top"),
    ("POST", f"/containers/{NAME}/update"),
    ("POST", f"/containers/{NAME}/rename?name=x"),
    ("POST", f"/containers/{NAME}/pause"),
    ("POST", f"/containers/{NAME}/attach?stream=true&stdin=true&stdout=true"),
    ("POST", f"/containers/{NAME}/attach?stream=true&stdout=true&stderr=true&stdin=true"),
    ("GET", f"/containers/{NAME}/attach/ws?stream=true"),
    ("POST", f"/containers/{NAME}/start?checkpoint=x"),
    ("POST", f"/containers/{NAME}/kill?signal=SIGUSR1"),
    ("POST", f"/containers/{NAME}/kill?signal=SIGKILL&signal=SIGTERM"),
    ("POST", "/containers/prune"),
    ("POST", "/commit?container=x"),
    ("POST", "/build"),
    ("POST", "/build?remote=https://example.com/x.git"),
    ("POST", "/auth"),
    ("POST", "/session"),
    ("POST", "/grpc"),
    ("GET", "/events"),
    ("GET", "/system/df"),
    ("GET", "/_ping"),
    ("GET", "/images/json"),
    ("GET", "/images/get?names=agentkeep"),
    ("GET", "/images/agentkeep/get"),
    ("POST", "/images/load"),
    ("POST", "/images/agentkeep/push"),
    ("POST", "/images/prune"),
    ("DELETE", "/images/agentkeep:latest"),
    ("DELETE", "/images/valkey/valkey:9.1?force=true"),
    ("POST", "/images/create?fromImage=example.com/miner:1"),
    ("POST", "/images/create?fromImage=127.0.0.1:9/no-such"),
    ("POST", "/images/create?fromImage=127.0.0.1:9/x:1&platform=windows"),
    ("POST", "/images/create?fromSrc=https://example.com/x.tar&repo=agentkeep-probe&tag=latest"),
    ("POST", "/images/create?fromSrc=-&repo=agentkeep&tag=latest"),
    ("POST", "/images/create?fromSrc=-&repo=agentkeep-probe&tag=latest&changes=USER%20root"),
    ("POST", f"/images/sha256:{'0' * 64}/tag?repo=valkey/valkey&tag=9.1"),
    ("POST", f"/images/sha256:{'0' * 64}/tag?repo=agentkeep-version&tag=a/b"),
    ("GET", "/networks"),
    ("GET", "/networks/bridge"),
    ("GET", "/networks/agentkeep-sessions?verbose=true"),
    ("POST", "/networks/create"),
    ("POST", "/networks/agentkeep-sessions/connect"),
    ("POST", "/networks/agentkeep-sessions/disconnect"),
    ("DELETE", "/networks/agentkeep-sessions"),
    ("POST", "/networks/prune"),
    ("GET", "/volumes"),
    ("POST", "/volumes/create"),
    ("GET", "/plugins"),
    ("POST", "/plugins/pull?remote=x"),
    ("POST", "/swarm/init"),
    ("GET", "/secrets"),
    ("POST", "/services/create"),
    ("GET", "/distribution/alpine/json"),
    ("GET", "/debug/pprof/heap"),
    ("OPTIONS", "/info"),
    ("TRACE", "/info"),
]


@pytest.mark.parametrize("prefix", ["", "/v1.41"])
async def test_no_other_call_passes(guarded: Guarded, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """Unknown methods, paths and parameters are refused, with a reason, and logged."""
    answers = {}
    with caplog.at_level(logging.WARNING):
        for method, path in CALLS:
            answers[f"{method} {path}"] = (await guarded.ask(method, prefix + path))[0]
    assert {call: status for call, status in answers.items() if status != 403} == {}
    assert len([record for record in caplog.records if record.message.startswith("refused: ")]) == len(CALLS)


PATHS = [
    b"/v1.41/info/",
    b"//v1.41/info",
    b"/v1.41//info",
    b"/v1.41/./info",
    b"/v1.41/networks/agentkeep-sessions/../bridge",
    b"/v1.41/networks/agentkeep-sessions%2f..%2fbridge",
    b"/v1.41/containers/agentkeep-00000000000000aa%2fexec",
    b"/v1.41/containers/agentkeep-00000000000000aa/../../images/json",
    b"/v1.41/images/a/../../containers/json",
    b"/v1.41/%69nfo",
    b"/v1.41/info%00",
    b"/v1.41/info#x",
    b"/v1.41/info;x",
    b"/v1.40/info",
    b"/v1.48/info",
    b"/v99.9/info",
    b"/V1.41/INFO",
    b"http://docker/v1.41/info",
    b"unix:///var/run/docker.sock/info",
    b"*",
]


@pytest.mark.parametrize("path", PATHS, ids=repr)
async def test_a_path_is_read_one_way_only(guarded: Guarded, path: bytes) -> None:
    answer = await guarded.raw(b"GET " + path + b" HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")
    assert answer[9:12] in (b"400", b"403"), answer[:200]


INNER = b"POST /v1.41/containers/prune HTTP/1.1\r\nHost: docker\r\n\r\n"
SMUGGLED = {
    "two lengths": b"GET /v1.41/info HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\nContent-Length: %d\r\n\r\n%s",
    "a length and chunks": b"POST /v1.41/containers/create?name=agentkeep-00000000000000aa HTTP/1.1\r\nHost: d\r\n"
    b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s",
    "a coding that hides": b"POST /v1.41/containers/prune HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: xchunked\r\n"
    b"Content-Length: %d\r\n\r\n%s",
    "a space before the colon": b"GET /v1.41/info HTTP/1.1\r\nHost: d\r\nContent-Length : %d\r\n\r\n%s",
    "a folded header": b"GET /v1.41/info HTTP/1.1\r\nHost: d\r\nX: y\r\n Content-Length: %d\r\n\r\n%s",
    "a bare line feed": b"GET /v1.41/info HTTP/1.1\nHost: d\nContent-Length: %d\n\n%s",
    "a chunk's size too large": b"POST /v1.41/containers/create?name=agentkeep-00000000000000aa HTTP/1.1\r\nHost: d\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF%d\r\n%s",
    "an upgrade": b"GET /v1.41/info HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    b"Content-Length: %d\r\n\r\n%s",
    "a tunnel": b"CONNECT docker:80 HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n%s",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n%d%s",
}


@pytest.mark.parametrize("trick", SMUGGLED)
async def test_no_request_hides_in_another(guarded: Guarded, trick: str) -> None:
    """Whatever is made of it, nothing but refusals and errors is answered, and the engine does nothing."""
    bystander = guarded.engine.docker("create", "--name", "bystander", guarded_image(guarded))
    try:
        answer = await guarded.raw(SMUGGLED[trick] % (len(INNER), INNER))
        statuses = [line.split(b" ")[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")]
        assert statuses and set(statuses) <= {b"400", b"403"}, answer
        assert bystander[:12] in guarded.engine.docker("ps", "-aq")
    finally:
        guarded.engine.docker("rm", "-f", "bystander")


def guarded_image(guarded: Guarded) -> str:
    return guarded.engine.image("contract", {AGENT.name: AGENT.read_bytes()})


async def test_containers_of_others_are_out_of_reach(guarded: Guarded) -> None:
    """Those of the platform's own services, say: whatever their name, without the label nothing is done to them."""
    guarded.engine.docker("create", "--name", STRANGER, "--label", "agentkeep=service", guarded_image(guarded))
    try:
        calls = [("GET", "/json"), ("POST", "/start"), ("POST", "/kill?signal=SIGKILL"), ("POST", "/wait")]
        calls += [("POST", "/attach?stream=true&stdout=true&stderr=true"), ("DELETE", "?force=true&v=true")]
        for method, rest in calls:
            status, message = await guarded.ask(method, f"/v1.41/containers/{STRANGER}{rest}")
            assert status == 403 and "is not a session's" in message, (method, rest)
        for name in ("agentkeep-valkey-1", "bystander", guarded.engine.docker("ps", "-aq", "--no-trunc").split()[0]):
            status, message = await guarded.ask("GET", f"/v1.41/containers/{name}/json")
            assert status == 403 and "not one of the driver's calls" in message
    finally:
        guarded.engine.docker("rm", "-f", STRANGER)


async def test_an_image_that_is_not_allowed_is_not_run(guarded: Guarded, body: dict[str, Any]) -> None:
    """Though it is on the machine, as the platform's own are."""
    image = guarded_image(guarded)
    guarded.engine.docker("import", "--change", "CMD x", "-", "private/secrets:1", given=b"\0" * 10240)
    try:
        private = json.loads(guarded.engine.docker("image", "inspect", "private/secrets:1"))[0]["Id"]
        for call in (("GET", "/v1.41/images/private/secrets:1/json"), ("GET", f"/v1.41/images/{private}/json")):
            assert (await guarded.ask(*call))[0] == 403
        tagging = f"/v1.41/images/{private}/tag?repo=agentkeep-version&tag=x.1"
        assert (await guarded.ask("POST", tagging))[0] == 403
        status, message = await guarded.ask("POST", f"/v1.41/containers/create?name={NAME}", {**body, "Image": private})
        assert status == 403 and "AGENTKEEP_DOCKER_GUARD_IMAGES" in message
        assert (await guarded.ask("GET", f"/v1.41/images/{image}/json"))[0] == 200
    finally:
        guarded.engine.docker("rmi", "private/secrets:1")


async def test_bodies_without_end_are_cut_off(guarded: Guarded) -> None:
    status, message = await guarded.ask("POST", f"/v1.41/containers/create?name={NAME}", io.BytesIO(b"[" * (2 << 20)))
    assert status == 403 and "longer than" in message
    status, _ = await guarded.ask("POST", f"/v1.41/containers/create?name={NAME}", b"[" * 100_000)
    assert status == 403
    status, message = await guarded.ask(
        "POST", "/images/create?fromSrc=-&repo=agentkeep-probe&tag=latest", b"x" * 20480
    )
    assert status == 403


async def test_an_engine_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    """The driver waits for it to be back, as it does without the proxy."""
    settings = DockerGuardSettings(engine=tmp_path / "none.sock", listen=tmp_path / "guard.sock", images="*")
    async with serving(settings, DockerDriverSettings(), LIMITS):
        engine = Engine(settings.listen)
        with pytest.raises(Exception, match="does not answer") as caught:
            await engine.version()
        assert type(caught.value).__name__ == "EngineUnavailable"
        await engine.close()
        assert oct(settings.listen.stat().st_mode)[-3:] == "660"
