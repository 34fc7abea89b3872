"""An agent in a real sandbox, its unmodified boto3, and AWS outside of it: reached as its user, and nothing else."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from platform_process import PlatformProcess, running_platform
from sts_stand_in import ACCOUNT, StsStandIn, running_sts
from tls_front import tls_front

pytestmark = [pytest.mark.slow, pytest.mark.sandbox, pytest.mark.timeout(300)]

AGENT = Path(__file__).parents[1] / "agents" / "abroad"
#: A name of this machine's that is not localhost: clients go to that without a proxy.
HOST = socket.gethostname()


class Sink:
    """Takes what is sent, and says how much came."""

    def __init__(self) -> None:
        self.bytes = 0
        self.lost = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                self.bytes += len(data)
        except OSError:
            pass
        finally:
            self.lost += 1
            writer.close()


@contextmanager
def behind_tls(port: int, sink: Sink, folder: Path) -> Iterator[tuple[int, int]]:
    """AWS and the sink at `HOST`, with a certificate of their own (folder/tls.pem). Their ports."""
    ready: list[tuple[int, int]] = []
    started, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        at = socket.gethostbyname(HOST)
        server = await asyncio.start_server(sink.serve, "127.0.0.1", 0)
        async with (
            tls_front(HOST, port, folder, at=at) as aws,
            tls_front(HOST, server.sockets[0].getsockname()[1], folder, folder / "tls.pem", at) as other,
        ):
            ready.append((aws.port, other.port))
            started.set()
            await stop.wait()
        server.close()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        assert started.wait(10)
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@dataclass
class Stand:
    platform: PlatformProcess
    sink: Sink
    aws: str
    sink_port: int
    closed_port: int
    runtimes: dict[str, str]

    def token(self, user: str) -> str:
        return str(self.platform.json("login", "--user", user)["access_token"])

    def ask(self, agent: str, token: str, session: str, do: str, **given: Any) -> dict[str, Any]:
        answer = httpx.post(
            f"{self.platform.endpoint}/runtimes/{quote(self.runtimes[agent], safe='')}/invocations",
            headers={
                "authorization": f"Bearer {token}",
                "x-amzn-bedrock-agentcore-runtime-session-id": session,
            },
            json={"do": do, **given},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Sessions get their users' keys from STS, and the agent `helper` reaches AWS (a stand-in) and a sink."""
    try:
        socket.gethostbyname(HOST)
    except OSError:
        pytest.skip("this machine's own name does not resolve")
    folder = tmp_path_factory.mktemp("egress")
    sink = Sink()
    with running_sts() as sts, socket.socket() as closed, behind_tls(_port(sts), sink, folder) as (aws, other):
        closed.bind(("127.0.0.1", 0))
        bundle = folder / "agent"
        shutil.copytree(AGENT, bundle)
        pem = (folder / "tls.pem").read_bytes()
        (bundle / "ca.pem").write_bytes(pem[pem.index(b"-----BEGIN CERTIFICATE") :])
        port = _free_port()
        issuer = f"http://127.0.0.1:{port}/oidc"
        role = f"arn:aws:iam::{ACCOUNT}:role/helper"
        (folder / "sts.json").write_text(
            json.dumps(
                {
                    "rules": [{"name": "helpers", "agents": ["*"], "issuer": issuer, "role": role}],
                    "default": "refuse",
                }
            )
        )
        hosts = [f"{HOST}:{aws}", f"{HOST}:{other}"]
        addresses = sorted({place[4][0] for place in socket.getaddrinfo(HOST, None)})
        networks = [f"{address}/{128 if ':' in str(address) else 32}" for address in addresses]
        rule = {"name": "AWS", "agents": ["helper"], "hosts": hosts, "networks": ["127.0.0.0/8", *networks]}
        (folder / "egress.json").write_text(json.dumps({"rules": [rule], "default": "refuse"}))
        sts.trust(issuer, "agentkeep")
        sts.role("helper", issuer, {"StringEquals": {"{idp}:sub": ["alice", "bob"]}})
        settings = {
            "AGENTKEEP_IDENTITY_STS_RULES": str(folder / "sts.json"),
            "AGENTKEEP_IDENTITY_STS_ENDPOINT": sts.url,
            "AGENTKEEP_RUNTIME_EGRESS_RULES": str(folder / "egress.json"),
        }
        with running_platform(folder / "data", port=port, **settings) as platform:
            runtimes = {
                name: platform.json("deploy", str(bundle), "--name", name)["agentRuntimeArn"]
                for name in ("helper", "stranger")
            }
            url = f"https://{HOST}:{aws}"
            yield Stand(platform, sink, url, other, closed.getsockname()[1], runtimes)


def _port(sts: StsStandIn) -> int:
    return int(sts.url.rpartition(":")[2])


def test_an_agents_boto3_acts_as_its_user_in_aws(stand: Stand) -> None:
    """IDN-1: unmodified boto3 in the sandbox, with the keys from its credentials endpoint, is its user's role session
    to AWS (which verifies the signature); two users are two; each way out is on record."""
    principals = {}
    for user in ("alice", "bob"):
        session, token = str(uuid.uuid4()), stand.token(user)
        said = stand.ask("helper", token, session, "identity", url=stand.aws)
        assert "arn" in said, said
        principals[user] = said["arn"]
        assert said["arn"].startswith(f"arn:aws:sts::{ACCOUNT}:assumed-role/helper/{user}+helper+")
        assert stand.ask("helper", token, session, "identity", url=stand.aws) == said
    assert principals["alice"] != principals["bob"]
    records = stand.platform.json("audit", "--kind", "egress-opened")["records"]
    assert {"alice", "bob"} <= {record["user_id"] for record in records}
    assert {record["details"]["host"] for record in records} == {HOST}
    assert {record["details"]["rule"] for record in records} == {"AWS"}


def test_nothing_else_is_reached(stand: Stand) -> None:
    """IDN-2: no other host, no other port, no other agent, no address, and no way beside the proxy; the agent is told,
    and it is on record."""
    token = stand.token("alice")
    session = str(uuid.uuid4())
    for url in ("https://elsewhere.example/", f"https://{HOST}:{stand.closed_port}/", "https://169.254.169.254/latest"):
        said = stand.ask("helper", token, session, "fetch", url=url)
        assert "403 No rule of AGENTKEEP_RUNTIME_EGRESS_RULES lets this agent reach" in said["error"], said
    said = stand.ask("helper", token, session, "identity", url="https://elsewhere.example")
    assert "ProxyConnectionError" in said["error"], said
    assert "error" in stand.ask("helper", token, session, "directly", host=HOST, port=stand.sink_port)
    assert "error" in stand.ask("helper", token, session, "directly", host="127.0.0.1", port=stand.sink_port)

    own = str(uuid.uuid4())
    assert stand.ask("stranger", token, own, "proxies") == {}
    assert "error" in stand.ask("stranger", token, own, "identity", url=stand.aws)
    said = stand.ask("stranger", token, own, "stay", host=HOST, port=stand.sink_port)
    assert "error" in said, said
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        refused = stand.platform.json("audit", "--kind", "egress-refused")["records"]
        if len({record["session"]["runtime_id"] for record in refused}) == 2:
            break
    assert {record["details"]["code"] for record in refused} == {"NoRule"}


def test_a_tunnel_ends_with_its_session(stand: Stand) -> None:
    """IDN-4: what the session had open outside is dead with it."""
    token, session = stand.token("alice"), str(uuid.uuid4())
    sink = stand.sink
    before, lost = sink.bytes, sink.lost
    said = stand.ask("helper", token, session, "stay", host=HOST, port=stand.sink_port)
    assert "200 Connection established" in said.get("status", ""), said
    _until(lambda: sink.bytes > before + 3)
    assert sink.lost == lost
    data = stand.platform.client("bedrock-agentcore")
    data.stop_runtime_session(agentRuntimeArn=stand.runtimes["helper"], runtimeSessionId=session)
    _until(lambda: sink.lost == lost + 1)
    came = sink.bytes
    time.sleep(0.3)
    assert sink.bytes == came


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
