"""What short-term memory costs: CreateEvent and ListEvents, from the store to signed HTTP.

Three depths, in one run: the store's connection against redis-py's with the same commands; the operation on the store;
and the whole platform as `agentkeep up` starts it, a process of its own, asked with requests as boto3 signs and sends
them. Valkey syncs to disk before each acknowledgement, as embedded mode does. CPU is of the process that serves: what
one core's throughput follows from on a shared machine. Aims: CreateEvent below 250 us of the platform's CPU; memory
calls below 5 ms at p95.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import psutil
import uvloop
from _history import keep
from botocore.awsrequest import AWSResponse
from redis.asyncio import Redis

from agentkeep.core.call import Call, Caller, CallerKind, Idempotency
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.core.key_service_local import LocalKeyService
from agentkeep.embedded.valkey import EmbeddedValkey
from agentkeep.memory.plane import MemoryPlane
from agentkeep.storage.search_sqlite import SqliteSearchStore
from agentkeep.storage.valkey import ValkeyKeyValueStore

COMMAND = (sys.executable, "-m", "agentkeep.cli")
CALLS = 3000
CONCURRENCY = (1, 8, 32)
TEXT = "I would like to know where my order is; it was promised for last Tuesday. " * 4

OPERATOR = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/benchmark", acts_for_users=True)
CALL = Call("bedrock-agentcore", "CreateMemory", OPERATOR, "r")

Work = Callable[[int], Awaitable[object]]


def event(number: int, memory_id: str) -> dict[str, Any]:
    return {
        "memoryId": memory_id,
        "actorId": "alice",
        "sessionId": f"session-{number % 10}",
        "eventTimestamp": datetime.now(UTC),
        "payload": [{"conversational": {"content": {"text": TEXT}, "role": "USER"}}],
        "metadata": {"kind": {"stringValue": "question"}},
    }


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure(
    name: str, works: list[Work], server: psutil.Process, valkey: psutil.Process, calls: int = CALLS
) -> dict[str, Any]:
    """Each of `works` is a client with a connection of its own; they share the calls."""
    samples: list[float] = []
    numbers: Iterator[int] = iter(range(calls))

    async def client(work: Work) -> None:
        for number in numbers:
            started = time.perf_counter()
            await work(number)
            samples.append(time.perf_counter() - started)

    before, before_valkey, started = cpu_of(server), cpu_of(valkey), time.perf_counter()
    await asyncio.gather(*map(client, works))
    elapsed = time.perf_counter() - started
    samples.sort()
    figures = {
        "cpu_us": round((cpu_of(server) - before) / calls * 1e6, 1),
        "valkey_cpu_us": round((cpu_of(valkey) - before_valkey) / calls * 1e6, 1),
        "p50_ms": round(samples[calls // 2] * 1e3, 3),
        "p95_ms": round(samples[calls * 95 // 100] * 1e3, 3),
        "per_second": round(calls / elapsed),
    }
    print(
        f"{name:44} c={len(works):<3} cpu {figures['cpu_us']:6.1f} us   valkey {figures['valkey_cpu_us']:6.1f} us   "
        f"p50 {figures['p50_ms']:6.3f}  p95 {figures['p95_ms']:6.3f} ms   {figures['per_second']:6} /s"
    )
    return figures


class RedisPy:
    """redis-py in the place of the store's own connection."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, max_connections=64)

    async def execute(self, command: tuple[Any, ...], *, repeatable: bool) -> Any:
        return await self._redis.execute_command(*command)

    async def close(self) -> None:
        await self._redis.aclose()


async def in_process(folder: Path) -> dict[str, Any]:
    """The operation and the store in this process: its CPU includes this loop's."""
    figures: dict[str, Any] = {}
    own = psutil.Process()
    async with EmbeddedValkey(folder) as valkey:
        server = psutil.Process(valkey.pid)
        for client in ("own connection", "redis-py"):
            store = ValkeyKeyValueStore(valkey.url, prefix=f"{{{client}}}")
            if client == "redis-py":
                store._client = RedisPy(valkey.url)  # type: ignore[assignment]
            records = SqliteSearchStore(folder / f"{client}.db", dimensions=None)
            plane = MemoryPlane(store, Deployment(), SystemClock(), records, key_service=LocalKeyService(bytes(32)))
            created = await plane.create_memory(CALL, {"name": "benchmark", "eventExpiryDuration": 7})
            memory_id = created["memory"]["id"]

            async def create(number: int, plane: MemoryPlane = plane, memory_id: str = memory_id) -> None:
                token = Idempotency(f"{time.perf_counter_ns()}", b"x" * 32)
                await plane.create_event(
                    Call("bedrock-agentcore", "CreateEvent", OPERATOR, "r", token),
                    event(number, memory_id),  # type: ignore[arg-type]
                )

            async def listing(number: int, plane: MemoryPlane = plane, memory_id: str = memory_id) -> None:
                await plane.list_events(
                    CALL, {"memoryId": memory_id, "actorId": "alice", "sessionId": f"session-{number % 10}"}
                )

            for name, work in (("CreateEvent", create), ("ListEvents (20 of them)", listing)):
                await work(0)
                for clients in CONCURRENCY:
                    label = f"{name}, operation, {client}"
                    figures[f"{label}, c={clients}"] = await measure(label, [work] * clients, own, server)
            await plane.close()
            await records.close()
            await store.close()
    return figures


@contextmanager
def running_platform(data_dir: Path) -> Iterator[tuple[dict[str, str], psutil.Process, psutil.Process]]:
    """The platform on a free port: what `agentkeep env` prints, its process and its Valkey."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments, "--data-dir", str(data_dir)], check=True, capture_output=True, text=True, timeout=90
        )
        return done.stdout

    run("up", "--detach", "--port", "0")
    try:
        served = psutil.Process(int(json.loads((data_dir / "platform.json").read_text())["pid"]))
        (valkey,) = (child for child in served.children(recursive=True) if "valkey" in child.name())
        yield json.loads(run("env", "--json")), served, valkey
    finally:
        run("down")


def signed_requests(client: Any, operation: str, requests: list[dict[str, Any]]) -> list[bytes]:
    """The bytes boto3 would send."""
    sent: list[bytes] = []

    def capture(request: Any, **_: Any) -> AWSResponse:
        path = request.url.split("/", 3)[3]
        body = request.body or b""
        head = f"{request.method} /{path} HTTP/1.1\r\nHost: {request.url.split('/', 3)[2]}\r\n"
        for name, value in request.headers.items():
            head += f"{name}: {value.decode() if isinstance(value, bytes) else value}\r\n"
        sent.append(head.encode() + b"\r\n" + body)
        return AWSResponse(request.url, 400, {}, _Nothing())

    client.meta.events.register("before-send", capture)
    for request in requests:
        try:
            getattr(client, operation)(**request)
        except client.exceptions.ClientError:
            pass
    client.meta.events.unregister("before-send", capture)
    return sent


class _Nothing:
    def stream(self, **_: Any) -> Iterator[bytes]:
        return iter((b"{}",))


async def send_one(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], requests: list[bytes], number: int
) -> bytes:
    reader, writer = streams
    writer.write(requests[number])
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))[15:])
    body = await reader.readexactly(size)
    assert head.startswith(b"HTTP/1.1 20"), head + body
    return body


async def over_http(data_dir: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with running_platform(data_dir) as (variables, served, valkey):
        os.environ.update(variables)
        control, data = (boto3.client(name) for name in ("bedrock-agentcore-control", "bedrock-agentcore"))
        memory_id = control.create_memory(name="benchmark", eventExpiryDuration=7)["memory"]["id"]
        host, port = data.meta.endpoint_url.removeprefix("http://").split(":")
        pages = [{"memoryId": memory_id, "actorId": "alice", "sessionId": f"session-{n}"} for n in range(10)]

        for clients in CONCURRENCY:
            connections = [await asyncio.open_connection(host, int(port)) for _ in range(clients)]
            events = [event(number, memory_id) for number in range(CALLS)]
            for operation, requests in (("create_event", events), ("list_events", pages * (CALLS // 10))):
                # Each at most once, as boto3 has it: an equal request would be answered as a replay.
                bytes_sent = signed_requests(data, operation, requests)

                name = {"create_event": "CreateEvent", "list_events": "ListEvents (20 of them)"}[operation]
                label = f"{name}, signed HTTP"
                works = [partial(send_one, streams, bytes_sent) for streams in connections]
                figures[f"{label}, c={clients}"] = await measure(label, works, served, valkey)
            for _, writer in connections:
                writer.close()
    return figures


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = await in_process(Path(folder) / "valkey")
        figures |= await over_http(Path(folder) / "platform")
    keep("memory", figures)


if __name__ == "__main__":
    uvloop.run(main())
