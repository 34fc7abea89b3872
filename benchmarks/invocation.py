"""What the platform adds to a warm invocation: latency, CPU, throughput; beside nginx as a plain proxy.

Three processes: a light agent (httptools, so that the platform's share is what is seen), the platform with its real
runtime plane, keys and store, and this one, which asks both in turn with the same signed bytes, boto3's headers
included. Rounds alternate, and every figure of the platform stands beside one of the agent asked directly, and one of
nginx, which looks at nothing, in the same run. Every call is traced, as in embedded mode (TRACED=0: none, to see its
price). Only the sandbox is left out: it is not on the path of a warm call. Times in microseconds unless named
otherwise.

    python benchmarks/invocation.py [seconds per measurement]

Aims: less than 100 us of the platform's CPU for a warm signed call, less than 0.3 ms added at the median.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httptools
import uvloop
from _history import keep
from _nginx import Nginx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core import telemetry_export
from agentkeep.core.call import Call, Caller, CallerKind
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.observability.budget import SessionBudgets
from agentkeep.observability.span_queue import SpanQueue
from agentkeep.observability.spans_sqlite import SqliteSpanStore
from agentkeep.runtime.agents.artifacts import FolderArtifactStore
from agentkeep.runtime.drivers.driver import Connection, EnvironmentSpec, Exit, Finding, VersionSpec
from agentkeep.runtime.operations import RuntimePlane
from agentkeep.runtime.pump import InvocationRoute
from agentkeep.runtime.settings import RuntimeSettings
from agentkeep.service.application import Application
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

BODY = b'{"prompt":"' + b"x" * 300 + b'"}'
STREAM = b'{"stream":50}'
ROUNDS = 8

# The agent.


class Agent(asyncio.Protocol):
    """Answers POST with a small JSON document, or with fifty events that say when they were sent."""

    transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.body == STREAM:
            self.streaming = asyncio.get_running_loop().create_task(self.stream())
            return
        answer = b'{"status":"Healthy","result":"' + b"y" * 200 + b'"}'
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer)
        )

    async def stream(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(50):
            await asyncio.sleep(0.01)
            event = b"data: %d %b\n\n" % (time.monotonic_ns(), b"t" * 40)
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.transport.write(b"0\r\n\r\n")


async def agent() -> None:
    server = await asyncio.get_running_loop().create_server(Agent, "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


# The platform.


class LoopbackConnection:
    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    def release(self) -> None:
        pass


class LoopbackEnvironment:
    def __init__(self, port: int) -> None:
        self.id = secrets.token_hex(8)
        self._port = port
        self._gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def connect(self, timeout: float, port: int | None = None) -> Connection:
        connected = socket.socket()
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", self._port))
        return LoopbackConnection(connected)

    async def stop(self, grace: float) -> Exit:
        if not self._gone.done():
            self._gone.set_result(Exit(0, "stopped"))
        return self._gone.result()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._gone)


class LoopbackDriver:
    """Every environment is the one agent."""

    name = "loopback"

    def __init__(self, port: int) -> None:
        self._port = port

    async def probe(self) -> Sequence[Finding]:
        return ()

    async def prepare(self, version: VersionSpec) -> None:
        pass

    async def start(self, spec: EnvironmentSpec) -> LoopbackEnvironment:
        return LoopbackEnvironment(self._port)

    async def adopt(self) -> Sequence[LoopbackEnvironment]:
        return ()

    async def take_over(self, replica: str) -> Sequence[LoopbackEnvironment]:
        return ()

    async def retire(self, runtime_id: str, version: str) -> None:
        pass

    async def close(self) -> None:
        pass


async def serve(agent_port: int, folder: Path) -> None:
    deployment, clock = Deployment(), SystemClock()
    async with EmbeddedValkey(folder / "valkey") as valkey:
        store = ValkeyKeyValueStore(valkey.url)
        if os.environ.get("TRACED", "1") == "1":
            telemetry_export.start("agentkeep", SpanQueue(SqliteSpanStore(folder / "spans.db")))
        identity = IdentityPlane(store, FileMasterKey(secrets.token_bytes(32)), deployment, clock, IdentitySettings())
        runtime = RuntimePlane(
            store,
            deployment,
            clock,
            LoopbackDriver(agent_port),
            FolderArtifactStore(folder / "artifacts"),
            identity.keys,
            identity.authorizers,
            identity.workload_tokens,
            SessionBudgets(store, clock, default=None),
            lambda session: front.protocol(session),
            RuntimeSettings(),
            folder / "runtime",
            key_service=LocalKeyService(secrets.token_bytes(32)),
        )
        authenticator = Authenticator(identity.keys, clock)
        application = Application(Router(), Switch(SelfBackend([runtime, identity])), authenticator)
        front = Front(application, [InvocationRoute(runtime.invocations, authenticator)])
        server = Server(front)
        await server.start()
        await runtime.start()
        key = await identity.keys.issue_operator_key("benchmark", acts_for_users=True)
        arn = await deploy(runtime, FolderArtifactStore(folder / "artifacts"))
        print(json.dumps({"port": server.port, "key": key.id, "secret": key.secret, "arn": arn}), flush=True)
        await asyncio.Event().wait()


async def deploy(runtime: RuntimePlane, artifacts: FolderArtifactStore) -> str:
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("main.py", "")

    async def pieces() -> AsyncIterator[bytes]:
        yield bundle.getvalue()

    await artifacts.put("code", "agent.zip", pieces(), 1 << 20)
    call = Call(
        "bedrock-agentcore-control",
        "",
        Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/benchmark", acts_for_users=True),
        "r",
    )
    code = {"code": {"s3": {"bucket": "code", "prefix": "agent.zip"}}, "runtime": "PYTHON_3_11"}
    made = await runtime.create_agent_runtime(
        call,
        {
            "agentRuntimeName": "benchmark",
            "agentRuntimeArtifact": {"codeConfiguration": {**code, "entryPoint": ["main.py"]}},
            "roleArn": "arn:aws:iam::000000000000:role/agents",
            "networkConfiguration": {"networkMode": "PUBLIC"},
        },
    )
    while True:
        found = await runtime.get_agent_runtime(call, {"agentRuntimeId": made["agentRuntimeId"]})
        if found["status"] == "READY":
            return str(found["agentRuntimeArn"])
        assert found["status"] == "CREATING", found
        await asyncio.sleep(0.05)


# The client.


@dataclass
class Target:
    """Somewhere to send invocations to; `pids` are whose CPU is counted, `sessions` a part of its sessions' names."""

    port: int
    pids: Sequence[int]
    host: str
    arn: str
    credentials: Credentials
    sessions: str = "session"

    def request(self, number: int, body: bytes) -> bytes:
        """As boto3 sends it, signed for the platform wherever it goes."""
        path = f"/runtimes/{quote(self.arn, safe='')}/invocations?qualifier=DEFAULT"
        session = f"benchmark-{self.sessions}-{number:04d}-" + "0" * 20
        headers = {
            "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": session,
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
        }
        request = AWSRequest("POST", f"http://{self.host}{path}", data=body, headers=headers)
        SigV4Auth(self.credentials, "bedrock-agentcore", "us-east-1").add_auth(request)
        fields = dict(request.headers.items()) | {
            "Host": self.host,
            "User-Agent": "Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux#6.1 md/arch#x86_64 lang/python#3.11.7 "
            "md/pyimpl#CPython m/Z,b cfg/retry-mode#standard Botocore/1.44.5",
            "amz-sdk-invocation-id": f"6f1f9e0e-3e55-4fd9-9ea4-{number:012d}",
            "amz-sdk-request": "attempt=1; max=3",
            "Content-Length": str(len(body)),
        }
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        return head.encode() + body


class Client(asyncio.Protocol):
    """One connection, one request after the other; `length` is that of every answer's body."""

    transport: asyncio.Transport

    def __init__(self, request: bytes, length: int) -> None:
        self.request, self.length = request, length
        self.got = b""
        self.times: list[float] = []
        self.running = True
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def go(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.got = data = self.got + data if self.got else data
        if len(data) - data.find(b"\r\n\r\n") - 4 != self.length:
            if not data.startswith(b"HTTP/1.1 200 ") or len(data) > 1000 + self.length:
                self.done.set_exception(RuntimeError(repr(data[:500])))
            return
        self.got = b""
        now = time.perf_counter()
        self.times.append(now - self.began)
        if self.running:
            self.began = now
            self.transport.write(self.request)
        else:
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server closed the connection"))


async def answer_length(target: Target, request: bytes) -> int:
    """Of an answer's body; the second one, by when sessions and connections are there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    for _ in range(2):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()
    return length


def cpu(pids: Sequence[int]) -> float:
    """Seconds on a processor, of all their threads."""
    spent = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            spent += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return spent / 1e9


async def calls(target: Target, connections: int, seconds: float, body: bytes = BODY) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    clients = []
    for number in range(connections):
        request = target.request(number, body)
        length = await answer_length(target, request)

        def make(request: bytes = request, length: int = length) -> Client:
            return Client(request, length)

        _, client = await loop.create_connection(make, "127.0.0.1", target.port)
        clients.append(client)
    for client in clients:
        client.go()
    await asyncio.sleep(0.2)
    for client in clients:
        client.times.clear()
    began, spent = time.perf_counter(), cpu(target.pids)
    await asyncio.sleep(seconds)
    spent, took = cpu(target.pids) - spent, time.perf_counter() - began
    times = sorted(moment for client in clients for moment in client.times)
    for client in clients:
        client.running = False
    await asyncio.gather(*(client.done for client in clients))
    for client in clients:
        client.transport.abort()
    return {
        "cpu": spent / len(times) * 1e6,
        "p50": times[len(times) // 2] * 1e6,
        "p99": times[len(times) * 99 // 100] * 1e6,
        "per_second": len(times) / took,
    }


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median round of each figure; of CPU the cheapest, since others' load on the machine only ever adds to it."""
    return {
        name: round((min if name.startswith("cpu") else statistics.median)([one[name] for one in rounds]), 1)
        for name in rounds[0]
    }


async def measure(
    targets: Mapping[str, Target], seconds: float, rounds: int = ROUNDS, body: bytes = BODY
) -> dict[str, Any]:
    """By connections; what each target adds, and its share of the throughput, to "direct"."""
    figures: dict[str, Any] = {}
    for connections in (1, 32):
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
        for _ in range(rounds):
            for name, target in targets.items():
                measured[name].append(await calls(target, connections, seconds, body))
        found = {name: best(of) for name, of in measured.items()}
        direct = found["direct"]
        figures[f"c={connections}"] = {
            name: one
            | {
                "added_p50": round(one["p50"] - direct["p50"], 1),
                "throughput_ratio": round(one["per_second"] / direct["per_second"], 2),
            }
            for name, one in found.items()
        }
    return figures


def started(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@contextmanager
def stand(*, with_nginx: bool = True) -> Iterator[dict[str, Target]]:
    """The agent by itself, behind nginx as a plain proxy where there is one, and behind the platform."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def run(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
            process, known = started(*arguments)
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
            return process, known

        agent_process, at = run("agent")
        platform_process, known = run("platform", str(at["port"]), folder)
        host = f"127.0.0.1:{known['port']}"
        credentials = Credentials(known["key"], known["secret"])
        targets = {"direct": Target(at["port"], [agent_process.pid], host, known["arn"], credentials)}
        if with_nginx:
            try:
                nginx = stack.enter_context(Nginx(Path(folder) / "nginx", [at["port"]]))
            except FileNotFoundError as error:
                print(error)
            else:
                targets["nginx"] = Target(nginx.port, [nginx.worker], host, known["arn"], credentials)
        yield targets | {"platform": Target(known["port"], [platform_process.pid], host, known["arn"], credentials)}


def main(seconds: float) -> None:
    with stand() as targets:
        figures = uvloop.run(measure(targets, seconds))
    for name, figure in figures.items():
        print(name)
        for of, values in figure.items():
            print(f"  {of:17}", values)
    keep("invocation", figures)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["agent"]:
            uvloop.run(agent())
        case ["platform", port, folder]:
            uvloop.run(serve(int(port), Path(folder)))
        case [seconds]:
            main(float(seconds))
        case _:
            main(0.5)
