"""What it costs that planes are services: a session's request handed on by the runtime service, and a port's call.

Processes: Valkey; the memory service with its internal listener, and a session's listener of its own as embedded mode
has it; the runtime service's session listener with the relay; and this one. The same signed GetEvent is asked in turn
through both listeners, and `Keys.find` in turn as an object of this process and over HTTP. Figures stand beside one
another from one run; times in microseconds. `added` is what the relay, or the wire, adds at the median; `cpu` is of one
request, of both services' processes or of caller and service: it says more than times do on a machine with other work.

    python benchmarks/services.py [requests per measurement]

Aim: the relay adds less than 2 ms to a session's request at the median.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvloop
from _history import keep
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

from agentkeep.backend.backend import Switch
from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.distributed.secrets import Secrets, make_secrets
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.identity.access_keys.keys import AccessKeys
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.settings import IdentitySettings
from agentkeep.memory.plane import MemoryPlane
from agentkeep.service.application import Application
from agentkeep.service.asgi import Receive, Scope, Send
from agentkeep.service.authentication import Authenticator
from agentkeep.service.front import Front, Server
from agentkeep.service.internal import INTERNAL_LIMITS, InternalApplication
from agentkeep.service.ownership import PLANES
from agentkeep.service.ports.catalogue import KEYS
from agentkeep.service.ports.client import Peers
from agentkeep.service.ports.server import PortsApp
from agentkeep.service.relay import SessionRelay
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore
from agentkeep.wire import Router

SESSION = SessionRef("agent-0123456789", "session-" + "0" * 32)
ROUNDS = 6


def access_keys(store: ValkeyKeyValueStore, folder: Path, cache: float) -> AccessKeys:
    master = FileMasterKey.load_or_create(folder / "identity" / "master.key")
    return AccessKeys(store, master, Deployment(), SystemClock(), IdentitySettings(key_cache=cache))


# The other processes: each prints its ports as JSON and serves until its input ends.


async def memory_service(folder: Path, store_url: str) -> None:
    clock = SystemClock()
    store = ValkeyKeyValueStore(store_url)
    search = SqliteSearchStore(folder / "records.db", dimensions=None)
    keys = access_keys(store, folder, 5)
    plane = MemoryPlane(store, Deployment(), clock, search, key_service=LocalKeyService(bytes(32)))
    application = Application(Router(), Switch(SelfBackend(plane.operations)), Authenticator(keys))
    made = await plane.create_memory(operator("CreateMemory"), {"name": "bench", "eventExpiryDuration": 30})
    memory_id = made["memory"]["id"]
    event = await plane.create_event(
        operator("CreateEvent"),
        {
            "memoryId": memory_id,
            "actorId": "alice",
            "sessionId": "s",
            "eventTimestamp": clock.now(),
            "payload": [{"conversational": {"role": "USER", "content": {"text": "x" * 300}}}],
        },
    )

    async def nothing() -> list[str]:
        return []

    servers = []
    for name, ports in (("memory", {}), ("identity", {KEYS: access_keys(store, folder, 0)})):
        internal = InternalApplication(Secrets(folder / name, name).trusted(clock), nothing)
        internal.serve(application, PortsApp(ports))
        servers.append(Server(Front(internal, limits=INTERNAL_LIMITS)))
        await servers[-1].start()
    embedded = Front(application)
    await embedded.start()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(embedded.protocol(SESSION), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    path = f"/memories/{memory_id}/actor/alice/sessions/s/events/{event['event']['eventId'].replace('#', '%23')}"
    say({"memory": servers[0].url, "identity": servers[1].url, "embedded": f"http://127.0.0.1:{port}", "path": path})
    await asyncio.to_thread(sys.stdin.read)


def operator(operation: str) -> Call:
    caller = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/bench", acts_for_users=True)
    return Call("bedrock-agentcore", operation, caller, secrets.token_hex(8))


async def runtime_service(folder: Path, internal: str) -> None:
    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nothing is served here")

    credentials = Secrets(folder / "runtime", "runtime").credentials(SystemClock())
    relay = SessionRelay("runtime", nothing, Router(), credentials, dict.fromkeys(PLANES, internal))
    await relay.start()
    front = Front(relay)
    await front.start()
    listener = await asyncio.get_running_loop().create_server(front.protocol(SESSION), "127.0.0.1", 0)
    say({"relayed": f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"})
    await asyncio.to_thread(sys.stdin.read)


def say(document: dict[str, Any]) -> None:
    print(json.dumps({**document, "pid": os.getpid()}), flush=True)


# This one.


async def measured(call: Callable[[], Awaitable[Any]], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        times.append((time.perf_counter() - began) * 1e6)
    return times


async def compare(
    one: Callable[[], Awaitable[Any]], other: Callable[[], Awaitable[Any]], count: int, processes: Sequence[int]
) -> dict[str, Any]:
    """Rounds of both in turn, so that what else the machine does falls on both. `processes`: whose CPU is counted."""
    first: list[float] = []
    second: list[float] = []
    cpu = [0.0, 0.0]
    await measured(one, 50)
    await measured(other, 50)
    for _ in range(ROUNDS):
        before = cpu_seconds(processes)
        first += await measured(one, count // ROUNDS)
        between = cpu_seconds(processes)
        second += await measured(other, count // ROUNDS)
        cpu = [cpu[0] + between - before, cpu[1] + cpu_seconds(processes) - between]
    a, b = statistics.quantiles(first, n=100), statistics.quantiles(second, n=100)
    return {
        "p50": [round(a[49]), round(b[49])],
        "p95": [round(a[94]), round(b[94])],
        "added": round(b[49] - a[49]),
        "ratio": round(b[49] / a[49], 2),
        "cpu": [round(cpu[0] / len(first) * 1e6), round(cpu[1] / len(second) * 1e6)],
    }


def cpu_seconds(processes: Sequence[int]) -> float:
    return float(sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in processes))


async def benchmark(
    folder: Path, store_url: str, memory: dict[str, str], runtime: dict[str, str], count: int
) -> dict[str, Any]:
    clock = SystemClock()
    async with AsyncExitStack() as exit:
        store = ValkeyKeyValueStore(store_url)
        exit.push_async_callback(store.close)
        keys = access_keys(store, folder, 0)
        issued = await keys.issue_for_session(SESSION, User("alice"))
        request = AWSRequest("GET", "http://169.254.170.2" + memory["path"])
        key = Credentials(issued.access_key_id, issued.secret_access_key, issued.session_token)
        SigV4Auth(key, "bedrock-agentcore", "us-east-1").add_auth(request)
        headers = {**dict(request.headers.items()), "Host": "169.254.170.2"}
        http = await exit.enter_async_context(aiohttp.ClientSession())

        def ask(base: str) -> Callable[[], Awaitable[Any]]:
            async def call() -> None:
                async with http.get(URL(base + memory["path"], encoded=True), headers=headers) as answer:
                    body = await answer.read()
                    assert answer.status == 200, body

            return call

        credentials = Secrets(folder / "runtime", "runtime").credentials(clock)
        peers = Peers(credentials, dict.fromkeys(PLANES, memory["identity"]))
        await peers.start()
        exit.push_async_callback(peers.close)
        port = peers.port(KEYS)
        pids = (int(memory["pid"]), int(runtime["pid"]), os.getpid())
        return {
            "session's request: embedded, relayed": await compare(
                ask(memory["embedded"]), ask(runtime["relayed"]), count, pids[:2]
            ),
            "Keys.find: object, over HTTP": await compare(
                lambda: keys.find(issued.access_key_id), lambda: port.find(issued.access_key_id), count, pids[::2]
            ),
        }


def child(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def main() -> None:
    match sys.argv[1:]:
        case ["memory", folder, store_url]:
            uvloop.run(memory_service(Path(folder), store_url))
        case ["runtime", folder, internal]:
            uvloop.run(runtime_service(Path(folder), internal))
        case rest:
            run(int(rest[0]) if rest else 1800)


def run(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_secrets(folder, FileMasterKey.load_or_create, users=None)
        valkey = EmbeddedValkey(folder / "store", appendfsync="no")
        valkey.start_and_wait()
        children = []
        try:
            process, memory = child("memory", name, valkey.url)
            children.append(process)
            process, runtime = child("runtime", name, memory["memory"])
            children.append(process)
            figures = uvloop.run(benchmark(folder, valkey.url, memory, runtime, count))
        finally:
            for process in children:
                process.terminate()
                process.communicate()
            valkey.stop_and_wait()
    for what, found in figures.items():
        print(f"{what}: {found}")
    keep("services", figures)


if __name__ == "__main__":
    main()
